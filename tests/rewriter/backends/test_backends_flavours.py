from __future__ import annotations

import pytest

from rewriter.backends import tensorrt, tensorrt_rtx
from rewriter.backends.flavours import normalize_target
from rewriter.errors import InvalidParameterError

KNOWN = ("SM75", "SM80", "SM89", "SM120")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("sm89", "SM89"), ("SM89", "SM89"), ("8.9", "SM89"), ("SM_120", "SM120"), ("12.0", "SM120"), (" 89 ", "SM89")],
)
def test_targets_have_one_spelling(given, expected):
    assert normalize_target(given) == expected


@pytest.mark.parametrize("given", ["", "ampere", "8", "sm", "SM89x", 89, None])
def test_what_is_no_target_is_refused(given):
    with pytest.raises(InvalidParameterError, match="SM89"):
        normalize_target(given)


def test_rtx_defaults_leave_turing_out_but_allow_it():
    assert tensorrt_rtx.FLAVOUR.default_targets(KNOWN) == ("SM80", "SM89", "SM120")
    assert tensorrt_rtx.FLAVOUR.check_targets(["sm75", "7.5", "SM89"], KNOWN) == ("SM75", "SM89")


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(InvalidParameterError, match=r"SM121.*SM75, SM80, SM89, SM120"):
        tensorrt_rtx.FLAVOUR.check_targets(["SM89", "SM121"], KNOWN)


def test_classic_tensorrt_has_no_targets():
    assert tensorrt.FLAVOUR.default_targets(()) == ()
    assert tensorrt.FLAVOUR.check_targets((), ()) == ()
    with pytest.raises(InvalidParameterError, match="tensorrt_rtx"):
        tensorrt.FLAVOUR.check_targets(["SM89"], ())
