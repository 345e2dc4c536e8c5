"""Whose time is it: the rule, the ledger, and what is made of it. Nothing is timed here."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def ownership(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_ownership")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("conversion_time")


def stack(*files):
    """The frame of a function in the last of these (file, function), called by the one before it, and so on."""
    found = {}
    inner = "frame = sys._getframe()"
    for file, name in reversed(files):
        text = f"def {name}():\n    {inner}\n    return frame"
        space = {"sys": sys, "below": found.get("call")}
        exec(compile(text, file, "exec"), space)  # noqa: S102 - frames of files that do not exist
        found["call"] = space[name]
        inner = "frame = below()"
    return found["call"]()


SITE = "/venv/lib/python3/site-packages/"
ROOT = str(BENCHMARKS.parent) + "/"
OUR_PASS = (ROOT + "passes/fold_constants.py", "run")
TENSORFLOW = (SITE + "tensorflow/python/ops.py", "run")
TF2ONNX = (SITE + "tf2onnx/graph.py", "run")
ONNX = (SITE + "onnx/checker.py", "run")
NUMPY = (SITE + "numpy/core.py", "run")
CLIENT, PROCESS = ROOT + "rewriter/backends/client.py", ROOT + "rewriter/backends/process.py"


@pytest.mark.parametrize(
    ("frames", "owner"),
    [
        ([OUR_PASS], "ours"),
        ([OUR_PASS, NUMPY], "ours"),
        ([OUR_PASS, TENSORFLOW], "TensorFlow"),
        ([OUR_PASS, TENSORFLOW, NUMPY], "TensorFlow"),
        ([OUR_PASS, (SITE + "keras/src/a.py", "run")], "TensorFlow"),
        ([OUR_PASS, ONNX], "onnx"),
        ([OUR_PASS, TF2ONNX, ONNX], "tf2onnx"),
        ([OUR_PASS, (SITE + "onnxruntime/capi/a.py", "run"), NUMPY], "ONNX Runtime"),
        ([OUR_PASS, TF2ONNX, (ROOT + "rewriter/frontend/handlers.py", "handle")], "ours"),
        ([OUR_PASS, (CLIENT, "_await"), (PROCESS, "receive"), ("queue.py", "get")], "TensorRT"),
        ([OUR_PASS, (CLIENT, "_await"), (ROOT + "rewriter/commands/screen.py", "show")], "ours"),
        ([OUR_PASS, (CLIENT, "_started"), (PROCESS, "receive")], "start of TensorRT's process"),
        ([OUR_PASS, (PROCESS, "send")], "ours"),
    ],
)
def test_the_innermost_owner_counts(ownership, frames, owner):
    assert ownership.Owners().of(stack(("pytest.py", "caller"), *frames))[0] == owner


def test_an_import_is_booked_to_what_is_imported(ownership):
    finder = ("<frozen importlib._bootstrap>", "_find_and_load")
    assert ownership.Owners().of(stack(OUR_PASS, finder, TENSORFLOW)) == ("TensorFlow", True)
    assert ownership.Owners().of(stack(OUR_PASS, TENSORFLOW)) == ("TensorFlow", False)


def test_packages_of_files(ownership):
    assert ownership.package_of(SITE + "six.py") == "six"
    assert ownership.package_of("/usr/lib/python3/dist-packages/onnx/a.py") == "onnx"
    assert ownership.package_of(ROOT + "rewriter/cli.py") == "rewriter"
    assert ownership.package_of("<string>") == ""


def test_waits_are_cut_down_to_what_tensorrt_took(ownership):
    sampler = ownership.Sampler()
    sampler.book("build", "TensorRT", 2.0)
    sampler.book("build", "ours", 0.5)
    with sampler.at("build"):
        sampler.answered(1.75)
    with sampler.at("support"):
        sampler.answered(0.25)  # the answer was there before anybody looked
    assert sampler.settled() == {"build": {"TensorRT": 1.75, "ours": 0.75}}


def document(own):
    """A measurement in which `own` of 10 seconds is ours."""
    ledger = {
        "process start and end": {"Python": 0.25},
        "imports": {"TensorFlow": 1.0, "ours": 0.25},
        "load": {"TensorFlow": 8.0 - own - 0.5},
        "build": {"TensorRT": 1.0, "ours": own},
    }
    rows = [
        {"model": model, "system": system, "run": run, "seconds": seconds, "status": "ok", "detail": ""}
        for model in ("ResNet50", "odd")
        for run in range(3)
        for system, seconds in (("ours", 10.0 + run), ("tf2onnx", 9.0), ("polygraphy", 1.0 + run))
        if (model, system) != ("odd", "polygraphy")
    ]
    rows += [{"model": "odd", "system": "polygraphy", "run": 0, "seconds": 1.0, "status": "failed", "detail": "no NMS"}]
    return {"rows": rows, "ledgers": [{"model": m, "run": 0, "ledger": ledger} for m in ("ResNet50", "odd")]}


@pytest.mark.parametrize(("own", "word"), [(1.4, "PASS"), (1.6, "FAIL")])
def test_the_limit_is_judged(script, own, word):
    found = document(own)
    assert script.own_share(found, "ResNet50") == pytest.approx(own / 10)
    assert f"{word}: own stages take {own * 10:.1f}% of a ResNet50 conversion" in script.render(found)
    assert script.own_share(found, "ResNet50", outside=True) == pytest.approx((own + 0.5) / 10)
    assert f"FAIL: own stages, Python's start and end and the imports take {own * 10 + 5:.1f}%" in script.render(found)
    assert script.own_share(found, "another") is None


def test_tables_facts_and_plots(script):
    found = document(1.0)
    text = script.render(found)
    assert "11.0 (10.0 .. 12.0)" in text
    assert "| fails " in text
    assert "polygraphy: no NMS" in text
    told = script.facts(found)
    assert (told["model"], told["limit"], told["own_outside"]) == ("ResNet50", "15%", "15.0 %")
    assert (told["ours"], told["stock"], told["ratio"]) == ("11.0", "11.0", "1.00")
    chart = script.plots(found)["owners"]
    assert chart.groups == ["ResNet50", "odd"]
    assert {name: values[0] for name, values in chart.series.items()} == {
        "TensorFlow": 7.5, "TensorRT": 1.0, "ours": 1.25, "Python": 0.25
    }  # fmt: skip


def test_commands_get_the_same_shapes(script, tmp_path):
    options = script._parse([])
    shapes = {"x": [[1, 4], [8, 4]], "n": [[], []]}
    ours = script._command("ours", "src", {"x": shapes["x"]}, tmp_path, options)
    assert ours[ours.index("--shapes") + 1] == "x:1x4,8x4"
    stock = script._command("polygraphy", "src", shapes, tmp_path, options)
    assert stock[stock.index("--trt-min-shapes") + 1 :][:2] == ["x:[1,4]", "n:[]"]
    assert stock[stock.index("--trt-max-shapes") + 1] == "x:[8,4]"


def test_the_reason_of_a_failure_is_a_telling_line(script):
    assert script._reason("Loading\n  some   Error here\nmore") == "some Error here"
    assert script._reason("a\nb") == "a"
    assert script._reason("") == "no word"
