"""The runner from Python: life cycle, names, metadata, and what `Comparator` makes of it."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import rewriter
from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError, MissingDependencyError
from rewriter.polygraphy_runners.artifact import LoadArtifact
from rewriter.polygraphy_runners.conversion import ConvertModel
from rewriter.polygraphy_runners.metadata import narrowed, tensor_metadata, widened
from rewriter.polygraphy_runners.runner import opened
from rewriter.source import Signature

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:polygraphy", "ignore:.*deprecated.*")
X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)


class Doubled:
    """A model that doubles its input, and counts what is done with it."""

    def __init__(self, dtype=TensorProto.FLOAT):
        self.signature = Signature(
            (TensorSpec("x", dtype, ("batch", 8)),), (TensorSpec("y", dtype, ("batch", 8)),), "serving_default"
        )
        self.closed = 0
        self.given = []

    def run(self, inputs):
        self.given.append(inputs)
        return {"y": inputs["x"] * 2}

    def close(self):
        self.closed += 1


@pytest.fixture
def runner_class(polygraphy):
    from rewriter.polygraphy_runners import TrtRewriterRunner

    return TrtRewriterRunner


def test_a_loaders_model_lives_while_the_runner_is_active(runner_class):
    made = []
    runner = runner_class(lambda: made.append(Doubled()) or made[-1])
    assert not made
    with runner:
        assert np.array_equal(runner.infer({"x": X})["y"], X * 2)
        assert runner.last_inference_time() > 0
        assert made[0].closed == 0
    assert made[0].closed == 1
    with runner:  # again, with a new one
        pass
    assert [model.closed for model in made] == [1, 1]


def test_a_model_that_was_given_is_the_callers(runner_class):
    model = Doubled()
    with runner_class(model) as runner:
        runner.infer({"x": X})
    assert model.closed == 0


def test_engines_are_prepared_before_the_clock_starts(runner_class, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    model = Doubled()
    model.prepare = lambda inputs: [next(clock) for _ in range(10)]
    with runner_class(model) as runner:
        runner.infer({"x": X})
        assert runner.last_inference_time() == 1


def test_names_of_several_runners_differ_and_say_what_they_run(runner_class, artifact):
    convert = ConvertModel("m.onnx", precision_mode="fp16")
    sources = [convert, convert, ConvertModel("m.onnx", execution="native"), LoadArtifact(artifact), Doubled()]
    names = [runner_class(source).name for source in sources]
    assert len(set(names)) == len(names)
    assert [name.rpartition("-N")[0] for name in names] == [
        *("trt-rewriter-FP16", "trt-rewriter-FP16", "trt-rewriter-FP32-native", "trt-rewriter-artifact", "trt-rewriter")
    ]
    assert runner_class(Doubled(), name="mine").name == "mine"


def test_errors_are_polygraphys_with_ours_as_cause(runner_class):
    from polygraphy.exception import PolygraphyException

    with pytest.raises(PolygraphyException, match="TrtRewriterRunner takes a ConvertedFunction") as caught:
        runner_class(3).activate()
    assert isinstance(caught.value.__cause__, InvalidParameterError)
    with pytest.raises(InvalidParameterError, match="not None"):
        opened(lambda: None)


def test_inputs_that_do_not_fit_are_polygraphys_errors(runner_class, artifact):
    from polygraphy.exception import PolygraphyException

    with runner_class(LoadArtifact(artifact, execution="native")) as runner:
        with pytest.raises(PolygraphyException, match="unexpected dtype"):
            runner.infer({"x": X.astype(np.float64)})
        with pytest.raises(PolygraphyException, match="dtypes are never changed"):
            runner.infer({"x": X.astype(np.float64)}, check_inputs=False)


def test_the_class_can_be_pickled_by_name(runner_class):
    assert pickle.loads(pickle.dumps(runner_class)) is runner_class  # noqa: S301


def test_without_polygraphy_the_extra_is_named(monkeypatch):
    from rewriter.polygraphy_runners import runner, saved_model

    monkeypatch.setitem(__import__("sys").modules, "polygraphy.backend.base", None)
    for module in (runner, saved_model):
        module._runner_class.cache_clear()
        with pytest.raises(MissingDependencyError, match="polygraphy"):
            module._runner_class()
    with pytest.raises(AttributeError, match="no attribute 'Runner'"):
        rewriter.polygraphy_runners.Runner  # noqa: B018


def test_comparator_runs_artifact_conversion_and_function_side_by_side(runner_class, model, artifact):
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, CompareFunc

    data = [{"x": X}, {"x": X[:1]}]
    with rewriter.load(artifact, execution="emulate") as function:
        runners = [
            OnnxrtRunner(SessionFromOnnx(model)),
            runner_class(ConvertModel(model, precision_mode="FP16", backend="none")),
            runner_class(LoadArtifact(artifact)),
            runner_class(function),
        ]
        results = Comparator.run(runners, data_loader=data)
    loose = CompareFunc.simple(atol={"logits": 1e-2, "": 1e-3})
    assert Comparator.compare_accuracy(results, compare_func=loose)
    assert not Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=1e-9, rtol=0))
    emulated = [results[runner.name][0]["logits"] for runner in runners[1:]]
    assert np.array_equal(emulated[0], emulated[1])
    assert np.array_equal(emulated[1], emulated[2])
    assert all(iteration.runtime > 0 for runner in runners for iteration in results[runner.name])


def test_metadata_has_none_for_what_is_not_fixed(polygraphy):
    from polygraphy.datatype import DataType

    specs = [
        TensorSpec("a", TensorProto.FLOAT16, ("batch", None, 3)),
        TensorSpec("b", TensorProto.INT64, ()),
        TensorSpec("c", TensorProto.BOOL, None),
        TensorSpec("d", TensorProto.BFLOAT16, (2,)),
    ]
    found = tensor_metadata(specs)
    assert list(found) == ["a", "b", "c", "d"]
    assert [found[name].dtype for name in found] == [DataType.FLOAT16, DataType.INT64, DataType.BOOL, DataType.FLOAT32]
    assert list(found["a"].shape) == [None, None, 3]
    assert list(found["b"].shape) == []
    assert found["c"].shape is None


def test_complex_inputs_are_refused_in_one_line(polygraphy):
    with pytest.raises(InvalidParameterError, match="input 'z' has complex numbers"):
        tensor_metadata([TensorSpec("z", TensorProto.COMPLEX64, (2,))])


def test_what_numpy_has_no_type_for_is_told_as_float32(runner_class):
    import ml_dtypes

    model = Doubled(TensorProto.BFLOAT16)
    with runner_class(model) as runner:
        found = runner.infer({"x": np.full((1, 8), 1.001, np.float32)})
    assert model.given[0]["x"].dtype == ml_dtypes.bfloat16
    assert found["y"].dtype == np.float32
    assert found["y"][0, 0] == 2.0
    half = {"x": np.ones(2, np.float16)}
    assert narrowed(half, [TensorSpec("x", TensorProto.FLOAT16, (2,))])["x"] is half["x"]


def test_strings_are_told_as_their_bytes():
    texts = np.array([["a", "b\u00e9"], ["", "abc"]], dtype=object)
    found = widened({"texts": texts, "numbers": np.arange(2)})
    assert found["texts"].shape == (2, 2, 3)
    assert found["texts"].dtype == np.uint8
    assert bytes(found["texts"][0, 1]).decode() == "b\u00e9"
    assert np.array_equal(found["texts"], widened({"texts": texts.astype(str)})["texts"])
    assert found["numbers"].dtype.kind == "i"
    assert widened({"none": np.array([], dtype=object)})["none"].shape[0] == 0


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6), min_size=1, max_size=5))
def test_strings_can_be_read_back_from_their_bytes(texts):
    found = widened({"t": np.array(texts, dtype=object)})["t"]
    assert [bytes(row).rstrip(b"\0").decode() for row in found] == texts
