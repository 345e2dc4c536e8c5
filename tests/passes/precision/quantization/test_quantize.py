"""Numbers of 8 and 4 bits: within half a step of what they stand for."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from passes.precision.quantization import quantize as module
from passes.precision.quantization.quantize import int4_scales, quantize, quantize_int4, scale_array, weight_scales

FLOATS = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16])


@st.composite
def weights(draw):
    """An array of any rank from 1 to 4 with rows of zeros, tiny and large numbers, and an axis of it or None."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape[-1:])
    array[rng.random(shape) < 0.3] = 0
    if draw(st.booleans()):
        array[0] = 0
    axis = draw(st.one_of(st.none(), st.integers(0, len(shape) - 1)))
    return array.astype(draw(FLOATS)), axis


def spread(scales, array, axis):
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    return scales.astype(np.float64).reshape(shape)


@settings(max_examples=50, deadline=None)
@given(weights())
def test_int8_weights_are_within_half_a_step(case):
    array, axis = case
    scales = weight_scales(array, axis, "INT8")
    numbers = quantize(array, scales, axis, "INT8")
    assert scales.dtype == array.dtype
    assert scales.shape == (() if axis is None else (array.shape[axis],))
    assert (scales > 0).all()
    assert numbers.dtype == np.int8
    assert numbers.min() >= -127
    steps = spread(scales, array, axis)
    # A scale of few digits may be rounded down, so that the largest weights lie a little beyond 127 steps.
    slack = 127 * {2: 2.0**-8, 4: 2.0**-22}[array.dtype.itemsize]
    assert (np.abs(numbers * steps - array.astype(np.float64)) <= steps * (0.5 + slack)).all()


@settings(max_examples=50, deadline=None)
@given(weights())
def test_fp8_weights_are_within_an_eighth_of_themselves(case):
    array, axis = case
    scales = weight_scales(array, axis, "FP8")
    numbers = quantize(array, scales, axis, "FP8")
    assert numbers.dtype == ml_dtypes.float8_e4m3fn
    back = numbers.astype(np.float64) * spread(scales, array, axis)
    exact = array.astype(np.float64)
    # Four bits of mantissa, and steps of 2**-9 below 2**-6.
    bound = np.maximum(np.abs(exact) / 16, spread(scales, array, axis) * 2.0**-10) * 1.1
    assert (np.abs(back - exact) <= bound).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.sampled_from([2, 4, 16]), st.integers(1, 6), st.integers(0, 2**32), FLOATS)
def test_int4_weights_are_within_half_a_step(blocks, block, columns, seed, dtype):
    array = np.random.default_rng(seed).standard_normal((blocks * block, columns)).astype(dtype)
    array[:block, 0] = 0
    scales = int4_scales(array, block)
    numbers = quantize_int4(array, scales, block)
    assert scales.shape == (blocks, columns)
    assert scales.dtype == array.dtype
    assert numbers.dtype == ml_dtypes.int4
    integers = numbers.astype(np.int32)
    assert np.abs(integers).max(initial=0) <= 7
    steps = np.repeat(scales.astype(np.float64), block, 0)
    assert (np.abs(integers * steps - array.astype(np.float64)) <= steps * (0.5 + 7 * 2.0**-8)).all()


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("kind", ["INT8", "FP8"])
def test_pieces_do_not_show(axis, kind, monkeypatch):
    array = np.random.default_rng(0).standard_normal((37, 5, 3)).astype(np.float32)
    scales = weight_scales(array, axis, kind)
    whole = quantize(array, scales, axis, kind)
    monkeypatch.setattr(module, "_CHUNK", 64)
    np.testing.assert_array_equal(quantize(array, scales, axis, kind), whole)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(bad):
    array = np.ones((4, 4), np.float32)
    array[2, 1] = bad
    for axis in (None, 0, 1):
        with pytest.raises(ValueError, match="infinite or no numbers"):
            weight_scales(array, axis, "INT8")
    with pytest.raises(ValueError, match="infinite or no numbers"):
        int4_scales(array, 2)


def test_channels_of_zeros_and_of_next_to_nothing_have_a_positive_scale():
    scales = weight_scales(np.array([[0, 0], [1e-45, 0], [127, 1]], np.float32), 0, "INT8")
    assert scales[0] == np.float32(1 / 127)
    assert scales[1] == np.float32(2.0**-126)
    assert scales[2] == 1


def test_scales_of_values():
    assert scale_array(0.5, TensorProto.FLOAT) == np.float32(0.5)
    assert scale_array(1e-9, TensorProto.FLOAT16) == np.float16(2.0**-14)
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="finite and positive"):
            scale_array(bad, TensorProto.FLOAT)
    with pytest.raises(ValueError, match="beyond float16"):
        scale_array(1e6, TensorProto.FLOAT16)
