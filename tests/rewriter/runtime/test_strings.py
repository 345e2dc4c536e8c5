"""Strings between ONNX Runtime and TensorFlow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.runtime.strings import holds_no_text, stray_surrogate, to_bytes, to_text, to_valid_text


@given(st.lists(st.binary()))
def test_bytes_come_back_as_they_were(items):
    array = np.empty(len(items), object)
    array[:] = items
    text = to_text(array)
    assert all(isinstance(item, str) for item in text)
    assert to_bytes(text).tolist() == items
    assert all(item.encode("utf-8") is not None for item in to_valid_text(text))
    assert to_valid_text(text).tolist() == [item.decode("utf-8", "replace") for item in items]
    assert to_valid_text(text).tolist() == to_valid_text(array).tolist()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_text_stays_text(items):
    array = np.empty(len(items), object)
    array[:] = items
    assert to_text(to_bytes(array)).tolist() == items
    assert to_valid_text(array).tolist() == items
    assert not holds_no_text(array)


@pytest.mark.parametrize("convert", [to_text, to_bytes, to_valid_text])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 1, 2)])
def test_shapes_stay(convert, shape):
    found = convert(np.full(shape, "a", object))
    assert (found.shape, found.dtype) == (shape, object)


def test_arrays_of_numpys_own_text_types():
    assert to_bytes(np.array(["\u00e9"])).tolist() == ["\u00e9".encode()]
    assert to_text(np.array([b"a"])).tolist() == ["a"]


def test_what_is_no_text_is_found():
    assert holds_no_text(np.array(["a", "\udcff"], object))
    assert not holds_no_text(np.zeros(2, np.float32))
    assert not holds_no_text(3)


@given(st.lists(st.text(st.characters(categories=["Cs", "Lu"]), max_size=3), max_size=4))
def test_strings_that_are_neither_text_nor_bytes_are_found(items):
    array = np.empty(len(items), object)
    array[:] = items
    stray = stray_surrogate(array)
    if stray is None:
        assert to_text(to_bytes(array)).shape == array.shape
        return
    assert stray in items
    with pytest.raises(UnicodeEncodeError):
        to_bytes(array)


def test_bytes_on_their_way_as_surrogates_are_no_stray_ones():
    assert stray_surrogate(to_text(np.array([b"\xff", b"\x80a"], object))) is None
    assert stray_surrogate(np.array([["a"], ["b\ud800"]])) == "b\ud800"
    assert stray_surrogate(np.array([b"\xff"], object)) is None
