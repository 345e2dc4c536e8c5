"""What docs/serving.md shows of Ray runs as it stands there, on the demo's model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from rewriter import load

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "serving.md"
pytestmark = [pytest.mark.serving, pytest.mark.tensorflow, pytest.mark.rtx]


@pytest.fixture
def digits(tmp_path, rtx):
    """Makes the demo's artifact under a name."""
    from rewriter.converter import Converter
    from rewriter.demo import digits_path, load_digits_test

    images, _ = load_digits_test()

    def make(name):
        with Converter(str(digits_path()), backend=rtx, progress=False) as converter:
            converter.convert()
            converter.build(lambda: [images[:1], images[:8], images[:32]])
            converter.save(tmp_path / name)

    return make


def test_the_examples_run(ray_script, digits, tmp_path, monkeypatch):
    from rewriter.cli import main
    from rewriter.demo import digits_path, load_digits_test

    images, _ = load_digits_test()
    digits("digits")
    found = ray_script("run_page.py", PAGE, "Ray Serve,Ray Data,Calibration on many machines")
    (printed,) = found["printed"]
    decoder = json.JSONDecoder()
    answer, end = decoder.raw_decode(printed)
    stats, _ = decoder.raw_decode(printed[end:])
    assert answer["outputs"]["digit"] == [0]
    assert stats["function"]["engine_nodes"] == 2
    assert set(stats["function"]["engines_chosen"]) == {"TRTEngineOp_000", "TRTEngineOp_001"}
    assert found["answers"] == len(images)
    # The ranges that the cluster found, in the conversion that needs them.
    text = PAGE.read_text("utf-8")
    (command,) = re.findall(r"```bash\n(.*)\n```", text[text.index("\n## Calibration on") : text.index("\n## Triton")])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").symlink_to(digits_path())
    program, *arguments = shlex.split(command)
    assert (program, main(arguments)) == ("trt-rewriter", 0)
    assert load(tmp_path / "digits_int8", execution="emulate").run({"image": images[:8]})["digit"].shape == (8,)


def test_the_example_of_the_readme_runs(ray_script, digits):
    from rewriter.demo import load_digits_test

    digits("my_model_trt")
    found = ray_script("run_page.py", ROOT / "README.md", "Outgrow one machine")
    labels = load_digits_test()[1]
    assert sum(a == b for a, b in zip(found["digits"], labels, strict=True)) > 0.97 * len(labels)
