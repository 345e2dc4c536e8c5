"""A model with an island on a real GPU; numpy stands for TensorFlow, which need not be there.

CUDA_VISIBLE_DEVICES=0 python -m pytest -m gpu tests/rewriter/runtime/gpu
"""

import concurrent.futures

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rewriter
from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island
from rewriter import Converter
from rewriter.runtime import sectioned, staged

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-2  # engines compute FP32 in TF32
WIDTH = 64


class NumpyIsland:
    """Stands for TensorFlow: sorts rows."""

    def __init__(self, step, *, lazy=False):
        self.step, self.calls = step, 0

    def run(self, values):
        [value] = [values[name] for name in self.step.inputs]
        assert type(value) is np.ndarray
        self.calls += 1
        return {self.step.outputs[0]: np.sort(value, axis=1)}

    def stats(self):
        return {"ops": [], "reasons": [], "calls": self.calls, "seconds": 0.0}

    def close(self):
        pass


WEIGHTS = [np.random.default_rng(i).standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 for i in range(4)]


def model(folder):
    """Products of matrices in front of an island, around it and behind it."""

    def product(number, value):
        return [
            helper.make_node("MatMul", [value, f"w{number}"], [f"m{number}"], name=f"matmul{number}"),
            helper.make_node("Tanh", [f"m{number}"], [f"t{number}"], name=f"tanh{number}"),
        ]

    attributes = IslandAttributes(str(folder), ("i",), ("o",), ("Sort",), ("for the test",))
    nodes = [
        *product(0, "x"),
        *product(1, "t0"),
        make_island("TFIsland_000", ("t1",), ("s",), attributes),
        *product(2, "s"),
        helper.make_node("Add", ["t2", "t0"], ["sum"], name="around"),
        *product(3, "sum"),
    ]
    shape = ["n", WIDTH]
    graph = helper.make_graph(
        nodes,
        "islands",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("t3", "s")],
        [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(WEIGHTS)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ISLAND_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def reference(x):
    t0 = np.tanh(x @ WEIGHTS[0])
    s = np.sort(np.tanh(t0 @ WEIGHTS[1]), axis=1)
    return {"t3": np.tanh((np.tanh(s @ WEIGHTS[2]) + t0) @ WEIGHTS[3]), "s": s}


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    for module in (sectioned, staged):
        monkeypatch.setattr(module, "TensorFlowIsland", NumpyIsland)
    folder = tmp_path / "island"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"never read")
    onnx.save(model(folder), tmp_path / "model.onnx")
    with Converter(
        model=tmp_path / "model.onnx", backend="tensorrt_rtx", allow_build_at_runtime=False, minimum_segment_size=1
    ) as converter:
        converter.convert()
        converter.build(lambda: iter([{"x": rows(1)}, {"x": rows(8)}]))
        return converter.save(tmp_path / "out")


def agree(found, x):
    for name, expected in reference(x).items():
        np.testing.assert_allclose(np.asarray(found[name]), expected, atol=TOLERANCE)


def test_sections_keep_engines_and_graphs(artifact):
    with rewriter.load(artifact, provider="cuda", strict=True) as function:
        for seed in range(5):
            for count in (1, 8, 3):
                agree(function(rows(count, seed)), rows(count, seed))
        stats = function.stats()
    assert stats["engine_calls"] == stats["calls"] == 15
    assert (stats["sections"], stats["plans"], stats["graphs"]) == (2, 6, 6)
    assert (stats["fallbacks"], stats["tensorflow"]["TFIsland_000"]["calls"]) == ({}, 15)


def test_inputs_and_outputs_on_the_device(artifact):
    with rewriter.load(artifact, provider="cuda", strict=True) as function:
        for _ in range(4):
            found = function.run(rows(8), device_outputs=True)
            assert isinstance(found["s"], np.ndarray)
            agree(found, rows(8))
            again = found["t3"].numpy()
            agree(function(found["t3"]), again)


def test_threads(artifact):
    with rewriter.load(artifact, provider="cuda", strict=True) as function:
        function.warmup({"x": [(1, WIDTH), (5, WIDTH)]})

        def work(thread):
            for call in range(50):
                x = rows((1, 5)[call % 2], thread)
                agree(function(x), x)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
