"""This project's part of `rivals.py`; each of these functions returns a `Measure`.

ours: each precision by CUDA graph, device-resident. transposes: the same artifact with and without the optional pass
`cancel_transposes`. chain: 7 alternating steps with exact profiles against the single engine and one ONNX Runtime
session. smoke: `trt-rewriter bench` and `compare --bisect` on this machine. convert: makes what these load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path
from _rivals_models import feeds_of, filled
from _rivals_workers import Measure, Row, gpu_turn, inputs_of, judged, timed, timing_of
from _runtime_bench import interleaved

add_project_to_path()

#: Calibration inputs of INT8 and FP8.
CALIBRATION = 4
#: Profiles for exactly these shapes give kernels for exactly them, which is what the other compilers do.
STRATEGY = "Range+Optimal"


def artifact_of(told: Mapping[str, Any], precision: str, *, cancel: bool = False) -> Path:
    return Path(told["folder"], f"{told['model']}.{precision}{'.cancel' if cancel else ''}")


def convert(told: Mapping[str, Any]) -> Measure:
    """Converts and builds what is not there yet; NAME.PRECISION.json beside the artifact tells what came of it."""

    def measure(case: Mapping[str, Any]) -> list[Row]:
        if told["model"].startswith("chain"):
            import runtime_models

            folder = Path(told["folder"])
            if not (folder / "chain.skeleton").exists():
                runtime_models.make("chain1", folder)
            runtime_models.artifact(told["model"], case["precision"], folder)
            return [json.loads((folder / f"{told['model']}.{case['precision']}.json").read_text(encoding="utf-8"))]
        out = artifact_of(told, case["precision"], cancel=case["cancel"])
        facts = out.with_name(f"{out.name}.json")
        if not facts.is_file():
            facts.write_text(json.dumps(_converted(told, case, out), indent=1) + "\n", encoding="utf-8")
        return [json.loads(facts.read_text(encoding="utf-8"))]

    return measure


def _converted(told: Mapping[str, Any], case: Mapping[str, Any], out: Path) -> Row:
    from rewriter import Converter, RewriterConfig
    from rewriter.params import DEFAULT_TRT_CONVERSION_PARAMS

    path = filled(told["model"], Path(told["folder"]))
    samples = [feeds_of(told["model"], batch, 1000) for batch in told["batches"]]
    calibrates = case["precision"] in ("INT8", "FP8")
    template = RewriterConfig(optimizers=["constfold", "cancel_transposes"]) if case["cancel"] else None
    params = DEFAULT_TRT_CONVERSION_PARAMS._replace(
        precision_mode=case["precision"], rewriter_config_template=template, max_workspace_size_bytes=4 << 30
    )
    inputs = [feeds_of(told["model"], min(8, max(told["batches"])), 2000 + number) for number in range(CALIBRATION)]
    started = time.perf_counter()
    with Converter(
        model=str(path), conversion_params=params, dynamic_shape_profile_strategy=STRATEGY, backend="tensorrt_rtx",
        progress=False,
    ) as converter:  # fmt: skip
        if calibrates:
            converter.convert(calibration_input_fn=lambda: iter(inputs))
        else:
            converter.convert()
        converter.build(lambda: iter(samples))
        converter.save(out, overwrite=out.exists())
        report = converter.report
    arithmetic: dict[str, int] = {}
    for engine in report.engines:
        for kind, count in engine.arithmetic.items():
            arithmetic[kind] = arithmetic.get(kind, 0) + count
    return {
        "seconds": time.perf_counter() - started,
        "build s": sum(engine.seconds for engine in report.engines),
        "engines": sum(engine.built for engine in report.engines),
        "segments": len(report.engines),
        "coverage": report.built_coverage,
        "arithmetic": {kind: count for kind, count in arithmetic.items() if kind != "other"},
        "transposes": transposes_in(out),
        "not built": [f"{engine.name}: {engine.reason}" for engine in report.engines if not engine.built],
    }


def transposes_in(out: Path) -> int:
    """Transpose nodes of an artifact, those inside its engines' native segments included."""
    import onnx

    proto = onnx.load(str(out / "model.onnx"), load_external_data=False)

    def count(nodes: Any) -> int:
        return sum(
            (node.op_type == "Transpose") + sum(count(a.g.node) for a in node.attribute if a.HasField("g"))
            for node in nodes
        )

    return count(proto.graph.node) + sum(count(function.node) for function in proto.functions)


class Loaded:
    """An artifact on the device with its inputs: what is timed.

    Args:
        told: of the worker.
        path: the artifact.
        stream: torch's, None on the CPU.
    """

    def __init__(self, told: Mapping[str, Any], path: Path, stream: Any, **options: Any) -> None:
        import rewriter

        self._told, self._device = told, told["device"] == "cuda"
        more = {"provider": "cuda", "stream": stream} if self._device else {"provider": "cpu"}
        started = time.perf_counter()
        self.function = rewriter.load(path, **more, **options)
        self.seconds = time.perf_counter() - started
        self.finish = stream.synchronize if self._device else (lambda: None)

    def call(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """Runs these inputs once; device-resident where there is a device."""
        if not self._device:
            return lambda: self.function(**feeds)
        import torch

        tensors = {name: torch.from_numpy(value).cuda() for name, value in feeds.items()}
        torch.cuda.synchronize()
        return lambda: self.function.run(tensors, device_outputs=True)

    def arrays(self, outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if not self._device:
            return dict(outputs)
        import torch

        return {name: torch.from_dlpack(value).cpu().numpy() for name, value in outputs.items()}


def _stream(told: Mapping[str, Any]) -> Any:
    if told["device"] != "cuda":
        return None
    import torch

    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    return stream


def _ready(path: Path) -> dict[str, Any]:
    """What came of a conversion.

    Raises:
        RuntimeError: it failed, or no engine was built.
    """
    facts_path = path.with_name(f"{path.name}.json")
    if not facts_path.is_file():
        raise RuntimeError(f"{path.name} was not converted: see the line of its conversion")
    facts: dict[str, Any] = json.loads(facts_path.read_text(encoding="utf-8"))
    if not facts["engines"]:
        raise RuntimeError(f"no engine was built: {'; '.join(facts.get('not built', []))}")
    return facts


def ours(told: Mapping[str, Any]) -> Measure:
    """A converted model of one precision, by CUDA graph; the same function serves all batch sizes."""
    open_ones: dict[str, Loaded] = {}

    def measure(case: Mapping[str, Any]) -> list[Row]:
        path = artifact_of(told, case["artifact"])
        facts = _ready(path)
        row: Row = {}
        if case["artifact"] not in open_ones:
            while open_ones:
                open_ones.popitem()[1].function.close()
            open_ones[case["artifact"]] = Loaded(told, path, _stream(told))
            row["prepare s"] = open_ones[case["artifact"]].seconds
        loaded = open_ones[case["artifact"]]
        call = loaded.call(inputs_of(told, case["batch"]))
        started = time.perf_counter()
        call()
        loaded.finish()
        row["first call s"] = time.perf_counter() - started
        with gpu_turn(told):
            row |= timed(call, loaded.finish, timing_of(told))
        row |= judged(loaded.arrays(call()), told, case["batch"])
        stats = loaded.function.stats()
        notes = [*stats["fallbacks"], *_no_graph(stats)]
        return [{**row, "note": "; ".join(notes), "nodes in": facts["arithmetic"]}]

    return measure


def _no_graph(stats: Mapping[str, Any]) -> list[str]:
    found = stats.get("no_graph") or []
    return [str(reason) for reason in found]


def _amount(told: Mapping[str, Any]) -> dict[str, int]:
    """Turns, and calls a turn, of systems that are timed in turns; hardly any on the CPU, where scripts are tried."""
    if told["device"] != "cuda":
        return {"rounds": 1, "runs": 1}
    return {"rounds": 5, "runs": max(min(told["timing"]["calls"] // 5, 25), 2)}


def transposes(told: Mapping[str, Any]) -> Measure:
    """With and without the pass, in turns, in one process: a difference is the pass's. Not where it finds nothing."""

    def measure(case: Mapping[str, Any]) -> list[Row]:
        counts = [_ready(artifact_of(told, case["precision"], cancel=on))["transposes"] for on in (False, True)]
        if counts[0] == counts[1]:
            return [{"transposes without": counts[0], "transposes with": counts[1]}]
        stream = _stream(told)
        feeds = inputs_of(told, case["batch"])
        row: Row = {}
        systems: dict[str, Callable[[], Any]] = {}
        loaded = {}
        for word, cancel in (("without", False), ("with", True)):
            path = artifact_of(told, case["precision"], cancel=cancel)
            row[f"transposes {word}"] = _ready(path)["transposes"]
            loaded[word] = Loaded(told, path, stream)
            systems[word] = loaded[word].call(feeds)
        with gpu_turn(told):
            times = interleaved(systems, loaded["with"].finish, **_amount(told))
        for word, found in times.items():
            row |= {f"{word} us": found["us"], f"{word}, in a row": found["stream us"], f"{word} p10": found["p10"]}
            row |= judged(loaded[word].arrays(systems[word]()), told, case["batch"])
        for each in loaded.values():
            each.function.close()
        return [row]

    return measure


def chain(told: Mapping[str, Any]) -> Measure:
    """48 convolutions: ours in 1 and in 7 alternating steps, and ONNX Runtime alone, in turns in one process."""
    import onnx
    import runtime_models
    from _runtime_rivals import onnxruntime_call

    def measure(case: Mapping[str, Any]) -> list[Row]:
        stream, folder = _stream(told), Path(told["folder"])
        feeds = runtime_models.feeds_of("chain1", (case["batch"],), 1)
        systems: dict[str, Callable[[], Any]] = {}
        loaded = {}
        for steps in (1, 7):
            path = folder / f"chain{steps}.{case['precision']}"
            for word, graph in (("graph", True), ("eager", False)):
                name = f"ours, {steps} step{'s' * (steps > 1)}, {word}"
                loaded[name] = Loaded(told, path, stream, cuda_graph=graph)
                systems[name] = loaded[name].call(feeds)
        if told["device"] == "cuda":
            model = onnx.load(str(runtime_models.filled("chain1", folder))).SerializeToString()
            for word, graph in (("ORT, eager", False), ("ORT, graph", True)):
                systems[word] = onnxruntime_call(model, feeds, cuda_graph=graph)[0]
        finish = next(iter(loaded.values())).finish
        with gpu_turn(told):
            found = interleaved(systems, finish, **_amount(told))
        rows: list[Row] = []
        for name, times in found.items():
            row: Row = {
                "system": name,
                **{key: times[key] for key in ("us", "p10", "p90")},
                "in a row": times["stream us"],
            }
            if name in loaded:
                stats = loaded[name].function.stats()
                row["note"] = "; ".join([*stats["fallbacks"], *(_no_graph(stats) if "graph" in name else [])])
            rows.append(row)
        return rows

    return measure


def smoke(told: Mapping[str, Any]) -> Measure:
    """Commands of `trt-rewriter`, as a user types them; "{artifact}" and "{source}" in them are filled in."""

    def measure(case: Mapping[str, Any]) -> list[Row]:
        places = {
            "artifact": str(artifact_of(told, "FP16")), "source": str(filled(told["model"], Path(told["folder"]))),
        }  # fmt: skip
        words = [word.format_map(places) for word in case["command"]]
        root = Path(__file__).resolve().parent.parent
        started = time.perf_counter()
        program = "import sys; from rewriter.cli import main; sys.exit(main())"
        run = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=root, check=False
        )
        said = (run.stdout.strip() or run.stderr.strip()).splitlines()
        return [{
            "status": run.returncode, "seconds": time.perf_counter() - started,
            "said": said[-1][:300] if said else "", "output": run.stdout[-4000:], "errors": run.stderr[-1500:],
        }]  # fmt: skip

    return measure
