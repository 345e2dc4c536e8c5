"""ONNX Runtime as the native executor: one session, weights handed over without a copy or a file."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto, helper

from passes.island_node import island_nodes
from passes.model import Model, is_file_map, is_stub
from rewriter.errors import InputError
from rewriter.runtime.mapped_weights import with_places
from rewriter.runtime.ort_values import from_ort_value, is_exotic, to_ort_value
from rewriter.runtime.other_errors import import_failure
from rewriter.runtime.strings import holds_no_text


class Session(Protocol):
    """What computes a model on the CPU; see `open_native`. Thread-safe."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Maps ONNX input names to arrays; returns ONNX output name -> array."""
        ...

    def end_profiling(self) -> Path:
        """Ends the recording that `profile` began; returns its file (JSON, Chrome trace events)."""
        ...


class NativeSession:
    """A model in ONNX Runtime on the CPU.

    Args:
        model: the graph; its large weights must not change while the session lives. ONNX Runtime makes one copy of
            them, mostly in another layout.
        outputs: graph outputs to compute; default all, in graph order.
        optimize: False switches ONNX Runtime's graph optimisations off.
        honest: True rounds exactly where the graph says so: no fusion passes over the Casts of an emulated model.
        threads: see `session_options`.
        profile: prefix of a file in which ONNX Runtime records every node that it runs, with shapes (bodies of
            control flow included); `end_profiling` finishes it.
        lean: True computes from the files of mapped weights, slower and without that copy: for a run or two.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        model: Model,
        outputs: Sequence[str] | None = None,
        *,
        optimize: bool = True,
        honest: bool = False,
        threads: int = 0,
        profile: Path | None = None,
        lean: bool = False,
    ) -> None:
        options = _options(optimize=optimize, honest=honest, threads=threads)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self._session, self._weights = open_session(model, options, ["CPUExecutionProvider"], lean=lean)
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(outputs or (o.name for o in self._session.get_outputs()))
        self._exotic_inputs = {i.name for i in self._session.get_inputs() if is_exotic(i.type)}
        self._exotic_outputs = any(
            is_exotic(o.type) for o in self._session.get_outputs() if o.name in self.output_names
        )

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Maps ONNX input names to arrays; returns ONNX output name -> array (thread-safe).

        Raises:
            InputError: strings that are no text: ONNX Runtime has UTF-8 only.
        """
        try:
            return self._run(feeds)
        except UnicodeEncodeError as error:
            name = next((n for n, value in feeds.items() if holds_no_text(value)), "?")
            raise InputError(f"input {name!r} holds bytes that are not UTF-8 text, which ONNX Runtime needs") from error

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        names = list(self.output_names)
        if self._exotic_outputs:
            values = {name: to_ort_value(np.asarray(value)) for name, value in feeds.items()}
            results = [from_ort_value(value) for value in self._session.run_with_ort_values(names, values)]
        else:
            given = {n: to_ort_value(v) if n in self._exotic_inputs else v for n, v in feeds.items()}
            results = self._session.run(names, given)
        return dict(zip(names, results, strict=True))

    def end_profiling(self) -> Path:
        """Ends the recording that `profile` began; returns its file (JSON, Chrome trace events)."""
        return Path(self._session.end_profiling())


def open_native(
    model: Model,
    outputs: Sequence[str] | None = None,
    *,
    optimize: bool = True,
    honest: bool = False,
    threads: int = 0,
    profile: Path | None = None,
    lean: bool = False,
) -> Session:
    """A session of any model: `NativeSession`, or one that calls TensorFlow for the island nodes of the model.

    Args:
        model: see `NativeSession`, as for all that follows.
        outputs: graph outputs to compute.
        optimize: ONNX Runtime's graph optimisations.
        honest: no fusion over Casts.
        threads: intra-op threads.
        profile: prefix of a record.
        lean: no copy of mapped weights.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed; or TensorFlow, and the model needs it.
        SourceError: an island of the model cannot be loaded.
        PassError: the model cannot be cut at its islands; the message says why.
    """
    kind: Any = NativeSession
    if any(True for _ in island_nodes(model.proto)):
        from rewriter.runtime.sectioned import SectionedSession

        kind = SectionedSession
    session: Session = kind(
        model, outputs, optimize=optimize, honest=honest, threads=threads, profile=profile, lean=lean
    )
    return session


def open_session(model: Model, options: Any, providers: Sequence[Any], *, lean: bool = False) -> tuple[Any, object]:
    """An ONNX Runtime session over a model whose large weights lie in arrays of their own.

    Args:
        model: the model; its weights must not change while the session lives.
        options: `onnxruntime.SessionOptions`; it is changed.
        providers: execution providers, the preferred one first.
        lean: the CPU computes from the files of mapped weights; see `rewriter.runtime.mapped_weights`.

    Returns:
        The session, and what must live as long as it: ONNX Runtime reads the weights where they lie.
    """
    ort = import_onnxruntime()
    proto = model.proto
    stubs = [t for t in proto.graph.initializer if is_stub(t)]
    arrays = {t.name: model.weights[t.name] for t in stubs}
    if lean:
        proto, left = with_places(model, options)
        stubs = [t for t in stubs if t.name in set(left)]
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(arrays[t.name]), t.data_type)
        for t in stubs
    ]
    if values:
        options.add_external_initializers([t.name for t in stubs], values)
    if _shows_convolutions(proto):
        # ONNX Runtime 1.32 takes such a value away when it fuses Conv, Add and Relu, and then cannot find it.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConvAddActivationFusion")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=list(providers))
    _drop_pages(arrays.values())
    return session, (arrays, values)


def _shows_convolutions(proto: ModelProto) -> bool:
    """True when the result of a convolution is an output of the model."""
    outputs = {value.name for value in proto.graph.output}
    return any(node.op_type == "Conv" and node.output[0] in outputs for node in proto.graph.node)


def _options(*, optimize: bool, honest: bool, threads: int) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Q/DQ pairs are computed as they are written. Left to itself ONNX Runtime quantises biases and, where only a
    # MatMul's weight is int8, the activations as well: errors of 0.1 and more that the model does not make.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads:
        options.intra_op_num_threads = threads
        # Threads that spin while they wait keep a core from whoever shares the machine; that somebody does is why
        # their number was said.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if honest:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def session_options(threads: int = 0) -> Any:
    """The `onnxruntime.SessionOptions` that every session of this package begins with.

    Args:
        threads: intra-op threads, the caller's own among them; they sleep while they wait. 0: as many as there are
            cores, spinning a while before they sleep, as ONNX Runtime would have it.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    return _options(optimize=True, honest=False, threads=threads)


def _drop_pages(arrays: Iterable[np.ndarray]) -> None:
    """Gives back the memory of mapped weights that were read while a session was made.

    Most were copied into another layout then and are never looked at again; the others come back by themselves.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    for array in arrays:
        # Only maps of files that are never written to: for any other memory this advice would lose data.
        if is_file_map(array) and advice is not None:
            array.base.madvise(advice)  # type: ignore[union-attr]


def evaluate(proto: ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a small self-contained model once, unoptimised: the evaluator that constant folding is given."""
    return NativeSession(Model(proto), optimize=False, threads=1).run(feeds)


def numpy_dtype(onnx_type: int) -> np.dtype[Any]:
    """The numpy dtype (ml_dtypes for bfloat16 and float8) of an onnx.TensorProto data type."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(onnx_type))


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingDependencyError: it is not installed, or it cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise import_failure(error, "onnxruntime", "ONNX Runtime", "cpu", "running models natively") from error
    return onnxruntime
