"""What native_latency.py and load_time.py of benchmarks/ do besides measuring: amounts, verdicts, tables, charts."""

from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="module")
def latency(benchmark_module):
    return benchmark_module("native_latency")


@pytest.fixture(scope="module")
def loading(benchmark_module):
    return benchmark_module("load_time")


def ratio(middle, low=None, high=None):
    return {"middle": middle, "low": low or middle, "high": high or middle, "rounds": 3}


def row(model="lstm", onnx_ms=2.0, ours=1.0, status="ok"):
    return {
        "model": model, "batch": 1, "tensorflow_ms": 4.0, "onnx_ms": onnx_ms, "ours_ms": onnx_ms * ours,
        "overhead_us": 1e3 * onnx_ms * (ours - 1), "tensorflow_over_ours": ratio(2.0, 1.5, 2.5),
        "ours_over_onnx": ratio(ours), "spliced_over_onnx": ratio(1.01), "again_over_onnx": ratio(1.02),
        "max rel diff": 3e-7, "status": status, "clock": "wall clock",
    }  # fmt: skip


def test_latencies_as_text_facts_and_chart(latency):
    broken = {"model": "bert", "batch": None, "status": "exit status 1: no memory"}
    document = {"rows": [row(), row("loop", 0.02, 1.5), broken]}
    text = latency.render(document)
    assert "| lstm  |     1 | 4             | 2       | 2       | 2.00 (1.50 .. 2.50) | 1.00 (1.00 .. 1.00) | 0" in text
    assert "FAILED bert: exit status 1: no memory" in text
    assert latency.facts(document) == {
        "tensorflow": "2.00", "plain": "1.000", "again": "1.020", "overhead": "10", "models": "2",
        "beside": "takes 1.000 times as long (that file against itself: 1.020) and adds 10 us to short calls",
    }  # fmt: skip
    chart = latency.plots(document)["latency"]
    assert chart.groups == ["lstm, batch 1", "loop, batch 1"]
    assert chart.series["ours, native"] == pytest.approx([0.5, 0.0075])
    only_broken = {"rows": [broken]}
    assert (latency.facts(only_broken), latency.plots(only_broken)) == ({}, {})
    assert latency.render(only_broken) == "FAILED bert: exit status 1: no memory"


def test_long_and_short_calls_are_told_only_where_there_are_any(latency):
    short, long = {"rows": [row("loop", 0.02, 1.5)]}, {"rows": [row()]}
    assert latency.facts(short)["beside"] == "adds 10 us to short calls"
    assert not {"plain", "again"} & latency.facts(short).keys()
    text = latency.render(short)
    assert "at least 1 ms" not in text
    assert text.endswith("TensorFlow takes 2.00 times as long as ours. To a call of less than 1 ms ours adds 10 us.")
    assert "overhead" not in latency.facts(long)
    assert latency.facts(long)["beside"] == "takes 1.000 times as long (that file against itself: 1.020)"
    assert "less than 1 ms" not in latency.render(long)


@pytest.mark.parametrize("script", ["native_latency", "load_time"])
def test_a_model_that_the_zoo_lacks_is_told_before_anything_is_run(benchmark_module, capsys, script):
    with pytest.raises(SystemExit) as caught:
        benchmark_module(script).main(["--only", "lstm", "nope"])
    assert caught.value.code == 2
    assert "error: no model nope in the zoo; there are: ResNet50, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({}, "ok"),
        ({"max rel diff": 1e-2}, "differs from TensorFlow by 1.0e-02"),
        ({"max rel diff": float("inf")}, "differs"),
        ({"ours_over_onnx": ratio(1.2, 1.1, 1.3), "overhead_us": 900}, "ours takes 1.20 times as long"),
        ({"ours_over_onnx": ratio(1.2, 1.1, 1.3), "overhead_us": 20}, "ok"),
        ({"ours_over_onnx": ratio(1.2, 0.9, 1.3), "overhead_us": 900}, "ok"),
        ({"ours_over_onnx": ratio(1.2, 1.1, 1.3), "again_over_onnx": ratio(1, 0.9, 1.15), "overhead_us": 900}, "ok"),
    ],
)
def test_verdicts(latency, figures, words):
    assert words in latency.judge({**row(), **figures}, 1.05, 50)


@pytest.mark.parametrize(
    ("longest", "expected"), [(1e-4, (12, 8, 10)), (0.1, (12, 5, 10)), (3.0, (5, 1, 1)), (0.0, (12, 8, 10))]
)
def test_how_much_is_timed(latency, longest, expected):
    arguments = SimpleNamespace(seconds=6.0, num_iterations=96, num_warmup_iterations=10, rounds=12)
    assert latency.amounts(longest, arguments) == expected


def test_samples_of_a_batch(benchmark_module):
    of_batch = benchmark_module("_zoo_artifacts").of_batch
    sample = {"x": np.arange(6).reshape(2, 3), "steps": np.int32(4), "table": np.zeros((1, 5))}
    found = of_batch(sample, 3)
    np.testing.assert_array_equal(found["x"], [[0, 1, 2], [3, 4, 5], [0, 1, 2]])
    assert found["steps"] == 4
    assert found["table"].shape == (1, 5)


def loads(model, tensorflow=500.0, plain=100.0, ours=150.0, megabytes=10.0):
    figures = {"TensorFlow": tensorflow, "ONNX": plain, "spliced": plain, "ours": ours}
    return [
        {
            "model": model, "system": system, "MB": megabytes, "import_s": 1.0, "load_ms": ms, "load_median_ms": 2 * ms,
            "load_cpu_ms": ms,
            "first_call_ms": 1.0, "again_ms": ms, "peak_MB": 99.0, "engines": 2 if system == "ours" else None,
            **({"hashes_ms": 30.0} if system == "ours" else {}),
        }
        for system, ms in figures.items()
    ]  # fmt: skip


def test_loads_as_text_facts_and_chart(loading):
    document = {
        "rows": loads("lstm") + loads("bert", ours=100.0), "limit": 2.0, "hash_rate": 100.0,
        "signatures": [{"signatures": 4, "artifact MB": 16.94, "ours, all ms": 12.4}],
    }  # fmt: skip
    text = loading.render(document)
    assert (
        "| lstm  | ours       | 10.0       | 1.00     | 150 (300)  | 150    | 1.0           | 150      | 30        "
        in text
    )
    assert "|          4 | 16.9        | 12           |" in text
    assert "PASS: ours loads within 2 times" in text
    assert loading.facts(document) == {
        "tensorflow_least": "5.0", "tensorflow_most": "5.0", "ours_least": "1.0", "ours_most": "1.5",
    }  # fmt: skip
    chart = loading.plots(document)["load"]
    assert (chart.groups, chart.series["ours"]) == (["lstm", "bert"], [150.0, 100.0])
    assert loading.plots({**document, "rows": []}) == {}


def test_a_load_that_takes_too_long(loading):
    document = {"rows": loads("lstm", ours=301.0), "limit": 2.0, "hash_rate": 100.0, "signatures": []}
    assert loading.slow(document) == ["lstm: ours loads in 301 ms of processor time, allowed are 300 ms"]
    assert "FAILED lstm: ours loads in 301 ms" in loading.render(document)
    assert loading.slow({**document, "hash_rate": 99.0}) == []


def test_sizes_on_disk(loading, tmp_path):
    (tmp_path / "engines").mkdir()
    for name, size in (("model.onnx", 1000), ("model.onnx.data", 3000), ("engines/a.engine", 6000)):
        (tmp_path / name).write_bytes(bytes(size))
    found = [loading._megabytes(tmp_path, system) for system in ("spliced", "ours")]
    assert found == pytest.approx([0.004, 0.01])
    assert loading._megabytes(tmp_path / "model.onnx", "ONNX") == pytest.approx(0.001)


def test_a_child_that_fails_says_why(loading, monkeypatch):
    monkeypatch.setattr(loading.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="load ours"):
        loading._child("load", {"system": "ours"})
