"""What README.md shows runs as it stands there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_finds_the_test_command():
    block = README[README.index("<!-- test command -->") :]
    commands = [line for line in block[: block.index("\n```\n")].splitlines() if line.startswith("python3 ")]
    assert len(commands) == 1
    assert "pytest" in commands[0]
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", README, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)\)", prose)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    from rewriter.demo import digits_path, load_digits_test

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").symlink_to(digits_path())
    images, labels = load_digits_test()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "converter.build" in block]
    names = {"images": images, "labels": labels}
    exec(compile(blocks[0], "README.md", "exec"), names)  # noqa: S102 - our own README
    names["converter"].close()
    assert np.mean(names["outputs"]["digit"] == labels) > 0.97
    assert list(names["outputs"]) == ["digit", "probabilities"]
    assert "2 with an engine" in capsys.readouterr().out
    assert names["function"].stats()["engines"] == 2
    exec(compile(blocks[1], "README.md", "exec"), names)  # noqa: S102 - that on precision goes on from there
    report = names["converter"].report
    names["converter"].close()
    assert [engine.precision for engine in report.engines] == ["INT8+FP16"] * 2
    assert all(engine.built for engine in report.engines)
    assert np.mean(names["lowered"](images)["digit"] == labels) > 0.96
    assert (tmp_path / "my_model_int8" / "calibration.json").is_file()


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_the_migration_table_is_true(tmp_path):
    import rewriter as trt
    from rewriter.demo import digits_path, load_digits_test

    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(max_workspace_size_bytes=1 << 28, max_batch_size=4)
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=str(digits_path()), conversion_params=params)
    converter.convert()
    images, _ = load_digits_test()
    converter.build(input_fn=lambda: iter([(images[:4],)]))
    lines = []
    converter.summary(line_length=120, detailed=False, print_fn=lines.append)
    converter.save(str(tmp_path / "out"))
    converter.close()
    assert any("TRTEngineOp_001" in line for line in lines)
    with trt.load(str(tmp_path / "out")) as function:
        assert function(image=images[:2])["probabilities"].shape == (2, 10)


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_the_commands_for_more_machines_run(tmp_path, monkeypatch, capsys):
    """Those of "Outgrow one machine"; `test_examples` beside the exporter for Ray runs its Python."""
    from rewriter.cli import main
    from rewriter.demo import digits_path

    monkeypatch.chdir(tmp_path)
    shapes = ("--shapes", "image:1x8x8,8x8x8,32x8x8")
    assert main(["convert", str(digits_path()), "-o", "my_model_trt", *shapes, "--targets", "sm86"]) == 0
    section = README[README.index("## Outgrow one machine") :].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert (program, main(arguments)) == ("trt-rewriter", 0)
    said = capsys.readouterr().out
    assert "2 engines added" in said
    assert "SM80 SM89 SM120: not used: no GPU" in said
    assert (tmp_path / "models" / "my_model_trt" / "1" / "model.py").exists()
    assert (tmp_path / "my_model_ctx" / "model_ctx.onnx").exists()
