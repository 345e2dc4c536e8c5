"""native -> tensorrt on a GPU: real engines, real prefixes.

CUDA_VISIBLE_DEVICES=0 python -m pytest -q -s -m gpu tests/rewriter/comparing/bisection/test_bisection_gpu.py
"""

import numpy as np
import pytest

from rewriter import Converter, load
from rewriter.comparing.bisection import bisect
from tests.rewriter.comparing.bisection.bisection_models import parse

pytestmark = pytest.mark.gpu
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 64)).astype(np.float32)
#: d is beyond float16.
OVERFLOW = """g (float[batch, 64] x) => (float[batch, 64] y) {
    a = MatMul(x, w) b = Tanh(a) c = Mul(b, thousand) d = Mul(c, c) e = Div(d, most)
    f = Relu(e) h = Mul(f, tenth) y = Tanh(h) }"""
CONSTANTS = {"thousand": np.float32(1000), "most": np.float32(6e4), "tenth": np.float32(0.1)}
#: Products, which TensorRT-RTX computes in TF32.
PRODUCTS = """g (float[batch, 64] x) => (float[batch, 64] y) {
    a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w) d = Sigmoid(c) e = MatMul(d, w) y = Tanh(e) }"""


@pytest.fixture
def convert(tmp_path):
    """An artifact with engines for batches 1 to 8, and the largest difference of its output from the native one."""

    def made(text, precision, **weights):
        kernel = (RANDOM.standard_normal((64, 64)) / 8).astype(np.float32)
        folder = tmp_path / precision
        with Converter(model=parse(text, w=kernel, **weights), precision_mode=precision) as converter:
            converter.convert()
            converter.build(lambda: iter([X[:1], X, np.repeat(X, 2, axis=0)]))
            converter.save(folder)
        with load(folder, strict=True) as tensorrt, load(folder, execution="native") as native:
            ours, theirs = tensorrt(X)["y"], native(X)["y"]
        return folder, float(np.abs(ours - theirs).max() / np.abs(theirs).max())

    return made


def test_the_node_that_overflows_is_found_by_prefixes(convert):
    folder, difference = convert(OVERFLOW, "FP16", **CONSTANTS)
    if difference <= 5e-3:
        pytest.skip("TensorRT's fused kernel holds more than float16 between these nodes: nothing overflows")
    found = bisect(folder, [X], 5e-3, result="tensorrt")
    print("\n" + found.text())
    # TensorRT may fuse the product with what reads it.
    assert (found.segment, found.node in ("n_d", "n_e")) == ("TRTEngineOp_000", True)
    assert found.option.startswith("--node-denylist")
    assert found.verified is not None
    assert any("--keep-nodes" in note for note in found.notes)


def test_tf32_is_found_in_the_first_product(convert):
    folder, difference = convert(PRODUCTS, "FP32")
    assert 0 < difference < 1e-1
    found = bisect(folder, [X], difference / 8, result="tensorrt")
    print("\n" + found.text())
    assert found.outputs
    assert found.segment == "TRTEngineOp_000"
    assert found.node in ("n_a", "n_b", "n_c", "n_d", "n_e", "n_y")
    assert found.verified is not None


def test_within_the_tolerance_no_engine_is_built(convert):
    folder, difference = convert(PRODUCTS, "FP32")
    assert not bisect(folder, [X], 2 * difference + 1e-6, result="tensorrt").outputs
