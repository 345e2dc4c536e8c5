"""Ranges as values and as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.precision.ranges import LARGEST, RangeTable, TensorRange

_FLOATS = st.floats(-1e30, 1e30)
_RANGES = st.tuples(_FLOATS, _FLOATS).map(lambda pair: TensorRange(min(pair), max(pair)))


@given(st.dictionaries(st.text(), _RANGES), st.sampled_from(["minmax", "entropy"]), st.integers(0, 10**6))
def test_json_keeps_every_digit(ranges, method, samples):
    table = RangeTable(ranges, method, samples)
    assert RangeTable.from_json(table.to_json()) == table


@given(_RANGES, st.sampled_from(sorted(LARGEST)))
def test_a_scale_reaches_the_ends_of_the_range(range_, mode):
    scale = range_.scale(mode)
    assert scale >= 2.0**-126
    if range_.amax > 1e-30:
        assert scale * LARGEST[mode] == pytest.approx(range_.amax)


def test_a_tensor_that_was_always_zero_has_a_positive_scale():
    assert TensorRange(0.0, 0.0).scale("INT8") == pytest.approx(1 / 127)


def test_missing_keeps_the_order_of_the_question():
    assert RangeTable({"b": TensorRange(0, 1)}).missing(["c", "b", "a"]) == ("c", "a")


def _changed(**change):
    return json.dumps({**json.loads(RangeTable({"x": TensorRange(0, 1)}).to_json()), **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no range table"),
        ("{}", "no range table"),
        (_changed(schema_version=2), "schema 2 is not 1"),
        (_changed(ranges={"x": [1, 0]}), "range of 'x' is no range: 1.0 .. 0.0"),
        (_changed(ranges={"x": [0, float("inf")]}), "range of 'x' is no range"),
        (_changed(ranges={"x": [0]}), "unpack"),
        (_changed(ranges=3), "lacks or misspells"),
        ("{", "Expecting"),
    ],
)
def test_what_is_no_range_table_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        RangeTable.from_json(text)
