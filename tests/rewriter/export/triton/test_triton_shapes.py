"""Batches and warm-ups, from signatures and profiles."""

import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.artifact import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.errors import InvalidParameterError
from rewriter.export.triton.shapes import Batching, Warmup, find_batching, find_warmups
from rewriter.source import Signature


def signature(inputs, outputs):
    sides = [tuple(TensorSpec(n, TensorProto.FLOAT, s) for n, s in side.items()) for side in (inputs, outputs)]
    return Signature(*sides)


def engine(*batches, op="TRTEngineOp_000", values=False, name="x"):
    profiles = tuple({name: InputProfile(*((n, 4) for n in batch), values)} for batch in batches)
    return EngineEntry(op, f"key_{op}", 1, "0" * 64, "tensorrt", "10.9.0", profiles=profiles)


X = signature({"x": ("batch", 4)}, {"y": ("batch", 2)})


def test_no_batch_without_a_shared_dimension():
    found = find_batching(signature({"x": (8, 4)}, {"y": (8, 4)}), ())
    assert found == Batching(0, reason="Triton does not batch this model: the first dimension of 'x' is always 8")
    assert find_batching(signature({"x": (8, 4)}, {"y": (8, 4)}), (), 1) == found
    with pytest.raises(InvalidParameterError, match="needs a batch dimension"):
        find_batching(signature({"x": (8, 4)}, {"y": (8, 4)}), (), 4)


def test_the_limit_is_what_every_engine_node_takes():
    engines = [engine((1, 4, 16), (1, 1, 1)), engine((1, 8, 8), op="TRTEngineOp_001")]
    assert find_batching(X, engines) == Batching(8, (4, 8))
    assert find_batching(X, engines, 4) == Batching(4, (4,))
    assert find_batching(X, engines, 0) == Batching(0)
    assert "above 8 do not fit" in find_batching(X, engines, 32).reason


def test_without_profiles_the_limit_is_a_default_that_is_told():
    inner = engine((1, 4, 16), name="between")  # no input of the model
    assert find_batching(X, [inner]) == find_batching(X, [])
    assert find_batching(X, []).maximum == 8
    assert "max_batch_size is 8" in find_batching(X, []).reason


@pytest.mark.parametrize("wanted", [-1, True, 1.5])
def test_no_number_is_no_limit(wanted):
    with pytest.raises(InvalidParameterError, match="max_batch_size must be a whole number of at least 0"):
        find_batching(X, (), wanted)


def test_every_profile_is_warmed_up_at_its_optimum():
    engines = [engine((1, 4, 16), (1, 1, 1))]
    assert find_warmups(X, engines, Batching(16)) == ([Warmup({"x": (4, 4)}), Warmup({"x": (1, 4)})], "")
    assert find_warmups(X, engines, Batching(2)) == ([Warmup({"x": (1, 4)})], "")


def test_without_profiles_one_row_is_warmed_up():
    assert find_warmups(X, [], Batching(8)) == ([Warmup({"x": (1, 4)})], "")


def test_what_cannot_be_warmed_up_is_told():
    open_shape = signature({"x": ("batch", "length")}, {"y": ("batch",)})
    warmups, why = find_warmups(open_shape, [], Batching(8))
    assert not warmups
    assert why == "no warm-up: no profile says how large the open dimensions of input 'x' are"
    assert find_warmups(open_shape, [], Batching(0)) == ([], why)
    warmups, why = find_warmups(X, [engine((1, 2, 3), values=True)], Batching(0))
    assert not warmups
    assert "the values of input 'x' decide" in why
