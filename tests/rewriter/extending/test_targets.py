"""What each engine is built for: one a target or one for all, without those that lack the arithmetic."""

import dataclasses

import pytest

from rewriter.errors import InvalidParameterError
from rewriter.extending.targets import Grouped, asked_targets, check_known, group


@dataclasses.dataclass
class Package:
    """A TensorRT package, as far as it says what it builds for."""

    flavour: str = "tensorrt_rtx"
    known_targets: tuple[str, ...] = ("SM75", "SM80", "SM89", "SM120")
    default_targets: tuple[str, ...] = ("SM80", "SM89", "SM120")


RTX, CLASSIC = Package(), Package("tensorrt", (), ())
TOO_OLD = "precision_mode='FP8' needs targets of SM89 or newer, not SM80"


def test_targets_have_one_spelling():
    assert asked_targets(["sm80", "8.9", "SM_120", "SM80"]) == ("SM80", "SM89", "SM120")
    assert asked_targets(()) == ()


@pytest.mark.parametrize(
    ("targets", "words"),
    [("sm80", "targets must be a list"), (None, "targets must be a list"), (["turing"], "not a compute capability")],
)
def test_what_is_no_target_is_refused(targets, words):
    with pytest.raises(InvalidParameterError, match=words):
        asked_targets(targets)


def test_unknown_targets_are_refused_with_those_that_are_known():
    check_known(RTX, ("SM75", "SM120"))
    check_known(RTX, ())
    with pytest.raises(InvalidParameterError, match=r"cannot build for SM99; it knows SM75, SM80, SM89, SM120"):
        check_known(RTX, ("SM80", "SM99"))


def test_classic_tensorrt_builds_for_this_machine_only():
    check_known(CLASSIC, ())
    with pytest.raises(InvalidParameterError, match="tensorrt builds only for the GPU of this machine"):
        check_known(CLASSIC, ("SM80",))


@pytest.mark.parametrize(
    ("asked", "together", "groups"),
    [
        (["SM80", "SM89"], False, (("SM80",), ("SM89",))),
        (["SM80", "SM89"], True, (("SM80", "SM89"),)),
        ([], False, (("SM89", "SM120"),)),
        ([], True, (("SM89", "SM120"),)),
    ],
)
def test_groups(asked, together, groups):
    assert group(RTX, "FP32", asked, ["SM89", "SM120", "SM121"], together=together) == Grouped(groups)


def test_an_artifact_whose_targets_nobody_knows_gets_the_default():
    assert group(RTX, "FP32", (), ["SM200"], together=False) == Grouped((("SM80", "SM89", "SM120"),))
    assert group(RTX, "FP32", (), (), together=False) == Grouped((("SM80", "SM89", "SM120"),))
    assert group(RTX, "FP8", (), (), together=False) == Grouped((("SM89", "SM120"),))


def test_classic_tensorrt_has_one_group_without_targets():
    assert group(CLASSIC, "FP8", (), ["SM80", "SM89"], together=False) == Grouped(((),))


@pytest.mark.parametrize(("together", "groups"), [(False, (("SM89",), ("SM120",))), (True, (("SM89", "SM120"),))])
def test_targets_that_lack_the_arithmetic_are_refused_and_the_others_go_on(together, groups):
    found = group(RTX, "FP8", ["SM80", "SM89", "SM120"], (), together=together)
    assert found == Grouped(groups, {"SM80": TOO_OLD})
    assert group(RTX, "FP8", ["SM80"], (), together=together) == Grouped((), {"SM80": TOO_OLD})
    assert group(RTX, "FP8", (), ["SM80"], together=together) == Grouped((), {"SM80": TOO_OLD})
