"""The guard over real models in emulation: an overflow is found, and kept out of FP16."""

import itertools
import json

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper, parser

from passes import model as models
from passes.extract import Extractor
from passes.infer_shapes import InferShapes
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe
from passes.segments import TensorSpec
from rewriter.accuracy.guard import guard_lowering
from rewriter.accuracy.target import AccuracyTarget
from rewriter.errors import InputError
from rewriter.precision.emulation import emulated_model
from rewriter.precision.lowering import Lowering
from rewriter.runtime.native import NativeSession
from rewriter.source import Signature

# Inputs around 1000: their squares, and only these, are beyond the largest float16 (65504).
MODEL = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch, 8] image) => (float[batch, 4] scores)
{
    square = Mul(image, image)
    root = Sqrt(square)
    small = Div(root, thousand)
    product = MatMul(small, w)
    active = Relu(product)
    back = MatMul(active, v)
    scores = Tanh(back)
}
"""
SIGNATURE = Signature(
    (TensorSpec("image", TensorProto.FLOAT, ("batch", 8)),),
    (TensorSpec("result", TensorProto.FLOAT, ("batch", 4), "scores"),),
)


@pytest.fixture(scope="module")
def model():
    proto = parser.parse_model(MODEL)
    random = np.random.default_rng(0)
    for name, array in (
        ("thousand", np.float32(1000)),
        ("w", random.standard_normal((8, 16)).astype(np.float32)),
        ("v", random.standard_normal((16, 4)).astype(np.float32) / 8),
    ):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    return InferShapes().run(models.from_proto(proto)).model


def cut(model, *parts):
    extractor = Extractor(model)
    names = [node.name for node in model.proto.graph.node]
    bounds = [0, *parts, len(names)]
    return [
        extractor.extract_nodes((), names[first:last], f"TRTEngineOp_{i:03}")
        for i, (first, last) in enumerate(itertools.pairwise(bounds))
    ]


@pytest.fixture
def data():
    random = np.random.default_rng(1)
    return [random.uniform(900, 1100, (rows, 8)).astype(np.float32) for rows in (1, 3)]


def difference(model, segments, recipe, data):
    emulated = NativeSession(emulated_model(model, segments, recipe), honest=True)
    native = NativeSession(model)
    runs = [(native.run({"image": x})["scores"], emulated.run({"image": x})["scores"]) for x in data]
    return max(float(np.abs(a - b).max()) for a, b in runs) / max(float(np.abs(a).max()) for a, _ in runs)


@pytest.mark.parametrize("parts", [(), (3,), (1, 4)])
def test_overflowing_nodes_are_kept_in_float32(model, data, parts):
    segments = cut(model, *parts)
    lowering = Lowering(Recipe.of("FP16"))
    target = AccuracyTarget(data, max_rel_diff=5e-3)
    assert not difference(model, segments, lowering.recipe, data) <= 5e-3
    steps = []
    found, report = guard_lowering(
        model, SIGNATURE, segments, lowering, target, progress=lambda *step: steps.append(step)
    )
    assert set(found.reasons) == {"n_square", "n_root"}
    assert found.recipe.kept == {"n_square", "n_root"}
    assert all(reason.startswith("FP16: output 'result' has NaN") for reason in found.reasons.values())
    assert difference(model, segments, found.recipe, data) == pytest.approx(report.after.value)
    assert 0 < report.after.value <= 5e-3
    assert len(steps) == report.runs
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["text"].startswith(
        "outputs within a relative difference of 0.005: met with 2 of 7 nodes kept"
    )


def test_bfloat16_has_the_range_and_keeps_all_lowered(model, data):
    target = AccuracyTarget(lambda: iter(data), max_rel_diff=0.1)
    found, report = guard_lowering(model, SIGNATURE, cut(model), Lowering(Recipe.of("BF16")), target)
    assert not found.reasons
    assert (report.runs, report.inputs) == (1, 2)


def test_a_metric_sees_public_names(model, data):
    def metric(outputs):
        return float(np.mean([np.isfinite(o["result"]).all() for o in outputs]))

    target = AccuracyTarget(data, metric=metric, max_drop=0.0)
    found, report = guard_lowering(model, SIGNATURE, cut(model), Lowering(Recipe.of("FP16")), target)
    assert set(found.reasons) == {"n_square", "n_root"}
    assert report.after.value == 0.0


def test_data_that_do_not_fit_are_told(model):
    target = AccuracyTarget([np.zeros((1, 9), np.float32)], max_rel_diff=0.1)
    with pytest.raises(InputError, match="AccuracyTarget: data: sample 0: input 'image' has shape"):
        guard_lowering(model, SIGNATURE, cut(model), Lowering(Recipe.of("FP16")), target)


def test_a_badly_calibrated_tensor_takes_its_node_out_of_int8():
    count = 6
    body = "\n".join(f"m{i} = MatMul(x{i}, w{i}) x{i + 1} = Tanh(m{i})" for i in range(count))
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[batch, 32] x0) => (float[batch, 32] x{count}) {{ {body} }}'
    )
    random = np.random.default_rng(0)
    for i in range(count):
        weights = (random.standard_normal((32, 32)) / 6).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weights, f"w{i}"))
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    chain = InferShapes().run(models.from_proto(proto)).model
    ranges = {f"x{i}": TensorRange(-1.0, 1.0) if i else TensorRange(-4.0, 4.0) for i in range(count)}
    ranges["x2"] = TensorRange(-0.05, 0.05)
    signature = Signature(
        (TensorSpec("x0", TensorProto.FLOAT, ("batch", 32)),),
        (TensorSpec(f"x{count}", TensorProto.FLOAT, ("batch", 32)),),
    )
    target = AccuracyTarget([random.standard_normal((8, 32)).astype(np.float32)], max_rel_diff=0.1)
    for float_type, rung in (("FP16", "unquantized"), ("FP32", "kept")):
        lowering = Lowering(Recipe.of("INT8", float_type), RangeTable(ranges))
        found, report = guard_lowering(chain, signature, cut(chain), lowering, target)
        assert set(found.reasons) == {"n_m2"}
        assert "when this node alone is lowered" in found.reasons["n_m2"]
        assert (report.nodes, report.precision, report.rung) == (6, lowering.recipe.label, rung)
        assert getattr(found.recipe, rung) == {"n_m2"}
        assert report.before.value > 0.3
        assert report.after.value <= 0.1
