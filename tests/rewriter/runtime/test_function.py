"""Converted functions: calls, outputs, threads, life cycle, statistics."""

import concurrent.futures
import dataclasses
import logging
import sys
import types

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper, parser

from passes import model as models
from passes.segments import TensorSpec
from passes.splice import unsplice
from rewriter.artifact import ArtifactPart, EngineEntry, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.errors import (
    ArtifactError,
    ConversionError,
    ConverterStateError,
    InputError,
    InvalidParameterError,
    SourceError,
)
from rewriter.runtime import device, executor
from rewriter.runtime.executor import Execution
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.loading import Runnable, load, make_function
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.slots import StoredEngine
from rewriter.source import Signature

# As splicing leaves it: an engine node that is a model-local function with the native segment as its body.
SPLICED = """
<ir_version: 10, opset_import: ["": 20, "trt_rewriter": 1]>
g (float[batch, 4] x, float[batch, 4] y) => (float[batch, 300] product, float[batch, 4] y_1)
{
    product = trt_rewriter.TRTEngineOp_000<segment_hash = "ab", data_inputs = 2>(x, y, w)
    y_1 = Neg(y)
}
<domain: "trt_rewriter", opset_import: ["": 20]>
TRTEngineOp_000 (a, b, w) => (c)
{
    s = Add(a, b)
    m = MatMul(s, w)
    c = Relu(m)
}
"""
SIGNATURE = Signature(
    (TensorSpec("x", TensorProto.FLOAT, ("batch", 4)), TensorSpec("y", TensorProto.FLOAT, ("batch", 4))),
    # The output "y" is called as an input is, so ONNX has another name for it; "again" is one value under two names.
    (
        TensorSpec("y", TensorProto.FLOAT, ("batch", 4), "y_1"),
        TensorSpec("product", TensorProto.FLOAT, ("batch", 300)),
        TensorSpec("again", TensorProto.FLOAT, ("batch", 300), "product"),
    ),
)
WEIGHTS = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)


@pytest.fixture
def model():
    proto = parser.parse_model(SPLICED)
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    return models.from_proto(proto)


@pytest.fixture
def entry():
    return EngineEntry("TRTEngineOp_000", "ab", 4, "0" * 64, "tensorrt_rtx", "1.7.1.116")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(device, "missing_gpu", lambda: "no GPU")


@pytest.fixture
def make(model, no_gpu, tmp_path):
    def do(engines=(), lazy=False, **options):
        stored = tuple(StoredEngine(entry, tmp_path / entry.file) for entry in engines)
        runnable = Runnable(model, SIGNATURE, stored, artifact=tmp_path)
        return make_function(runnable, RuntimeOptions(**options), lazy=lazy)

    return do


def inputs(rows=2, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 4)).astype(np.float32), rng.standard_normal((rows, 4)).astype(np.float32)


def expected(x, y):
    return np.maximum((x + y) @ WEIGHTS, 0)


def test_outputs_have_the_signatures_names_and_order(make):
    x, y = inputs()
    outputs = make()(x, y)
    assert list(outputs) == ["y", "product", "again"]
    np.testing.assert_array_equal(outputs["y"], -y)
    np.testing.assert_allclose(outputs["product"], expected(x, y), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(outputs["again"], outputs["product"])


def test_all_ways_of_calling_agree(make):
    x, y = inputs()
    converted = make()
    reference = converted(x, y)["product"]
    ways = [
        converted(y=y, x=x),
        converted({"y": y, "x": x}),
        converted((x, y)),
        converted([x, y]),
        converted(x.tolist(), y.tolist()),
        converted(np.asfortranarray(x), y[:, ::-1][:, ::-1]),
    ]
    for outputs in ways:
        np.testing.assert_array_equal(outputs["product"], reference)


def test_read_only_and_empty_inputs(make):
    x, y = inputs()
    x.flags.writeable = False
    assert make()(x, y)["product"].shape == (2, 300)
    assert make()(x[:0], y[:0])["product"].shape == (0, 300)


def test_a_dimension_with_two_sizes_is_told_when_the_model_fails(make):
    x, y = inputs(3)
    converted = make()
    with pytest.raises(
        InputError,
        match=r"dimension 'batch' is 3 in input 'x', but 2 in input 'y'; the model failed on the "
        r"inputs x \[3, 4\], y \[2, 4\]",
    ):
        converted(x, y[:2])
    np.testing.assert_allclose(converted(x, y[:1])["product"], expected(x, y[:1]), rtol=1e-5, atol=1e-5)  # repeated


def test_wrong_inputs_are_told(make):
    x, y = inputs()
    converted = make()
    with pytest.raises(InputError, match="missing input 'y'"):
        converted(x)
    with pytest.raises(InputError, match="input 'x' has dtype float64"):
        converted(x.astype(np.float64), y)
    assert converted.stats()["calls"] == 0


def test_inputs_that_do_not_fit_each_other_are_told_with_their_shapes(make):
    with pytest.raises(ConversionError, match=r"the model failed on the inputs x \[2, 4\], y \[3, 4\]"):
        make()(inputs(2)[0], inputs(3)[0])


def test_structure_as_tensorflow_has_it(make):
    converted = make()
    assert converted.structured_input_signature == ((), {"x": SIGNATURE.inputs[0], "y": SIGNATURE.inputs[1]})
    assert list(converted.structured_outputs) == ["y", "product", "again"]
    assert repr(converted) == (
        "<ConvertedFunction (x: float32 [batch, 4], y: float32 [batch, 4]) -> (y: float32 [batch, 4], product: float32 "
        "[batch, 300], again: float32 [batch, 300]), 0 engines, cpu>"
    )


def test_stats_count_calls_and_fallbacks_by_reason(make, entry, caplog):
    converted = make([entry])
    for _ in range(3):
        converted(*inputs())
    assert converted.stats() == {
        "calls": 3,
        "engine_calls": 0,
        "native_calls": 3,
        "warmup_calls": 0,
        "fallbacks": {"no GPU": 3},
        "engine_nodes": 1,
        "engines": 1,
        "unusable_engines": {},
        "engines_chosen": {"TRTEngineOp_000": {"engines": {}, "others": {"ab": "no GPU"}}},
        "builds": {"engines": 0, "seconds": 0.0, "running": 0, "failed": {}},
        "provider": "cpu",
        "execution": "auto",
    }
    assert [r.getMessage() for r in caplog.records] == ["1 engine node runs natively: no GPU"]


def test_a_damaged_engine_has_its_own_reason(make, entry):
    damaged = dataclasses.replace(entry, problem="engines/x is missing")
    converted = make([damaged])
    converted(*inputs())
    stats = converted.stats()
    assert stats["fallbacks"] == {"engines/x is missing": 1}
    assert stats["unusable_engines"] == {"TRTEngineOp_000": "engines/x is missing"}


def test_one_usable_engine_is_enough_for_a_node(make, entry):
    converted = make([dataclasses.replace(entry, problem="damaged"), dataclasses.replace(entry, key="cd")])
    converted(*inputs())
    stats = converted.stats()
    assert stats["fallbacks"] == {"no GPU": 1}
    assert stats["engines_chosen"]["TRTEngineOp_000"]["others"] == {"ab": "damaged", "cd": "no GPU"}


def test_all_damaged_engines_of_a_node_are_told(make, entry):
    torn = dataclasses.replace(entry, key="cd", problem="it is torn")
    converted = make([dataclasses.replace(entry, problem="it is gone"), torn, dataclasses.replace(torn, key="ef")])
    converted(*inputs())
    stats = converted.stats()
    assert stats["unusable_engines"] == {"TRTEngineOp_000": "it is gone; it is torn"}
    assert stats["fallbacks"] == {"it is gone": 1}


def test_the_choice_is_logged_when_the_function_is_made(make, entry, caplog, tmp_path):
    with caplog.at_level(logging.INFO, "rewriter.runtime.opening"):
        make([entry, dataclasses.replace(entry, key="cd", problem="it is torn")])
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: TRTEngineOp_000 runs natively, with no engine",
        f"{tmp_path}: 1 engine not used: no GPU",
        f"{tmp_path}: 1 engine not used: it is torn",
    ]


def test_an_engine_node_without_an_engine_in_the_artifact(make):
    converted = make()
    converted(*inputs())
    assert converted.stats()["fallbacks"] == {"the artifact holds no engine for it": 1}


def test_a_function_without_an_artifact_has_no_engine_yet(model, no_gpu):
    converted = make_function(Runnable(model, SIGNATURE), lazy=True)
    converted(*inputs())
    assert converted.stats()["fallbacks"] == {"no engine has been built for it": 1}
    assert converted.engines == ()
    with pytest.raises(ConversionError, match="TRTEngineOp_000: no engine has been built for it"):
        make_function(Runnable(model, SIGNATURE), RuntimeOptions(strict=True))


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 engine node runs natively: why"), (3, "3 engine nodes run natively: why")]
)
def test_the_log_counts_engine_nodes_in_words(make, caplog, count, said):
    make()._count(Execution({}, 0, {"why": count}))
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize(("count", "said"), [(0, "0 engines"), (1, "1 engine"), (2, "2 engines")])
def test_the_repr_counts_engines_in_words(make, entry, count, said):
    assert f", {said}, cpu>" in repr(make([entry] * count))


def test_a_model_without_engine_nodes_falls_back_from_nothing(model, no_gpu):
    converted = make_function(Runnable(unsplice(model), SIGNATURE), RuntimeOptions(strict=True))
    converted(*inputs())
    assert converted.stats()["fallbacks"] == {}
    assert converted.stats()["engine_nodes"] == 0


def test_the_cpu_can_be_asked_for(make, entry):
    converted = make([entry], provider="cpu")
    converted(*inputs())
    assert converted.stats()["fallbacks"] == {"provider 'cpu' was asked for": 1}


def test_strict_raises_where_an_engine_would_not_be_used(make, entry):
    with pytest.raises(
        ConversionError, match="strict: 1 engine node would not run on TensorRT; TRTEngineOp_000: no GPU"
    ):
        make([entry], strict=True)


def test_cuda_without_a_gpu_is_an_error(make):
    with pytest.raises(ConversionError, match="provider 'cuda' cannot be used: no GPU; use provider='auto' or 'cpu'"):
        make(provider="cuda")


def test_an_unknown_provider_lists_the_known_ones(make, tmp_path):
    with pytest.raises(InvalidParameterError, match="one of auto, cpu, cuda, not 'gpu'"):
        make(provider="gpu")
    with pytest.raises(InvalidParameterError, match="one of auto, cpu, cuda"):
        load(tmp_path, provider="gpu")


def test_a_model_that_onnx_runtime_refuses(no_gpu):
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }'
    with pytest.raises(SourceError, match=r"ONNX Runtime refuses the model: .*NoSuchOperator"):
        make_function(Runnable(models.Model(parser.parse_model(text)), SIGNATURE))


def test_lazy_makes_the_session_at_the_first_call(make, monkeypatch):
    made = []
    session = executor.open_native
    monkeypatch.setattr(executor, "open_native", lambda *given, **more: made.append(1) or session(*given, **more))
    converted = make(lazy=True)
    assert made == []
    x, y = inputs()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: converted(x, y)["product"], range(8)))
    assert made == [1]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    unused = make(lazy=True)
    unused.close()
    with pytest.raises(ConverterStateError, match="closed"):
        unused(x, y)
    assert made == [1]


def test_lazy_tells_of_a_refused_model_at_the_first_call(no_gpu):
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }'
    signature = Signature((TensorSpec("x", TensorProto.FLOAT, (2,)),), (TensorSpec("y", TensorProto.FLOAT, (2,)),))
    converted = make_function(Runnable(models.Model(parser.parse_model(text)), signature), lazy=True)
    with pytest.raises(SourceError, match="ONNX Runtime refuses the model"):
        converted([1, 2])


def test_closing_is_final_and_harmless_when_repeated(make):
    with make() as converted:
        converted(*inputs())
    converted.close()
    with pytest.raises(ConverterStateError, match="this function is closed"):
        converted(*inputs())
    assert converted.stats()["calls"] == 1
    assert "closed" in repr(converted)


def test_threads_get_equal_results(make):
    x, y = inputs(16)
    converted = make()
    reference = converted(x, y)

    def work(_):
        return [converted(x, y) for _ in range(50)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for outputs in results:
                for name, array in outputs.items():
                    np.testing.assert_array_equal(array, reference[name])
    assert converted.stats()["calls"] == 8 * 50 + 1


def test_closing_during_calls_breaks_none_in_an_unnamed_way(make):
    x, y = inputs()
    converted = make()

    def work(_):
        done = 0
        while True:
            try:
                converted(x, y)
            except ConverterStateError:
                return done
            done += 1

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, i) for i in range(4)]
        converted(x, y)
        converted.close()
        assert sum(f.result(timeout=60) for f in futures) + 1 == converted.stats()["calls"]


class EngineExecutor:
    """An executor as a GPU will have one: its engine answers all but the first run."""

    provider = "cuda"

    def __init__(self):
        self.runs = 0
        self.closed = 0

    def run(self, feeds, *, on_device=False):
        self.runs += 1
        outputs = {"product": expected(feeds["x"], feeds["y"]), "y_1": -feeds["y"]}
        if self.runs == 1:
            return Execution(outputs, 0, {"the shapes are outside the profile": 1})
        return Execution(outputs, 1)

    def stats(self):
        return {}

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("strict", [False, True])
def test_the_seam_for_other_executors(entry, strict):
    fake = EngineExecutor()
    converted = ConvertedFunction(fake, SIGNATURE, [entry], RuntimeOptions(strict=strict))
    if strict:
        with pytest.raises(ConversionError, match="strict: an engine was not used: the shapes are outside"):
            converted(*inputs())
    else:
        converted(*inputs())
    converted(*inputs())
    stats = converted.stats()
    assert (stats["calls"], stats["engine_calls"], stats["native_calls"]) == (2, 1, 1)
    assert stats["provider"] == "cuda"
    converted.close()
    converted.close()
    assert fake.closed == 1


def test_saved_and_loaded(model, tmp_path, no_gpu):
    source = tmp_path / "e"
    source.write_bytes(b"vtrt")
    record = manifests.hash_file(source)
    entry = EngineEntry("TRTEngineOp_000", "ab", record.size, record.sha256, "tensorrt_rtx", "1.7.1.116")
    out = tmp_path / "out"
    save_artifact(out, ArtifactPart(model, SIGNATURE, {}, {}, [(entry, source)]))
    x, y = inputs()
    reference = make_function(Runnable(model, SIGNATURE))(x, y)
    with load(out) as converted:
        for name, array in converted(x, y).items():
            np.testing.assert_array_equal(array, reference[name])
        assert converted.stats()["fallbacks"] == {"no GPU": 1}
    (out / entry.file).write_bytes(b"VTRT")
    with load(out) as converted:
        converted(x, y)
        assert "is damaged" in next(iter(converted.stats()["fallbacks"]))
    with pytest.raises(ConversionError, match="is damaged"):
        load(out, strict=True)
    with pytest.raises(ArtifactError, match="no such artifact"):
        load(tmp_path / "nothing")


def test_tensorflow_in_tensorflow_out(make, monkeypatch):
    class Tensor:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(Tensor=Tensor, convert_to_tensor=Tensor))
    x, y = inputs()
    outputs = make()(Tensor(x), y)
    assert all(isinstance(value, Tensor) for value in outputs.values())
    assert all(isinstance(value, np.ndarray) for value in make()(x, y).values())


@pytest.mark.tensorflow
def test_real_tensorflow_in_and_out(make):
    import tensorflow as tf

    x, y = inputs()
    outputs = make()(tf.constant(x), y=tf.constant(y))
    assert all(tf.is_tensor(value) for value in outputs.values())
    np.testing.assert_array_equal(outputs["product"].numpy(), make()(x, y)["product"])
