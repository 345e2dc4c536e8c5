"""The test helpers themselves: random models are valid, varied and reproducible; comparisons can fail."""

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from passes.graph.walk import iter_nodes
from passes.model import Model
from passes.testing import TOLERANCES, assert_close, random_feeds, random_model
from rewriter.runtime.native import NativeSession


def test_models_are_valid_reproducible_and_varied():
    seen = set()
    for seed in range(12):
        proto = random_model(seed, 40)
        onnx.checker.check_model(proto, full_check=True)
        assert proto == random_model(random.Random(seed), 40)  # noqa: S311
        seen.update(node.op_type for node in iter_nodes(proto.graph))
        outputs = NativeSession(Model(proto), threads=1).run(random_feeds(proto, seed, {"N": 3}))
        assert all(value.shape == (3, 4) and np.isfinite(value).all() for value in outputs.values())
    assert {"If", "Loop", "Constant", "Identity", "Mix", "ScatterND", "Dropout", "Shape"} <= seen


def test_what_is_switched_off_stays_out():
    for seed in range(5):
        proto = random_model(seed, 40, unsupported=0.0, control_flow=False, functions=False)
        assert not {"If", "Loop", "Mix", "ScatterND"} & {node.op_type for node in proto.graph.node}
        assert not proto.functions


def test_feeds_fit_the_inputs():
    proto = random_model(0, 1)
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT32, ["N", "M", 3]))
    proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.BOOL, []))
    feeds = random_feeds(proto, 1, {"N": 5})
    assert (feeds["x"].shape, feeds["x"].dtype) == ((5, 4), np.float32)
    assert (feeds["i"].shape, feeds["i"].dtype) == ((5, 2, 3), np.int32)
    assert (feeds["b"].shape, feeds["b"].dtype) == ((), np.bool_)
    assert random_feeds(proto, 1, {"N": 5})["x"].tolist() == feeds["x"].tolist()


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_tolerance_is_relative_to_the_largest_value(precision):
    want = {"y": np.array([100.0, 0.001], np.float32)}
    step = 100.0 * TOLERANCES[precision]
    assert_close({"y": want["y"] + np.float32(0.9 * step)}, want, precision)
    with pytest.raises(AssertionError, match=f"y: largest difference .* allowed .*{precision}"):
        assert_close({"y": want["y"] + np.float32(1.2 * step)}, want, precision)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"z": np.zeros(2, np.float32)}, "outputs are"),
        ({"y": np.zeros(3, np.float32)}, "y: float32"),
        ({"y": np.zeros(2, np.float64)}, "y: float64"),
        ({"y": np.array([np.nan, 0], np.float32)}, "largest difference nan"),
    ],
)
def test_other_differences_are_found(got, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(got, {"y": np.zeros(2, np.float32)})


def test_infinities_must_stand_in_the_same_places():
    want = {"y": np.array([np.inf, np.nan, 1], np.float32)}
    assert_close(want, want)
    with pytest.raises(AssertionError, match="not finite"):
        assert_close({"y": np.array([-np.inf, np.nan, 1], np.float32)}, want)


def test_integers_and_strings_are_compared_exactly():
    assert_close({"y": np.array(["a"], object)}, {"y": np.array(["a"], object)})
    with pytest.raises(AssertionError):
        assert_close({"y": np.array([1000001])}, {"y": np.array([1000000])})


def test_unknown_precision():
    with pytest.raises(KeyError):
        assert_close({}, {}, "FP7")
