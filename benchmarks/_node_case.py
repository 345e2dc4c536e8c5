"""One node test of the onnx package through the whole pipeline, judged by ONNX Runtime on the original model."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import relative_difference
from onnx import numpy_helper

#: Differences up to this are rounding (folding and legalisation may reorder float arithmetic); more is wrong.
ROUNDING = 1e-5

#: Outcomes that must not happen.
BAD = ("wrong", "error", "crash", "hang")


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Attributes:
        name: the case.
        outcome: "built" (all in engines), "partly built", "accepted" (nothing was built because nobody asked),
            "build failed", "denied", "no nodes" (folded away), "refused" (a ConversionError although ONNX Runtime
            runs the model), "not runnable" (ONNX Runtime does not run the original; the pipeline did not crash), or
            one of `BAD`.
        detail: the reason in words, where there is one.
        ops: op types of the original graph.
        nodes: nodes after the passes.
        engine_nodes: nodes inside engines that were built (accepted, when nothing was built).
        denials: (rule, reason, op_type) -> number of native nodes.
        without_reason: native nodes that have none; must be empty.
        exact: outputs bit-equal to the original's.
        difference: largest relative difference from the original in ONNX Runtime.
        random: the original gives other values in every session, so only dtypes and shapes were compared.
        as_expected: ONNX Runtime itself gives what the test expects; None when that was not compared.
        seconds: wall time.
    """

    name: str
    outcome: str
    detail: str = ""
    ops: tuple[str, ...] = ()
    nodes: int = 0
    engine_nodes: int = 0
    denials: tuple[tuple[str, str, str, int], ...] = ()
    without_reason: tuple[str, ...] = ()
    exact: bool = True
    difference: float = 0.0
    random: bool = False
    as_expected: bool | None = None
    seconds: float = 0.0


def brief(results: Sequence[Any]) -> list[dict[str, Any]]:
    """Results as short plain mappings: without what every case has anyway (the defaults), and without the operators."""
    defaults = {field.name: field.default for field in dataclasses.fields(CaseResult)}
    entries = []
    for result in results:
        told = dataclasses.asdict(dataclasses.replace(result, ops=(), seconds=round(result.seconds, 3)))
        entries.append({name: value for name, value in told.items() if value != defaults.get(name)})
    return entries


def from_brief(entries: Sequence[Mapping[str, Any]]) -> list[CaseResult]:
    """Back from what `brief` made, also after JSON (lists instead of tuples)."""
    return [
        CaseResult(
            **{
                **entry,
                "denials": tuple(tuple(denial) for denial in entry.get("denials", ())),
                "without_reason": tuple(entry.get("without_reason", ())),
            }
        )
        for entry in entries
    ]


class WrongResultError(AssertionError):
    """The converted model computes something else than the original."""


def load_cases(pattern: str = "") -> list[Any]:
    """The node tests of the installed onnx package whose name matches the regular expression, by name."""
    import warnings

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # making the expected values overflows and divides by zero on purpose
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    return sorted((c for c in cases if re.search(pattern, c.name)), key=lambda c: c.name)


def run_case(case: Any, backend: Any, folder: Path, *, build: bool = True) -> CaseResult:
    """Converts, builds, saves, loads and runs one case and compares with the original in ONNX Runtime.

    Args:
        case: an `onnx.backend.test` TestCase with its model and data sets.
        backend: an open `rewriter` backend, used for all cases.
        folder: an empty folder for the artifact.
        build: False stops at the accepted segments.
    """
    from rewriter import ConversionError

    ops = tuple(sorted({node.op_type for node in case.model.graph.node}))
    feeds, expected = _data(case)
    try:
        first = run_onnxruntime(case.model.SerializeToString(), feeds)
        second = run_onnxruntime(case.model.SerializeToString(), feeds)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises classes of its own; any of them is the answer
        return _without_judge(case, backend, feeds, ops, _line(error))
    random = not _compare(second, first).exact
    as_expected = None if random else _matches(first, expected, case)
    base = CaseResult(case.name, "", ops=ops, random=random, as_expected=as_expected)
    try:
        return _convert_and_compare(case, backend, folder, feeds, first, base, build)
    except WrongResultError as error:
        return dataclasses.replace(base, outcome="wrong", detail=_line(error), exact=False)
    except ConversionError as error:
        return dataclasses.replace(base, outcome="refused", detail=_line(error))
    except Exception as error:  # noqa: BLE001 - anything else is a defect of the program and must be reported as one
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {_line(error)} ({Path(where.filename).name}:{where.lineno})"
        return dataclasses.replace(base, outcome="error", detail=detail)


def run_onnxruntime(model: bytes | str, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of a model (bytes or path) in plain ONNX Runtime with its default options."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    types = [value.type for value in (*session.get_inputs(), *session.get_outputs())]
    if all(kind.startswith("tensor(") and kind != "tensor(string)" for kind in types):
        given = {name: to_ort_value(value) for name, value in feeds.items()}
        return dict(zip(names, map(from_ort_value, session.run_with_ort_values(names, given)), strict=True))
    return {name: _readable(value) for name, value in zip(names, session.run(names, dict(feeds)), strict=True)}


def to_ort_value(array: np.ndarray) -> Any:
    """A tensor for ONNX Runtime; dtypes that numpy itself lacks (bfloat16, float8, int4, int2) are copied as bits."""
    import onnxruntime as ort

    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    tensor = numpy_helper.from_array(array)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), tensor.data_type)
    ctypes.memmove(value.data_ptr(), tensor.raw_data, len(tensor.raw_data))
    return value


def from_ort_value(value: Any) -> np.ndarray:
    """The inverse of `to_ort_value`."""
    kind = value.element_type()
    if np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).isbuiltin == 1:
        return np.asarray(value.numpy())
    bits = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if 0 not in value.shape() else b""
    return numpy_helper.to_array(onnx.TensorProto(data_type=kind, dims=value.shape(), raw_data=bits))


def _convert_and_compare(
    case: Any, backend: Any, folder: Path, feeds: Mapping[str, Any], original: Mapping[str, Any], base: CaseResult,
    build: bool,
) -> CaseResult:  # fmt: skip
    from rewriter import Converter
    from rewriter import load as load_artifact

    with Converter(model=case.model, minimum_segment_size=1, backend=backend, progress=False) as converter:
        function = converter.convert()
        if build:
            converter.build(lambda: iter([dict(feeds)]))
        artifact = converter.save(folder / "artifact")
        report = converter.report
        answers = [function(dict(feeds))]
        function.close()
    onnx.checker.check_model(str(artifact / "model.onnx"), full_check=True)
    answers.append(run_onnxruntime(str(artifact / "model.onnx"), feeds))
    with load_artifact(artifact) as loaded:
        answers.append(loaded(dict(feeds)))
    comparisons = [_compare(answer, original, base.random) for answer in answers]
    engine_nodes = sum(e.nodes for e in report.engines if e.built or not build)
    denials = Counter((v.rule, generalise(v.reason, v.node, v.op_type), v.op_type) for v in report.native)
    for engine in report.engines:
        if build and not engine.built:
            for op, count in engine.op_counts.items():
                denials["build", generalise(engine.reason), op] += count
    return dataclasses.replace(
        base,
        outcome=_outcome(report, build, engine_nodes),
        nodes=report.total_nodes,
        engine_nodes=engine_nodes,
        denials=tuple((*key, count) for key, count in sorted(denials.items())),
        without_reason=tuple(v.node for v in report.native if not v.reason.strip())
        + tuple(e.name for e in report.engines if build and not e.built and not e.reason.strip()),
        exact=all(c.exact for c in comparisons),
        difference=max(c.difference for c in comparisons),
    )


def _outcome(report: Any, build: bool, engine_nodes: int) -> str:
    """The class of a case that was converted and computes the right thing."""
    if report.total_nodes == 0:
        return "no nodes"
    built_out = any(v.rule == "build" for v in report.native) or any(build and not e.built for e in report.engines)
    if engine_nodes == 0:
        return "build failed" if built_out else "denied"
    if not build:
        return "accepted"
    return "partly built" if report.native or built_out else "built"


def _without_judge(case: Any, backend: Any, feeds: Mapping[str, Any], ops: tuple[str, ...], why: str) -> CaseResult:
    """ONNX Runtime cannot run the original: the pipeline has only to answer, with a result or with its own error."""
    from rewriter import ConversionError, Converter

    try:
        with Converter(model=case.model, minimum_segment_size=1, backend=backend, progress=False) as converter:
            converter.convert().close()
            converter.build(lambda: iter([dict(feeds)]))
    except ConversionError:
        pass
    except Exception as error:  # noqa: BLE001 - a defect of the program, whatever the model is
        return CaseResult(case.name, "error", f"{type(error).__name__}: {_line(error)}", ops)
    return CaseResult(case.name, "not runnable", why, ops)


@dataclasses.dataclass(frozen=True)
class _Comparison:
    exact: bool
    difference: float


def _compare(answer: Mapping[str, Any], original: Mapping[str, Any], random: bool = True) -> _Comparison:
    """Compares outputs by name; raises when they differ by more than rounding, unless `random`.

    Raises:
        WrongResultError: other names, dtypes or ranks, or other values.
    """
    if list(answer) != list(original):
        raise WrongResultError(f"outputs are {list(answer)}, the original's {list(original)}")
    exact, worst = True, 0.0
    for name, wanted in original.items():
        pairs = _flat(answer[name], wanted)
        if pairs is None:
            raise WrongResultError(f"output {name!r} has another structure")
        for got, reference in pairs:
            if got.dtype != reference.dtype:
                raise WrongResultError(f"output {name!r} is {got.dtype}, the original's {reference.dtype}")
            exact &= _same_bits(got, reference)
            worst = max(worst, relative_difference(got, reference) if not random else 0.0)
    if worst > ROUNDING and not random:
        raise WrongResultError(f"outputs differ by {worst:.2e}, relatively")
    return _Comparison(exact, worst)


def _flat(answer: Any, reference: Any) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Pairs of arrays of two values, which may be sequences or absent optionals; None for other structures."""
    if reference is None or answer is None:
        return [] if reference is None and answer is None else None
    if isinstance(reference, list):
        if not isinstance(answer, list) or len(answer) != len(reference):
            return None
        pairs = [_flat(a, b) for a, b in zip(answer, reference, strict=True)]
        return None if any(p is None for p in pairs) else [pair for p in pairs if p is not None for pair in p]
    return [(np.asarray(answer), np.asarray(reference))]


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "OSU":
        return bool(np.array_equal(a, b))
    return a.tobytes() == b.tobytes()


def _matches(outputs: Mapping[str, Any], expected: Sequence[Any], case: Any) -> bool:
    """Whether ONNX Runtime's outputs are the expected ones within the case's own tolerance."""
    for value, wanted in zip(outputs.values(), expected, strict=False):
        for got, reference in _flat(value, wanted) or [(np.zeros(1), np.zeros(2))]:
            if got.shape != reference.shape:
                return False
            if reference.dtype.kind in "OSU":
                if not np.array_equal(got.astype(str), reference.astype(str)):
                    return False
                continue
            kind = np.complex128 if reference.dtype.kind == "c" else np.float64
            close = np.isclose(got.astype(kind), reference.astype(kind), case.rtol, case.atol, equal_nan=True)
            if not close.all():
                return False
    return True


def _data(case: Any) -> tuple[dict[str, Any], list[Any]]:
    """The first data set as (inputs by name, expected outputs); tensors become arrays."""
    inputs, outputs = case.data_sets[0]
    initialized = {t.name for t in case.model.graph.initializer}
    names = [i.name for i in case.model.graph.input if i.name not in initialized]
    return dict(zip(names, map(_readable, inputs), strict=False)), [_readable(o) for o in outputs]


def _readable(value: Any) -> Any:
    """Tensors and numpy scalars as arrays, ONNX Runtime's values as arrays in ONNX's dtypes, sequences as lists."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, (list, tuple)):
        return [_readable(item) for item in value]
    return value if value is None or isinstance(value, (dict, str)) else np.asarray(value)


def generalise(reason: str, node: str = "", op_type: str = "") -> str:
    """A reason without the names and numbers that are this case's own, so that equal reasons can be counted."""
    text = reason.replace(node, "*") if node else reason
    text = re.sub(r"(?<!\w)'[^']*'(?!\w)", "'*'", text)
    if op_type:
        text = re.sub(
            rf"(refuses|support) {re.escape(op_type.rsplit('::', maxsplit=1)[-1])}(?!\w)", r"\1 the operator", text
        )
    text = re.sub(r"(?<![\w.])-?\d+(?![\w])", "N", text)
    return " ".join(text.split())[:160]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
