"""Constants in a lower type: chunks, range, clamping, rounding."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from passes.precision.floats import constants
from passes.precision.floats.constants import OVERFLOW, lower_array, measure, rounding_error

F16, BF16 = TensorProto.FLOAT16, TensorProto.BFLOAT16


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_measures_do_not_depend_on_chunks(chunk, monkeypatch):
    monkeypatch.setattr(constants, "CHUNK", chunk)
    array = np.array([[0, -2, 1e-9, 7e4], [np.inf, np.nan, -np.inf, -5]], np.float32)
    found = measure(array, OVERFLOW[F16])
    assert (found.size, found.largest, found.positive, found.between) == (8, 7e4, True, 5.0)
    assert found.smallest == (0 if chunk == 3 else pytest.approx(1e-9))
    assert measure(np.zeros((0, 3), np.float32), OVERFLOW[F16]).largest == 0


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_finite_numbers_stay_finite(chunk, monkeypatch):
    monkeypatch.setattr(constants, "CHUNK", chunk)
    array = np.array([1, 65519, 65520, -3.4028235e38, np.inf, -np.inf, np.nan, 2.0**-25], np.float32)
    half = lower_array(array, F16)
    np.testing.assert_array_equal(half, np.array([1, 65504, 65504, -65504, np.inf, -np.inf, np.nan, 0], np.float16))
    brain = lower_array(array, BF16)
    assert brain.dtype == ml_dtypes.bfloat16
    assert float(brain[3]) == -3.3895313892515355e38
    assert lower_array(np.float32(3.5), F16).shape == ()


def test_rounding_error():
    assert rounding_error(np.array([0.5, 0, 2], np.float32), F16) == 0
    assert rounding_error(np.array([1e-9, 1], np.float32), F16) == 1
    assert rounding_error(np.array([1e9, 1], np.float32), F16) == np.inf
    assert rounding_error(np.array([1e-9, 1e9], np.float32), BF16) < 2.0**-8
    assert rounding_error(np.zeros(3, np.float32), F16) == 0
