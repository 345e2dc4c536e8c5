"""The data of the map."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.reports.page import drawing
from rewriter.reports.page.drawing import KINDS, Strings, map_data
from tests.rewriter.reports.page.models import residual, shown, small, some_ranges


def decoded(flat):
    """The strings, read as the page's script does: in UTF-16."""
    found, last = [], b""
    for shared, rest in zip(flat[::2], flat[1::2], strict=True):
        last = last[: 2 * shared] + rest.encode("utf-16-le", "surrogatepass")
        found.append(last.decode("utf-16-le", "surrogatepass"))
    return found


@given(st.lists(st.text(alphabet="ab/\U0001f600\U0001f601é", max_size=6)))
def test_strings_come_back_in_order(texts):
    strings = Strings()
    numbers = [strings.add(text) for text in texts]
    flat, places = strings.sorted()
    found = decoded(flat)
    assert found == sorted(set(texts))
    assert [found[places[number]] for number in numbers] == texts


def test_drawings_have_every_node_once_then_engines_as_boxes():
    part = shown(small())
    data = map_data(part.model, part.report)
    names = decoded(data["strings"])
    assert [(d["title"], d["expanded"]) for d in data["drawings"]] == [
        ("", 1), ("choice/else_branch", 1), ("choice/then_branch", 1), ("", 0),
    ]  # fmt: skip
    main, collapsed = data["drawings"][0], data["drawings"][-1]
    kinds = {names[n]: KINDS[k] for n, k in zip(main["name"], main["kind"], strict=True)}
    assert kinds == {
        "x": "input", "c": "input", "first_relu": "member", "first_abs": "member", "sine": "native",
        "second_neg": "member", "second_exp": "member", "choice": "native", "y": "output",
    }  # fmt: skip
    assert [names[n] for n in collapsed["label"]] == ["x", "c", "TRTEngineOp_000", "Sin", "TRTEngineOp_001", "If", "y"]
    sine = [names[n] for n in main["name"]].index("sine")
    assert [names[n] for n in main["notes"][sine]] == [
        'native (parser): TensorRT does not support Sin & says "no" <here>'
    ]
    assert [engine[0] for engine in data["engines"]] == [f"TRTEngineOp_{i:03}" for i in range(4)]
    assert len(main["box"]) == 4 * len(main["kind"])
    assert json.loads(json.dumps(data)) == data


def test_ranges_belong_to_values_that_are_drawn():
    model = residual(2)
    part = shown(model, ranges=some_ranges(model))
    data = map_data(part.model, part.report, part.ranges)
    names = decoded(data["strings"])
    known = {names[int(number)]: pair for number, pair in data["ranges"].items()}
    assert known["model/stage0/block_0/relu_1:0"] == [-2.0, 10.0]
    assert len(known) == 20


def test_very_large_models_are_drawn_by_engines_only(monkeypatch):
    monkeypatch.setattr(drawing, "EXPANDED_UP_TO", 10)
    part = shown(residual(8))
    data = map_data(part.model, part.report)
    assert [d["expanded"] for d in data["drawings"]] == [0]
    assert len(data["drawings"][0]["kind"]) == 5


@pytest.mark.parametrize(("route", "bends"), [
    ([(0, 0), (0, 10), (1, 20), (0, 30)], []),
    ([(0, 0), (0, 10), (40, 20), (40, 30)], [0, 10, 40, 20]),
    ([(0, 0), (3, 10), (6, 20), (9, 30)], [3, 10, 6, 20]),
])  # fmt: skip
def test_lines_have_no_points_on_a_straight_way(route, bends):
    assert drawing._bends(route) == bends
