"""`polygraphy run` with our plugin, in this process; no TensorRT is asked unless a test says so."""

import argparse
import json

import pytest

from rewriter.errors import InvalidParameterError
from rewriter.polygraphy_runners import plugin
from rewriter.polygraphy_runners.options import runner_options

FP16 = ("--trt-rewriter", "--trt-rewriter-precision", "FP16", "--trt-rewriter-backend", "none")
LOOSE = ("--atol", "1e-2")
EXACT = ("--atol", "1e-9", "--rtol", "0")


@pytest.mark.rtx
def test_the_real_parser_is_asked_by_default(command, model):
    status, text = command(
        *(model, "--onnxrt", "--trt-rewriter", "--trt-rewriter-precision", "FP16", *LOOSE, "--input-shapes", "x:[2,8]")
    )
    assert status == 0
    assert "converted: 1 segment, 100% of the nodes" in text
    assert "no GPU" in text
    assert "no TensorRT" not in text


def test_tolerances_decide(command, model):
    assert command(model, "--onnxrt", *FP16, *LOOSE)[0] == 0
    status, text = command(model, "--onnxrt", *FP16, *EXACT)
    assert status == 1
    assert "Mismatched outputs: ['logits', 'probabilities']" in text
    assert "vs. trt-rewriter-FP16-N" in text


def test_tolerances_of_one_output(command, model):
    status, text = command(model, "--onnxrt", *FP16, "--atol", "1e-2", "logits:1e-9", "--rtol", "0")
    assert status == 1
    assert "Mismatched outputs: ['logits']" in text
    assert command(model, "--onnxrt", *FP16, "--atol", "1e-3", "logits:1e-2")[0] == 0


@pytest.mark.parametrize(
    "arguments", [("--compare", "cosine_similarity"), ("--postprocess", "top-2", "--compare", "indices")], ids=str
)
def test_other_comparisons(command, model, arguments):
    assert command(model, "--onnxrt", *FP16, *arguments)[0] == 0


def test_saved_inputs_and_outputs_are_used_again(command, model, artifact, tmp_path):
    inputs, outputs = tmp_path / "in.json", tmp_path / "out.json"
    saved = ("--save-inputs", inputs, "--save-outputs", outputs)
    assert command(model, "--onnxrt", "--input-shapes", "x:[3,8]", *saved)[0] == 0
    again = ("--load-inputs", inputs, "--load-outputs", outputs)
    for arguments in ((model, *FP16), (artifact, "--trt-rewriter")):
        assert command(*arguments, *again, *LOOSE)[0] == 0
        status, text = command(*arguments, *again, *EXACT)
        assert status == 1
        assert "shape=(3, 8)" in text


def test_a_data_loader_script_gives_the_inputs_and_the_ranges(command, model, batches):
    int8 = ("--trt-rewriter", "--trt-rewriter-precision", "INT8", "--trt-rewriter-backend", "none")
    status, text = command(model, "--onnxrt", *int8, "--data-loader-script", batches, "--atol", "1e-1")
    assert status == 0
    assert "Passed: 3/3" in text
    assert "made-up inputs" not in text
    status, text = command(model, "--onnxrt", *int8, "--atol", "1e-1")
    assert status == 0
    assert "ranges are calibrated with made-up inputs" in text


def test_the_generated_script_does_the_same(command, model, tmp_path):
    script = tmp_path / "script.py"
    options = (*FP16, "--trt-rewriter-op-denylist", "Softmax", "--trt-rewriter-execution", "emulate", *LOOSE)
    assert command(model, "--onnxrt", *options, "--gen-script", script)[0] == 0
    text = script.read_text()
    assert "from rewriter.polygraphy_runners import ConvertModel, TrtRewriterRunner" in text
    line = next(line for line in text.splitlines() if f"ConvertModel({model!r}" in line)
    for argument in ("execution='emulate'", "precision_mode='FP16'", "backend='none'", "op_denylist=['Softmax']"):
        assert argument in line
    assert line.count("=") == 5  # what has its default value is not there
    exec(compile(text, str(script), "exec"), {"__name__": "__main__"})  # noqa: S102 - raises when a comparison fails


def test_marked_outputs_of_the_onnx_model(command, model):
    status, text = command(model, "--onnxrt", *FP16, "--onnx-outputs", "product", "logits", *LOOSE)
    assert status == 0
    assert "Outputs: ['product', 'logits']" in text


def test_runners_in_processes_of_their_own(command, model):
    assert command(model, "--onnxrt", *FP16, "--use-subprocess", "--sequential-runners", *LOOSE)[0] == 0


def test_two_runners_of_one_model_have_names_of_their_own(command, model):
    status, text = command(model, *FP16, "--trt-rewriter", "--atol", "0", "--rtol", "0")
    assert status == 0
    assert "Passed: 1/1" in text


def test_the_folder_of_an_artifact_is_a_model(command, artifact):
    status, text = command(artifact, "--trt-rewriter", "--trt-rewriter-execution", "native")
    assert status == 0
    assert "trt-rewriter-artifact-native-N" in text


def test_the_model_inside_an_artifact_means_the_artifact(command, artifact):
    inside = f"{artifact}/model.onnx"
    assert command(inside, "--onnxrt", "--trt-rewriter", *LOOSE)[0] == 0
    assert command(inside, "--onnxrt", "--trt-rewriter", *EXACT)[0] == 1
    assert command(inside, "--onnxrt", "--trt-rewriter", "--trt-rewriter-execution", "native", *EXACT)[0] == 0


def test_an_artifact_beside_its_source(command, model, artifact):
    beside = (model, "--onnxrt", "--trt-rewriter", "--trt-rewriter-artifact", artifact)
    assert command(*beside, *LOOSE)[0] == 0
    assert command(*beside, *EXACT)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--trt-rewriter-precision", "FP17"), "precision_mode must be one of FP32"),
        (("--trt-rewriter-provider", "cuda"), "provider 'cuda' needs a GPU"),
        (("--trt-rewriter-strict", "--trt-rewriter-execution", "native"), "leave strict out"),
        (("--trt-rewriter-strict",), "strict needs engines that run, but no GPU"),
        (("--trt-rewriter-shapes", "x:axb"), "a dimension is no number"),
        (("--trt-rewriter-signature", "other"), "the source is none"),
        (("--trt-rewriter-artifact", "nowhere"), "no such artifact"),
    ],
)
def test_what_is_wrong_is_one_line(command, model, arguments, words):
    backend = () if "--trt-rewriter-artifact" in arguments else ("--trt-rewriter-backend", "none")
    status, text = command(model, "--trt-rewriter", *backend, *arguments)
    assert status == 1
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("[!] trt-rewriter: ")]
    assert len(lines) == 1
    assert words in lines[0]


def test_options_of_a_conversion_say_nothing_to_an_artifact(command, artifact):
    status, text = command(artifact, "--trt-rewriter", "--trt-rewriter-precision", "FP16")
    assert status == 1
    assert "is converted already: leave --trt-rewriter-precision/--trt-rewriter-precision-mode out" in text


@pytest.mark.parametrize("arguments", [("--onnxrt", "--trt-rewriter"), ("--trt-rewriter", "--onnxrt")], ids=str)
def test_runners_that_cannot_read_an_artifact(command, artifact, arguments):
    status, text = command(artifact, *arguments)
    assert status == 1
    assert f"--onnxrt cannot read {artifact}, which is an artifact: give {artifact}/model.onnx" in text


def test_runners_that_cannot_read_a_folder(command, tmp_path):
    status, text = command(tmp_path, "--onnxrt", "--trt-rewriter")
    assert status == 1
    assert "run a SavedModel with --trt-rewriter-tf and --trt-rewriter" in text


def test_the_tensorflow_runner_refuses_what_is_not_its_own(command, model, artifact):
    status, text = command(artifact, "--trt-rewriter-tf")
    assert status == 1
    assert "is an artifact: give the SavedModel" in text
    status, text = command(model, "--trt-rewriter-tf")
    assert status == 1
    assert "is no model of TensorFlow" in text


def test_saved_outputs_hold_numbers(command, model, tmp_path):
    path = tmp_path / "out.json"
    assert command(model, *FP16, "--save-outputs", path)[0] == 0
    assert "logits" in json.dumps(json.loads(path.read_text()))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--onnxrt", "--trt-rewriter-precision", "FP16"),
        ("--onnxrt", "--trt-rewriter-precision-mode", "FP32"),  # what it would be anyway is written all the same
        ("--onnxrt", "--trt-rewriter-signature", "serve"),
        ("--onnxrt", "--no-trt-rewriter-is-dynamic-op"),
        ("--trt-rewriter-tf", "--trt-rewriter-signature", "serve", "--trt-rewriter-artifact", "out"),
        ("--trt-rewriter-strict",),
    ],
    ids=str,
)
def test_our_options_without_our_runner_are_refused(command, model, arguments):
    status, text = command(model, *arguments)
    assert status == 1
    assert "PASSED" not in text
    assert "which is not asked for: add --trt-rewriter" in text
    assert "Traceback" not in text


def test_the_source_has_options_of_its_own():
    options = tuple(option for option in runner_options() if option.parameter in ("tags", "inputs", "strict"))
    written = argparse.Namespace(trt_rewriter_tags="serve", trt_rewriter_graph_inputs="x:0")
    plugin.check_selected(options, argparse.Namespace(**vars(written), runners=["trt-rewriter-tf", "onnxrt"]))
    plugin.check_selected(options, argparse.Namespace(**vars(written), runners=["trt-rewriter"]))
    with pytest.raises(InvalidParameterError, match="--trt-rewriter-tags is an option of the runner"):
        plugin.check_selected(options, argparse.Namespace(**vars(written), runners=["onnxrt"]))
    with pytest.raises(InvalidParameterError, match="--trt-rewriter-strict is an option of the runner"):
        plugin.check_selected(options, argparse.Namespace(trt_rewriter_strict=True, runners=["trt-rewriter-tf"]))


@pytest.fixture
def texts_model(tmp_path):
    import onnx
    from onnx import parser

    path = tmp_path / "texts.onnx"
    text = '<ir_version: 10, opset_import: ["": 20]> g (string[n] texts) => (string[n] y) { y = Identity(texts) }'
    onnx.save(parser.parse_model(text), path)
    return str(path)


NATIVE = ("--trt-rewriter", "--trt-rewriter-execution", "native", "--trt-rewriter-backend", "none")


@pytest.mark.parametrize("shapes", [(), ("--input-shapes", "texts:[2]")], ids=str)
def test_strings_are_not_made_up(command, texts_model, shapes):
    status, text = command(texts_model, *NATIVE, *shapes)
    assert status == 1
    assert "input 'texts' takes strings, and polygraphy makes none up: give them with --data-loader-script" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("dtype", ["object", "str"])
def test_a_script_gives_strings(command, texts_model, tmp_path, dtype):
    data = tmp_path / "data.py"
    data.write_text(f"import numpy as np\ndef load_data():\n    yield {{'texts': np.array(['Ab', ''], {dtype})}}\n")
    status, text = command(texts_model, *NATIVE, "--data-loader-script", data)
    assert status == 0, text
    assert "y [dtype=uint8, shape=(2, 2)]" in text
