"""The source model itself as a function of public names: what converted models are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.comparing.comparison import Runner
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.frontend.callee import Callee
from rewriter.frontend.graph_def import NO_GRAPH_DEF, is_graph_file
from rewriter.source import SourceModel


@dataclasses.dataclass(frozen=True)
class Reference:
    """A source model that can be run.

    Attributes:
        origin: one line that says what it is.
        inputs: public names of its inputs, in the order of the signature.
        run: maps inputs to outputs, both by public name. A TensorFlow model is traced again at every call.
        source: an ONNX model as it was read; None for a TensorFlow model.
    """

    origin: str
    inputs: tuple[str, ...]
    run: Runner
    _callee: Callee | None = None
    source: SourceModel | None = None

    @property
    def callee(self) -> Callee | None:
        """What TensorFlow calls; None for an ONNX model."""
        return self._callee

    def samples(self) -> tuple[Mapping[str, np.ndarray], ...]:
        """Inputs that TensorFlow takes, made up; () for an ONNX model, which says what it takes.

        Raises:
            SourceError: TensorFlow took none of the guesses.
        """
        if self._callee is None:
            return ()
        from rewriter.frontend.noise import quiet
        from rewriter.frontend.samples import first_accepted, second_accepted
        from rewriter.frontend.symbols import dimension_symbols, other_sizes

        with quiet():
            first, plan = first_accepted(self._callee)
            symbols = dimension_symbols(self._callee, first)
            second = second_accepted(self._callee, plan, other_sizes(symbols, first)) if self._callee.inputs else None
        return tuple(run.inputs for run in (first, second) if run is not None)


def open_reference(
    path: str | Path,
    *,
    tags: str | Sequence[str] | None = None,
    signature_key: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Reference:
    """Reads a model without converting it.

    Args:
        path: a SavedModel directory, or a .keras, .h5, .hdf5, .pb, .pbtxt or .onnx file.
        tags: SavedModel only: its tag set; see `load_source`.
        signature_key: SavedModel only; see `load_source`.
        inputs: GraphDef file only: names of its inputs; see `load_source`.
        outputs: GraphDef file only: names of its outputs.

    Raises:
        SourceError: it cannot be read.
        InvalidParameterError: tags or a signature key for what is no SavedModel; inputs or outputs for what is no
            GraphDef.
        MissingDependencyError: TensorFlow or ONNX Runtime is needed and not installed.
    """
    path = Path(path)
    if is_graph_file(path) and path.is_file() and tags is None and signature_key is None:
        from rewriter.frontend import graph_def

        return _of_callee(graph_def.load(path, inputs, outputs))
    if inputs is not None or outputs is not None:
        raise InvalidParameterError(NO_GRAPH_DEF)
    keras_file = path.is_file() and path.suffix.lower() in (".keras", ".h5", ".hdf5")
    if keras_file and tags is None and signature_key is None:
        from rewriter.frontend import keras

        return _of_callee(keras.load(path, None))
    if path.is_dir():
        from rewriter.frontend import saved_model

        return _of_callee(saved_model.load(path, tags, signature_key))
    return _of_onnx(path, tags, signature_key)


def _of_callee(callee: Callee) -> Reference:
    from rewriter.frontend.noise import quiet
    from rewriter.frontend.samples import given_runs

    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        with quiet():
            return given_runs(callee, [dict(inputs)])[0].outputs

    return Reference(callee.origin, tuple(a.name for a in callee.inputs), run, callee)


def _of_onnx(path: Path, tags: Any, signature_key: str | None) -> Reference:
    """An ONNX file, in ONNX Runtime; `load_source` words the errors of everything else."""
    from rewriter.frontend import load_source
    from rewriter.runtime.inputs import to_feeds
    from rewriter.runtime.native import import_onnxruntime, open_native
    from rewriter.runtime.other_errors import first_line

    source = load_source(path, tags=tags, signature_key=signature_key)
    signature = source.signature
    import_onnxruntime()
    try:
        session = open_native(source.model)
    except Exception as error:  # ONNX Runtime's errors share no narrower base class
        raise ConversionError(f"ONNX Runtime refuses {path}: {first_line(error)}") from error

    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        feeds = to_feeds(signature, inputs)
        try:
            found = session.run(feeds)
        except Exception as error:
            raise ConversionError(f"ONNX Runtime cannot run {path} on these inputs: {first_line(error)}") from error
        return {spec.name: found[spec.tensor] for spec in signature.outputs}

    return Reference(source.origin, tuple(spec.name for spec in signature.inputs), run, source=source)
