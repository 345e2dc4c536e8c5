"""`trt-rewriter run`: its options reach `load`, its words reach the user."""

import types

import numpy as np
import pytest

from rewriter.cli import main
from rewriter.errors import ConversionError


class Function:
    """A loaded function that doubles its input."""

    def __init__(self):
        self.inputs = None
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.closed = True

    def run(self, inputs):
        self.inputs = inputs
        return {"y": 2 * inputs["x"], "words": np.array(["a"], object), "scalar": np.float32(1)}

    def stats(self):
        return {"fallbacks": {"no GPU": 2}}


@pytest.fixture
def loads(monkeypatch):
    """What `load` was called with, and the function that it gave."""
    state = types.SimpleNamespace(calls=[], function=Function())

    def load(path, **options):
        state.calls.append((path, options))
        return state.function

    monkeypatch.setattr("rewriter.runtime.loading.load", load)
    return state


@pytest.fixture
def inputs(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.array([[1, 2]], np.float32))
    return str(path)


DEFAULTS = {
    "signature": None,
    "provider": "auto",
    "strict": None,
    "execution": "auto",
    "device": 0,
    "wait_for_builds": False,
    "cuda_graph": True,
}


def test_defaults_inputs_and_outputs(loads, inputs, tmp_path, capsys):
    outputs = tmp_path / "out.npz"
    assert main(["run", "OUT", "--inputs", inputs, "--outputs", str(outputs)]) == 0
    assert loads.calls == [("OUT", DEFAULTS)]
    np.testing.assert_array_equal(loads.function.inputs["x"], [[1, 2]])
    assert loads.function.closed
    text = capsys.readouterr().out
    assert text.splitlines() == [
        "y: float32 1x2 2 .. 4",
        "words: object 1",
        "scalar: float32 scalar 1 .. 1",
        "native: 2 engine call(s): no GPU",
    ]
    with np.load(outputs) as found:
        np.testing.assert_array_equal(found["y"], [[2, 4]])
        assert (found["words"].dtype.kind, found["words"].tolist()) == ("U", ["a"])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--signature", "embed"], {"signature": "embed"}),
        (["--provider", "cuda", "--strict"], {"provider": "cuda", "strict": True}),
        (["--no-cuda-graph"], {"cuda_graph": False}),
        (["--device", "1", "--wait-for-builds"], {"device": 1, "wait_for_builds": True}),
        (["--execution", "emulate"], {"execution": "emulate"}),
    ],
)
def test_options_reach_the_function(loads, inputs, words, options):
    assert main(["run", "OUT", "--inputs", inputs, *words]) == 0
    assert loads.calls == [("OUT", {**DEFAULTS, **options})]


def test_the_engines_that_ran_are_told_with_what_was_passed_over(loads, inputs, capsys):
    node = {
        "engines": {"a": "tensorrt_rtx 1.7.1: built for this GPU, SM89"},
        "others": {"b": "it is damaged", "c": "no GPU"},
    }
    loads.function.stats = lambda: {"fallbacks": {"no GPU": 2}, "engines_chosen": {"TRTEngineOp_000": node}}
    assert main(["run", "OUT", "--inputs", inputs]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "TRTEngineOp_000 runs tensorrt_rtx 1.7.1: built for this GPU, SM89",
        "1 engine not used: it is damaged",
        "native: 2 engine call(s): no GPU",
    ]


def test_an_error_is_one_line(loads, inputs, capsys):
    def fail(inputs):
        raise ConversionError("strict: an engine was not used: no GPU")

    loads.function.run = fail
    assert main(["run", "OUT", "--inputs", inputs, "--strict"]) == 2
    assert capsys.readouterr().err.strip() == "trt-rewriter: strict: an engine was not used: no GPU"
    assert loads.function.closed


def test_a_device_that_is_no_number(loads, inputs, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "OUT", "--inputs", inputs, "--device", "first"])
    assert ended.value.code == 2
    assert "invalid int value: 'first'" in capsys.readouterr().err
    assert loads.calls == []
