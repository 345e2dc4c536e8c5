"""What docs/serving.md shows of Ray runs as it stands there, on the demo's model."""

import json
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[4] / "docs" / "serving.md"
pytestmark = [pytest.mark.serving, pytest.mark.tensorflow, pytest.mark.rtx]


@pytest.mark.skipif(
    not PAGE.exists() or "\n## Ray Data\n" not in PAGE.read_text("utf-8"), reason="docs/serving.md has no Ray Data"
)
def test_the_examples_run(ray_script, tmp_path, rtx):
    from rewriter.converter import Converter
    from rewriter.demo import digits_path, load_digits_test

    images, _ = load_digits_test()
    with Converter(str(digits_path()), backend=rtx, progress=False) as converter:
        converter.convert()
        converter.build(lambda: [images[:1], images[:8], images[:32]])
        converter.save(tmp_path / "digits")
    found = ray_script("run_page.py", PAGE, "Ray Serve,Ray Data")
    (printed,) = found["printed"]
    decoder = json.JSONDecoder()
    answer, end = decoder.raw_decode(printed)
    stats, _ = decoder.raw_decode(printed[end:])
    assert answer["outputs"]["digit"] == [0]
    assert stats["function"]["engine_nodes"] == 2
    assert set(stats["function"]["engines_chosen"]) == {"TRTEngineOp_000", "TRTEngineOp_001"}
    assert found["answers"] == len(images)
