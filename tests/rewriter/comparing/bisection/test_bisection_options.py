"""The option line of a bisection, given to `trt-rewriter convert`: the comparison passes then."""

import shlex

import numpy as np
import onnx
import pytest

from rewriter.cli import main
from rewriter.comparing.bisection import bisect
from tests.rewriter.comparing.bisection.bisection_models import parse

RANDOM = np.random.default_rng(0)
#: d is beyond float16, and so is what e reads of it.
MODEL = """g (float[batch, 8] x) => (float[batch, 5] y) {
    a = MatMul(x, w) b = Tanh(a) c = Mul(b, thousand) d = Mul(c, c) e = Div(d, most)
    f = Relu(e) h = Mul(f, tenth) y = Tanh(h) }"""
WEIGHTS = {
    "w": RANDOM.standard_normal((8, 5)).astype(np.float32),
    "thousand": np.float32(1000),
    "most": np.float32(6e4),
    "tenth": np.float32(0.1),
}


@pytest.fixture
def convert(tmp_path, rtx):
    onnx.save(parse(MODEL, **WEIGHTS), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=RANDOM.standard_normal((3, 8)).astype(np.float32))

    def converted(name, *options):
        out = str(tmp_path / name)
        words = ["convert", str(tmp_path / "model.onnx"), "-o", out, "--precision-mode", "FP16", "--no-engines"]
        assert main([*words, *options]) == 0
        status = main(["compare", str(tmp_path / "model.onnx"), out, "--inputs", str(tmp_path / "x.npz")])
        return out, status

    return converted


@pytest.mark.rtx
def test_a_conversion_with_the_option_passes(convert, tmp_path):
    out, status = convert("first")
    assert status == 1
    with np.load(tmp_path / "x.npz") as inputs:
        found = bisect(out, [dict(inputs)], 5e-3)
    assert (found.node, found.passed) == ("n_d", True)
    _, status = convert("second", *shlex.split(found.option))
    assert status == 0
