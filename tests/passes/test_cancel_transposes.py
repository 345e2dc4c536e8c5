"""Transposes that undo each other: literal graphs, and random chains that must compute the same."""

import random

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from passes.base import Pipeline, verify
from passes.cancel_transposes import CancelTransposes
from passes.canonicalize import Canonicalize
from passes.graph.walk import iter_nodes
from passes.infer_shapes import InferShapes
from passes.model import from_proto, to_proto


def parsed(text, opset=18):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def cancel(proto, **options):
    model = Pipeline((Canonicalize(), InferShapes()), canonical=True).run(from_proto(proto))[0]
    result = CancelTransposes(**options).run(model)
    verify(result.model, "cancel_transposes", canonical=True)
    # No shape that it wrote contradicts what is inferred.
    assert not [c for c in InferShapes().run(result.model).changes if c.rule == "correct-type"]
    assert result.modified == (result.model is not model)
    assert CancelTransposes(**options).run(result.model).model is result.model
    assert count(result.model.proto) < count(model.proto) or not result.modified
    return result


def ops(graph):
    return [node.op_type for node in graph.node]


def count(proto):
    return sum(node.op_type == "Transpose" for node in iter_nodes(proto))


def same_results(before, after, feeds):
    expected = ReferenceEvaluator(before).run(None, feeds)
    actual = ReferenceEvaluator(to_proto(after)).run(None, feeds)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def random_chains(seed):
    """Three-dimensional values through Transposes and elementwise nodes; any value may have several readers."""
    rng = random.Random(seed)  # noqa: S311 - test data
    shapes = {"x": (2, 3, 4)}
    nodes, values, reduced = [], ["x"], []
    for i in range(rng.randrange(1, 16)):
        source = values[-1] if rng.random() < 0.8 else rng.choice(values)
        name, shape = f"v{i}", shapes[source]
        kind = rng.randrange(7)
        if kind < 3:
            perm = rng.sample(range(3), 3)
            named = {} if rng.random() < 0.2 else {"perm": perm}
            perm = perm if named else [2, 1, 0]
            nodes.append(helper.make_node("Transpose", [source], [name], **named))
            shape = tuple(shape[a] for a in perm)
        elif kind == 3:
            nodes.append(helper.make_node(rng.choice(["Neg", "Relu", "Abs"]), [source], [name]))
        elif kind == 4:
            pair = [source, rng.choice(["half", "ones"])]
            rng.shuffle(pair)
            nodes.append(helper.make_node(rng.choice(["Mul", "Add", "Sub", "Max"]), pair, [name]))
        elif kind == 5:
            nodes.append(helper.make_node("Add", [source, source], [name]))
        else:
            axes = rng.choice(["axes0", "axes01", "axes12", "axes20"])
            nodes.append(helper.make_node("ReduceMax", [source, axes], [name], keepdims=rng.choice([0, 0, 1])))
            reduced.append(name)
            continue
        shapes[name] = shape
        values.append(name)
    outputs = dict.fromkeys([values[-1], *rng.sample(values[1:], min(len(values) - 1, rng.randrange(3))), *reduced])
    info = helper.make_tensor_value_info
    constants = [
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        numpy_helper.from_array(np.full((1, 1), 2, np.float32), "ones"),
        *(
            numpy_helper.from_array(np.array(a), n)
            for n, a in {"axes0": [0], "axes01": [0, 1], "axes12": [1, 2], "axes20": [-1, 0]}.items()
        ),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, shapes["x"])], [info(o, 1, shapes.get(o)) for o in outputs if o != "x"], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), through=st.booleans())
def test_random_chains_compute_the_same(seed, through):
    proto = random_chains(seed)
    result = cancel(proto, through_elementwise=through)
    same_results(proto, result.model, {"x": np.random.default_rng(seed).integers(-4, 4, (2, 3, 4)).astype(np.float32)})


IN = "float[1,2,3,4] x"
THERE, BACK = "Transpose<perm=[0,2,3,1]>", "Transpose<perm=[0,3,1,2]>"


def test_inverse_pairs_go():
    result = cancel(parsed(f"g ({IN}) => (float[1,2,3,4] y) {{ a = Relu(x) b = {THERE}(a) c = {BACK}(b) y = Neg(c) }}"))
    assert ops(result.model.proto.graph) == ["Relu", "Neg"]
    assert {c.rule for c in result.changes} == {"cancel-transpose", "drop-value-info"}


def test_pairs_around_elementwise_nodes_go():
    proto = parsed(f"""g ({IN}) => (float[1,2,3,4] y) <float two={{2}}, float six={{6}}, float low={{0}}> {{
        b = {THERE}(x) c = Add(b, two) d = Clip(c, low, six) e = Mul(d, d) f = {BACK}(e) y = Softmax(f) }}""")
    result = cancel(proto)
    assert ops(result.model.proto.graph) == ["Add", "Clip", "Mul", "Softmax"]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.model.proto.graph.value_info}
    assert shapes["c"] == [1, 2, 3, 4]
    assert not cancel(proto, through_elementwise=False).modified


def test_two_that_are_not_inverse_become_one():
    proto = parsed(f"g ({IN}) => (float[4,1,2,3] y) {{ b = {THERE}(x) c = Relu(b) y = Transpose<perm=[2,0,3,1]>(c) }}")
    result = cancel(proto)
    assert ops(result.model.proto.graph) == ["Relu", "Transpose"]
    assert list(result.model.proto.graph.node[1].attribute[0].ints) == [3, 0, 1, 2]
    assert result.changes[0].rule == "join-transpose"
    same_results(proto, result.model, {"x": np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)})


def test_one_that_moves_nothing_goes():
    text = "g (float[1,2,3,4] x) => (float[1,2,3,4] y) { a = Transpose<perm=[0,1,2,3]>(x) y = Neg(a) }"
    assert ops(cancel(parsed(text)).model.proto.graph) == ["Neg"]
    # Between an input and an output a node has to stand.
    text = "g (float[1,2,3,4] x) => (float[1,2,3,4] y) { y = Transpose<perm=[0,1,2,3]>(x) }"
    assert not cancel(parsed(text)).modified


def test_outputs_keep_their_names():
    text = f"g ({IN}) => (float[1,2,3,4] y) {{ a = Relu(x) b = {THERE}(a) y = {BACK}(b) }}"
    result = cancel(parsed(text))
    assert ops(result.model.proto.graph) == ["Relu"]
    assert list(result.model.proto.graph.node[0].output) == ["y"]


@pytest.mark.parametrize(
    "body",
    [
        # Somebody else reads what is between them.
        f"b = {THERE}(x) c = Relu(b) d = {BACK}(c) e = ReduceMean(c) y = Add(d, e)",
        # The other operand has more than one element, or is no constant.
        f"b = {THERE}(x) c = Add(b, two) d = {BACK}(c) y = Neg(d)",
        f"b = {THERE}(x) s = ReduceSum(x) c = Add(b, s) d = {BACK}(c) y = Neg(d)",
        # Not elementwise.
        f"b = {THERE}(x) c = Softmax(b) d = {BACK}(c) y = Neg(d)",
        # Quantisation is structure.
        f"b = {THERE}(x) q = QuantizeLinear(b, s1) c = DequantizeLinear(q, s1) d = {BACK}(c) y = Neg(d)",
    ],
)
def test_what_must_stay_stays(body):
    proto = parsed(f"g ({IN}) => (float[1,2,3,4] y) <float[2] two={{2, 3}}, float s1={{0.5}}> {{ {body} }}")
    assert not cancel(proto).modified


@pytest.mark.parametrize(
    ("reduction", "axes"),
    [
        ("ReduceMean<keepdims=0>(t, spatial)", [2, 3]),
        ("ReduceSum<keepdims=0>(t, last)", [1]),
        ("ReduceMax<keepdims=0>(t, batch)", None),  # H, W, C against C, H, W
        ("ReduceMax<keepdims=0>(t, most)", [1, 2, 3]),
        ("ReduceMean<keepdims=1>(t, spatial)", None),
        ("ReduceMean<keepdims=0>(t, given)", None),
        ("ReduceMean<keepdims=0>(t)", None),
    ],
)
def test_reductions_read_what_is_before_a_transpose(reduction, axes):
    proto = parsed(f"""g ({IN}, int64[k] given) => (float[a] y)
        <int64[2] spatial={{1, 2}}, int64[1] last={{-1}}, int64[1] batch={{0}}, int64[3] most={{3, 1, 2}}> {{
        t = {THERE}(x) y = {reduction} }}""")
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    result = cancel(proto)
    assert result.modified == (axes is not None)
    assert not cancel(proto, reductions=False).modified
    if axes is not None:
        assert ops(result.model.proto.graph)[0].startswith("Reduce")
        name = result.model.proto.graph.node[0].input[1]
        tensor = next(t for t in result.model.proto.graph.initializer if t.name == name)
        assert numpy_helper.to_array(tensor).tolist() == axes
        x = np.random.default_rng(0).integers(-9, 9, (1, 2, 3, 4)).astype(np.float32)
        same_results(proto, result.model, {"x": x, "given": np.array([1])})


def test_reductions_with_axes_as_an_attribute_and_in_bodies():
    proto = parsed(
        f"""g ({IN}, bool b) => (float[1,2] y) {{
        y = If(b) <then_branch = t () => (float[1,2] u) {{ h = {THERE}(x) u = ReduceMax<axes=[1,2], keepdims=0>(h) }},
                   else_branch = e () => (float[1,2] w) {{ i = {THERE}(x) j = Abs(i)
                       w = ReduceMax<axes=[1,2], keepdims=0>(j) }}> }}""",
        13,
    )
    result = cancel(proto)
    branches = {a.name: ops(a.g) for a in result.model.proto.graph.node[0].attribute}
    assert branches == {"then_branch": ["ReduceMax"], "else_branch": ["Transpose", "Abs", "ReduceMax"]}
    for flag in (True, False):
        feeds = {"x": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), "b": np.array(flag)}
        same_results(proto, result.model, feeds)


def test_a_transpose_with_other_readers_stays_before_a_reduction():
    proto = parsed(f"""g ({IN}) => (float[1,2] y, float[1,3,4,2] z) <int64[2] spatial={{1, 2}}> {{
        t = {THERE}(x) y = ReduceMean<keepdims=0>(t, spatial) z = Neg(t) }}""")
    assert not cancel(proto).modified


def test_a_pair_whose_first_is_read_elsewhere():
    proto = parsed(
        f"g ({IN}) => (float[1,2,3,4] y, float[1,3,4,2] z) {{ b = {THERE}(x) c = {BACK}(b) y = Neg(c) z = Exp(b) }}"
    )
    assert ops(cancel(proto).model.proto.graph) == ["Transpose", "Neg", "Exp"]


def test_bodies():
    proto = parsed(f"""g ({IN}, bool b) => (float[1,2,3,4] y) {{
        o = {THERE}(x)
        y = If(b) <then_branch = t () => (float[1,2,3,4] u) {{ h = {THERE}(x) i = Abs(h) u = {BACK}(i) }},
                   else_branch = e () => (float[1,2,3,4] w) {{ w = {BACK}(o) }}> }}""")
    result = cancel(proto)
    branches = {a.name: ops(a.g) for a in result.model.proto.graph.node[1].attribute}
    assert branches == {"then_branch": ["Abs"], "else_branch": ["Transpose"]}
    for flag in (True, False):
        feeds = {"x": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), "b": np.array(flag)}
        same_results(proto, result.model, feeds)


def test_unknown_rank_stays():
    proto = parsed(
        "g (float[1] x, int64[k] s) => (float[1] y) { a = Reshape(x, s) b = Transpose(a) c = Transpose(b) y = Neg(c) }"
    )
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "k"
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    assert not cancel(proto).modified
