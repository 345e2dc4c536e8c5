"""Which failed pairs are bisected, and what is told of it."""

from typing import NamedTuple

import numpy as np
import pytest

from passes.base import PassError
from rewriter.comparing import bisection
from rewriter.comparing.comparison import Comparison, Pair, compare
from rewriter.comparing.findings import find_causes, pairs_to_search
from rewriter.errors import ConversionError

NATIVE, EMULATED, TENSORRT = ("source", "native"), ("native", "emulated"), ("native", "tensorrt")
WHOLE, ON_GPU = ("source", "emulated"), ("source", "tensorrt")


def compared(*failing) -> Comparison:
    """A comparison of all pairs; these fail, on the second of three samples."""
    runners = {name: lambda x: {"y": x["x"], "z": x["x"]} for name in ("source", "native", "emulated", "tensorrt")}
    pairs = [
        Pair(*names, 1e9, {"z": 1e-3} if names in failing else {})
        for names in (NATIVE, EMULATED, TENSORRT, WHOLE, ON_GPU)
    ]
    runners["native"] = lambda x: {"y": x["x"], "z": x["x"] * (1.5 if x["x"][0] == 2 else 1)}
    for name in ("emulated", "tensorrt"):
        runners[name] = lambda x: {"y": x["x"], "z": x["x"] * (2 if x["x"][0] == 2 else 1)}
    return compare(runners, [{"x": np.float32([n])} for n in (1, 2, 3)], pairs)


def searched(*failing):
    return [(found.pair.reference, found.pair.result) for found in pairs_to_search(compared(*failing))]


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ((), []),
        ((NATIVE,), [NATIVE]),
        ((EMULATED, WHOLE), [EMULATED]),
        ((NATIVE, WHOLE, ON_GPU), [NATIVE]),
        ((WHOLE,), [WHOLE]),
        ((EMULATED, WHOLE, ON_GPU), [EMULATED, ON_GPU]),
        ((NATIVE, EMULATED, TENSORRT, WHOLE, ON_GPU), [NATIVE, EMULATED, TENSORRT]),
    ],
)
def test_a_whole_way_is_searched_only_where_neither_half_fails(failing, expected):
    assert searched(*failing) == expected


class Found(NamedTuple):
    words: str

    def text(self):
        return self.words

    def to_dict(self):
        return {"node": "n_1"}


def test_the_worst_inputs_and_the_tolerances_of_all_outputs_are_passed_on(monkeypatch):
    calls = []

    def bisect(artifact, samples, tolerance, **options):
        calls.append((artifact, [sample["x"].tolist() for sample in samples], tolerance, options))
        return Found("it is n_1")

    monkeypatch.setattr(bisection, "bisect", bisect)
    seen = []
    findings = find_causes(compared(NATIVE, EMULATED), "artifact", "model", on_pair=seen.append)
    limits = {"y": 1e9, "z": 1e-3}
    assert calls == [
        ("artifact", [[2.0]], limits, {"reference": "source", "result": "native", "source": "model"}),
        ("artifact", [[2.0]], limits, {"reference": "native", "result": "emulated", "source": None}),
    ]
    assert [(f.pair.result, f.text) for f in findings] == [("native", "it is n_1"), ("emulated", "it is n_1")]
    told = {"reference": "source", "result": "native", "text": "it is n_1", "node": "n_1"}
    assert findings[0].to_dict() == told
    assert [pair.result for pair in seen] == ["native", "emulated"]


def test_the_absolute_bound_widens_the_limits_of_a_bisection(monkeypatch):
    limits = []
    monkeypatch.setattr(bisection, "bisect", lambda _, __, tolerance, **___: limits.append(tolerance) or Found("found"))
    reference = {"large": 10.0, "small": 1e-6, "nothing": 0.0}
    runners = {
        "native": lambda x: {name: np.float32([value]) for name, value in reference.items()},
        "emulated": lambda x: {"large": np.float32([11]), "small": np.float32([2e-6]), "nothing": np.float32([1e-6])},
    }
    pair = Pair("native", "emulated", 1e-3, absolute=0.1)
    found = compare(runners, [{"x": np.float32([1])}], [pair])
    assert [d.output for d in found.pairs[0].failed] == ["large"]
    find_causes(found, "artifact", "model")
    assert limits == [{"large": pytest.approx(0.01), "small": pytest.approx(1e5)}]


@pytest.mark.parametrize("error", [ConversionError, PassError])
def test_a_bisection_that_is_not_possible_is_told_and_the_others_go_on(monkeypatch, error):
    def bisect(*_, result, **__):
        if result == "native":
            raise error("the names differ\nand more")
        return Found("found")

    monkeypatch.setattr(bisection, "bisect", bisect)
    first, second = find_causes(compared(NATIVE, EMULATED), "artifact", "model")
    assert first.text == "Bisection of native against source is not possible: the names differ"
    assert first.to_dict() == {"reference": "source", "result": "native", "text": first.text}
    assert second.text == "found"
