"""`trt-rewriter demo`: its calibration inputs, and when it fails."""

import argparse
import contextlib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rewriter.cli import main
from rewriter.commands import demo
from rewriter.demo import load_digits_test

LABELS = np.arange(100) % 10


@pytest.fixture
def console():
    return Console(width=200, force_terminal=False)


@pytest.mark.parametrize(("wrong", "status"), [(0, 0), (2, 0), (3, 1), (90, 1)])
def test_it_fails_when_lower_precision_costs_more_than_two_points(wrong, status, console, capsys, monkeypatch):
    def load(_path, execution="auto"):
        off = (np.arange(100) < wrong) if execution == "emulate" else np.zeros(100)
        found = {"digit": (LABELS + off.astype(int)) % 10, "probabilities": np.ones((100, 10), np.float32)}
        return contextlib.nullcontext(lambda _images: found)

    monkeypatch.setattr("rewriter.runtime.loading.load", load)
    assert demo._emulate(console, Path("out"), np.zeros((100, 8, 8)), LABELS) == status
    text = capsys.readouterr().out
    assert f"native 100.0%, emulated {100 - wrong}.0%" in text
    assert ("FAILED: emulated accuracy is" in text) == bool(status)
    assert demo._emulate(console, Path("out"), np.zeros((100, 8, 8)), None) == 0


@pytest.mark.parametrize(
    ("mode", "calibration", "off", "wanted"),
    [
        ("int8", None, False, True),
        ("FP8", None, False, True),
        ("FP16", None, False, False),
        ("INT8", "a", False, False),
        ("INT8", None, True, False),
    ],
)
def test_its_own_images_are_used_where_inputs_are_needed(mode, calibration, off, wanted):
    arguments = argparse.Namespace(precision_mode=mode, calibration=calibration, no_calibration=off)
    found = demo._own_images(arguments, np.zeros((100, 8, 8)))
    assert (found is not None) == wanted
    if found:
        assert found()[0].shape == (demo.CALIBRATION_IMAGES, 8, 8)


@pytest.mark.rtx
@pytest.mark.tensorflow
def test_given_inputs_calibrate_the_digits(tmp_path, capsys):
    images, _ = load_digits_test()
    np.savez(tmp_path / "in.npz", image=images[:20])
    given = ["--calibration-inputs", str(tmp_path / "in.npz"), "--targets", "sm89"]
    assert main(["demo", "--precision-mode", "int8", *given]) == 0
    text = capsys.readouterr().out
    assert "4. Emulate what the engines compute in INT8+FP16" in text
    assert "3 input" in text  # 20 images, 8 at a time
    assert main(["demo", "--precision-mode", "fp16", *given]) == 2
    assert "leave calibration_input_fn (--calibration-inputs) out" in capsys.readouterr().err
    assert main(["demo", "--precision-mode", "int8", "--no-calibration", *given]) == 2
    assert "use_calibration is False (--no-calibration)" in capsys.readouterr().err


@pytest.mark.rtx
@pytest.mark.tensorflow
def test_int4_beside_fp32_is_emulated(capsys):
    assert main(["demo", "--int4-block", "16", "--targets", "sm89"]) in (0, 1)
    assert "4. Emulate what the engines compute in FP32+INT4" in capsys.readouterr().out
