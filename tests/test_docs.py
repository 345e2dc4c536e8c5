"""What docs/ shows runs as it stands there, and the errors that it names are in the code."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", MIGRATION, re.DOTALL)
COMPARISON = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def frozen():
    """A frozen graph of TensorFlow 1: image [?, 64] -> logits -> probabilities."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, [None, 64], "image")
        hidden = tf.nn.relu(tf.matmul(image, tf.constant(rng.standard_normal((64, 32), np.float32))))
        logits = tf.matmul(hidden, tf.constant(rng.standard_normal((32, 4), np.float32) / 8), name="logits")
        tf.nn.softmax(tf.tanh(logits), name="probabilities")
    return graph.as_graph_def()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with my_model and old_model, and no variable of TF-TRT in the environment."""
    import os

    import tensorflow as tf

    from rewriter.demo import digits_path
    from tests.rewriter.rescuing import old_models

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TF_TRT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "my_model").symlink_to(digits_path())
    old_models.save_cnn(tf, tmp_path / "plain")
    old_models.convert(tf, tmp_path / "plain", tmp_path / "old_model", old_models.Style(precision="FP16"))
    return tmp_path


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_the_guide_runs(place, frozen, capsys):
    from rewriter.demo import load_digits_test

    images, _ = load_digits_test()
    names = {"images": images, "graph_def": frozen}
    for number, block in enumerate(BLOCKS):
        line = MIGRATION[: MIGRATION.index(block)].count("\n")
        code = "\n" * line + block  # so that a traceback shows the line of the guide
        exec(compile(code, f"docs/migration.md, block {number}", "exec"), names)  # noqa: S102 - our own guide
    names["converter"].close()
    names["function"].close()
    written = "my_model_trt my_model_all my_model_int8 frozen_int8 plain_model report.csv graph.svg"
    assert set(written.split()) <= {path.name for path in place.iterdir()}
    assert "[*] Total number of TensorRT engines: 2" in capsys.readouterr().out


def strings_of_the_code():
    """Every text in rewriter/ and passes/, with dots in the place of values that are put in."""
    found = []
    for path in [*(ROOT / "rewriter").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(parts))
    return found


def test_the_errors_of_the_guide_are_those_of_the_code():
    table = MIGRATION[MIGRATION.index("## Errors") : MIGRATION.index("## SavedModels that")]
    told = [
        text
        for row in table.splitlines()
        if row.startswith("| ") and not row.startswith("| TF-TRT")
        for text in re.findall(r"`([^`]+)`", row.split(" | ")[-1])
    ]
    assert len(told) > 10
    code = strings_of_the_code()
    for text in told:
        parts = [part.strip() for part in text.split("...") if part.strip(" ,")]
        assert any(all(part in known for part in parts) for known in code), text


def test_the_passes_of_the_guide_are_those_of_the_code():
    from rewriter.pass_selection.table import BY_NAME

    section = MIGRATION[MIGRATION.index("## rewriter_config_template") : MIGRATION.index("## Environment variables")]
    rows = [row.split(" | ") for row in section.splitlines() if row.startswith("| `")]
    told = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert len(told) > 12
    for name, stage in told.items():
        assert BY_NAME[name].grappler != stage.startswith("no"), name


def test_every_difference_has_its_reason():
    section = MIGRATION[MIGRATION.index("## What is different") : MIGRATION.index("## Names")]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| ")]
    assert len(rows) > 12
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)


def anchors_of(page):
    headings = [line.lstrip("# ") for line in page.splitlines() if line.startswith("## ")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [MIGRATION, COMPARISON, SERVING], ids=["migration", "comparison", "serving"])
def test_links_lead_somewhere(page):
    anchors = anchors_of(page)
    for target in re.findall(r"\]\(([^)]+)\)", page):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            file, _, anchor = target.partition("#")
            assert (ROOT / "docs" / file).exists(), target
            assert not anchor or anchor in anchors_of((ROOT / "docs" / file).read_text(encoding="utf-8")), target


def test_every_argument_and_variable_is_named():
    from rewriter.params import ConversionParams
    from rewriter.switches import _READERS, _WITHOUT_MEANING

    for name in (*ConversionParams._fields, *_READERS):
        assert f"`{name}" in MIGRATION, name
    assert len(_WITHOUT_MEANING) > 0


def save_onnx(path):
    """Three layers of MatMul and Relu."""
    import onnx
    from onnx import helper, numpy_helper

    rng, nodes, value = np.random.default_rng(0), [], "x"
    weights = [numpy_helper.from_array(rng.standard_normal((16, 16), np.float32) / 4, f"w{i}") for i in range(3)]
    for layer, weight in enumerate(weights):
        result = "y" if layer == 2 else f"relu_{layer}"
        nodes.append(helper.make_node("MatMul", [value, weight.name], [f"matmul_{layer}"], f"matmul_{layer}"))
        nodes.append(helper.make_node("Relu", [f"matmul_{layer}"], [result], f"relu_{layer}"))
        value = result
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 16])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "layers", *ends, weights)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)


def run_line(line, capsys):
    """Runs one command of a guide, ours in this process; returns (exit status, what it printed)."""
    import shlex
    import subprocess
    import sys

    from rewriter.cli import main

    program, *arguments = shlex.split(line, comments=True)
    if program == "trt-rewriter":
        return main(arguments), "".join(capsys.readouterr())
    script = Path(sys.executable).with_name(program)
    done = subprocess.run([script, *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_the_page_about_comparisons_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("polygraphy")
    from rewriter.demo import digits_path, load_digits_test

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").symlink_to(digits_path())
    save_onnx(tmp_path / "model.onnx")
    names, said = {"images": load_digits_test()[0]}, ""
    for kind, block in re.findall(r"```(python|sh)\n(.*?)```", COMPARISON, re.DOTALL):
        if kind == "python":
            exec(compile(block, "docs/comparison.md", "exec"), names)  # noqa: S102 - our own page
            continue
        for line in block.splitlines():
            status, printed = run_line(line, capsys)
            assert status == (1 if "# exit status 1" in line else 0), f"{line}\n{printed}"
            said += printed
    written = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "comparison.html", "pictures", "typical.npz", "bench.json"} <= written
    shown = COMPARISON[COMPARISON.index("Bisection of emulated") :].split("```")[0]
    for figure in re.findall(r"'[^']+'", shown):  # names of nodes and outputs, and the option
        assert figure in said, figure


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_the_page_about_serving_runs(tmp_path, monkeypatch, capsys):
    """What needs no server; `test_examples` and `test_triton_live` beside the exporters run the rest."""
    from rewriter import load
    from rewriter.demo import digits_path, load_digits_test

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").symlink_to(digits_path())
    said = ""
    for heading in ("One artifact, many GPUs", "EPContext"):
        section = SERVING[SERVING.index(f"\n## {heading}\n") + 1 :].split("\n## ")[0]
        for block in re.findall(r"```(?:ba)?sh\n(.*?)```", section, re.DOTALL):
            for line in block.splitlines():
                status, printed = run_line(line, capsys)
                assert status == 0, f"{line}\n{printed}"
                said += printed
    for target in ("SM80", "SM86", "SM89", "SM120"):
        assert target in said
    assert (tmp_path / "digits_ctx" / "model_ctx.onnx").exists()
    with load("digits_all") as function:
        function(image=load_digits_test()[0][:8])
        assert all(len(node["others"]) == 4 for node in function.stats()["engines_chosen"].values())
