"""The command line, in process: exit status, one-line errors, and what is printed."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from rich.console import Console

from rewriter.artifact import load_artifact
from rewriter.cli import main
from rewriter.commands.options import check_target, parse_shapes
from rewriter.commands.screen import StageScreen
from rewriter.errors import InvalidParameterError
from rewriter.progress import ProgressEvent

OPSETS = [h.make_opsetid("", 18), h.make_opsetid("ai.onnx.ml", 3)]


@pytest.fixture
def onnx_file(tmp_path):
    """Three supported nodes, one that TensorRT has not, three supported ones; dynamic batch."""
    nodes = [
        h.make_node("Relu", ["x"], ["a"], "n1"),
        h.make_node("Exp", ["a"], ["b"], "n2"),
        h.make_node("Neg", ["b"], ["c"], "n3"),
        h.make_node("Scaler", ["c"], ["d"], "n4", domain="ai.onnx.ml", offset=[0.5], scale=[-2.0]),
        h.make_node("Sqrt", ["d"], ["e"], "n5"),
        h.make_node("Tanh", ["e"], ["f"], "n6"),
        h.make_node("Abs", ["f"], ["y"], "n7"),
    ]
    x = h.make_tensor_value_info("x", T.FLOAT, ["batch", 4])
    y = h.make_tensor_value_info("y", T.FLOAT, ["batch", 4])
    inner = h.make_tensor_value_info("d", T.FLOAT, ["batch", 4])
    graph = h.make_graph(nodes, "g", [x], [y], value_info=[inner])
    path = tmp_path / "model.onnx"
    onnx.save(h.make_model(graph, opset_imports=OPSETS, ir_version=10), path)
    return path


def one_line_error(capsys):
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("trt-rewriter: ")
    return lines[0]


@pytest.mark.rtx
def test_convert_inspect_run(onnx_file, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["convert", str(onnx_file), "-o", out, "--shapes", "x:1x4,16x4"]) == 0
    text = capsys.readouterr().out
    for words in ("TRTEngineOp_000", "TRTEngineOp_001", "x: 1x4 .. 16x4", "Scaler", "2 with an engine", "Saved to"):
        assert words in text

    assert main(["inspect", out]) == 0
    text = capsys.readouterr().out
    for words in ("input  x: float32 [batch, 4]", "Exp, Neg, Relu", "Scaler", ".engine", "tensorrt_rtx", "files,"):
        assert words in text
    assert main(["inspect", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["coverage"] == pytest.approx(6 / 7)

    inputs, outputs = tmp_path / "in.npz", tmp_path / "out.npz"
    x = np.linspace(-1, 3, 12, dtype=np.float32).reshape(3, 4)
    np.savez(inputs, x=x)
    assert main(["run", out, "--inputs", str(inputs), "--outputs", str(outputs)]) == 0
    assert "y: float32 3x4" in capsys.readouterr().out
    expected = np.tanh(np.sqrt((-np.exp(np.maximum(x, 0)) - 0.5) * -2))
    np.testing.assert_allclose(np.load(outputs)["y"], expected, rtol=1e-5)

    assert main(["convert", str(onnx_file), "-o", out]) == 2
    assert "exists and is not empty" in one_line_error(capsys)
    assert main(["convert", str(onnx_file), "-o", out, "--overwrite", "--shapes", "x:2x4", "--no-engines"]) == 0
    assert "0 with an engine" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.engine"))


@pytest.mark.rtx
def test_the_accuracy_guard_is_told_by_options(onnx_file, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", x=np.linspace(-1, 3, 40, dtype=np.float32).reshape(10, 4))
    options = ["--precision-mode", "fp16", "--max-rel-diff", "0.05", "--accuracy-inputs", str(tmp_path / "in.npz")]
    assert main(["convert", str(onnx_file), "-o", str(tmp_path / "out"), *options]) == 0
    assert "Accuracy: outputs within a relative difference of 0.05: met with everything" in capsys.readouterr().out


@pytest.mark.rtx
def test_default_shapes_are_batches_one_and_eight(onnx_file, tmp_path, capsys):
    assert main(["convert", str(onnx_file), "-o", str(tmp_path / "out")]) == 0
    assert "x: 1x4 .. 8x4" in capsys.readouterr().out


@pytest.mark.rtx
def test_three_shapes_are_minimum_optimum_and_maximum(onnx_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(onnx_file), "-o", str(out), "--shapes", "x:2x4,3x4,9x4"]) == 0
    for engine in json.loads((out / "manifest.json").read_text())["engines"]:
        ((profile,),) = [p.values() for p in engine["profiles"]]
        assert [profile[key] for key in ("min", "opt", "max")] == [[2, 4], [3, 4], [9, 4]]


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["x:1x4,9x4,3x4"], "three shapes of an input are its minimum, optimum and maximum, but dimension 0"),
        (["x:1x4,3x4x1,9x4"], "the shapes of input 'x' differ in rank: 1x4, 3x4x1, 9x4"),
        (["x:1x4x1,3x4x1,9x4x1"], "shape 1x4x1 does not fit input 'x' (batchx4)"),
        (["z:1x4,3x4,9x4"], "shapes name the input 'z', the signature has x"),
        (["x:1x4,3x4,9x4", "z:1x4,2x4"], "inputs must have the same number of shapes (or one): 'x' has 3, 'z' has 2"),
    ],
)
def test_wrong_shapes_are_one_line(onnx_file, tmp_path, capsys, shapes, message):
    options = [word for text in shapes for word in ("--shapes", text)]
    assert main(["convert", str(onnx_file), "-o", str(tmp_path / "out"), *options]) == 2
    assert message in one_line_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "MODEL", "-o", "OUT", "--engine-cache-max-bytes", "9"], "needs engine_cache_dir"),
        (["convert", "GONE.onnx", "-o", "OUT"], "GONE.onnx"),
        (
            ["convert", "MODEL", "-o", "OUT", "--precision-mode", "FP64"],
            "precision_mode must be one of FP32, FP16, INT8, TF32, BF16, FP8, in",
        ),
        (["convert", "MODEL", "-o", "OUT", "--float-type", "BF16"], "goes with precision_mode INT8 or FP8"),
        (["convert", "MODEL", "-o", "OUT", "--calibration-inputs", "GONE.npz"], "GONE.npz"),
        (["convert", "MODEL", "-o", "OUT", "--calibration", "GONE.json"], "GONE.json"),
        (["convert", "MODEL", "-o", "OUT", "--calibration-batch", "4"], "goes with --calibration-inputs"),
        (["convert", "MODEL", "-o", "OUT", "--calibration-batch", "0"], "--calibration-batch must be at least 1"),
        (["convert", "MODEL", "-o", "OUT", "--percentile", "99"], "percentile=99.0 (--percentile) goes with"),
        (["convert", "MODEL", "-o", "OUT", "--precision-mode", "int8", "--percentile", "40"], "percentile must be"),
        (["convert", "MODEL", "-o", "OUT", "--keep-ops", "Exp"], "keep_ops=('Exp',) (--keep-ops) means nothing"),
        (["demo", "--calibration-batch", "4"], "goes with --calibration-inputs"),
        (["demo", "--calibration-inputs", "GONE.npz"], "GONE.npz"),
        (
            ["convert", "MODEL", "-o", "OUT", "--max-rel-diff", "0.1"],
            "--max-rel-diff and --accuracy-inputs go together",
        ),
        (["convert", "MODEL", "-o", "OUT", "--accuracy-inputs", "GONE.npz", "--max-rel-diff", "1"], "GONE.npz"),
        (["convert", "MODEL", "-o", "OUT", "--int4-block", "5"], "int4_block must be 0 or one of"),
        (["convert", "MODEL", "-o", "OUT", "--minimum-segment-size", "0"], "minimum_segment_size"),
        (["convert", "MODEL", "-o", "OUT", "--targets", "sm12"], "SM12; it knows SM75, SM80"),
        (["convert", "MODEL", "-o", "OUT", "--shapes", "z:1x4"], "'z'"),
        (["convert", "MODEL", "-o", "OUT", "--shapes", "x:1xa"], "no number"),
        (["convert", "MODEL", "-o", "OUT", "--no-is-dynamic-op", "--shapes", "x:1x4"], "leave --shapes out"),
        (["convert", "MODEL", "-o", "OUT", "--no-is-dynamic-op", "--no-engines"], "leave --no-engines out"),
        (["convert", "MODEL", "-o", "OUT", "--max-batch-size", "0"], "max_batch_size must be an integer"),
        (["convert", "MODEL", "-o", "OUT", "--node-denylist", "("], "not a regular expression"),
        (["convert", "MODEL", "-o", "MODEL"], "is a file"),
        (["convert", "TEXT", "-o", "OUT"], "TEXT"),
        (["inspect", "MODEL"], "not an artifact"),
        (["inspect", "GONE"], "no such artifact"),
        (["run", "GONE", "--inputs", "GONE.npz"], "GONE.npz"),
        (["run", "GONE", "--inputs", "TEXT"], "no .npz file, or is damaged"),
        (["convert", "MODEL", "-o", "OUT", "--shapes", "x:99999999999999x4"], "not enough memory"),
        (["convert", "MODEL", "-o", "OUT", "--shapes", "x:0x4"], "dimensions are at least 1"),
        (["convert", "MODEL", "-o", "OUT", "--shapes", "x:1x4", "--shapes", "x:2x4"], "twice"),
        (["convert", "", "-o", "OUT"], "SRC is an empty path"),
        (["convert", "MODEL", "-o", ""], "-o is an empty path"),
        (["demo", "-o", "MODEL"], "is a file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, onnx_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEXT").write_text("this is no model")
    places = {"MODEL": str(onnx_file)}
    assert main([places.get(a, a) for a in arguments]) == 2
    assert message in one_line_error(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["TEXT", "model.onnx"], "something half-written was left"


@pytest.mark.parametrize(("shapes", "message"), [("z:1x4", "'z'"), ("x:1x5", "does not fit input 'x'")])
@pytest.mark.rtx
def test_shapes_are_checked_as_soon_as_the_model_is_read(onnx_file, tmp_path, capsys, monkeypatch, shapes, message):
    monkeypatch.setattr("rewriter.workshop.start_conversion", None)  # never reached
    assert main(["convert", str(onnx_file), "-o", str(tmp_path / "out"), "--shapes", shapes]) == 2
    assert message in one_line_error(capsys)


@pytest.mark.rtx
def test_static_engines(onnx_file, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--no-is-dynamic-op", "--max-batch-size", "3", "--cache-full", "evict"]
    assert main(["convert", str(onnx_file), "-o", str(out), *options]) == 0
    assert "x: 1x4 .. 3x4" in capsys.readouterr().out
    params = load_artifact(out).params
    assert (params["is_dynamic_op"], params["max_batch_size"], params["cache_full"]) == (False, 3, "evict")


def test_usage_errors_are_argparse_ones(capsys):
    for arguments in ([], ["fly"], ["convert"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "(see trt-rewriter" in one_line_error(capsys)


@pytest.mark.rtx
def test_doctor_says_what_would_be_used(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for words in ("Python 3.", "onnxruntime", "TensorRT: tensorrt_rtx", "SM89", "Ready"):
        assert words in text


def test_doctor_names_the_install_line(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["doctor"]) == 2
    assert "pip install 'trt-rewriter[rtx]'" in capsys.readouterr().err


def test_no_tensorrt_is_told_before_any_work(onnx_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["convert", str(onnx_file), "-o", str(tmp_path / "out")]) == 2
    assert "pip install 'trt-rewriter[rtx]'" in one_line_error(capsys)
    assert not (tmp_path / "out").exists()


def test_missing_tensorflow_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert main(["demo", "-o", str(tmp_path / "out")]) == 2
    assert "pip install 'trt-rewriter[tf]'" in one_line_error(capsys)


def test_shapes_of_scalars_and_names_with_colons():
    assert parse_shapes(["x:1x2,3x4", "mm:0:5", "s:scalar"]) == {"x": ((1, 2), (3, 4)), "mm:0": ((5,),), "s": ((),)}
    for bad in ("x", ":1x2", "x:", "x:1x-2"):
        with pytest.raises(InvalidParameterError, match="--shapes"):
            parse_shapes([bad])


@pytest.mark.rtx
def test_a_template_comes_from_a_file(onnx_file, tmp_path, capsys):
    template = tmp_path / "template.json"
    template.write_text('{"optimizers": ["constfold"], "min_graph_nodes": -1}')
    out = str(tmp_path / "out")
    assert (
        main(["convert", str(onnx_file), "-o", out, "--no-engines", "--rewriter-config-template", str(template)]) == 0
    )
    capsys.readouterr()
    assert main(["inspect", out, "--json"]) == 0
    passes = json.loads(capsys.readouterr().out)["params"]["passes"]
    assert [step.partition("(")[0] for step in passes["onnx"]["optional"]] == ["FoldConstants"]
    template.write_text('{"optimizers": ["constflod"]}')
    assert main(["convert", str(onnx_file), "--dry-run", "--rewriter-config-template", str(template)]) == 2
    assert "constflod" in capsys.readouterr().err
    template.write_text("{")
    assert main(["convert", str(onnx_file), "--dry-run", "--rewriter-config-template", str(template)]) == 2
    assert "--rewriter-config-template" in capsys.readouterr().err


@pytest.mark.rtx
@pytest.mark.tensorflow
def test_a_template_may_be_a_text_proto(onnx_file, tmp_path, capsys):
    template = tmp_path / "template.pbtxt"
    template.write_text('optimizers: "constfold" optimizers: "layout"')
    assert main(["convert", str(onnx_file), "--dry-run", "--rewriter-config-template", str(template)]) == 0
    template.write_text("optimisers: 3")
    assert main(["convert", str(onnx_file), "--dry-run", "--rewriter-config-template", str(template)]) == 2
    assert "is no RewriterConfig in text form" in capsys.readouterr().err


@pytest.mark.rtx
def test_a_dry_run_builds_and_saves_nothing(onnx_file, capsys):
    assert main(["convert", str(onnx_file), "--dry-run"]) == 0
    assert "Recommended minimum_segment_size" in capsys.readouterr().out
    assert main(["convert", str(onnx_file), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"]


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the folder to write to as -o OUT, or --dry-run"),
        (["--dry-run", "-o", "x"], "--dry-run writes nothing: leave -o out"),
        (["--json", "-o", "x"], "--json goes with --dry-run"),
        (["--dry-run", "--specialize", "depth=3"], "depth"),
        (["--dry-run", "--specialize", "depth"], "depth"),
        (["--dry-run", "--graph-inputs", "x:0"], "name tensors of a frozen GraphDef"),
        (["--dry-run", "--max-engines", "0"], "max_engines must be an integer of at least 1"),
    ],
)
def test_options_that_do_not_go_together(onnx_file, arguments, message, capsys):
    assert main(["convert", str(onnx_file), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_only_the_command_that_is_asked_for_is_imported():
    code = "import sys; from rewriter.cli import main\ntry: main(['inspect', '-h'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    modules = done.stdout.split()
    assert "rewriter.commands.inspect" in modules
    assert not {"rewriter.commands.bench", "rewriter.commands.convert"} & set(modules)


def test_the_screen_has_something_done_once_when_tensorrt_builds():
    done = threading.Event()
    calls = []
    screen = StageScreen(Console(quiet=True), meanwhile=lambda: (calls.append(1), done.set()))
    screen(ProgressEvent("build", 0, 1))
    assert not calls
    screen(ProgressEvent("build", 1, 3, "TRTEngineOp_000"))
    screen(ProgressEvent("build", 2, 3, "TRTEngineOp_000"))
    assert done.wait(10)
    assert calls == [1]


@pytest.mark.parametrize("arguments", [["demo", "--outp", "x"], ["convert", "m.onnx", "-o", "out", "--no-build"]])
def test_an_option_is_written_in_full(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"(see trt-rewriter {arguments[0]} -h)" in one_line_error(capsys)


#: Runs the command line with a command that prints much, by itself or through rich.
PRINTING = """
import sys, types
from rewriter import cli
cli.COMMANDS["print"] = "prints"
def run(arguments):
    if arguments.how == "rich":
        from rewriter.reports.summary import plain_console
        plain_console().print("words " * 50000)
    else:
        print("words " * (50000 if arguments.how == "much" else 1))
    return 0
def add_arguments(parser):
    parser.add_argument("how")
sys.modules["rewriter.commands.print"] = types.SimpleNamespace(run=run, add_arguments=add_arguments)
sys.exit(cli.main(["print", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes without a reader are told otherwise there")
@pytest.mark.parametrize("how", ["rich", "much", "little"])
def test_output_that_nobody_reads_is_no_failed_comparison(how):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING, how], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("how", ["rich", "much", "little"])
def test_output_that_cannot_be_written_is_one_line(how):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING, how], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "trt-rewriter: the output cannot be written: No space left on device\n"


def test_a_file_that_nobody_lets_us_write_is_refused_at_once(tmp_path, monkeypatch):
    there, new = tmp_path / "there", tmp_path / "new"
    there.touch()
    check_target("--csv", str(there))
    check_target("--csv", str(new))
    monkeypatch.setattr("os.access", lambda *_: False)
    for path in (there, new):
        with pytest.raises(InvalidParameterError, match=r"--csv '.*' cannot be written: permission denied"):
            check_target("--csv", str(path))
