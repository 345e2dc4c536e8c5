"""What lowering to FP16 and BF16 does to the node tests of the onnx package.

Every case with float32 inputs that TensorRT builds as a whole in FP32 is lowered to each type. It must be valid, keep
its inputs and outputs, build again, and compute what the original computes in ONNX Runtime (what the test expects,
where that does not run it), within the type's tolerance. It is evaluated as float32 operators with Cast pairs
(`passes.precision.emulate`), for ONNX Runtime has no BF16 kernels and leaves FP16 rounding out. Prints the counts and
the cases that fail; the exit status is 1 when less than 99 % of a type pass.

    python benchmarks/lowering_node_tests.py [--filter REGEX] [--limit N --seed S] [--jobs 2] [--json PATH]
    python benchmarks/lowering_node_tests.py --scale    # seconds of the pass on chains of 1 000 to 100 000 nodes
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table, relative_difference
from _node_case import _data, _line, load_cases, run_onnxruntime
from _options import add_metrics_options, export_metrics, parse
from onnx_node_tests import run_all

#: What is measured.
TYPES = ("FP16", "BF16")
#: Outcomes of one case in one type, with their meaning; the first is the good one.
OUTCOMES = {
    "ok": "valid, builds, and agrees within the type's tolerance",
    "random": "valid and builds; the original draws random numbers, so there is nothing to compare with",
    "not evaluable": "valid and builds; nobody runs the emulated model",
    "inexact": "builds, but differs by more than the tolerance",
    "build failed": "TensorRT refuses the lowered model",
    "invalid": "the lowered model is no valid ONNX, or other inputs or outputs",
    "error": "the pass raised",
}
#: These count as passed.
GOOD = ("ok", "random")
#: What is said of a case whose nodes all stay float32.
_NOTHING = "nothing lowered"
#: Part of the cases that has to pass.
WANTED = 0.99
#: Seconds for one case.
TIMEOUT = 180.0
#: Nodes of the chains of --scale.
SIZES = (1_000, 10_000, 100_000)


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What became of one case in one type.

    Attributes:
        outcome: one of `OUTCOMES`.
        detail: the reason in words.
        difference: largest relative difference from the original, None where nothing was compared.
        kept: rule -> number of nodes that stay float32.
        values: how many nodes are in the lower type, in words.
    """

    outcome: str
    detail: str = ""
    difference: float | None = None
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)
    values: str = ""


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """One case: "lowered" with an entry a type, or why it does not take part ("no floats", "not built", "folded")."""

    name: str
    outcome: str
    detail: str = ""
    ops: tuple[str, ...] = ()
    types: Mapping[str, Lowered] = dataclasses.field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    add_project_to_path()
    if options.scale:
        rows = _scale()
        print(format_table(rows))
        export_metrics(options, rows)
        return 0
    started = time.perf_counter()
    names = [case.name for case in load_cases(options.filter)]
    if options.limit and options.limit < len(names):
        names = sorted(random.Random(options.seed).sample(names, options.limit))  # noqa: S311 - a sample, no secret
    results: list[Any] = []
    for result in run_all(names, jobs=options.jobs, build=True, timeout=TIMEOUT, serve=serve):
        results.append(result)
        notes = [f"{kind}: {t.outcome}: {t.detail}" for kind, t in getattr(result, "types", {}).items()]
        bad = [note for note in notes if note.split(": ")[1] not in GOOD]
        if len(results) % 100 == 0 or bad:
            print(f"{len(results)}/{len(names)} {result.name} {' | '.join(bad)}", file=sys.stderr, flush=True)
    results.sort(key=lambda r: r.name)
    figures = {"seconds": time.perf_counter() - started, "cases": [_brief(dataclasses.asdict(r)) for r in results]}
    print(render(figures))
    export_metrics(options, outcomes(results), **figures)
    return 0 if all(share(results, kind) >= WANTED for kind in TYPES) else 1


def serve(connection: Connection, build: bool) -> None:
    """A worker's loop: a case name in, a `CaseResult` out, until the other side closes."""
    add_project_to_path()
    import logging

    from rewriter.backends import open_backend

    logging.getLogger("rewriter").setLevel(logging.ERROR)
    logging.getLogger("passes").setLevel(logging.ERROR)
    cases = {case.name: case for case in load_cases()}
    backend = open_backend("tensorrt_rtx", ())
    try:
        while build:
            try:
                name = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            with tempfile.TemporaryDirectory(prefix="lowering-") as folder:
                connection.send(run_case(cases[name], backend, Path(folder)))
    finally:
        backend.close()


def run_case(case: Any, backend: Any, folder: Path) -> CaseResult:
    """Builds one case in FP32, lowers it to every type, builds and evaluates each."""
    import onnx

    from passes.base import PassError
    from passes.model import from_proto
    from passes.pipeline import default_pipeline

    ops = tuple(sorted({node.op_type for node in case.model.graph.node}))
    floats = [i for i in case.model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    if not floats:
        return CaseResult(case.name, "no floats", ops=ops)
    try:
        model, _ = default_pipeline().run(from_proto(case.model))
    except PassError as error:
        return CaseResult(case.name, "not built", _line(error), ops)
    if not model.proto.graph.node:
        return CaseResult(case.name, "folded", ops=ops)
    feeds, expected = _data(case)
    problem = _build(model, feeds, backend, folder)
    if problem:
        return CaseResult(case.name, "not built", problem, ops)
    try:
        original = run_onnxruntime(case.model.SerializeToString(), feeds)
        again = run_onnxruntime(case.model.SerializeToString(), feeds)
        noisy = any(relative_difference(again[n], value) > 0 for n, value in original.items())
    except Exception:  # noqa: BLE001 - ONNX Runtime raises classes of its own; any of them is the answer
        original = dict(zip([value.name for value in case.model.graph.output], expected, strict=True))
        noisy = any(node.op_type.startswith("Random") for node in model.proto.graph.node)
    types = {kind: _lowered(model, kind, feeds, original, noisy, backend, folder) for kind in TYPES}
    return CaseResult(case.name, "lowered", "", ops, types)


def _lowered(  # noqa: PLR0911 - one return an outcome
    model: Any,
    kind: str,
    feeds: Mapping[str, Any],
    original: Mapping[str, Any],
    noisy: bool,
    backend: Any,
    folder: Path,
) -> Lowered:
    from passes.base import PassError, count_by_rule, verify
    from passes.model import to_proto
    from passes.precision.cast import LowerFloats
    from passes.precision.emulate import Emulate
    from passes.precision.recipe import Recipe
    from passes.testing import TOLERANCES

    try:
        result = LowerFloats(Recipe.of(kind)).run(model)
    except Exception as error:  # noqa: BLE001 - a defect of the pass, whatever it is
        return Lowered("error", f"{type(error).__name__}: {_line(error)}")
    kept = {rule: n for rule, n in count_by_rule(result.changes).items() if rule != "lower-floats"}
    base = Lowered("ok", kept=kept, values=result.changes[0].reason if result.changes else _NOTHING)
    try:
        verify(result.model, "lower_floats", canonical=True)
    except PassError as error:
        return dataclasses.replace(base, outcome="invalid", detail=_line(error))
    for field in ("input", "output"):
        if list(getattr(result.model.proto.graph, field)) != list(getattr(model.proto.graph, field)):
            return dataclasses.replace(base, outcome="invalid", detail=f"another {field}")
    problem = _build(result.model, feeds, backend, folder)
    if problem:
        return dataclasses.replace(base, outcome="build failed", detail=problem)
    if noisy:
        return dataclasses.replace(base, outcome="random")
    try:
        given = {value.name for value in result.model.proto.graph.input}
        emulated = to_proto(Emulate().run(result.model).model)
        answer = _run(emulated, {name: value for name, value in feeds.items() if name in given})
    except Exception as error:  # noqa: BLE001 - the evaluators raise classes of their own
        return dataclasses.replace(base, outcome="not evaluable", detail=_line(error))
    worst = max(relative_difference(answer[name], value) for name, value in original.items())
    good = worst <= TOLERANCES[kind]
    detail = "" if good else f"relative difference {worst:.2g}, allowed {TOLERANCES[kind]:g}"
    return dataclasses.replace(base, outcome="ok" if good else "inexact", detail=detail, difference=worst)


def _run(emulated: Any, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    """Outputs by ONNX Runtime or, where it lacks something, by ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    try:
        return run_onnxruntime(emulated.SerializeToString(), feeds)
    except Exception:  # noqa: BLE001 - ONNX Runtime raises classes of its own
        evaluator = ReferenceEvaluator(emulated)
        return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def _build(model: Any, feeds: Mapping[str, Any], backend: Any, folder: Path) -> str:
    """Builds a model for just the shapes (and shape values) of the feeds; "" or the reason of the failure."""
    from rewriter.backends.base import BuildFailure, BuildOptions, InputProfile

    errors = backend.parse(model)
    if errors:
        return f"parser: {errors[0].message}"
    profile = {}
    for value in model.proto.graph.input:
        array = np.asarray(feeds[value.name])
        dims = tuple(int(d) for d in array.shape)
        profile[value.name] = InputProfile(dims, dims, dims)
        if array.ndim <= 1 and array.dtype.kind == "i":
            numbers = tuple(int(n) for n in array.reshape(-1))
            profile[value.name] = InputProfile(numbers, numbers, numbers, is_values=True)
    outcome = backend.build(model, (profile,), BuildOptions(), folder / "engine")
    return " ".join(outcome.reason.split())[:300] if isinstance(outcome, BuildFailure) else ""


def share(results: Sequence[Any], kind: str) -> float:
    """Part of the cases in which lowering passes."""
    taking = [r.types[kind].outcome for r in results if r.outcome == "lowered"]
    lost = sum(r.outcome in ("crash", "hang") for r in results)
    return sum(o in GOOD for o in taking) / max(1, len(taking) + lost)


def _idle(result: Any, kind: str) -> bool:
    return result.outcome == "lowered" and result.types[kind].values == _NOTHING


def outcomes(results: Sequence[Any]) -> list[dict[str, Any]]:
    """How many lowered cases there are of each outcome, by type."""
    lowered = [r for r in results if r.outcome == "lowered"]
    return [
        {"outcome": name, **{k: sum(r.types[k].outcome == name for r in lowered) for k in TYPES}, "meaning": meaning}
        for name, meaning in OUTCOMES.items()
    ]


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The share that passes, by type."""
    results = [_from_json(entry) for entry in document["cases"]]
    return {kind: f"{share(results, kind):.2%}" for kind in TYPES}


def _from_json(entry: Mapping[str, Any]) -> CaseResult:
    types = {kind: Lowered(**told) for kind, told in entry.get("types", {}).items()}
    return CaseResult(entry["name"], entry["outcome"], entry.get("detail", ""), types=types)


def _brief(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without its operators and without what is empty."""
    plain = {name: _brief(value) if isinstance(value, Mapping) else value for name, value in entry.items()}
    return {name: value for name, value in plain.items() if name != "ops" and value not in ("", None, {}, ())}


def render(document: Mapping[str, Any]) -> str:
    """The tables: who takes part, the outcomes, what stays float32, and every case that does not pass."""
    results, seconds = [_from_json(entry) for entry in document["cases"]], document["seconds"]
    part = Counter(r.outcome for r in results)
    lowered = [r for r in results if r.outcome == "lowered"]
    rows = outcomes(results)
    rules = sorted({rule for r in lowered for k in TYPES for rule in r.types[k].kept})
    kept = [{"rule": rule, **{k: sum(r.types[k].kept.get(rule, 0) for r in lowered) for k in TYPES}} for rule in rules]
    rest = [
        {"case": r.name, "type": kind, "outcome": r.types[kind].outcome, "why": r.types[kind].detail[:160]}
        for kind in TYPES
        for r in lowered
        if r.types[kind].outcome not in GOOD
    ]
    rest += [{"case": r.name, "outcome": r.outcome, "why": r.detail} for r in results if r.outcome in ("crash", "hang")]
    shares = ", ".join(f"{kind} {share(results, kind):.2%}" for kind in TYPES)
    idle = {k: sum(r.types[k].values == _NOTHING for r in lowered) for k in TYPES}
    strict = ", ".join(
        f"{k} {share([r for r in results if not _idle(r, k)], k):.2%} of {len(lowered) - idle[k]}" for k in TYPES
    )
    parts = [
        f"{len(results)} cases in {seconds:.0f} s: "
        + ", ".join(f"{count} {name}" for name, count in part.most_common()),
        format_table(rows),
        f"Passed: {shares} of {len(lowered)} (wanted {WANTED:.0%}); of those where any node is lowered: {strict}.",
        "Nodes that stay float32, and clamped constants:",
        format_table(kept),
    ]
    if rest:
        parts += ["Not passed:", format_table(rest, ("case", "type", "outcome", "why"))]
    return "\n\n".join(parts)


def _scale() -> list[dict[str, Any]]:
    """Times the pass alone on chains of MatMul, Add, Relu and Tanh with small weights."""
    from onnx import helper, numpy_helper

    from passes.model import from_proto
    from passes.precision.cast import LowerFloats
    from passes.precision.recipe import Recipe

    rng = np.random.default_rng(0)
    rows = []
    for size in SIZES:
        nodes, weights, value = [], [], "x"
        for i in range(size):
            op = ("MatMul", "Add", "Relu", "Tanh", "ReduceMax")[i % 5]
            inputs = [value]
            if op in ("MatMul", "Add"):
                weights.append(numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), f"w{i}"))
                inputs.append(f"w{i}")
            nodes.append(helper.make_node(op, inputs, [f"v{i}"], f"n{i}"))
            value = f"v{i}"
        info = [helper.make_tensor_value_info(n, 1, None) for n in ("x", value)]
        graph = helper.make_graph(nodes, "chain", info[:1], info[1:], weights)
        model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
        for kind in TYPES:
            started, cpu = time.perf_counter(), time.process_time()
            result = LowerFloats(Recipe.of(kind)).run(model)
            cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
            rows.append(
                {
                    "nodes": size,
                    "type": kind,
                    "seconds": seconds,
                    "CPU seconds": cpu,
                    "nodes after": len(result.model.proto.graph.node),
                }
            )
    return rows


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="a random sample of N cases")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--scale", action="store_true", help="time the pass on long chains instead")
    add_metrics_options(parser)
    options = parse(parser, arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
