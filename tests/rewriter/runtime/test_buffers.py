"""rewriter.runtime.buffers: values that live at the same time never share a byte."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewriter.runtime.buffers import BufferPlan, plan_buffers


def test_a_chain_needs_two_buffers():
    steps = [(["x"], ["a"]), (["a"], ["b"]), (["b"], ["c"]), (["c"], ["y"])]
    sizes = dict.fromkeys("xabcy", 1000)
    plan = plan_buffers(steps, sizes, inputs=["x"], outputs=["y"])
    assert plan.nbytes == 2048
    assert set(plan.offsets.values()) == {0, 1024}


def test_the_smallest_gap_that_fits_is_taken():
    # "big" and "mid" end before "late" and "last" begin; "keep" lies between them for ever.
    steps = [([], ["big", "mid", "keep"]), (["big", "mid"], []), ([], ["late"]), (["late", "keep"], [])]
    plan = plan_buffers(steps, {"big": 8, "keep": 7, "mid": 6, "late": 5}, alignment=1)
    assert plan.offsets == {"big": 0, "keep": 8, "mid": 15, "late": 0}
    # Free while "tiny" lives: the place of "big" (8 bytes) and that of "mid" (6 bytes).
    steps = [([], ["big", "mid", "keep", "end"]), (["big", "mid"], []), ([], ["tiny"]), (["tiny", "keep", "end"], [])]
    plan = plan_buffers(steps, {"big": 8, "keep": 7, "mid": 6, "end": 5, "tiny": 4}, alignment=1)
    assert plan.offsets["tiny"] == plan.offsets["mid"] == 15
    assert plan.nbytes == 26


def test_values_of_no_bytes_have_a_place():
    plan = plan_buffers([([], ["a", "b"]), (["a", "b"], [])], {"a": 0, "b": 3})
    assert plan == BufferPlan({"a": 0, "b": 0}, 256)
    assert plan_buffers([([], ["a"])], {"a": 0}) == BufferPlan({"a": 0}, 0)


def test_nothing_to_place():
    assert plan_buffers([], {}) == BufferPlan({}, 0)


def test_values_without_a_size_lie_elsewhere():
    plan = plan_buffers([(["x"], ["a"])], {"a": 1, "unheard": 9}, inputs=["x"], outputs=["a", "direct"])
    assert plan == BufferPlan({"a": 0}, 256)


def test_an_output_that_no_step_writes_is_alive_all_the_time():
    plan = plan_buffers([([], ["a"]), (["a"], [])], {"a": 1, "k": 1}, outputs=["k"])
    assert sorted(plan.offsets.values()) == [0, 256]


def test_a_result_that_nobody_reads_has_its_place_during_its_step():
    plan = plan_buffers(
        [(["x"], ["dead", "a"]), (["a"], ["y"])], dict.fromkeys(["x", "dead", "a", "y"], 1), ["x"], ["y"]
    )
    assert len({plan.offsets[n] for n in ("x", "dead", "a")}) == 3
    assert plan.nbytes == 3 * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([([], ["a"])], {"a": -1}), "'a' has a size of -1 bytes"),
        (([(["a"], [])], {"a": 1}), "'a' is read in step 0, but no earlier step writes it"),
        (([(["a"], ["a"])], {"a": 1}), "'a' is read in step 0"),
        (([], {}, (), (), 0), "the alignment of buffers is 0 bytes"),
    ],
)
def test_wrong_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_buffers(*arguments)


@st.composite
def programs(draw):
    """Steps that read what is there by then, sizes, inputs and outputs."""
    inputs = [f"i{n}" for n in range(draw(st.integers(0, 3)))]
    known, steps = list(inputs), []
    for number in range(draw(st.integers(0, 10))):
        read = draw(st.lists(st.sampled_from(known), max_size=3)) if known else []
        written = [f"v{number}_{n}" for n in range(draw(st.integers(0, 3)))]
        steps.append((read, written))
        known += written
    sizes = {name: draw(st.sampled_from([0, 1, 100, 256, 257, 1000, 4096, 10_000])) for name in known}
    outputs = draw(st.lists(st.sampled_from(known), unique=True, max_size=3)) if known else []
    return steps, sizes, inputs, outputs


def alive(steps, inputs, outputs):
    """Per moment (before, each step, after) what is alive, told in another way than the planner does."""
    moments = []
    for now in range(-1, len(steps) + 1):
        there = set()
        for name in {*inputs, *(n for _, made in steps for n in made)}:
            born = next((i for i, (_, made) in enumerate(steps) if name in made), -1)
            read_later = any(name in read for read, _ in steps[max(now, 0) :])
            if born == now or (born < now and (read_later or name in outputs)):
                there.add(name)
        moments.append(there)
    return moments


@given(programs(), st.sampled_from([1, 64, 256]))
@example(([(["i0"], ["v0_0"])], {"i0": 1, "v0_0": 0}, ["i0"], []), 256)
def test_no_two_living_values_overlap(program, alignment):
    steps, sizes, inputs, outputs = program
    plan = plan_buffers(steps, sizes, inputs, outputs, alignment)
    assert set(plan.offsets) == set(sizes)
    assert all(offset % alignment == 0 for offset in plan.offsets.values())
    rounded = {name: -(-size // alignment) * alignment for name, size in sizes.items()}
    assert plan.nbytes == max((plan.offsets[n] + rounded[n] for n in sizes if rounded[n]), default=0)
    assert plan.nbytes <= sum(rounded.values())
    for there in alive(steps, inputs, outputs):
        assert plan.nbytes >= sum(sizes[name] for name in there)
        spans = sorted((plan.offsets[n], plan.offsets[n] + sizes[n]) for n in there if sizes[n])
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


@given(programs())
def test_the_order_of_names_does_not_matter(program):
    steps, sizes, inputs, outputs = program
    turned = [(set(read), set(written)) for read, written in steps]
    other = plan_buffers(turned, dict(reversed(sizes.items())), set(inputs), set(outputs))
    assert other == plan_buffers(steps, sizes, inputs, outputs)
