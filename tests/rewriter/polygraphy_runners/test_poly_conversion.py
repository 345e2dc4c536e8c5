"""Conversions in memory: parameters, backends, calibration, and when engines are built."""

import contextlib
import types

import numpy as np
import onnx
import pytest

from passes.segments import TensorSpec
from rewriter import AccuracyTarget, ConversionParams, PrecisionOptions
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.polygraphy_runners import execution as executions
from rewriter.polygraphy_runners.artifact import LoadArtifact
from rewriter.polygraphy_runners.conversion import ConvertModel
from rewriter.polygraphy_runners.execution import resolve_execution
from rewriter.polygraphy_runners.in_memory import InMemoryModel
from rewriter.polygraphy_runners.keywords import converter_keywords
from rewriter.polygraphy_runners.standin import TakesAll
from rewriter.source import Signature

pytestmark = pytest.mark.usefixtures("polygraphy")
X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)


def outputs_of(loader, inputs=X):
    with loader() as model:
        model.prepare({"x": inputs})
        return model.run({"x": inputs})


@pytest.fixture
def messages(monkeypatch):
    """What is said and warned of in polygraphy's log."""
    found = []
    for module in ("in_memory", "conversion", "execution"):
        for name in ("inform", "warn"):
            with contextlib.suppress(AttributeError):
                monkeypatch.setattr(f"rewriter.polygraphy_runners.{module}.{name}", found.append)
    return found


def test_parameters_of_three_kinds_are_one_flat_list():
    found = converter_keywords(
        {
            "precision_mode": "INT8",
            "minimum_segment_size": 5,
            "keep_ops": ["Softmax"],
            "tags": ["serve"],
            "max_engines": 2,
        }
    )
    assert found == {
        "conversion_params": ConversionParams(precision_mode="INT8", minimum_segment_size=5),
        "precision": PrecisionOptions(keep_ops=["Softmax"]),
        "input_saved_model_tags": ["serve"],
        "max_engines": 2,
    }


def test_flat_parameters_change_what_is_given_as_one_value():
    base = ConversionParams(minimum_segment_size=7)
    found = converter_keywords({"conversion_params": base, "precision_mode": "FP16"})
    assert found["conversion_params"] == base._replace(precision_mode="FP16")


def test_a_template_may_be_a_file(tmp_path):
    path = tmp_path / "passes.json"
    path.write_text('{"constant_folding": "OFF"}')
    found = converter_keywords({"rewriter_config_template": str(path)})
    assert found["conversion_params"].rewriter_config_template == {"constant_folding": "OFF"}


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"precison_mode": "FP16"}, "did you mean 'precision_mode'"),
        ({"zzz": 1}, "it takes abort_builds, accuracy"),
        ({"build": "sometimes"}, "build must be one of auto, always, never"),
        ({"strict": True, "execution": "native"}, "leave strict out, or build='always'"),
    ],
)
def test_unknown_words_are_told_at_once(keywords, words):
    with pytest.raises(InvalidParameterError, match=words):
        ConvertModel("model.onnx", **keywords)


@pytest.mark.parametrize("key", ["*", "a,b", ["a", "b"]])
def test_a_runner_runs_one_signature(key):
    with pytest.raises(InvalidParameterError, match="signature must be one key"):
        converter_keywords({"signature": key})


def test_an_artifact_is_no_source(artifact):
    with pytest.raises(InvalidParameterError, match="load it with LoadArtifact"):
        ConvertModel(artifact, backend="none")()


@pytest.mark.parametrize(
    ("asked", "provider", "gpu", "found"),
    [
        ("auto", "auto", "", "auto"),
        ("auto", "cuda", "", "auto"),
        ("auto", "cpu", "", "emulate"),
        ("auto", "auto", "no GPU", "emulate"),
        ("native", "auto", "no GPU", "native"),
        ("emulate", "auto", "", "emulate"),
    ],
)
def test_auto_emulates_where_no_engine_can_run(monkeypatch, messages, asked, provider, gpu, found):
    monkeypatch.setattr(executions.device, "missing_gpu", lambda: gpu)
    assert resolve_execution(asked, provider) == found
    assert bool(messages) == (asked == "auto" and found == "emulate")


def test_what_cannot_be_obeyed_is_refused(monkeypatch):
    monkeypatch.setattr(executions.device, "missing_gpu", lambda: "no GPU")
    for arguments in (("never", "auto"), ("auto", "tpu"), ("native", "cuda"), ("auto", "auto", True)):
        with pytest.raises(InvalidParameterError):
            resolve_execution(*arguments)
    monkeypatch.setattr(executions.device, "missing_gpu", lambda: "")
    with pytest.raises(InvalidParameterError, match="strict needs engines that run, but no TensorRT"):
        resolve_execution("auto", "auto", True, "no TensorRT")


def test_strict_and_native_do_not_go_together(artifact):
    with pytest.raises(InvalidParameterError, match="uses no engines"):
        LoadArtifact(artifact, execution="native", strict=True)()


def test_without_any_tensorrt_all_is_taken_and_emulated(model, monkeypatch, messages):
    monkeypatch.setattr("rewriter.backends.installed_backends", lambda: ())
    half = outputs_of(ConvertModel(model, precision_mode="FP16"))
    assert "no TensorRT is installed here, so nothing says which nodes it takes" in messages[0]
    assert "emulated" in messages[1]
    assert messages[2] == "converted: 1 segment, 100% of the nodes"
    native = outputs_of(ConvertModel(model, precision_mode="FP16", execution="native"))
    assert 0 < np.abs(half["logits"] - native["logits"]).max() < 1e-2


def test_a_tensorrt_that_needs_a_gpu_is_none_without_one(model, monkeypatch, messages):
    monkeypatch.setattr("rewriter.backends.installed_backends", lambda: ("tensorrt",))
    monkeypatch.setattr("rewriter.backends.has_gpu", lambda: False)
    outputs_of(ConvertModel(model, precision_mode="FP16"))
    assert "tensorrt works only where there is a GPU, so nothing says" in messages[0]


@pytest.mark.rtx
def test_strict_finds_out_whether_everything_can_be_built(model):
    loader = ConvertModel(model, precision_mode="FP16", execution="emulate", build="always", strict=True)
    assert outputs_of(loader)["logits"].shape == (2, 5)
    loader = ConvertModel(model, execution="emulate", build="always", strict=True, backend="none")
    with pytest.raises(ConversionError, match="there is no engine TRTEngineOp_000: gpu: no TensorRT"):
        outputs_of(loader)


def test_a_model_proto_and_a_loader_of_one_are_sources(model):
    proto = onnx.load(model)
    expected = outputs_of(ConvertModel(model, backend="none", execution="native"))
    for source in (proto, lambda: proto):
        found = outputs_of(ConvertModel(source, backend="none", execution="native"))
        assert np.array_equal(found["probabilities"], expected["probabilities"])


def test_marked_outputs_get_their_types(model):
    proto = onnx.load(model)
    proto.graph.output.append(onnx.ValueInfoProto(name="product"))
    assert "product" in outputs_of(ConvertModel(lambda: proto, backend="none", precision_mode="FP16"))


@pytest.mark.parametrize("static", [False, True])
def test_polygraphys_data_loader_calibrates(model, static):
    from polygraphy.comparator import DataLoader

    data = DataLoader(iterations=2, val_range=(-1, 1))
    loader = ConvertModel(
        model,
        precision_mode="INT8",
        backend="none",
        calibration_inputs=data,
        is_dynamic_op=not static,
        max_batch_size=2,
    )
    native = outputs_of(ConvertModel(model, backend="none", execution="native"))
    assert 0 < np.abs(outputs_of(loader)["logits"] - native["logits"]).max() < 0.1


def test_calibration_inputs_of_other_kinds(model, tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.concatenate([X, X]))
    feeds = [{"x": X, "not an input": X}, {"x": X}]
    found = [
        outputs_of(ConvertModel(model, precision_mode="INT8", backend="none", calibration_inputs=given))["logits"]
        for given in (str(path), feeds, lambda: iter(feeds), [X, X])
    ]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    with pytest.raises(InvalidParameterError, match="calibration_batch"):
        ConvertModel(model, precision_mode="INT8", calibration_inputs=feeds, calibration_batch=2, backend="none")()


def test_the_accuracy_guard_can_be_asked(model, tmp_path):
    path = tmp_path / "typical.npz"
    np.savez(path, x=X)
    native = outputs_of(ConvertModel(model, backend="none", execution="native"))
    for guard in (
        {"accuracy": AccuracyTarget(lambda: iter([{"x": X}]), max_rel_diff=1e-7)},
        {"max_rel_diff": 1e-7, "accuracy_inputs": str(path)},
    ):
        found = outputs_of(ConvertModel(model, precision_mode="FP16", backend="none", **guard))
        assert np.array_equal(found["logits"], native["logits"])
    with pytest.raises(InvalidParameterError, match="give both"):
        ConvertModel(model, precision_mode="FP16", backend="none", max_rel_diff=1e-7)()


@pytest.mark.rtx
def test_engines_are_built_once_for_each_new_shape(model, messages):
    loader = ConvertModel(model, precision_mode="FP16", build="always")
    with loader() as converted:
        for rows, builds in ((1, 1), (2, 2), (1, 2), (2, 2)):
            inputs = {"x": X[:rows]}
            converted.prepare(inputs)
            assert converted.run(inputs)["logits"].shape == (rows, 5)
            assert converted.builds == builds
    told = [message for message in messages if message.startswith("built")]
    assert [message.partition(" in ")[0] for message in told] == [
        "built 1 engine for x [1, 8]",
        "built 1 engine for x [2, 8]",
    ]
    assert all("100% of the nodes" in message for message in told)


@pytest.mark.rtx
def test_shapes_that_do_not_fit_are_refused_where_nothing_is_built_either(model):
    with pytest.raises(InvalidParameterError, match="shape 3 does not fit input 'x'"):
        ConvertModel(model, build="never", execution="emulate", shapes={"x": [(3,)]})()


def test_shapes_that_were_asked_for_are_built_at_once(model, messages):
    with ConvertModel(model, build="always", shapes={"x": [(1, 8), (2, 8), (4, 8)]})() as converted:
        assert converted.builds == 1
        converted.prepare({"x": np.zeros((3, 8), np.float32)})
        assert converted.builds == 1
        converted.prepare({"x": np.zeros((5, 8), np.float32)})
        assert converted.builds == 2


class FakeFunction:
    def __init__(self, log):
        self.log = log

    def run(self, inputs):
        return {"y": inputs["x"]}

    def warmup(self, *, samples):
        self.log.append("warmup")

    def stats(self):
        return {"fallbacks": {"no engine fits": 1}}

    def close(self):
        self.log.append("close function")


class FakeConverter:
    """A converter on a machine with a GPU, as far as `InMemoryModel` sees it."""

    def __init__(self, *, shape=("batch", 8), built=True, dynamic=True):
        self.log = []
        self.signatures = {"s": Signature((TensorSpec("x", 1, shape),), (TensorSpec("y", 1, shape),), "s")}
        self.params = ConversionParams(is_dynamic_op=dynamic)
        engine = types.SimpleNamespace(name="TRTEngineOp_000", built=built, reason="" if built else "too large")
        self.report = types.SimpleNamespace(engines=(engine,), coverage=1.0, built_coverage=1.0)

    def build(self, input_fn=None, jobs=None):
        self.log.append("build" if input_fn is None else [feed["x"].shape for feed in input_fn()])

    def sample_input_fn(self, shapes):
        return lambda: iter([{"x": np.zeros(shape)} for shape in shapes["x"]])

    def calibrate(self):
        self.log.append("calibrate")

    def function(self, execution):
        self.log.append(execution)
        return FakeFunction(self.log)

    def close(self):
        self.log.append("close converter")


def in_memory(converter, execution="auto", *, build=True, strict=False, shapes=None):
    return InMemoryModel(converter, execution, build=build, strict=strict, shapes=shapes or {})


def test_on_a_gpu_a_new_shape_means_a_new_function():
    converter = FakeConverter()
    with in_memory(converter) as model:
        for _ in range(2):
            model.prepare({"x": X})
    built = ["auto", [(2, 8)], "close function", "auto", "warmup"]
    assert converter.log == [*built, "close function", "close converter"]


def test_fixed_shapes_are_built_when_the_runner_is_activated():
    converter = FakeConverter(shape=(2, 8))
    in_memory(converter).prepare({"x": X})
    assert converter.log == ["build", "auto", "warmup"]


def test_static_engines_are_there_already():
    converter = FakeConverter(dynamic=False)
    in_memory(converter).prepare({"x": X})
    assert converter.log == ["auto", "warmup"]


def test_emulation_needs_ranges_but_no_engines():
    converter = FakeConverter()
    in_memory(converter, "emulate", build=False).prepare({"x": X})
    assert converter.log == ["calibrate", "emulate", "warmup"]


def test_strict_raises_where_an_engine_is_missing_or_not_used(messages):
    with pytest.raises(ConversionError, match="there is no engine TRTEngineOp_000: too large"):
        in_memory(FakeConverter(shape=(2, 8), built=False), strict=True)
    in_memory(FakeConverter(shape=(2, 8), built=False))
    assert "TRTEngineOp_000 runs natively: too large" in messages
    with pytest.raises(ConversionError, match="an engine was not used: no engine fits"):
        in_memory(FakeConverter(), strict=True).run({"x": X})
    assert np.array_equal(in_memory(FakeConverter()).run({"x": X})["y"], X)


def test_the_stand_in_builds_nothing_and_denies_nothing(tmp_path):
    backend = TakesAll()
    assert backend.parse(None) == ()
    failure = backend.build(None, (), None, tmp_path / "engine")
    assert failure.kind == "gpu"
    assert "no TensorRT" in failure.reason
    backend.close()
