"""What a bisection says, in words and in JSON."""

import dataclasses
import json
import math

from rewriter.comparing.bisection import Bisection, Contribution

FOUND = Bisection(
    "native",
    "emulated",
    1e-2,
    {"y": 0.2, "z": 0.05},
    segment="TRTEngineOp_001",
    node="block/mul",
    op_type="Mul",
    value="block/mul:0",
    difference=math.inf,
    before=1e-3,
    own=math.inf,
    option="--keep-nodes '^block/mul$'",
    excluded=("block/mul",),
    verified=2e-3,
    passed=True,
    notes=("one", "two"),
)


INFINITE = "infinity (NaN, infinity or another shape)"


def test_the_words_say_where_why_and_what_to_do():
    assert FOUND.text().splitlines() == [
        "Bisection of emulated against native, tolerance 1.0e-02: output 'y' differs by 2.0e-01",
        "  first segment: TRTEngineOp_001",
        "  first node:    'block/mul' (Mul)",
        f"  its result:    'block/mul:0' differs by {INFINITE}, what goes into it by at most 1.0e-03",
        f"  on its own:    {INFINITE} when fed with the native values; so the difference is its own",
        "  to exclude it: trt-rewriter convert ... --keep-nodes '^block/mul$'",
        "  measured so:   every output is within its tolerance then; the largest difference of one is 2.0e-03",
        "  note: one",
        "  note: two",
    ]


def test_what_adds_up_names_the_largest_contribution():
    found = dataclasses.replace(
        FOUND, own=1e-3, contribution=Contribution("a", "Tanh", "TRTEngineOp_000", 5e-3), passed=False
    )
    assert found.accumulated
    assert "what goes into it brings the rest" in found.text()
    assert "most of that:  node 'a' (Tanh) of TRTEngineOp_000, off by 5.0e-03 on its own" in found.text()
    assert "some output is still beyond its own then" in found.text()
    whole = Contribution("", "", "TRTEngineOp_000", 5e-3)
    assert whole.text == "the whole segment of TRTEngineOp_000, off by 5.0e-03 on its own"


def test_what_was_not_measured_is_said_so():
    assert "convert again with it and compare" in dataclasses.replace(FOUND, verified=None, passed=None).text()
    nothing = Bisection("native", "emulated", 1e-2, {"y": 0.2}, notes=("why",))
    assert not nothing.found
    assert "no node was found where it begins" in nothing.text()
    assert "to exclude it" not in nothing.text()
    native = dataclasses.replace(FOUND, segment=None)
    assert "first segment: none, the node is in no engine" in native.text()
    assert "first segment" not in dataclasses.replace(native, reference="source", result="native").text()


def test_json_holds_all_of_it():
    data = json.loads(json.dumps(FOUND.to_dict(), allow_nan=False))
    assert (data["difference"], data["found"], data["accumulated"]) == ("inf", True, False)
    assert data["option"] == "--keep-nodes '^block/mul$'"
    assert data["text"] == FOUND.text()
    assert {field.name for field in dataclasses.fields(Bisection)} <= set(data)
