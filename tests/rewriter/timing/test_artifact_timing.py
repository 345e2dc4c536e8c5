"""Timing of an artifact, over the doubles of a GPU: what is measured, how, and what is said about it."""

import json

import numpy as np
import pytest

from rewriter.errors import CudaError, InvalidParameterError
from rewriter.runtime import device
from rewriter.timing import artifact_timing
from rewriter.timing.artifact_timing import TimingOptions, notes_of, time_artifact
from rewriter.timing.circumstances import circumstances
from rewriter.timing.on_gpu import GpuStream
from rewriter.timing.tables import print_timing, write_csv


@pytest.fixture
def on_gpu(hybrid_function, stream, monkeypatch):
    """Makes `time_artifact` find the doubles; what `load` was called with."""
    seen = {}

    def load(path, **options):
        seen.update(options, path=path)
        return hybrid_function

    monkeypatch.setattr("rewriter.runtime.loading.load", load)
    monkeypatch.setattr(artifact_timing, "_open_gpu", lambda options: stream)
    return seen


def timed(samples, **options):
    return time_artifact("OUT", lambda function: samples, TimingOptions(iterations=4, duration=0, **options))


def test_from_host_to_host(on_gpu, stream, image):
    found = timed([{"image": image}, {"image": image[:2]}])
    assert on_gpu == {"path": "OUT", "stream": stream.handle}
    assert (found.provider, found.execution) == ("cuda", "auto")
    first, second = found.timings
    assert (first.shapes, first.items, second.items) == ({"image": (3, 4)}, 3, 2)
    assert first.enqueue is None
    assert first.threaded is None
    assert (first.latency.calls, first.in_a_row.calls, first.device.seconds) == (4, 4, (0.002,) * 4)
    assert first.warmup["runs"] == 5
    assert first.counters["engine_calls"] == first.counters["calls"] == 1 + 10 + 4 + 10 + 4
    assert first.counters["native_calls"] == 0
    # The first call finds the shapes, and so does nothing else; all but it and the warm-up's second run are a graph's.
    assert first.counters["discoveries"] == 1
    assert first.counters["graph_launches"] >= first.counters["calls"] - 1
    assert found.stats["warmup_calls"] == 10
    assert found.notes == (
        "p99 of 4 calls is little more than their maximum: more --iterations make it mean something",
    )


def test_on_the_device_with_threads(on_gpu, image):
    found = timed([{"image": image}], device_inputs=True, device_outputs=True, threads=3, warmup_iterations=2)
    (timing,) = found.timings
    assert (timing.latency.calls, timing.enqueue.calls, timing.in_a_row.calls) == (4, 4, 4)
    latencies, throughput = timing.threaded
    assert (latencies.calls, throughput.calls, throughput.threads) == (12, 12, 3)
    assert all(part <= whole for part, whole in zip(timing.enqueue.seconds, timing.latency.seconds, strict=True))
    assert timing.counters["calls"] == 1 + 2 + 4 + 4 + 2 + 4 + 12


def test_tables_csv_and_json(on_gpu, image, capsys):
    from rewriter.reports.summary import plain_console

    found = timed([{"image": image}], device_outputs=True, threads=2)
    around = circumstances(on_gpu=True, gpu=found.gpu)
    print_timing(plain_console(), "OUT", found, around)
    printed = capsys.readouterr().out
    for words in ("image 3x4 (3 items a call)", "latency", "enqueue", "GPU", "2 threads", "p99", "items/s", "graph"):
        assert words in printed
    assert "Engines: TRTEngineOp_000 and TRTEngineOp_001 run tensorrt_rtx 1.7.1.116: built for" in printed
    document = {
        "experiment_name": None,
        "artifact": "OUT",
        "signature": "serve",
        "environment": around,
        **json.loads(json.dumps(found.to_dict(), allow_nan=False)),
    }
    header, row = (line.split(",") for line in write_csv(document).splitlines())
    told = dict(zip(header, row, strict=True))
    assert told["shapes"] == "image:3x4"
    assert float(told["device_p50_ms"]) == pytest.approx(2.0)
    assert told["threads_threads"] == "2"
    assert {"enqueue_p50_ms", "p99_ms", "items_per_s", "counted_graph_launches", "version numpy"} <= told.keys()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_figure_is_cut_on_a_narrow_screen(on_gpu, image, monkeypatch, capsys, width):
    from rewriter.reports.summary import plain_console

    found = timed([{"image": image}], device_outputs=True, threads=2)
    monkeypatch.setenv("COLUMNS", str(width))
    print_timing(plain_console(), "OUT", found, circumstances(on_gpu=True, gpu=found.gpu))
    lines = capsys.readouterr().out.splitlines()
    headings = [word for line in lines if line.startswith("ms ") for word in line.split()[1:]]
    rows = [line.split()[1:] for line in lines if line.startswith("latency ")]
    assert headings == ["calls", "mean", "trimmed", "p50", "p90", "p95", "p99", "min", "max"]
    assert len([float(figure) for row in rows for figure in row]) == len(headings)
    assert len(rows) == 1 if width == 200 else all(len(line) <= width for line in lines if line.startswith("latency "))


def test_a_function_on_the_cpu_has_no_device_figures(monkeypatch, image, fake_function):
    monkeypatch.setattr("rewriter.runtime.loading.load", lambda path, **options: fake_function)
    (timing,) = timed([{"x": image}]).timings
    assert (timing.device, timing.enqueue, timing.in_a_row.calls) == (None, None, 4)
    with pytest.raises(InvalidParameterError, match=r"need a model that runs on a GPU.*\(no GPU"):
        timed([{"x": image}], device_inputs=True)


@pytest.fixture
def fake_function(cpu_function):
    with cpu_function() as function:
        yield function


@pytest.fixture
def cpu_function():
    """Makes a function on the CPU whose one engine node runs natively."""
    import onnx

    from passes.model import from_proto
    from passes.segments import TensorSpec
    from rewriter.runtime.executor import NativeExecutor
    from rewriter.runtime.function import ConvertedFunction
    from rewriter.source import Signature

    def make():
        text = '<ir_version: 10, opset_import: ["": 18]> g (float[N, 4] x) => (float[N, 4] y) { y = Abs(x) }'
        model = from_proto(onnx.parser.parse_model(text))
        specs = [TensorSpec(name, onnx.TensorProto.FLOAT, ("N", 4)) for name in "xy"]
        executor = NativeExecutor(model, ("y",), {"no GPU": 1})
        return ConvertedFunction(executor, Signature((specs[0],), (specs[1],), "serve"), engine_nodes=1)

    return make


def test_where_a_stream_is_opened(monkeypatch):
    opened = []
    monkeypatch.setattr(GpuStream, "open", lambda device: opened.append(device) or "stream")
    assert artifact_timing._open_gpu({}) is None  # the tests hide all GPUs
    monkeypatch.setattr(device, "missing_gpu", lambda: "")
    assert artifact_timing._open_gpu({"device": 1}) == "stream"
    assert artifact_timing._open_gpu({"provider": "cpu"}) is None
    assert artifact_timing._open_gpu({"execution": "native"}) is None
    assert opened == [1]

    def fail(device):
        raise CudaError("no driver")

    monkeypatch.setattr(GpuStream, "open", fail)
    assert artifact_timing._open_gpu({}) is None


STATS = {
    "engine_nodes": 2, "engine_calls": 0, "calls": 5, "fallbacks": {}, "execution": "auto", "provider": "cpu",
    "unusable_engines": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        (
            {"fallbacks": {"no GPU": 10}},
            "TensorRT computed nothing (no GPU): these are the times of ONNX Runtime on the CPU",
        ),
        ({"engine_nodes": 0}, "no engine node"),
        ({"execution": "emulate"}, "nothing of how fast"),
        ({"engine_calls": 5, "fallbacks": {"shapes": 2}}, "2 run(s) of engine nodes in 5 calls were native: shapes"),
        ({"engine_calls": 5, "no_graph": {"strings": 1}}, "without a graph of its own, 1 time(s): strings"),
        ({"engine_calls": 5, "unusable_engines": {"E": "damaged"}}, "E has an engine that cannot be used: damaged"),
    ],
)
def test_notes(stats, words):
    (note,) = notes_of({**STATS, **stats}, ())
    assert words in note


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"duration": -1},
        {"duration": float("nan")},
        {"threads": 0},
        {"warmup_iterations": -1},
        {"duration": float("inf")},
        {"trim": 0.5},
        {"trim": float("nan")},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(InvalidParameterError, match="must be at least"):
        TimingOptions(**options)


@pytest.mark.gpu
@pytest.mark.rtx
@pytest.mark.parametrize("where", [[], ["--device-inputs", "--device-outputs"]])
def test_bench_on_a_gpu(where, tmp_path, capsys):
    import onnx

    from rewriter.cli import main

    text = """<ir_version: 10, opset_import: ["": 18]> g (float[N, 64] x) => (float[N, 64] y) {
        a = Exp(x) b = Tanh(a) c = Mul(b, x) y = Sqrt(c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    out, figures = str(tmp_path / "out"), tmp_path / "f.json"
    assert main(["convert", str(tmp_path / "m.onnx"), "-o", out, "--shapes", "x:1x64,8x64"]) == 0
    assert main(["bench", out, "--batch-size", "1", "8", "--duration", "0.1", "--json", str(figures), *where]) == 0
    assert "GPU" in capsys.readouterr().out
    found = json.loads(figures.read_text("utf-8"))
    assert (found["provider"], found["stats"]["fallbacks"]) == ("cuda", {})
    for timing in found["timings"]:
        assert timing["counters"]["engine_calls"] == timing["counters"]["calls"]
        assert timing["device"]["p50_ms"] > 0
        assert (timing["enqueue"] is not None) == bool(where)
    assert np.isfinite(found["load_s"])
