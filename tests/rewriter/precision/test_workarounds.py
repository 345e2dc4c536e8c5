"""Known faults of TensorRT versions are not asked for, and that is told."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from passes.base import verify
from passes.extract import Extractor
from passes.graph.walk import iter_nodes
from passes.model import from_proto
from passes.pipeline import default_pipeline
from passes.precision.emulate import Emulate
from passes.precision.lower import lower
from passes.precision.quantization.float_readers import moves
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe
from rewriter.precision.lowering import Lowering
from rewriter.precision.workarounds import avoid_faults, why_faulty
from rewriter.runtime.native import NativeSession


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_an_old_rtx_gets_no_quantised_convolutions(mode):
    recipe, notes = avoid_faults(Recipe.of(mode), "tensorrt_rtx", "1.4.0.76")
    assert recipe.quantize_ops == ("MatMul", "Gemm")
    (note,) = notes
    assert note.startswith(f"{mode}: Conv and ConvTranspose stay in FP16 with tensorrt_rtx 1.4.0.76: ")


@pytest.mark.parametrize(
    ("recipe", "flavour", "version"),
    [
        (Recipe.of("INT8"), "tensorrt_rtx", "1.7.1.116"),
        (Recipe.of("INT8"), "tensorrt_rtx", "1.40.0.1"),
        (Recipe.of("INT8"), "tensorrt", "1.4.0"),
        (Recipe.of("FP16"), "tensorrt_rtx", "1.4.0.76"),
        (Recipe.of("INT8", quantize_ops=("MatMul",)), "tensorrt_rtx", "1.4.0.76"),
    ],
)
def test_everything_else_stays(recipe, flavour, version):
    assert avoid_faults(recipe, flavour, version) == (recipe, ())


def convolution(op="Conv"):
    """A segment of one node that INT8 quantises, and the lowering that does it."""
    size = "6, 4" if op == "MatMul" else "4, 3, 3, 3"
    shape = "n, 6" if op == "MatMul" else "n, 3, 8, 8"
    proto = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[{shape}] x) => (float[{"n, 4" if op == "MatMul" else "n, 4, 6, 6"}] y) <float[{size}] w = {{0}}> {{
            a = Relu(x)
            y = {op}(a, w)
        }}
        """
    )
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    dims = [int(text) for text in size.split(",")]
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(dims, np.float32), "w"))
    segment = Extractor(from_proto(proto)).extract_nodes((), ["n0", "n1"], "TRTEngineOp_000")
    ranges = RangeTable({name: TensorRange(0, 1) for name in "ax"}, "minmax", 1)
    return segment, lambda mode: Lowering(Recipe.of(mode), ranges)


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_an_engine_that_would_compute_wrongly_is_not_built_for_an_artifact_of_another_version(mode):
    segment, lowering = convolution()
    asked = lowering(mode)
    lowered = asked.apply(segment)
    reason = why_faulty(asked, segment, lowered, "tensorrt_rtx", "1.4.0.76")
    assert reason.startswith(f"{mode}: Conv and ConvTranspose stay in FP16 with tensorrt_rtx 1.4.0.76: ")
    assert reason.endswith(", and the engines of one node must compute in one arithmetic")
    assert why_faulty(asked, segment, lowered, "tensorrt_rtx", "1.7.1.116") == ""
    assert why_faulty(asked, segment, lowered, "tensorrt", "10.9") == ""


def test_an_engine_without_what_is_wrong_is_built():
    segment, lowering = convolution("MatMul")
    asked = lowering("INT8")
    lowered = asked.apply(segment)
    assert lowered.segment.content_hash != segment.content_hash
    assert why_faulty(asked, segment, lowered, "tensorrt_rtx", "1.4.0.76") == ""
    segment, lowering = convolution()
    asked = lowering("FP16")
    assert why_faulty(asked, segment, asked.apply(segment), "tensorrt_rtx", "1.4.0.76") == ""


def trained(settings):
    """A small network after quantisation-aware training, cleaned: 3 Convs and a MatMul, all with int8 weights."""
    from rewriter.frontend import load_source
    from tests.rewriter.frontend.qat_models import QatSettings, conv_net

    tensorflow = pytest.importorskip("tensorflow")
    source = load_source(conv_net(tensorflow, QatSettings(**settings)))
    return default_pipeline().run(source.model)[0]


def reads(model, op):
    """What makes the operands of every node of a type, behind operators that only move values."""
    made_by = {name: node for node in iter_nodes(model.proto.graph) for name in node.output}
    found = []
    for node in iter_nodes(model.proto.graph):
        for name in node.input if node.op_type == op else ():
            source = name
            while source in made_by and moves(made_by[source], source):
                source = made_by[source].input[0]
            found.append(made_by[source].op_type if source in made_by else "constant")
    return found


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "settings",
    [{}, {"per_channel": False}, {"op": "round_trip"}, {"activations": (-1.0, 6.0)}],
    ids=["per channel", "whole tensors", "round trip", "signed activations"],
)
def test_trained_convolutions_stay_in_float_and_products_in_8_bits(settings):
    model = trained(settings)
    images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    half = lower(model, Recipe.of("FP16")).model
    expected = next(iter(NativeSession(Emulate().run(half).model, honest=True).run({"image": images}).values()))
    for mode, tolerance in (("INT8", 0.05), ("FP8", 0.15)):  # of the product: half a step of 127, 3 bits of mantissa
        recipe, _ = avoid_faults(Recipe.of(mode), "tensorrt_rtx", "1.4.0.76")
        lowered = lower(model, recipe).model
        verify(lowered, "lower", canonical=True)
        assert "DequantizeLinear" not in reads(lowered, "Conv") + reads(lowered, "Add")
        assert reads(lowered, "MatMul") == ["DequantizeLinear"] * 2
        # Nothing but the one product is in 8 bits.
        assert [n.op_type for n in iter_nodes(lowered.proto.graph)].count("DequantizeLinear") == 2
        found = next(iter(NativeSession(Emulate().run(lowered).model, honest=True).run({"image": images}).values()))
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.tensorflow
def test_trained_convolutions_that_stay_in_float_compute_what_fp16_engines_compute():
    model = trained({})
    one, other = (
        lower(model, recipe).model.proto.graph for recipe in (Recipe.of("INT8", quantize_ops=()), Recipe.of("FP16"))
    )
    assert list(one.node) == list(other.node)
    assert {t.name: t for t in one.initializer} == {t.name: t for t in other.initializer}


@pytest.mark.tensorflow
@pytest.mark.rtx
def test_tensorrt_parses_it(rtx):
    recipe, _ = avoid_faults(Recipe.of("INT8"), "tensorrt_rtx", "1.4.0.76")
    assert rtx.parse(lower(trained({}), recipe).model) == ()
