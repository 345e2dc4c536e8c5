"""Every pass lets island nodes stand: never evaluated, never merged, never renamed; their types are believed."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from passes.base import verify
from passes.cancel_transposes import CancelTransposes
from passes.canonicalize import Canonicalize
from passes.common_subexpressions import CommonSubexpressions
from passes.engine_node import EngineAttributes, engine_nodes
from passes.extract import Extractor
from passes.fold_constants import FoldConstants
from passes.graph.flops import estimate
from passes.graph.value_types import value_types
from passes.infer_shapes import InferShapes
from passes.island_node import (
    ISLAND_DOMAIN,
    ISLAND_DOMAIN_VERSION,
    IslandAttributes,
    island_nodes,
    make_island,
    read_island,
)
from passes.legalize import Legalize
from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.pipeline import default_pipeline
from passes.precision.fake_quant import CollapseFakeQuant, fake_quant_ranges
from passes.precision.opset import raise_opset
from passes.precision.recipe import Recipe
from passes.splice import splice, unsplice
from passes.support import SupportMap, Verdict


def island(number, inputs, outputs, folder="/somewhere"):
    attributes = IslandAttributes(
        f"{folder}/TFIsland_{number:03d}",
        tuple(f"i{place}" for place in range(len(inputs))),
        tuple(f"o{place}" for place in range(len(outputs))),
        ("StringSplitV2",),
        ("StringSplitV2: ONNX has no such operator",),
    )
    return make_island(f"TFIsland_{number:03d}", tuple(inputs), tuple(outputs), attributes)


def model_of(text, *islands, types=(), ir_version=10):
    """A parsed graph with islands in front of the nodes that it has; `types` of their outputs as (name, shape)."""
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 18]> {text}')
    nodes = [*islands, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.opset_import.add(domain=ISLAND_DOMAIN, version=ISLAND_DOMAIN_VERSION)
    for name, shape in types:
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return from_proto(proto)


def between():
    """Nodes in front of an island and behind it, and around it."""
    model = model_of(
        """g (float[N,4] x) => (float[N,4] out, float[N,2] side) <float[4,2] w={1,2,3,4,5,6,7,8}> {
            a = Relu(x)
            b = Tanh(a)
            c = Relu(v)
            d = Add(c, b)
            out = Sigmoid(d)
            e = MatMul(b, w)
            side = Relu(e) }""",
        island(0, ["b"], ["u", "v"]),
        types=[("v", ["N", 4]), ("u", [None])],
    )
    return InferShapes().run(Canonicalize().run(model).model).model


def told(model):
    """What the island nodes of a model say."""
    return [(n.op_type, tuple(n.input), tuple(n.output), read_island(n)) for n in island_nodes(model.proto)]


def verdicts(model):
    return SupportMap.of(
        Verdict(n.name, n.op_type, n.domain != ISLAND_DOMAIN, "tensorflow", "it stays in TensorFlow")
        for n in model.proto.graph.node
    )


def cut(model):
    return propose(model, verdicts(model), PartitionOptions(1))


def spliced(model):
    found = cut(model)
    extractor = Extractor(model)
    engines = {s.name: EngineAttributes(extractor.extract(s).content_hash, len(s.inputs)) for s in found.segments}
    return splice(model, found, engines)


def test_canonicalize_sorts_them_and_keeps_what_they_are():
    model = between()
    verify(model, "canonicalize", canonical=True)
    [(op, inputs, outputs, attributes)] = told(model)
    assert (op, inputs, outputs) == ("TFIsland_000", ("b",), ("u", "v"))
    assert attributes.saved_model == "/somewhere/TFIsland_000"
    assert {o.domain: o.version for o in model.proto.opset_import} == {"": 18, ISLAND_DOMAIN: 1}
    assert Canonicalize().run(model).model is model


def test_canonicalize_removes_unused_ones_only():
    text = "g (float[N] x) => (float[N] y) { y = Relu(v) }"
    model = model_of(text, island(0, ["x"], ["unused"]), island(1, ["x"], ["v", "also_unused"]))
    assert [op for op, *_ in told(Canonicalize().run(model).model)] == ["TFIsland_001"]


def test_canonicalize_renames_the_node_but_not_the_operator():
    node = island(0, ["x"], ["v"])
    other = island(1, ["x"], ["w"])
    node.name = other.name = "same"
    model = Canonicalize().run(model_of("g (float[N] x) => (float[N] y) { y = Add(v, w) }", node, other)).model
    assert [op for op, *_ in told(model)] == ["TFIsland_000", "TFIsland_001"]
    verify(model, "canonicalize", canonical=True)


def test_canonicalize_inlines_functions_around_them():
    model = model_of("g (float[N] x) => (float[N] y) { y = Relu(v) }", island(0, ["t"], ["v"]))
    proto = model.copy_proto()
    opsets = [helper.make_opsetid("", 18)]
    body = [helper.make_node("Neg", ["a"], ["b"])]
    proto.functions.append(helper.make_function("mine", "Minus", ["a"], ["b"], body, opsets))
    proto.graph.node.insert(0, helper.make_node("Minus", ["x"], ["t"], "minus", domain="mine"))
    proto.opset_import.add(domain="mine", version=1)
    result = Canonicalize().run(from_proto(proto)).model
    assert [n.op_type for n in result.proto.graph.node] == ["Neg", "TFIsland_000", "Relu"]


def test_types_behind_an_island_are_inferred_from_those_declared():
    model = between()
    types = value_types(model)
    assert types["v"].shape == ("N", 4)
    assert types["u"].shape == (None,)
    assert types["c"].shape == ("N", 4)
    assert types["d"].shape == ("N", 4)
    assert not InferShapes().run(model).modified


def test_an_island_without_declared_types_stops_inference_but_nothing_fails():
    model = model_of("g (float[N] x) => (y) { y = Relu(v) }", island(0, ["x"], ["v"]))
    assert "v" not in value_types(InferShapes().run(model).model)


def test_islands_are_never_folded_though_all_they_read_is_constant():
    model = model_of(
        "g () => (float[2] y) <float[2] c={1,2}> { y = Add(v, c) }", island(0, ["c"], ["v"]), types=[("v", [2])]
    )

    def evaluate(proto, feeds):
        raise AssertionError("nothing is constant here")

    canonical = Canonicalize().run(model).model
    assert FoldConstants(evaluate).run(canonical).model is canonical


def test_the_shape_of_what_an_island_makes_is_folded_where_it_is_declared():
    text = "g (string[N] x) => (int64[2] y) { y = Shape(v) }"
    model = Canonicalize().run(model_of(text, island(0, ["x"], ["v"]), types=[("v", [3, 4])])).model
    result = FoldConstants().run(InferShapes().run(model).model).model
    assert not told(result)  # nothing reads it any more


def test_equal_islands_stay_two():
    text = "g (float[N] x) => (float[N] y) { y = Add(v, w) }"
    model = Canonicalize().run(model_of(text, island(0, ["x"], ["v"]), island(1, ["x"], ["w"]))).model
    assert CommonSubexpressions().run(model).model is model
    same = model.copy_proto()
    for node in island_nodes(same):
        node.op_type = "TFIsland_000"
    model = model.with_proto(same)
    assert CommonSubexpressions().run(model).model is model


def test_legalize_and_the_whole_cleaning_keep_them():
    model = between()
    assert told(Legalize().run(model).model) == told(model)
    cleaned, _ = default_pipeline().run(model)
    assert told(cleaned) == told(model)


def test_segments_never_hold_an_island_nor_reach_around_one():
    model = between()
    found = cut(model)
    held = {node for segment in found.segments for node in segment.nodes}
    assert "TFIsland_000" not in held
    assert len(held) == 7
    [verdict] = found.native
    assert (verdict.rule, verdict.node) == ("tensorflow", "TFIsland_000")
    # What stands behind the island can be no part of an engine with what stands before it.
    for segment in found.segments:
        ops = {n.op_type for n in model.proto.graph.node if n.name in segment.nodes}
        assert not {"Tanh", "Add"} <= ops


def test_segments_are_cut_and_hashed_as_if_there_were_no_island():
    model = between()
    before = [Extractor(model).extract(s) for s in cut(model).segments]
    proto = model.copy_proto()
    for node in island_nodes(proto):
        node.CopyFrom(island(0, ["b"], ["u", "v"], folder="/elsewhere"))
    after = [Extractor(model.with_proto(proto)).extract(s) for s in cut(model).segments]
    assert [s.content_hash for s in before] == [s.content_hash for s in after]
    assert all(not list(island_nodes(s.model.proto)) for s in before)
    for segment in before:
        onnx.checker.check_model(segment.model.proto)


def test_splice_and_unsplice_leave_them_where_they_are():
    model = between()
    whole = spliced(model)
    verify(whole, "splice")
    assert len(list(engine_nodes(whole.proto))) >= 2
    assert told(whole) == told(model)
    back = unsplice(whole)
    verify(back, "unsplice")
    assert told(back) == told(model)
    assert sorted(n.name for n in back.proto.graph.node) == sorted(n.name for n in model.proto.graph.node)
    assert ISLAND_DOMAIN in {o.domain for o in back.proto.opset_import}


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_quantisation_leaves_them_alone(mode):
    model = between()
    assert CollapseFakeQuant(Recipe.of(mode)).run(model).model is model
    assert fake_quant_ranges(model) == {}


def test_the_opset_can_be_raised_around_them():
    model = raise_opset(between(), 21).model
    verify(model, "raise_opset")
    assert {o.domain: o.version for o in model.proto.opset_import} == {"": 21, ISLAND_DOMAIN: 1}
    assert told(model) == told(between())


def test_weights_an_island_reads_are_kept():
    array = np.ones((600,), np.float32)
    proto = model_of("g (float[600] x) => (float[600] y) { y = Add(x, v) }", island(0, ["w"], ["v"])).copy_proto()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    model = Canonicalize().run(from_proto(proto)).model
    assert list(model.weights) == ["w"]
    cleaned, _ = default_pipeline().run(model)
    assert list(cleaned.weights) == ["w"]


def test_transposes_are_never_moved_past_an_island():
    text = """g (float[N,4,6] x) => (float[N,4,6] y) {
        a = Transpose<perm = [0, 2, 1]>(x)
        y = Transpose<perm = [0, 2, 1]>(v) }"""
    model = model_of(text, types=[("v", ["N", 6, 4])])
    proto = model.copy_proto()
    proto.graph.node.insert(1, island(0, ["a"], ["v"]))
    model = InferShapes().run(Canonicalize().run(from_proto(proto)).model).model
    assert CancelTransposes().run(model).model is model


def test_what_an_island_costs_is_not_known():
    model = between()
    estimates = estimate(model)
    assert estimates["TFIsland_000"] is None
    assert all(value is not None for name, value in estimates.items() if name != "TFIsland_000")
