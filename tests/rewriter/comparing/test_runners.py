"""What can run side by side, and why something does not."""

import contextlib
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import parser

from passes import model as models
from passes.extract import Extractor
from passes.infer_shapes import InferShapes
from passes.precision.recipe import Recipe
from passes.segments import Segmentation
from passes.splice import EngineAttributes, splice
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
from rewriter.comparing import runners as module
from rewriter.comparing.runners import RunnerOptions, engine_precisions, input_notes, open_runners
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.frontend.onnx import signature_of
from rewriter.frontend.reference import open_reference
from rewriter.runtime import device, loading

MODEL = """<ir_version: 10, opset_import: ["": 20]>
g (float[batch, 4] x) => (float[batch, 4] y) { [n_1] a = Exp(x) [n_2] y = Tanh(a) }"""


@pytest.fixture
def made(tmp_path):
    """Makes an artifact of a precision, and its source; "" cuts no segment."""

    def make(precision):
        proto = parser.parse_model(MODEL)
        onnx.save(proto, tmp_path / "model.onnx")
        model = InferShapes().run(models.from_proto(proto)).model
        segments, attributes = (), {}
        if precision:
            cut = Extractor(model).extract_nodes((), ["n_1", "n_2"], "TRTEngineOp_000")
            segments = (cut.segment,)
            attributes = {"TRTEngineOp_000": EngineAttributes(cut.content_hash, len(cut.segment.inputs), precision)}
        spliced = splice(model, Segmentation(segments, (), 2), attributes)
        params = {"recipe": Recipe.of(precision or "FP32").to_json()}
        folder = save_artifact(tmp_path / "out", ArtifactPart(spliced, signature_of(proto), params, {}))
        return load_artifact(folder), open_reference(tmp_path / "model.onnx")

    return make


class Function(NamedTuple):
    """Stands for a function on a GPU."""

    reasons: dict

    def run(self, inputs):
        return {"y": inputs["x"]}

    def stats(self):
        return {"fallbacks": self.reasons}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as is asked; what `load` is called with for it, and what it then does."""
    calls = []
    answers = [Function({})]
    load = loading.load

    def fake(path, **options):
        if options.get("provider") != "cuda":
            return load(path, **options)
        calls.append(options)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    monkeypatch.setattr(device, "missing_gpu", lambda: "")
    monkeypatch.setattr(loading, "load", fake)
    return calls, answers


def test_an_artifact_of_the_source_s_own_precision(made):
    artifact, reference = made("FP32")
    with open_runners(artifact, reference) as found:
        assert list(found.runners) == list(found.words) == ["source", "native"]
        assert found.notes[0].startswith("emulated is left out: no engine computes in another precision")
        assert found.notes[1].startswith("tensorrt is left out: no GPU")
        assert found.late_notes() == []
        x = np.zeros((1, 4), np.float32)
        assert found.runners["source"]({"x": x})["y"] == pytest.approx(found.runners["native"]({"x": x})["y"])


def test_a_lowered_artifact_is_emulated_and_all_is_closed_in_the_end(made):
    artifact, reference = made("FP16")
    assert engine_precisions(artifact) == ("FP16",)
    with open_runners(artifact, reference, RunnerOptions(("emulated", "source"))) as found:
        assert list(found.runners) == ["source", "emulated"]
        assert found.notes == ()
        emulated = found.runners["emulated"]
        emulated({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(ConversionError, match="closed"):
        emulated({"x": np.zeros((1, 4), np.float32)})


def test_tensorrt_runs_where_there_is_a_gpu_and_waits_for_engines(made, gpu):
    artifact, reference = made("FP16")
    calls, answers = gpu
    answers[0] = Function({"the engine is for another GPU": 3})
    with open_runners(artifact, reference, RunnerOptions(None, True, 1)) as found:
        assert list(found.runners) == list(module.RUNNERS)
        assert "on GPU 1" in found.words["tensorrt"]
        assert found.late_notes() == ["tensorrt: 3 engine call(s) ran natively: the engine is for another GPU"]
    with open_runners(artifact, reference):
        assert calls.pop()["strict"] is None  # as TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION says
    (options,) = calls
    assert options == {
        "signature": "g", "provider": "cuda", "device": 1, "wait_for_builds": True, "strict": True
    }  # fmt: skip


def test_a_gpu_that_cannot_be_used_is_a_note_or_with_strict_an_error(made, gpu):
    artifact, reference = made("FP32")
    gpu[1][0] = ConversionError("no CUDA provider: pip install 'trt-rewriter[gpu]'")
    with open_runners(artifact, reference) as found:
        assert found.notes[-1] == "tensorrt is left out: no CUDA provider: pip install 'trt-rewriter[gpu]'"
    with (
        pytest.raises(ConversionError, match="no CUDA provider"),
        open_runners(artifact, reference, RunnerOptions(strict=True)),
    ):
        pass


def test_a_model_without_engines_has_nothing_for_tensorrt(made, gpu):
    artifact, reference = made("")
    with open_runners(artifact, reference) as found:
        assert found.notes[-1] == "tensorrt is left out: the model has no engine"
    assert not gpu[0]


@pytest.mark.parametrize(
    ("precision", "wanted", "message"),
    [
        ("FP32", ("native", "emulated"), "--runners asks for emulated, which cannot run here: no engine computes in"),
        ("FP32", ("native", "tensorrt"), "--runners asks for tensorrt, which cannot run here: no GPU"),
    ],
)
def test_a_runner_that_was_asked_for_and_cannot_run_is_an_error(made, precision, wanted, message):
    artifact, reference = made(precision)
    with pytest.raises(InvalidParameterError, match=message), contextlib.ExitStack() as stack:
        stack.enter_context(open_runners(artifact, reference, RunnerOptions(wanted)))


@pytest.mark.parametrize("wanted", [("native", "keras"), ("native",), (), ("native", "native")])
def test_unknown_or_too_few_runners(wanted):
    with pytest.raises(InvalidParameterError, match="choose from source, native, emulated, tensorrt"):
        RunnerOptions(wanted)


@pytest.mark.parametrize("precision", ["INT8+FP16", "FP8"])
def test_made_up_inputs_are_told_for_calibrated_ranges(precision):
    (note,) = input_notes((precision,), made_up=True)
    assert "give --inputs with typical data" in note
    assert input_notes((precision,), made_up=False) == []
    assert input_notes(("FP16", "BF16"), made_up=True) == []
