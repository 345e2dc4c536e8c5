"""TF-TRT's environment variables, each of them."""

from pathlib import Path

import pytest

from rewriter.errors import InvalidParameterError
from rewriter.switches import Switches


def read(**environ):
    return Switches.from_environment(environ)


def test_an_empty_environment_changes_nothing():
    assert Switches.from_environment({}) == Switches()
    assert Switches.from_environment({"PATH": "/bin", "TF_CPP_MIN_LOG_LEVEL": "x"}) == Switches()


def test_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv("TF_TRT_ABORT_CUDA_ENGINE_BUILD", "True")
    assert Switches.from_environment().abort_builds


def test_operators_are_translated_and_unknown_ones_kept():
    found = read(TF_TRT_OP_DENYLIST=" Conv2D, MatMul,Zebra,,Conv2D", TF_TRT_OP_FAKELIST="NonMaxSuppressionV3")
    assert found.op_denylist == ("Conv", "MatMul", "Gemm", "Zebra")
    assert found.op_fakelist == ("NonMaxSuppression",)
    assert found.translations == {
        "TF_TRT_OP_DENYLIST": {"Conv2D": ("Conv",), "MatMul": ("MatMul", "Gemm"), "Zebra": ("Zebra",)},
        "TF_TRT_OP_FAKELIST": {"NonMaxSuppressionV3": ("NonMaxSuppression",)},
    }
    assert found.notes[0].endswith(
        "stay native: Conv2D (in ONNX every Conv), MatMul (in ONNX every MatMul and every Gemm), Zebra"
    )
    assert "never get an engine: NonMaxSuppressionV3 (in ONNX every NonMaxSuppression)" in found.notes[1]


@pytest.mark.parametrize("value", [",", " , ,"])
def test_an_empty_list_of_operators_is_told(value):
    found = read(TF_TRT_OP_DENYLIST=value)
    assert (found.op_denylist, found.translations) == ((), {})
    assert found.notes == (f"TF_TRT_OP_DENYLIST={value.strip()}: it is an empty list, so it does nothing",)


@pytest.mark.parametrize(
    ("value", "report"),
    [("1", "1"), ("2", "1"), ("true", "1"), ("0", None), ("-1", None), ("False", None), ("out/r.csv", "out/r.csv")],
)
def test_the_report_is_a_number_or_a_file(value, report):
    found = read(TF_TRT_SHOW_DETAILED_REPORT=value)
    assert found.report == report
    assert len(found.notes) == 1


@pytest.mark.parametrize(("value", "limit"), [("20", 20), ("0", None), ("-3", None)])
def test_the_number_of_engines(value, limit):
    assert read(TF_TRT_MAX_ALLOWED_ENGINES=value).max_engines == limit


@pytest.mark.parametrize(("value", "word"), [("1", True), ("TRUE", True), ("0", False), ("false", False)])
def test_switches(value, word):
    found = read(TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION=value, TF_TRT_ABORT_CUDA_ENGINE_BUILD=value)
    assert (found.allow_native, found.abort_builds) == (word, word)


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("TF_TRT_MAX_ALLOWED_ENGINES", "many", "must be an integer"),
        ("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "yes", "one of 1, true, 0, false, not 'yes'"),
        ("TF_TRT_ABORT_CUDA_ENGINE_BUILD", "2", "one of 1, true, 0, false, not '2'"),
    ],
)
def test_bad_values_name_the_variable_and_what_is_allowed(variable, value, allowed):
    with pytest.raises(InvalidParameterError, match=f"{variable} .*{allowed}"):
        Switches.from_environment({variable: value})


@pytest.mark.parametrize(("path", "kind"), [("g.dot", "DOT"), ("g.SVG", "SVG"), ("g.txt", "DOT")])
def test_the_picture_is_told_by_its_kind(path, kind):
    found = read(TF_TRT_EXPORT_GRAPH_VIZ_PATH=path)
    assert found.graph_picture == Path(path)
    assert kind in found.notes[0]


def test_what_means_nothing_here_is_told():
    found = read(
        TF_TRT_FIXED_ALGORITHM_ID="7",
        TF_TRT_EXPERIMENTAL_FEATURES="disable_graph_freezing,disable_graph_freezing2",
        TF_TRT_NEVER_HEARD="1",
        TF_TRT_OP_DENYLIST=" ",
    )
    assert found == Switches(notes=found.notes)
    assert found.notes == (
        "TF_TRT_EXPERIMENTAL_FEATURES=disable_graph_freezing,disable_graph_freezing2: does nothing "
        "here (disable_graph_freezing: weights are always frozen into the artifact; "
        "disable_graph_freezing2: not known here)",
        "TF_TRT_FIXED_ALGORITHM_ID has no meaning here: TensorRT-RTX has no algorithm selector that a tactic could be "
        "forced with",
        "TF_TRT_NEVER_HEARD is not known here and does nothing",
        "TF_TRT_OP_DENYLIST is empty, which counts as not set",
    )
