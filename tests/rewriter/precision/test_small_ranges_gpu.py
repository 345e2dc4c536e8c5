"""8-bit products of small numbers on a real GPU: float16 cannot hold 1 / scale of a softmax over many tokens.

CUDA_VISIBLE_DEVICES=0 python -m pytest -q -s -m gpu tests/rewriter/precision/test_small_ranges_gpu.py
"""

import numpy as np
import onnx
import pytest

from rewriter import Converter, load
from tests.rewriter.comparing.bisection.bisection_models import parse

pytestmark = pytest.mark.gpu
TEXT = """g (float[2, tokens, tokens] x, float[2, tokens, 64] z) => (float[2, tokens, 64] y) {
    p = Softmax(x) v = Tanh(z) u = MatMul(p, v) y = Tanh(u) }"""


@pytest.mark.parametrize("mode", ["FP8", "INT8"])
@pytest.mark.parametrize("tokens", [64, 196, 208, 1024])
def test_attention_over_many_tokens_is_what_emulation_says(tmp_path, mode, tokens):
    rng = np.random.default_rng(0)
    feeds = {
        "x": (rng.standard_normal((2, tokens, tokens)) / 10).astype(np.float32),
        "z": (2 + rng.standard_normal((2, tokens, 64))).astype(np.float32),
    }
    onnx.save(parse(TEXT.replace("tokens", str(tokens))), tmp_path / "model.onnx")
    with Converter(model=tmp_path / "model.onnx", precision_mode=mode, minimum_segment_size=1) as converter:
        converter.convert(calibration_input_fn=lambda: iter([feeds]))
        converter.build(lambda: iter([feeds]))
        converter.save(tmp_path / "out")
    with load(tmp_path / "out", execution="emulate", provider="cpu") as emulated:
        expected = emulated(**feeds)["y"]
    with load(tmp_path / "out", strict=True) as tensorrt:
        found = tensorrt(**feeds)["y"]
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"\n{mode}, {tokens} tokens: {difference:.1e} from the emulation")
    assert np.isfinite(found).all()
    assert difference < 3e-2
