"""The same on a GPU: engines are built for the inputs and run."""

import numpy as np
import pytest

from rewriter.cli import main
from rewriter.polygraphy_runners.conversion import ConvertModel

pytestmark = [pytest.mark.gpu, pytest.mark.rtx, pytest.mark.usefixtures("polygraphy")]


def test_engines_run_for_every_shape(model):
    native = ConvertModel(model, execution="native")()
    with native, ConvertModel(model, precision_mode="FP16", strict=True)() as converted:
        for rows in (1, 2):
            inputs = {"x": np.linspace(-1, 1, rows * 8, dtype=np.float32).reshape(rows, 8)}
            converted.prepare(inputs)
            found = converted.run(inputs)["logits"]
            assert converted.stats()["engine_calls"] == 1
            assert np.abs(found - native.run(inputs)["logits"]).max() < 1e-2
        assert converted.builds == 2


def test_the_command_runs_engines(command, model, batches, tmp_path):
    options = ("--data-loader-script", batches, "--atol", "1e-2")
    status, text = command(
        *(model, "--onnxrt", "--trt-rewriter", "--trt-rewriter-precision", "FP16", "--trt-rewriter-strict", *options)
    )
    assert status == 0, text
    assert text.count("built 1 engine for x") == 3
    assert "emulated" not in text
    out = str(tmp_path / "out")
    assert main(["convert", model, "-o", out, "--precision-mode", "FP16", "--shapes", "x:1x8,2x8,5x8"]) == 0
    status, text = command(
        *(model, "--onnxrt", "--trt-rewriter", "--trt-rewriter-artifact", out, "--trt-rewriter-strict", *options)
    )
    assert status == 0, text
