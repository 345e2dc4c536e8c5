"""How far off outputs may be: what the user says, and what is usual."""

import pytest

from rewriter.comparing.tolerances import Tolerances, make_pairs
from rewriter.errors import InvalidParameterError

ALL = ("source", "native", "emulated", "tensorrt")


def limits(*arguments, **options):
    return {(p.reference, p.result): p.tolerance for p in make_pairs(*arguments, **options)}


def test_what_is_said_of_all_and_of_single_outputs():
    found = Tolerances.parse(["1e-3", "probabilities:1e-2", "x:0:0.5"], 1e-6)
    assert (found.overall, found.absolute) == (1e-3, 1e-6)
    assert found.outputs == {"probabilities": 1e-2, "x:0": 0.5}
    found.check_outputs(["x:0", "probabilities", "other"])
    assert Tolerances.parse([]) == Tolerances()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fast"], "tolerance must be a positive number, not 'fast'"),
        (["0"], "tolerance must be a positive number, not '0'"),
        (["y:-1"], "--tolerance 'y:-1': tolerance must be a positive number"),
        (["inf"], "positive number"),
        (["nan"], "positive number"),
        (["y:"], "positive number"),
        ([""], "positive number"),
        ([":1"], "the name of an output must stand before the colon"),
        (["1e-3", "1e-2"], "the tolerance of all outputs is given twice"),
        (["y:1", "y:1"], "the tolerance of output 'y' is given twice"),
    ],
)
def test_bad_tolerances(texts, message):
    with pytest.raises(InvalidParameterError, match="--tolerance") as error:
        Tolerances.parse(texts)
    assert message in str(error.value)


def test_a_bad_absolute_tolerance():
    with pytest.raises(InvalidParameterError, match=r"--absolute-tolerance must be a positive number, not -1\.0"):
        Tolerances.parse([], -1.0)


def test_unknown_outputs_are_told_with_those_that_there_are():
    with pytest.raises(
        InvalidParameterError, match=r"'logit' \(did you mean 'logits'\?\): the model has logits, boxes"
    ):
        Tolerances.parse(["logit:1"]).check_outputs(["logits", "boxes"])


def test_usual_tolerances_follow_the_lowest_precision():
    assert limits((), Tolerances(), ("source", "native")) == {("source", "native"): 1e-4}
    found = limits(("FP16", "INT8+FP16"), Tolerances())
    assert found == {("source", "native"): 1e-4, ("native", "emulated"): 0.1, ("source", "emulated"): 0.1}
    assert set(limits(("BF16",), Tolerances(0.5)).values()) == {0.5}


def test_tensorrt_computes_fp32_engines_in_tf32_and_is_only_reported_against_its_emulation():
    fp32 = limits((), Tolerances(), ("source", "native", "tensorrt"))
    assert fp32 == {("source", "native"): 1e-4, ("native", "tensorrt"): 5e-3, ("source", "tensorrt"): 5e-3}
    found = limits(("BF16",), Tolerances(1e-2), ALL)
    assert len(found) == 6
    assert found[("emulated", "tensorrt")] is None
    assert found[("native", "tensorrt")] == 1e-2


def test_tensorrt_and_its_emulation_are_judged_where_nothing_else_runs():
    (pair,) = make_pairs(("BF16",), Tolerances(None, {"y": 1e-6}), ("emulated", "tensorrt"))
    assert (pair.tolerance, pair.limit("y")) == (4e-2, 1e-6)


def test_only_runners_that_run_are_held_against_each_other():
    assert list(limits(("FP16",), Tolerances(), ("native", "tensorrt"))) == [("native", "tensorrt")]


def test_every_judged_pair_gets_the_tolerances_of_single_outputs():
    pairs = make_pairs(("FP16",), Tolerances(None, {"y": 0.5}, 1e-6), ALL)
    for pair in pairs:
        told = pair.reference == "emulated"
        assert pair.limit("y") == (None if told else 0.5)
        assert pair.absolute == (None if told else 1e-6)
