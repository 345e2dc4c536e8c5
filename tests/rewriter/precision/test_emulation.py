"""Emulated engines: composition of lowering, emulation and substitution, and `execution="emulate"` from an artifact."""

import dataclasses
import random

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes.base import verify
from passes.canonicalize import Canonicalize
from passes.extract import Extractor
from passes.graph.walk import iter_nodes, iter_scopes
from passes.infer_shapes import InferShapes
from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe
from passes.segments import TensorSpec
from passes.splice import EngineAttributes, splice, unsplice
from passes.support import SupportMap, Verdict
from passes.testing import TOLERANCES, assert_close, random_feeds, random_model
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.cli import main
from rewriter.errors import ArtifactError, ConversionError, ConverterStateError, InvalidParameterError
from rewriter.precision.emulation import emulated_artifact, emulated_model, engine_segments
from rewriter.runtime.loading import Runnable, load, make_function
from rewriter.runtime.native import NativeSession
from rewriter.runtime.options import RuntimeOptions
from rewriter.source import Signature

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": (RNG.standard_normal((16, 32)) / 4).astype(np.float32),
    "v": (RNG.standard_normal((32, 8)) / 6).astype(np.float32),
}
X = RNG.standard_normal((5, 16)).astype(np.float32)
RANGES = RangeTable({"x": TensorRange(-3, 3), "a": TensorRange(-2, 4), "s": TensorRange(-1, 1)}, "minmax", 1)
TEXT = """g (float[n,16] x) => (float[n,8] y) {
  [m] m = MatMul(x, w) [a] a = Relu(m) [s] s = Sin(a) [k] k = MatMul(s, v) [y] y = Exp(k)
}"""


def prepare(proto):
    return InferShapes().run(Canonicalize().run(from_proto(proto)).model).model


def cut(model, refused, minimum=1):
    verdicts = (
        Verdict(n.name, n.op_type, n.op_type not in refused and n.name not in refused, reason="no")
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )
    segmentation = propose(model, SupportMap.of(verdicts), PartitionOptions(minimum))
    extractor = Extractor(model)
    return segmentation, [extractor.extract(segment) for segment in segmentation.segments]


def spliced(model, segmentation, segments, precision="FP16"):
    attributes = {
        s.segment.name: EngineAttributes(s.content_hash, len(s.inputs), precision=precision) for s in segments
    }
    return splice(model, segmentation, attributes)


@pytest.fixture(scope="module")
def model():
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>{TEXT}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    return prepare(proto)


@pytest.fixture(scope="module")
def parts(model):
    return cut(model, ("Sin",))


def run(model, **feeds):
    verify(model, "emulation", canonical=True)
    return NativeSession(model, honest=True, threads=1).run(feeds)


def half(array):
    return np.asarray(array, np.float32).astype(np.float16).astype(np.float32)


def test_float16_segments_round_and_native_nodes_do_not(model, parts):
    result = emulated_model(model, parts[1], Recipe.of("FP16"))
    a = np.maximum(half(half(X) @ half(WEIGHTS["w"])), 0)
    k = half(half(np.sin(a)) @ half(WEIGHTS["v"]))
    np.testing.assert_allclose(run(result, x=X)["y"], half(np.exp(k)), rtol=2e-3)
    native = NativeSession(model, threads=1).run({"x": X})
    assert_close(run(result, x=X), native, "FP16")
    assert np.any(run(result, x=X)["y"] != native["y"])
    origins = {node.name.partition("//")[0] for node in iter_nodes(result.proto) if "//" not in node.name}
    assert origins >= {"m", "s", "k", "y"}


@pytest.mark.parametrize("mode", ["BF16", "INT8", "FP8"])
def test_other_modes_stay_near(model, parts, mode):
    result = emulated_model(model, parts[1], Recipe.of(mode), RANGES)
    native = NativeSession(model, threads=1).run({"x": X})["y"]
    worst = np.abs(run(result, x=X)["y"] - native).max() / np.abs(native).max()
    assert 1e-5 < worst < TOLERANCES[mode]


def test_kept_nodes_keep_the_arithmetic(model, parts):
    kept = frozenset({"m", "a", "k", "y"})
    result = emulated_model(model, parts[1], Recipe.of("FP16", kept=kept))
    np.testing.assert_array_equal(run(result, x=X)["y"], run(model, x=X)["y"])


@pytest.mark.parametrize("mode", ["FP32", "TF32"])
def test_modes_that_change_nothing_give_the_model_itself(model, parts, mode):
    assert emulated_model(model, parts[1], Recipe.of(mode)) is model


def test_a_spliced_model_gives_the_same(model, parts):
    back = emulated_artifact(spliced(model, *parts, precision="INT8+FP16"), Recipe.of("INT8"), RANGES)
    expected = emulated_model(model, parts[1], Recipe.of("INT8"), RANGES)
    np.testing.assert_array_equal(run(back, x=X)["y"], run(expected, x=X)["y"])


def test_engines_in_fp32_are_not_emulated(model, parts):
    segmentation, segments = parts
    labels = {"TRTEngineOp_000": "FP32", "TRTEngineOp_001": "FP16"}
    attributes = {
        s.segment.name: EngineAttributes("h", len(s.inputs), precision=labels[s.segment.name]) for s in segments
    }
    whole = splice(model, segmentation, attributes)
    assert [s.segment.name for s in engine_segments(whole, unsplice(whole))] == ["TRTEngineOp_001"]
    result = emulated_artifact(whole, Recipe.of("FP16"))
    assert {node.name.partition("//")[0] for node in iter_nodes(result.proto) if "//" in node.name} <= {
        "k",
        "y",
        "s",
        "v",
    }


@given(st.randoms(use_true_random=False), st.integers(0, 2**16), st.sampled_from(["FP16", "BF16"]))
@settings(max_examples=15, deadline=None)
def test_random_models_from_plan_and_from_artifact_agree(rng, seed, mode):
    model = prepare(random_model(rng, 10))
    dice = random.Random(seed)  # noqa: S311 - test data
    refused = {n.name for _, graph in iter_scopes(model.proto) for n in graph.node if dice.random() < 0.2}
    segmentation, segments = cut(model, ("If", "Loop", *refused) if dice.random() < 0.5 else refused)
    feeds = random_feeds(model.proto)
    first = run(emulated_model(model, segments, Recipe.of(mode)), **feeds)
    second = run(emulated_artifact(spliced(model, segmentation, segments, mode), Recipe.of(mode)), **feeds)
    assert list(first) == list(second)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, strict=True)


SIGNATURE = Signature(
    (TensorSpec("x", TensorProto.FLOAT, ("n", 16)),), (TensorSpec("out", TensorProto.FLOAT, ("n", 8), "y"),)
)


@pytest.fixture
def artifact(model, parts, tmp_path):
    """An artifact as a conversion without built engines leaves it."""

    def make(recipe, ranges=None, params=None):
        params = params or {"recipe": recipe.to_json()}
        whole = spliced(model, *parts, precision=recipe.label)
        part = ArtifactPart(model=whole, signature=SIGNATURE, params=params, report={}, ranges=ranges)
        return save_artifact(tmp_path / "out", part)

    return make


@pytest.mark.parametrize(("mode", "ranges"), [("FP16", None), ("BF16", None), ("INT8", RANGES), ("FP8", RANGES)])
def test_loaded_artifacts_emulate_their_engines(model, parts, artifact, mode, ranges):
    recipe = Recipe.of(mode)
    path = artifact(recipe, ranges)
    expected = run(emulated_model(model, parts[1], recipe, ranges), x=X)["y"]
    with load(path, execution="emulate") as function:
        np.testing.assert_array_equal(function(X)["out"], expected, strict=True)
        stats = function.stats()
        assert repr(function).endswith("cpu, emulated>")
    assert (stats["execution"], stats["fallbacks"], stats["engine_nodes"], stats["provider"]) == (
        "emulate",
        {},
        2,
        "cpu",
    )
    with load(path, execution="native") as function:
        np.testing.assert_array_equal(function(X)["out"], NativeSession(model).run({"x": X})["y"], strict=True)
        assert function.stats()["fallbacks"] == {"the artifact holds no engine for it": 2}
        assert function.stats()["execution"] == "native"


def test_the_command_line_emulates(artifact, tmp_path, capsys):
    path = artifact(Recipe.of("FP16"))
    np.savez(tmp_path / "in.npz", x=X)
    arguments = ["run", str(path), "--inputs", str(tmp_path / "in.npz"), "--outputs", str(tmp_path / "out.npz")]
    assert main([*arguments, "--execution", "emulate"]) == 0
    assert "native:" not in capsys.readouterr().out
    y = np.load(tmp_path / "out.npz")["out"]
    np.testing.assert_array_equal(y, load(path, execution="emulate")(X)["out"])
    assert main([*arguments, "--execution", "native"]) == 0
    assert np.any(np.load(tmp_path / "out.npz")["out"] != y)


def test_an_artifact_without_ranges_or_recipe_is_told(artifact, model, parts):
    path = artifact(Recipe.of("INT8"))
    with pytest.raises(ConversionError, match=r"cannot be emulated.*range"):
        load(path, execution="emulate")


@pytest.mark.parametrize(
    ("recipe", "message"), [(None, "does not hold its recipe"), ({"mode": "FP16"}, "lacks or misspells")]
)
def test_a_missing_or_damaged_recipe_is_told(artifact, recipe, message):
    path = artifact(Recipe.of("FP16"), params={"recipe": recipe})
    with pytest.raises(ArtifactError, match=message):
        load(path, execution="emulate")
    load(path).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "fast"}, "execution must be one of auto, native, emulate, not 'fast'"),
        ({"execution": "emulate", "strict": True}, "leave strict=True out"),
        ({"execution": "native", "strict": True}, "leave strict=True out"),
        ({"execution": "emulate", "provider": "cuda"}, "leave provider='cuda' out"),
        ({"execution": "emulate"}, "give recipe="),
    ],
)
def test_options_that_do_not_go_together(model, parts, options, message):
    with pytest.raises(InvalidParameterError, match=message):
        make_function(Runnable(spliced(model, *parts), SIGNATURE), RuntimeOptions(**options))


def test_a_lazy_function_emulates_at_its_first_call_and_not_after_close(model, parts):
    runnable = Runnable(spliced(model, *parts, precision="INT8+FP16"), SIGNATURE, recipe=Recipe.of("INT8"))
    function = make_function(runnable, RuntimeOptions(execution="emulate"), lazy=True)
    with pytest.raises(ConversionError, match="range"):
        function(X)
    function.close()
    with pytest.raises(ConverterStateError):
        function(X)


def test_a_lost_function_is_told(model, parts):
    whole = spliced(model, *parts)
    proto = whole.copy_proto()
    del proto.functions[:]
    with pytest.raises(ConversionError, match=r"cannot be emulated.*convert again"):
        make_function(
            Runnable(dataclasses.replace(whole, proto=proto), SIGNATURE, recipe=Recipe.of("FP16")),
            RuntimeOptions(execution="emulate"),
        )


def test_quantised_arithmetic_equals_numpy(parts, model):
    """INT8 with FP32 around it: powers of two as scales and small integers, so that no sum rounds."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, k]) for n, k in (("x", 16), ("y", 8))]
    w = RNG.integers(-127, 128, (16, 8)).astype(np.float32) / 64
    w[0] = 127 / 64
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    whole = prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    ranges = RangeTable({"x": TensorRange(-127 / 32, 127 / 32)})
    x = (RNG.standard_normal((4, 16)) * 2).astype(np.float32)
    result = emulated_model(whole, cut(whole, ())[1], Recipe.of("INT8", "FP32"), ranges)
    steps = np.clip(np.rint(x * 32), -128, 127)
    np.testing.assert_array_equal(run(result, x=x)["y"], (steps / 32) @ w)
