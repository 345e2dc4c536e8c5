"""SavedModel directories: what is in them, and clear words about what is not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.callee import (
    Callee,
    from_concrete_function,
    from_structure,
    import_tensorflow,
    reference_variables,
)
from rewriter.frontend.control_flow import in_place
from rewriter.frontend.noise import quiet
from rewriter.frontend.samples import one_line
from rewriter.rescuing import needs_rescue
from rewriter.rescuing.temporary import TemporaryRescue

#: What TensorFlow says of variables that are cut off, changed, or not there.
_DAMAGED_VARIABLES = (
    "Read less bytes than requested",
    "Checksum does not match",
    "checksum mismatch",
    "an sstable",
    "Failed to find any matching files for",
    "variables.data-",
)
_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")


def load(path: Path, tags: str | Sequence[str] | None, signature_key: str | None) -> Callee:
    """A signature of the SavedModel in `path`, freshly loaded.

    One that TF-TRT wrote is rescued first, into a temporary folder that lives as long as the callee; its notes say what
    TF-TRT recorded of the conversion.

    Args:
        path: the directory.
        tags: a tag set, as a sequence or comma-separated; None for "serve", or the only one there is.
        signature_key: None for "serving_default", or the only one there is.

    Raises:
        SourceError: no SavedModel, damaged, wrong tags, wrong signature, an engine of TF-TRT without its segment.
    """
    if not any((path / name).is_file() for name in _FILES):
        raise SourceError(_not_a_saved_model(path))
    tf = import_tensorflow()
    chosen = _choose_tags(path, _tag_sets(path), tags)
    rescued = TemporaryRescue(path) if needs_rescue(path) else None
    with quiet():
        try:
            loaded = tf.saved_model.load(str(rescued.path if rescued else path), tags=list(chosen))
        except Exception as error:
            raise SourceError(_load_failure(path, error)) from error
    origin = f"SavedModel {path}, tags {','.join(chosen) or '(none)'}"
    callee = from_loaded(loaded, origin, signature_key)
    if rescued is None:
        return callee
    # Assets may be read long after loading, so the folder goes with the model.
    return dataclasses.replace(callee, owner=(callee.owner, rescued), notes=(*rescued.report.notes, *callee.notes))


def from_loaded(loaded: Any, origin: str, signature_key: str | None) -> Callee:
    """A signature of a loaded SavedModel.

    Raises:
        SourceError: there is no such signature; the message lists those there are with inputs and outputs.
    """
    signatures = {k: f for k, f in loaded.signatures.items() if not k.startswith("__")}
    key = signature_key
    if key is None:
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        if key != "serving_default" and len(signatures) > 1:
            raise SourceError(f"{origin} has several signatures, name one: {_listed(signatures)}")
    if key is None:
        traces = getattr(vars(type(loaded)).get("__call__"), "concrete_functions", ())
        if traces:
            return from_concrete_function(traces[0], f"{origin}, function __call__", "__call__")
        raise SourceError(
            f"{origin} has no signature: save it with tf.saved_model.save(model, path, signatures=function)"
        )
    if key not in signatures:
        raise SourceError(f"{origin} has no signature {key!r}; it has: {_listed(signatures) or 'none'}")
    return _from_signature(signatures[key], f"{origin}, signature {key}", key, loaded)


def _from_signature(function: Any, origin: str, key: str, loaded: Any) -> Callee:
    """One signature, in a stable order.

    A SavedModel keeps inputs and outputs in protobuf maps, whose order differs from process to process. The order
    of inputs is that of the function's arguments; outputs come sorted by name, as TensorFlow itself flattens them.
    """
    _, specs = function.structured_input_signature
    keywords = list(getattr(function, "_arg_keywords", None) or ())
    order = keywords if sorted(keywords) == sorted(specs) else sorted(specs)

    references = reference_variables(function)
    run = in_place(function, references)

    def call(**tensors: Any) -> dict[str, Any]:
        return dict(sorted(run(**tensors).items()))

    named = {name: specs[name] for name in order}
    callee = from_structure(call, (), named, origin=origin, name=key, reference_variables=references)
    # The loaded object owns the variables and tables that the signature only refers to.
    return dataclasses.replace(callee, owner=(loaded, function))


def _listed(signatures: dict[str, Any]) -> str:
    """Signature keys with their inputs and outputs, in one line."""
    parts = []
    for key, function in signatures.items():
        _, inputs = function.structured_input_signature or ((), {})
        outputs = function.structured_outputs
        named = ", ".join(sorted(inputs)), ", ".join(sorted(outputs) if isinstance(outputs, dict) else ["output_0"])
        parts.append(f"{key}({named[0]} -> {named[1]})")
    return "; ".join(sorted(parts))


def signature_keys(path: Path, tags: str | Sequence[str] | None) -> tuple[str, ...]:
    """The keys of the signatures in a SavedModel directory, TensorFlow's own ("__...") included.

    Raises:
        SourceError: no SavedModel, damaged, wrong tags.
    """
    if not any((path / name).is_file() for name in _FILES):
        raise SourceError(_not_a_saved_model(path))
    import_tensorflow()
    metas = _meta_graphs(path)
    chosen = _choose_tags(path, [tuple(meta.meta_info_def.tags) for meta in metas], tags)
    meta = next(meta for meta in metas if tuple(meta.meta_info_def.tags) == chosen)
    return tuple(sorted(meta.signature_def))


def _tag_sets(path: Path) -> list[tuple[str, ...]]:
    """The tag sets of the SavedModel, in file order."""
    return [tuple(meta.meta_info_def.tags) for meta in _meta_graphs(path)]


def _meta_graphs(path: Path) -> list[Any]:
    """The graphs of a SavedModel, one for each tag set."""
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    try:
        with quiet():
            proto = parse_saved_model(str(path))
    except Exception as error:
        raise SourceError(
            f"the SavedModel in {path} is damaged ({one_line(error)}): copy or export it again"
        ) from error
    if not proto.meta_graphs:
        raise SourceError(f"the SavedModel in {path} is damaged (it holds no graph): copy or export it again")
    return list(proto.meta_graphs)


def _choose_tags(path: Path, available: list[tuple[str, ...]], tags: str | Sequence[str] | None) -> tuple[str, ...]:
    listed = "; ".join(",".join(sorted(t)) or "(none)" for t in available)
    if tags is None:
        for candidate in available:
            if set(candidate) == {"serve"}:
                return candidate
        if len(available) == 1:
            return available[0]
        raise SourceError(f"the SavedModel in {path} has several tag sets, name one: {listed}")
    wanted = tags.split(",") if isinstance(tags, str) else list(tags)
    wanted = [tag.strip() for tag in wanted if tag.strip()]
    for candidate in available:
        if set(candidate) == set(wanted):
            return candidate
    raise SourceError(f"the SavedModel in {path} has no tag set {','.join(wanted) or '(none)'!r}; it has: {listed}")


def _not_a_saved_model(path: Path) -> str:
    """Why the directory is none, with a hint from what lies in it."""
    names = sorted(p.name for p in path.iterdir())
    hint = "it is empty" if not names else "it holds " + ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    models = [n for n in names if n.endswith((".onnx", ".keras", ".h5", ".hdf5"))]
    inner = [p.parent.name for p in sorted(path.glob("*/saved_model.pb"))]
    if len(models) == 1:
        hint += f"; for the file, pass {str(path / models[0])!r}"
    elif inner:
        hint += f"; the SavedModel lies deeper, pass {str(path / inner[-1])!r}"
    elif "keras_metadata.pb" in names:
        hint += "; keras_metadata.pb is left of a Keras SavedModel whose saved_model.pb is gone"
    return f"{path} is no SavedModel: a SavedModel is a directory with saved_model.pb and variables/, but {hint}"


def _load_failure(path: Path, error: Exception) -> str:
    text = str(error)
    if "Op type not registered" in text:
        return f"the SavedModel in {path} uses an op of a library that is not loaded: {one_line(error)}"
    if any(words in text for words in _DAMAGED_VARIABLES):
        return (
            f"the variables of the SavedModel in {path} are damaged or missing (variables/variables.*; "
            f"TensorFlow says: {_told(error)}): copy or export it again"
        )
    return f"TensorFlow cannot load the SavedModel in {path}: {one_line(error)}"


def _told(error: Exception) -> str:
    """TensorFlow's words without the names of its own functions around them."""
    return re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\]", "", one_line(error)).strip()
