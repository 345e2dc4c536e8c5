from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.extract import Extractor
from rewriter.backends.isolation import Isolation, signature

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def pad(make_model, prefix="", pads=(0, 1), mode="constant", shape=(4,), dtype=FLOAT, opset=18, given=False):
    """One Pad node; `prefix` goes before every name, `given` makes the pads an input."""
    node = helper.make_node("Pad", [f"{prefix}x", f"{prefix}p"], [f"{prefix}y"], name=f"{prefix}n", mode=mode)
    inputs = {f"{prefix}x": (dtype, list(shape))}
    constants = []
    if given:
        inputs[f"{prefix}p"] = (INT64, [len(pads)])
    else:
        constants = [numpy_helper.from_array(np.array(pads, np.int64), f"{prefix}p")]
    return make_model([node], inputs, {f"{prefix}y": (dtype, None)}, constants, opset=opset).proto


def test_names_and_symbols_do_not_count(make_model):
    assert signature(pad(make_model)) == signature(pad(make_model, prefix="other/"))
    assert signature(pad(make_model, shape=("a",))) == signature(pad(make_model, shape=("b",)))


@pytest.mark.parametrize(
    "change",
    [
        {"pads": (0, 2)},
        {"mode": "edge"},
        {"shape": (5,)},
        {"shape": ("n",)},
        {"dtype": TensorProto.FLOAT16},
        {"opset": 19},
        {"given": True},
    ],
)
def test_everything_else_counts(make_model, change):
    assert signature(pad(make_model)) != signature(pad(make_model, **change))


def test_the_values_of_large_weights_do_not_count(make_model):
    def dense(value, size=64):
        weight = numpy_helper.from_array(np.full((64, size), value, np.float32), "w")
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="n")
        return make_model([node], {"x": (FLOAT, [1, 64])}, {"y": (FLOAT, None)}, [weight]).proto

    assert signature(dense(1)) == signature(dense(2))
    assert signature(dense(1)) != signature(dense(1, size=32))


def test_nodes_of_one_kind_are_asked_about_once(make_model):
    class Count:
        asked = 0

        def parse(self, model):
            self.asked += 1
            return ()

    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(10)]
    model = make_model(nodes, {"v0": (FLOAT, [2])}, {"v10": (FLOAT, [2])})
    backend = Count()
    isolation = Isolation(backend)
    extractor = Extractor(model)
    for i in range(10):
        assert isolation.check(extractor, (), f"n{i}") == ()
    assert backend.asked == 1
