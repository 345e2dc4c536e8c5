"""What benchmark scripts make of their own JSON: tables, single figures, charts; nothing is measured."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """Imports a module of benchmarks/ by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))


def cells(text, name):
    """The lines of all tables that have a cell of this text, as lists of cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [line for line in lines if name in line]


def test_zoo(script):
    zoo = script("convert_zoo")
    right = {
        "model": "net", "status": "ok", "nodes": 9, "coverage": 1.0, "engines": 1, "engines_built": 1, "native": {},
        "build_seconds": 1.0, "engine_bytes": 2e6, "max_rel_diff": 1e-6, "tolerance": 1e-5,
        "timings": {"load": 1.0, "build": 3.0},
    }  # fmt: skip
    coarse = {**right, "model": "half", "max_rel_diff": 1e-4, "tolerance": 1e-3, "coverage": 0.5, "native": {"Top": 2}}
    broken = {"model": "bad", "status": "crash", "detail": "exit status -11"}
    document = {"models": [right, coarse, broken, {"model": "none", "status": "skipped", "detail": "not here"}]}
    text = zoo.render(document)
    assert cells(text, "net") == [["net", "9", "100.0%", "1", "1.0", "2.0", "0", "1.0e-06", "ok"]]
    assert cells(text, "bad")[0][-1] == "crash: exit status -11"
    assert zoo.facts(document) == {"models": "3", "ok": "2", "worst": "1.0e-06", "whole": "1"}
    (chart,) = zoo.plots(document).values()
    assert (list(chart.groups), dict(chart.series)) == (["net", "half"], {"load": [25.0, 25.0], "build": [75.0, 75.0]})
    assert zoo.plots({"models": [broken]}) == {}


def test_node_tests_come_back_from_json(script):
    case, tests = script("_node_case"), script("onnx_node_tests")
    results = [
        case.CaseResult("a", "built", nodes=1, engine_nodes=1, as_expected=True),
        case.CaseResult("b", "denied", denials=(("dtype", "no INT16", "Sub", 2),), exact=False, difference=1e-7),
        case.CaseResult("c", "crash", "status -11"),
    ]
    document = json.loads(json.dumps({"seconds": 7.0, "cases": case.brief(results)}))
    assert case.from_brief(document["cases"]) == results
    text = tests.render(document)
    assert cells(text, "all") == [["all", "3", "7 s"]]
    assert cells(text, "no INT16") == [["dtype", "no INT16", "1", "2", "Sub"]]
    assert "2 cases compared with the original in ONNX Runtime: 1 bit-equal, 1 within rounding" in text
    assert "What must not happen:" in text
    assert tests.facts(document) == {"cases": "3", "bad": "1", "compared": "2", "equal": "1", "built": "1"}
    assert tests.plots(document)["outcomes"].series == {"cases": [1.0, 1.0, 1.0]}


def test_lowered_node_tests_come_back_from_json(script):
    tests = script("lowering_node_tests")
    good = {"outcome": "ok", "detail": "", "difference": 1e-4, "kept": {"keep-reduction": 1}, "values": "1 of 2"}
    bad = {**good, "outcome": "inexact", "detail": "off by 0.2"}
    case = {"name": "a", "outcome": "lowered", "detail": "", "ops": ("Add",), "types": {"FP16": good, "BF16": bad}}
    idle = {**case, "name": "b", "outcome": "no floats", "types": {}}
    document = json.loads(json.dumps({"seconds": 3.0, "cases": [tests._brief(entry) for entry in (case, idle)]}))
    assert document["cases"][1] == {"name": "b", "outcome": "no floats"}
    text = tests.render(document)
    assert text.startswith("2 cases in 3 s: 1 lowered, 1 no floats")
    assert cells(text, "off by 0.2") == [["a", "BF16", "inexact", "off by 0.2"]]
    assert tests.facts(document) == {"FP16": "100.00%", "BF16": "0.00%"}


def test_engine_cache(script):
    cache = script("engine_cache")
    row = {"model": "net", "engines": 2, "hits": 2, "engine_bytes": 1e6, "engine_sha256": ["x"]}
    seconds = [("no cache", 3.0), ("cold", 4.0), ("warm", 0.5), ("warm", 0.2), ("warm", 0.4)]
    rows = [{**row, "conversion": kind, "build_seconds": s, "engine_seconds": s / 2} for kind, s in seconds]
    rows[0]["hits"] = rows[1]["hits"] = 0
    document = {"options": {"limit": 10.0}, "rows": rows}
    (line,) = cells(cache.render(document), "net")
    assert line == ["net", "2", "1", "3 of 3", "4", "0.4", "0.2 .. 0.5", "10", "10"]
    found = {"least": "10.0", "largest": "10", "limit": "10", "reached": "1 of 1", "hits": "6 of 6"}
    assert cache.facts(document) == found
    assert cache.plots(document)["stage"].series == {"cold": [4.0], "warm (median)": [0.4]}


def test_export_speed(script):
    speed = script("export_speed")
    result = {
        "model": "small", "ratio": 2.0, "cpu_ratio": 2.1, "ratio_above_floor": 3.0, "cpu_ratio_above_floor": 3.1,
        "wall_seconds": {"floor": [1.0], "stock": [4.0], "ours": [2.0]},
        "cpu_seconds": {"floor": [1.0], "stock": [4.2], "ours": [2.0]}, "nodes": {"floor": 0, "stock": 5, "ours": 5},
    }  # fmt: skip
    document = {**result, "rows": speed.rows_of(result)}
    text = speed.render(document)
    assert cells(text, "stock") == [["stock", "4", "4.2", "5"]]
    assert "2.0 times as fast as stock in wall time, 2.1 in CPU time; above the floor 3.0 and 3.1 times." in text
    assert speed.plots(document)["seconds"].title == "Exporting a small model to ONNX, whole processes"


def test_partition_tells_what_failed(script):
    scaling = script("partition_scaling")
    row = {"graph": "layered", "unsupported %": 20, "method": "ours", "clusters": 3, "seconds": 0.1}
    rows = [{**row, "n": n} for n in (10, 100)]
    rows += [{**row, "n": 10, "method": "baseline"}, {**row, "n": 10, "method": "ours, one way", "seconds": 9.0}]
    checks = [{"check": "fast enough", "ok": False}, {"check": "never worse", "ok": True}]
    document = {
        "rows": rows,
        "propose": [{"n": 1000, "segments": 1, "coverage": 1.0, "seconds": 2.0}],
        "checks": checks,
    }
    text = scaling.render(document)
    assert "FAIL fast enough\nok   never worse" in text
    assert "one way" not in text
    assert scaling.facts(document) == {"largest": "1 000", "seconds": "2.00", "kept": "1 of 2"}
    chart = scaling.plots(document)["seconds"]
    assert chart.series["layered, ours"] == [(10, 0.1), (100, 0.1)]
    assert chart.dashed == ["layered, baseline"]


def test_precision_leaves_small_engines_out_of_sizes(script):
    table = script("precision_table")

    def row(model, mode, size, **more):
        told = {"build_seconds": 1.0, "built_coverage": 1.0, "max_rel_diff": 0.1, "rms_rel_diff": 0.01, "status": "ok"}
        return {"model": model, "mode": mode, "engine_bytes": size, **told, **more}

    rows = [row("large", "FP32", 2e7), row("large", "FP16", 1e7), row("large", "INT8", 5e6)]
    rows += [
        row("cnn", "FP32", 1e6, points=0.0, top1=97.0, flips=0),
        row("cnn", "FP16", 2e6, points=-0.2, top1=96.8, flips=2),
    ]
    rows += [{"model": "cnn", "mode": "INT8", "status": "hang", "detail": "exit status None"}]
    document = {"rows": rows, "criteria": ["PASS: it is so"]}
    text = table.render(document)
    assert text.endswith("\n\n- PASS: it is so")
    assert cells(text, "cnn")[2][-1] == "hang: exit status None"
    assert table.facts(document)["FP16"] == "0.20"
    charts = table.plots(document)
    assert charts["top1"].series["FP16"] == [-0.2]
    assert charts["top1"].series["INT8"] == [None]
    assert list(charts["sizes"].groups) == ["large"]
    assert charts["sizes"].series["FP16"] == [0.5]
    assert charts["sizes"].series["FP8"] == [None]
    assert charts["errors"].series == {"large": [(0.5, 0.01, "FP16"), (0.25, 0.01, "INT8")]}


def test_large_models(script):
    big, tensorflow = script("big_model"), script("big_tf_model")
    row = {"step": "convert", "anonymous / weights": 1.12}
    document = {"weights": 2.4e9, "difference": 1e-6, "engines": 1, "engine_bytes": 2e9, "rows": [row]}
    assert "Weights: 2.40 GB." in big.render(document)
    assert big.facts(document) == {"weights": "2.40 GB", "worst": "1.12"}
    models = [{"kind": "keras", "weights": 2.4e9, "anonymous": 3.1, "resident": 3.3, "nodes": 6, "passed": False}]
    document = {"models": models, "rows": [{"kind": "keras", "stage": "load", "anonymous": 3.1}]}
    assert [line[1] for line in cells(tensorflow.render(document), "keras")] == ["3.1", "load"]
    assert tensorflow.facts(document) == {"worst": "3.10"}


def test_scripts_for_a_gpu_render_what_they_wrote(script):
    def result(rows, **told):
        return {"experiment": {"about": "load", **told}, "rows": rows, "seconds": 1.0}

    agreement = script("runtime_gpu").render({"results": [result([{"model": "net", "status": "ok"}])]})
    assert cells(agreement, "net")[0][-1] == "ok"
    artifacts = script("runtime_artifact").render({"results": [{**result([]), "failed": "no end"}]})
    assert artifacts == "FAILED {'about': 'load'}: no end"
    states = [("fresh", 9.0), ("no cache", 6.0), ("cache", 1.0)]
    rows = [
        {"model": "ResNet50", "precision": "FP16", "state": s, "load s": t, "first call s": t, "together s": t}
        for s, t in states
    ]
    text = script("runtime_speed").render({"results": [result(rows)]})
    assert text.startswith("### Load with and without the runtime cache\n\n")
    assert cells(text, "ResNet50: no cache / cache, together s")[0][1:] == ["6", ">= 5", "yes"]
    engines = [{"model": "net", "engine": "-", "rel": None, "ms": None, "status": "crash"}]
    text = script("engine_run").render({"device": "a GPU", "tensorrt": "1.4", "rows": engines})
    assert text.startswith("a GPU; TensorRT-RTX 1.4\n\n")
    assert cells(text, "net") == [["net", "-", "-", "-", "crash"]]
    document = {"wanted": [["cnn", "FP8"]], "parts": ["latency"], "device": "a GPU", "results": []}
    text = script("precision_gpu").render(document)
    assert text.startswith("Device: a GPU.")
    assert cells(text, "FP8")[0][-1] == "not run"


def test_islands_and_spliced_models(script):
    row = {"signature": "a", "batch": 1, "ratio": 1.2, "island": 0.75}
    document = {"rows": [row, {**row, "signature": "b", "ratio": 1.4}], "seconds": 4.0}
    islands = script("tensorflow_islands")
    assert islands.render(document).endswith("2 signature(s) converted in 4.0 s.")
    assert islands.facts(document) == {"ratios": "1.20 to 1.40", "islands": "75% to 75%"}
    spliced = script("spliced_latency")
    rows = [{"batch": 1, "ratio": 0.98, "bit-equal": True}, {"batch": 4, "ratio": 1.01, "bit-equal": False}]
    created = {"unspliced": [0.2, 0.1], "spliced": [0.3]}
    document = {"model": "net", "nodes": 9, "segments": 2, "native": 1, "created_s": created, "rows": rows}
    text = spliced.render(document)
    assert text.startswith("net: 9 nodes -> 2 engine nodes and 1 native nodes\n\n")
    assert text.endswith("Sessions created in 0.10 s (unspliced), 0.30 s (spliced).")
    assert spliced.facts(document) == {"worst": "1.010", "equal": "NOT bit-equal"}


def test_calibration_memory(script):
    memory = script("calibration_memory")
    rows = [
        {"method": "minmax", "way": way, "batches": n, "peak GB": gb}
        for way, n, gb in (("ours", 2, 1.0), ("one shot", 2, 2.0), ("ours", 8, 1.05))
    ]
    document = {"growth": {"minmax": 1.05}, "rows": rows}
    assert memory.render(document).endswith("Ours, most batches / fewest: minmax 1.05.")
    assert memory.facts(document) == {"growth": "1.05", "ours": "1.05 GB", "one_shot": "2.00 GB"}
    chart = memory.plots(document)["peak"]
    assert list(chart.groups) == ["ours, 2 batches", "ours, 8 batches", "one shot, 2 batches"]
    assert dict(chart.series) == {"minmax": [1.0, 1.05, 2.0]}
