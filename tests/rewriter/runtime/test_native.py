"""ONNX Runtime as the native executor: weights by reference, from memory or mapped from files."""

import json

import numpy as np
import pytest
from onnx import numpy_helper, parser

from passes import model as models
from rewriter.errors import InputError
from rewriter.runtime.native import NativeSession, evaluate

WEIGHTS = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)


@pytest.fixture
def model():
    proto = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[n, 64] x, int64[k] index) => (float[n, 48] y, float[k, 48] rows)
        {
            y = MatMul(x, w)
            rows = Gather(w, index)
        }
        """
    )
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    return models.from_proto(proto)


@pytest.fixture(params=["memory", "mapped"])
def placed(request, model, tmp_path):
    return model if request.param == "memory" else models.spool(model, tmp_path / "weights")


@pytest.mark.parametrize("options", [{}, {"optimize": False}, {"threads": 1}])
def test_results_are_the_same_wherever_the_weights_lie(placed, options):
    """Mapped pages are given back after the session is made; what is read from them later must be right still."""
    session = NativeSession(placed, **options)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    index = np.array([0, 63, 7])
    for _ in range(2):
        outputs = session.run({"x": x, "index": index})
        np.testing.assert_allclose(outputs["y"], x @ WEIGHTS, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(outputs["rows"], WEIGHTS[index])
    np.testing.assert_array_equal(placed.weights["w"], WEIGHTS)


def test_only_wanted_outputs_are_computed(model):
    session = NativeSession(model, ["rows"])
    assert session.input_names == ("x", "index")
    outputs = session.run({"x": np.zeros((1, 64), np.float32), "index": np.array([5])})
    assert list(outputs) == ["rows"]


def test_a_profile_records_the_nodes(model, tmp_path):
    session = NativeSession(model, optimize=False, profile=tmp_path / "trace")
    session.run({"x": np.zeros((2, 64), np.float32), "index": np.array([5])})
    path = session.end_profiling()
    assert path.parent == tmp_path
    shapes = [e["args"]["output_type_shape"] for e in json.loads(path.read_text()) if e.get("cat") == "Node"]
    assert {"float": [2, 48]} in [item for items in shapes for item in items]


def test_evaluate_runs_a_small_model_once():
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (int64 a, int64 b) => (int64 c) { c = Mul(a, b) }'
    )
    assert evaluate(proto, {"a": np.array(6), "b": np.array(7)})["c"] == 42


def test_bytes_that_are_no_text_are_refused():
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (string[N] s) => (string[N] t) { t = Identity(s) }'
    )
    session = NativeSession(models.from_proto(proto))
    assert session.run({"s": np.array(["\u00e9"], object)})["t"].tolist() == ["\u00e9"]
    with pytest.raises(InputError, match="input 's' holds bytes that are not UTF-8 text"):
        session.run({"s": np.array(["a\udcff"], object)})


@pytest.mark.parametrize("shown", ["a", "b", "s"])
def test_values_in_the_middle_of_a_fusion_may_be_outputs(shown):
    """ONNX Runtime fuses Conv, Add and Relu, and takes the value in between away even where it is an output."""
    proto = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 18]>
        g (float[1, 2, 4, 4] x, float[2, 2, 1, 1] v, float[2, 2, 1, 1] w, float[2] bias)
            => (float[1, 2, 4, 4] y, float[1, 2, 4, 4] {shown})
        {{
            z = Relu(x)
            a = Conv(z, v, bias)
            b = Conv(x, w, bias)
            s = Add(a, b)
            y = Relu(s)
        }}
        """
    )
    feeds = {"x": np.ones((1, 2, 4, 4)), "v": np.ones((2, 2, 1, 1)), "w": np.ones((2, 2, 1, 1)), "bias": np.ones(2)}
    found = NativeSession(models.from_proto(proto)).run({name: v.astype(np.float32) for name, v in feeds.items()})
    assert found[shown].max() == (6 if shown == "s" else 3)
    assert found["y"].max() == 6
