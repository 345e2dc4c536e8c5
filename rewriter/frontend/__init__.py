"""Every kind of source model becomes a `SourceModel`; TensorFlow lives behind this door only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError, SourceError
from rewriter.frontend.graph_def import NO_GRAPH_DEF, is_graph, is_graph_file
from rewriter.frontend.grappler import GrapplerOptions
from rewriter.frontend.module import from_module, is_module
from rewriter.frontend.specialize import check_specialize, specialize_callee, specialize_onnx
from rewriter.source import Signature, SourceModel

__all__ = ["load_source"]

#: Characters of a path that can be none, in a message.
_SHOWN = 100
_KINDS = (
    "a SavedModel directory, a .keras, .h5, .pb, .pbtxt or .onnx file, a Keras or tf-keras model, a ConcreteFunction, "
    "a tf.function, a tf.Module, a frozen GraphDef or an onnx.ModelProto"
)


def load_source(
    source: Any,
    *,
    tags: str | Sequence[str] | None = None,
    signature_key: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    specialize: Mapping[str, int] | str | None = None,
    samples: Sequence[Any] | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    grappler: GrapplerOptions | None = None,
    islands: bool = True,
    keep_in_tensorflow: Sequence[str] = (),
    island_folder: str | os.PathLike[str] | None = None,
    check: Callable[[Signature], object] | None = None,
) -> SourceModel:
    """Reads a model and returns it as ONNX, with the signature that its user knows.

    TensorFlow sources are run on samples, frozen, exported and compared with TensorFlow's own results; the object
    given is not changed. ONNX sources need no TensorFlow and are not compared with anything.

    Args:
        source: a SavedModel directory, a .keras, .h5, .pb, .pbtxt or .onnx file, a Keras 3 or tf-keras model, a
            ConcreteFunction, a tf.function, a tf.Module, a loaded SavedModel, a frozen GraphDef (or a tf.Graph of
            one) or an onnx.ModelProto.
        tags: SavedModel only: its tag set ("serve", "serve,gpu" or a sequence); default "serve" or the only one.
        signature_key: SavedModel: default "serving_default" or the only one. tf.Module: the name of a tf.function;
            default "serving_default", `__call__` or the only one.
        inputs: GraphDef only: names of its input tensors or nodes ("x", "x:0"), in the order of the signature; default:
            the placeholders that the outputs need. The public name is the tensor's, without ":0".
        outputs: GraphDef only: the same of its outputs; default: the results that nobody reads.
        specialize: sizes for open dimensions, each by the name that the signature shows ("batch", "image_dim1") or as
            "input:axis" ("image:1"); also as a text, "batch=8,image:1=224". They are fixed before the export, which
            then needs no shape arithmetic for them. Names that TensorFlow must be asked for run the model once more.
        samples: sample inputs, each a dict by public input name, a tuple in signature order or a single array;
            default: made up until TensorFlow takes them. They also trace a tf.function without a signature.
        verify: False skips the comparison with TensorFlow.
        tolerance: largest max|difference| / max|reference| per output; default 1e-4, 1e-2 for graphs that
            compute in float16 or bfloat16, 3e-2 for those that emulate quantisation. Integers, booleans
            and strings must be equal.
        grappler: TensorFlow sources only: what TensorFlow's own graph optimiser does; None for the default.
        islands: TensorFlow sources only: True leaves what ONNX has no word for in TensorFlow; False refuses it.
        keep_in_tensorflow: TensorFlow operators that stay there in any case.
        island_folder: where the SavedModels of what stays go, in a new folder of its own, which the caller owns; None
            for a temporary folder, which goes when this process ends.
        check: called with what is known of the inputs as soon as the model is read: names and shapes, of TensorFlow
            sources neither dtypes (0) nor names of dimensions, and no outputs. What it raises ends all work.

    Raises:
        InvalidParameterError: no samples in `samples`; tags or a signature key for what is no SavedModel; inputs or
            outputs for what is no GraphDef; a name in `specialize` that the model has not.
        SourceError: the source cannot be read.
        ExportError: it cannot be expressed in ONNX; the message names the ops.
        VerificationError: the export computes something else; the message names the outputs.
        InputError: `samples` do not fit the signature.
        MissingDependencyError: TensorFlow, tf2onnx or ONNX Runtime is needed and not installed.
    """
    _check_arguments(source, tags, signature_key, inputs, outputs, samples)
    sizes = check_specialize(specialize)
    if isinstance(source, ModelProto):
        from rewriter.frontend import onnx as onnx_source

        return _checked(specialize_onnx(onnx_source.from_proto(source), sizes), check)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.suffix.lower() == ".onnx" and path.is_file():
            from rewriter.frontend import onnx as onnx_source

            return _checked(specialize_onnx(onnx_source.load(path), sizes), check)
    from rewriter.frontend.noise import collector_paused
    from rewriter.frontend.tensorflow import Clock, Options, convert

    folder = None if island_folder is None else Path(island_folder)
    options = Options(samples, verify, tolerance, grappler, islands, tuple(keep_in_tensorflow), folder)
    clock = Clock()
    with collector_paused():
        with clock.stage("load"):
            if isinstance(source, (str, os.PathLike)):
                callee = _from_path(Path(source), tags, signature_key, samples, (inputs, outputs))
            else:
                callee = _from_object(source, signature_key, samples, (inputs, outputs))
            callee = specialize_callee(callee, sizes, samples)
        if check is not None:
            known = tuple(TensorSpec(item.name, TensorProto.UNDEFINED, item.shape) for item in callee.inputs)
            check(Signature(known, (), callee.name))
        return convert(callee, options, clock)


def _check_arguments(source: Any, tags: Any, signature_key: Any, inputs: Any, outputs: Any, samples: Any) -> None:
    """Refuses paths that can be none, no samples, and arguments that have no meaning for this kind of source."""
    if isinstance(source, (str, os.PathLike)):
        _check_path(source)
    if samples is not None and len(samples) == 0:
        raise InvalidParameterError("samples is an empty list: pass at least one sample, or None")
    by_name = _is_saved_model(source) or (tags is None and _is_plain_module(source))
    if (tags is not None or signature_key is not None) and not by_name:
        raise InvalidParameterError(
            "tags (--tags) and signature_key (--signature) name a part of a SavedModel, and the source is none"
        )
    if (inputs is not None or outputs is not None) and not _is_graph_def(source):
        raise InvalidParameterError(NO_GRAPH_DEF)


def _checked(source: SourceModel, check: Callable[[Signature], object] | None) -> SourceModel:
    if check is not None:
        check(source.signature)
    return source


def _check_path(path: str | os.PathLike[str]) -> None:
    """Refuses what can be no path at all; whether something lies there is asked later.

    Raises:
        SourceError: it is empty, or the system refuses it (a null byte, too long, a loop of links, no permission).
    """
    text = os.fspath(path)
    if not text:
        raise SourceError("the source is an empty path")
    try:
        Path(text).stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise SourceError(f"the source {shown!r} cannot be read: {getattr(error, 'strerror', '') or error}") from error


def _is_saved_model(source: Any) -> bool:
    """True where tags or a signature key have a meaning: directories (or no file at all) and loaded SavedModels."""
    if isinstance(source, (str, os.PathLike)):
        return not Path(source).is_file()
    return hasattr(source, "signatures")


def _is_plain_module(source: Any) -> bool:
    """True for a tf.Module that is no Keras model: its functions have names."""
    from rewriter.frontend import keras

    return is_module(source) and keras.kind_of(source) is None


def _is_graph_def(source: Any) -> bool:
    """True for GraphDefs and their files."""
    if isinstance(source, (str, os.PathLike)):
        return is_graph_file(Path(source)) and not Path(source).is_dir()
    return is_graph(source)


def _from_path(
    path: Path, tags: Any, signature_key: str | None, samples: Sequence[Any] | None, ports: tuple[Any, Any]
) -> Any:
    if not path.exists():
        raise SourceError(f"no such file or directory: {path}")
    if path.is_dir():
        from rewriter.frontend import saved_model

        return saved_model.load(path, tags, signature_key)
    suffix = path.suffix.lower()
    if suffix in (".keras", ".h5", ".hdf5"):
        from rewriter.frontend import keras

        return keras.load(path, samples)
    if path.name == "saved_model.pb":
        raise SourceError(f"{path} is a part of a SavedModel: pass its directory {str(path.parent)!r}")
    if is_graph_file(path):
        from rewriter.frontend import graph_def

        return graph_def.load(path, *ports)
    raise SourceError(f"{path} is of no known kind: pass {_KINDS}")


def _from_object(source: Any, signature_key: str | None, samples: Sequence[Any] | None, ports: tuple[Any, Any]) -> Any:
    from rewriter.frontend import graph_def, keras

    if is_graph(source):
        return graph_def.from_object(source, *ports)
    if keras.kind_of(source) is not None:
        return keras.from_model(source, samples)
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if is_module(source):
        return from_module(source, signature_key, samples)
    if type(source).__module__.split(".")[0] == "tensorflow":
        from rewriter.frontend import callee, saved_model

        if hasattr(source, "structured_input_signature") and hasattr(source, "captured_inputs"):
            return callee.from_concrete_function(source, f"ConcreteFunction {_name_of(source)}")
        if hasattr(source, "get_concrete_function") and hasattr(source, "input_signature"):
            return callee.from_function(source, samples)
        if hasattr(source, "signatures"):
            return saved_model.from_loaded(source, "loaded SavedModel", signature_key)
    raise SourceError(f"an object of type {kind} cannot be converted: pass {_KINDS}")


def _name_of(function: Any) -> str:
    """The Python name behind a ConcreteFunction's, as far as it shows."""
    name = function.name
    return (name.decode() if isinstance(name, bytes) else str(name)).removeprefix("__inference_")
