"""The parts of the runtime's benchmarks that need no GPU: skeletons, filled models, comparisons, timing."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def model_of(*weights):
    """A model with these arrays as initializers "w0", "w1" ..., each multiplied by itself."""
    nodes = [helper.make_node("Mul", [f"w{i}", f"w{i}"], [f"y{i}"]) for i in range(len(weights))]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(len(weights))]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(w), f"w{i}") for i, w in enumerate(weights)]
    return helper.make_model(helper.make_graph(nodes, "weights", [], outputs, tensors))


def arrays_of(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_a_skeleton_is_small_and_filled_again_to_the_same_weights(benchmark_module):
    skeleton = benchmark_module("_skeleton")
    kernel, dense = skeleton.seeded(1, (3, 3, 64, 64)), skeleton.seeded(2, (256, 128))
    scales = np.linspace(0.5, 2, 64, dtype=np.float32).reshape(64, 1, 1, 1)
    small = np.arange(12, dtype=np.float32)
    # As an exporter leaves a convolution's kernel, and a batch norm that is folded into it; a reshaped matrix; a copy.
    full = model_of(kernel.transpose(3, 2, 0, 1) * scales, dense.reshape(256, 4, 32) * np.float32(0.1), small)
    made, strangers = skeleton.strip(full, {1: (3, 3, 64, 64), 2: (256, 128)})
    assert strangers == []
    assert made.ByteSize() < 3000
    filled = arrays_of(skeleton.fill(made))
    for name, array in arrays_of(full).items():
        np.testing.assert_allclose(filled[name], array, rtol=1e-5)


def test_a_large_weight_of_no_seed_stays_and_is_told(benchmark_module):
    skeleton = benchmark_module("_skeleton")
    trained = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
    made, strangers = skeleton.strip(model_of(trained), {1: (200, 100)})
    assert strangers == ["w0"]
    np.testing.assert_array_equal(arrays_of(skeleton.fill(made))["w0"], trained)


def test_values_of_another_generator_are_noticed(benchmark_module, monkeypatch):
    skeleton = benchmark_module("_skeleton")
    made, _ = skeleton.strip(model_of(skeleton.seeded(5, (128, 256))), {5: (128, 256)})
    monkeypatch.setattr(skeleton, "seeded", lambda seed, shape: np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="w0 came out otherwise"):
        skeleton.fill(made)


def test_the_chain_travels_and_is_cut_in_alternating_pieces(benchmark_module, tmp_path):
    models = benchmark_module("runtime_models")
    row = models.make("chain7", tmp_path)
    assert row["skeleton MB"] < 0.1
    path = models.filled("chain7", tmp_path)
    onnx.checker.check_model(str(path))
    assert models.filled("chain1", tmp_path) == path
    pieces = models.chain_pieces(7)
    assert [layer for piece in pieces for layer in piece] == list(range(48))
    assert min(len(piece) for piece in pieces) >= 6
    assert models.chain_denied(1) == ()
    (pattern,) = models.chain_denied(3)
    assert "16|17" in pattern
    assert "15|" not in pattern


def test_inputs_depend_on_their_number_alone(benchmark_module):
    models = benchmark_module("runtime_models")
    for name in models.MODELS:
        case = models.MODELS[name].checks[0]
        first, again, other = (models.feeds_of(name, case, number) for number in (1, 1, 2))
        assert all(np.array_equal(first[key], again[key]) for key in first)
        assert not all(np.array_equal(first[key], other[key]) for key in first)


def test_boxes_are_compared_where_both_runs_selected_them(benchmark_module):
    bench = benchmark_module("_runtime_bench")
    boxes = np.arange(12 * 4, dtype=np.float32).reshape(1, 12, 4)
    expected = {
        "detection_boxes": boxes,
        "detection_classes": np.zeros((1, 12), np.float32),
        "detection_scores": np.linspace(1, 0.5, 12, dtype=np.float32)[None],
        "num_detections": np.array([11], np.int32),
    }
    turned = {k: v[:, ::-1] if v.ndim > 1 else v for k, v in expected.items()} | {"num_detections": np.array([12])}
    assert bench.compare(turned, expected) == {"max": 0.0, "rms": 0.0, "boxes": 11, "found": 11}
    lost = {**expected, "num_detections": np.array([6], np.int32)}
    assert bench.compare(lost, expected)["max"] == math.inf
    moved = {**expected, "detection_scores": expected["detection_scores"] + np.float32(0.1)}
    assert bench.compare(moved, expected)["max"] == pytest.approx(0.1)


def test_arrays_are_compared_by_their_largest_and_their_mean_difference(benchmark_module):
    bench = benchmark_module("_runtime_bench")
    expected = {"y": np.array([3.0, 4.0])}
    found = bench.compare({"y": np.array([3.0, 4.4])}, expected)
    assert found["max"] == pytest.approx(0.1)
    assert found["rms"] == pytest.approx(0.08)
    assert bench.compare({"y": np.array([3.0, np.nan])}, expected)["max"] == math.inf
    assert bench.compare({"y": np.zeros(3)}, expected)["max"] == math.inf


def test_every_system_is_timed_in_turns(benchmark_module):
    bench = benchmark_module("_runtime_bench")
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1

    times = bench.interleaved({n: lambda n=n: count(n) for n in calls}, lambda: None, rounds=2, runs=3)
    assert calls == {"a": 10 + 2 * (5 + 6), "b": 10 + 2 * (5 + 6)}
    assert all(0 < row["p10"] <= row["us"] <= row["p90"] for row in times.values())


def test_an_experiment_that_fails_or_hangs_is_told(benchmark_module, tmp_path):
    bench = benchmark_module("_runtime_bench")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, time\n"
        "todo = json.loads(sys.argv[3])\n"
        "print('RESULT ' + json.dumps([{'row': todo['name']}]), flush=True)\n"
        "if todo['name'] == 'bad': raise RuntimeError('it broke')\n"
        "if todo['name'] == 'slow': time.sleep(60)\n"
    )
    todo = [{"folder": str(tmp_path), "name": name} for name in ("good", "bad", "slow")]
    good, bad = bench.run_experiments(str(script), todo[:2], 60, tmp_path / "out.json", jobs=2)
    (slow,) = bench.run_experiments(str(script), todo[2:], 0.5, None)
    assert good["rows"] == [{"row": "good"}]
    assert "failed" not in good
    assert "it broke" in bad["failed"]
    assert bad["rows"] == [{"row": "bad"}]
    assert "no end after" in slow["failed"]
    assert "it broke" in (tmp_path / "out.json").read_text()


def test_missing_figures_are_neither_met_nor_missed(benchmark_module):
    speed = benchmark_module("runtime_speed")
    rows = [
        {"model": "chain7", "system": "ours, graph", "batch": 8, "us": 450.0, "stream us": 440.0},
        {"model": "chain1", "system": "ours, graph", "batch": 8, "us": 360.0, "stream us": 350.0},
    ]
    verdicts = {v["target"]: v["passed"] for v in speed.judge({"chain": rows})}
    assert verdicts["7 steps / single engine, graphs"] == "yes"
    assert verdicts["7 steps / single ORT session"] == "?"


def test_a_half_precision_rival_computes_the_same_network(benchmark_module):
    rivals = benchmark_module("_runtime_rivals")
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d])] for n, d in (("x", 4), ("y", 3))]
    proto = helper.make_model(
        helper.make_graph(nodes, "two", *ends, [weight]), ir_version=10, opset_imports=[helper.make_opsetid("", 17)]
    )
    feeds = {"x": np.ones((2, 4), np.float32)}
    full, half = (rivals._cpu_outputs(m.SerializeToString(), feeds)["y"] for m in (proto, rivals.as_float16(proto)))
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 1e-2
