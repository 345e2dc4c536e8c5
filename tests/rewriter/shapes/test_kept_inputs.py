"""What an `input_fn` yielded is asked for once, and is there for later plans and builds."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from passes.segments import TensorSpec
from rewriter.converter import Converter
from rewriter.errors import InputError, InvalidParameterError
from rewriter.shapes import kept_inputs
from rewriter.shapes.kept_inputs import KeptInputs
from rewriter.source import Signature

SIGNATURE = Signature((TensorSpec("x", T.FLOAT, ("n", 4)), TensorSpec("s", T.STRING, ("n",))), ())


def sample(batch):
    return {"x": np.full((batch, 4), batch, np.float32), "s": np.array(["a"] * batch, object)}


@pytest.mark.parametrize("spill", [0, 1 << 20])
def test_the_user_is_asked_once(tmp_path, monkeypatch, spill):
    monkeypatch.setattr(kept_inputs, "SPILL_BYTES", spill)
    calls = []

    def input_fn():
        calls.append(1)
        buffer = np.empty((2, 4), np.float32)
        for value in (1, 2):
            buffer.fill(value)  # the same memory for every sample
            yield {"x": buffer, "s": ["a", "b"]}

    kept = KeptInputs(input_fn, SIGNATURE, tmp_path)
    for _ in range(3):
        assert [(s["x"][0, 0], list(s["s"])) for s in kept()] == [(1, ["a", "b"]), (2, ["a", "b"])]
    assert len(calls) == 1
    assert len(list(tmp_path.iterdir())) == (2 if spill == 0 else 0)


def test_a_call_that_was_broken_off_keeps_nothing(tmp_path):
    kept = KeptInputs(lambda: iter([sample(1), sample(2)]), SIGNATURE, tmp_path)
    next(kept())
    assert [s["x"].shape[0] for s in kept()] == [1, 2]


def test_samples_are_counted_from_zero_in_every_function(tmp_path):
    kept = KeptInputs(lambda: [sample(1), {"x": np.ones((1, 3), np.float32), "s": ["a"]}], SIGNATURE, tmp_path)
    with pytest.raises(InputError, match=r"^sample 1: "):
        list(kept())
    with pytest.raises(InvalidParameterError, match="yielded no inputs"):
        list(KeptInputs(list, SIGNATURE, tmp_path)())


@pytest.fixture
def model():
    nodes = [h.make_node(op, [a], [b], op) for op, a, b in (("Exp", "x", "a"), ("Neg", "a", "b"), ("Abs", "b", "y"))]
    x, y = (h.make_tensor_value_info(name, T.FLOAT, ["n", 4]) for name in "xy")
    return h.make_model(h.make_graph(nodes, "g", [x], [y]), opset_imports=[h.make_opsetid("", 18)], ir_version=10)


@pytest.mark.rtx
def test_builds_add_up_whatever_the_functions_do_later(rtx, model):
    def profile():
        (engine,) = converter.report.engines
        ((_, ranges),) = engine.profiles[0].items()
        return ranges["min"][0], ranges["max"][0]

    with Converter(model=model, backend=rtx, progress=False) as converter:
        converter.convert()
        for batch in (8, 1, 16):
            converter.build(lambda: iter([np.ones((batch, 4), np.float32)]))  # noqa: B023 - bound late on purpose
        assert profile() == (1, 16)
        once = iter([np.ones((32, 4), np.float32)])
        converter.build(lambda: once)
        assert profile() == (1, 32)
        converter.build(lambda: [np.ones((4, 4), np.float32)])
        assert profile() == (1, 32)
