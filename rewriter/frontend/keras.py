"""Keras models: Keras 3 and tf-keras, as objects and as files."""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.callee import Callee, from_structure, import_quietly, import_tensorflow, specs_of
from rewriter.frontend.noise import quiet
from rewriter.frontend.samples import one_line
from rewriter.frontend.structure import leaves, rebuild

#: The first bytes of an HDF5 file (File Format Specification, "Superblock").
_HDF5 = b"\x89HDF\r\n\x1a\n"


def kind_of(model: Any) -> str | None:
    """Which Keras an object belongs to, "keras" or "tf_keras"; None for no layer or model. Imports nothing."""
    for base in type(model).__mro__:
        package = base.__module__.split(".")[0]
        if package in ("keras", "tf_keras") and base.__name__ in ("Model", "Layer"):
            return package
    return None


def load(path: Path, samples: Sequence[Any] | None) -> Callee:
    """A .keras, .h5 or .hdf5 file: read by the Keras that wrote it (its version tells), else by the other one.

    Raises:
        SourceError: damaged, or neither reads it; the message has the words of both.
        MissingDependencyError: TensorFlow is not installed or cannot be loaded.
    """
    check_container(path)
    import_tensorflow()
    told = []
    cause: BaseException | None = None
    for package in loaders(path):
        try:
            module = _import(package)
            with quiet():
                model = module.models.load_model(str(path), compile=False)
        except Exception as error:  # noqa: BLE001 - a file of another version fails in any way; both are told
            told.append(f"{package}: {_own_words(error)}")
            cause = cause or error
            continue
        return from_model(model, samples, f"{'Keras' if package == 'keras' else 'tf-keras'} file {path}")
    raise SourceError(
        f"no Keras can read {path} ({'; '.join(told)}). For custom layers, load the model with custom_objects "
        "yourself and pass the object"
    ) from cause


def loaders(path: Path) -> tuple[str, str]:
    """The packages to read a file with, in order: tf-keras first where Keras 2 wrote it."""
    return ("tf_keras", "keras") if _written_version(path).startswith(("1.", "2.")) else ("keras", "tf_keras")


def _written_version(path: Path) -> str:
    """The version of Keras that a file says wrote it; empty where it says nothing."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
        import h5py  # type: ignore[import-untyped]  # comes with TensorFlow

        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version", "")
            return version.decode() if isinstance(version, bytes) else str(version)
    except (OSError, KeyError, ValueError, AttributeError, ImportError):
        return ""  # damaged or of another make: the loaders say more


def check_container(path: Path) -> None:
    """Looks at the outer format of a Keras file: a zip archive, or HDF5, as its suffix says.

    Older tf-keras wrote HDF5 into .keras files as well, so these may be both.

    Raises:
        SourceError: it is neither; or it cannot be read.
    """
    try:
        is_zip, is_hdf5 = zipfile.is_zipfile(path), _is_hdf5(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if is_hdf5:
        return
    if path.suffix.lower() != ".keras":
        advice = "it is a zip archive, so name it .keras" if is_zip else "copy or save it again"
        raise SourceError(f"{path} is damaged: not an HDF5 file (a {path.suffix} file is one); {advice}")
    if not is_zip:
        raise SourceError(f"{path} is damaged: not a zip archive (a .keras file is one); copy or save it again")


def _is_hdf5(path: Path) -> bool:
    """True when the HDF5 signature stands at the start, or at 512, 1024, 2048 ... bytes behind a block of the user."""
    size = path.stat().st_size
    offset = 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            if file.read(len(_HDF5)) == _HDF5:
                return True
            offset = max(offset * 2, 512)
    return False


def _own_words(error: Exception) -> str:
    """The telling end of a Keras error: it prints whole configurations before the cause."""
    return one_line(str(error).rpartition("Exception encountered:")[2] or error)


def from_model(model: Any, samples: Sequence[Any] | None, origin: str | None = None) -> Callee:
    """A Keras 3 or tf-keras model object, called with training=False.

    Raises:
        SourceError: Keras runs on another backend than TensorFlow; or the model has never been built.
    """
    package = kind_of(model)
    origin = origin or f"{'Keras' if package == 'keras' else 'tf-keras'} model {model.name}"
    if package == "keras":
        backend = _import("keras").backend.backend()
        if backend != "tensorflow":
            raise SourceError(
                f"{origin} runs on Keras backend {backend}: set KERAS_BACKEND=tensorflow before importing keras"
            )
        args, kwargs = _keras_arguments(model, samples, origin)
        names = None
    else:
        args, kwargs = _tf_keras_arguments(model, samples, origin)
        names = getattr(model, "output_names", None)
    call = _inference(model)
    return from_structure(
        call,
        args,
        kwargs,
        origin=origin,
        output_names=names,
        batch_is_shared=True,
        owner=model,
        notes=_sparse_notes(model),
    )


def _sparse_notes(model: Any) -> tuple[str, ...]:
    """What is told of Keras 3 inputs that were declared sparse; tf-keras has specs of their own for them."""
    structure = getattr(model, "_inputs_struct", None)
    sparse = [str(leaf.name) for _, leaf in leaves(structure) if getattr(leaf, "sparse", False)]
    return tuple(f"input {name!r} was declared sparse: dense arrays are taken in its place" for name in sparse)


def _inference(model: Any) -> Any:
    """The model's call with training switched off where it has such a switch."""
    try:
        parameters = dict(inspect.signature(model.call).parameters)
    except (TypeError, ValueError):
        parameters = {}
    if "training" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return model
    return lambda *args, **kwargs: model(*args, **kwargs, training=False)


def _keras_arguments(model: Any, samples: Sequence[Any] | None, origin: str) -> tuple[Any, Any]:
    """Arguments of a Keras 3 model as TensorSpecs."""
    tf = import_tensorflow()
    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        names = [str(leaf.name) for _, leaf in leaves(structure)]
        named = iter(_dictionary_names(structure, names))

        def spec(tensor: Any) -> Any:
            return tf.TensorSpec(tuple(tensor.shape), tensor.dtype, name=next(named))

        return (rebuild(structure, spec),), {}
    if getattr(model, "inputs", None):
        specs = [tf.TensorSpec(tuple(t.shape), t.dtype, name=str(t.name)) for t in model.inputs]
        return ((specs[0] if len(specs) == 1 else specs),), {}
    if samples:
        return _from_samples(samples)
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes:
        raise SourceError(f"{origin} has never been called: call it once on data, or pass samples=[...]")
    dtype = getattr(model, "input_dtype", None) or "float32"
    kwargs = {}
    for key, shape in shapes.items():
        name = key.removesuffix("_shape")
        kwargs[name] = rebuild_shapes(shape, lambda dims, name=name: tf.TensorSpec((None, *dims[1:]), dtype, name=name))
    first, *rest = kwargs.items()
    return (first[1],), dict(rest)


def rebuild_shapes(shape: Any, make: Any) -> Any:
    """Maps a nested structure whose leaves are shapes (tuples or lists of numbers and None)."""
    if isinstance(shape, Mapping):
        return {key: rebuild_shapes(value, make) for key, value in shape.items()}
    if all(isinstance(d, int) or d is None for d in shape):
        return make(tuple(shape))
    return [rebuild_shapes(value, make) for value in shape]


def _tf_keras_arguments(model: Any, samples: Sequence[Any] | None, origin: str) -> tuple[Any, Any]:
    """Arguments of a tf-keras model as TensorSpecs, named as its SavedModel signature names them."""
    tf = import_tensorflow()
    specs = model.save_spec() if hasattr(model, "save_spec") else None
    if specs is None:
        if samples:
            return _from_samples(samples)
        raise SourceError(f"{origin} has never been called: call it once on data, or pass samples=[...]")
    args, kwargs = specs
    names = getattr(model, "input_names", None)
    flat = [leaf for _, leaf in leaves((args, kwargs)) if isinstance(leaf, tf.TensorSpec)]
    if not names or len(names) != len(flat):
        names = [leaf.name for leaf in flat]
    feed = iter(names)

    def spec(leaf: Any) -> Any:
        return tf.TensorSpec(leaf.shape, leaf.dtype, name=next(feed)) if isinstance(leaf, tf.TensorSpec) else leaf

    return rebuild(args, spec), rebuild(kwargs, spec)


def _dictionary_names(structure: Any, names: list[str]) -> list[str]:
    """Inputs given as a dictionary are called by its keys, others by their Keras tensors."""
    if isinstance(structure, Mapping):
        return [str(path[-1]) for path, _ in leaves(structure)]
    return names


def _from_samples(samples: Sequence[Any]) -> tuple[Any, Any]:
    """Arguments for a model that was never built; its batch is left open."""
    tf = import_tensorflow()
    args, kwargs = specs_of(samples)

    def open_batch(spec: Any) -> Any:
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name=spec.name) if spec.shape.rank else spec

    return rebuild(args, open_batch), rebuild(kwargs, open_batch)


def _import(package: str) -> Any:
    return import_quietly(package, {"tf_keras": "tf-keras"}.get(package, "Keras"), "reading a Keras model")
