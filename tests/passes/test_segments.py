"""passes.segments: the values between the stages."""

import dataclasses

import pytest

from passes.segments import Segment, Segmentation, TensorSpec


def segment(effective):
    return Segment("S", (), ("a",), ("x",), (), ("y",), effective)


@pytest.mark.parametrize(("sizes", "total", "coverage"), [((3, 4), 10, 0.7), ((), 5, 0.0), ((), 0, 1.0)])
def test_coverage_counts_effective_nodes(sizes, total, coverage):
    assert Segmentation(tuple(map(segment, sizes)), (), total).coverage == pytest.approx(coverage)


@pytest.mark.parametrize(
    ("shape", "static"), [((1, 2), True), ((), True), (("N", 2), False), ((None,), False), (None, False)]
)
def test_static_means_all_numbers(shape, static):
    assert TensorSpec("x", 1, shape).is_static is static


def test_a_tensor_is_its_public_name_by_default():
    assert TensorSpec("x", 1, ()).tensor == "x"
    assert TensorSpec("x", 1, (), tensor="x:0").tensor == "x:0"


def test_segments_are_immutable_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        segment(1).name = "T"
    assert segment(1) == segment(1)
    assert len({segment(1), segment(1), segment(2)}) == 2
