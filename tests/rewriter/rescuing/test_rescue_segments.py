"""A segment's own graph as a function: like TensorFlow's own translation, whatever the graph."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewriter.errors import SourceError
from rewriter.rescuing.segments import graph_to_function
from tests.rewriter.rescuing.graphs import NEGATE_GRAPH, graph_def

pytestmark = pytest.mark.tensorflow


def segment(draw):
    """A random DAG of adds, splits (several results, one name), concatenations and top-k (two names)."""
    graph = graph_def("versions { producer: 27 }")
    values = []
    for number in range(draw(st.integers(1, 3))):
        node = graph.node.add(name=f"TensorRTInputPH_{number}", op="Placeholder")
        node.attr["dtype"].type = 1
        node.attr["shape"].shape.dim.add().size = 8
        values.append(node.name)
    axis = graph.node.add(name="axis", op="Const")
    axis.attr["dtype"].type = 3
    axis.attr["value"].tensor.dtype = 3
    axis.attr["value"].tensor.tensor_shape.SetInParent()
    axis.attr["value"].tensor.int_val.append(0)
    for number in range(draw(st.integers(1, 8))):
        name = f"n{number}"
        kind = draw(st.sampled_from(["Neg", "Split", "IdentityN", "Unpack"]))
        node = graph.node.add(name=name, op=kind)
        if kind == "IdentityN":
            node.input.extend([draw(st.sampled_from(values)), draw(st.sampled_from(values))])
            node.attr["T"].list.type.extend([1, 1])
            values += [name, f"{name}:1"]
        elif kind == "Split":
            node.input.extend(["axis", draw(st.sampled_from(values))])
            node.attr["num_split"].i = 2
            node.attr["T"].type = 1
            values += [f"{name}:1", f"{name}:0"]
        else:
            node.op = "Neg"
            node.input.append(draw(st.sampled_from(values)))
            node.attr["T"].type = 1
            values.append(name)
        if draw(st.booleans()):
            node.input.append("^" + draw(st.sampled_from([n.name for n in graph.node if n.op != "Placeholder"][:-1])))
    for number, value in enumerate(draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))):
        node = graph.node.add(name=f"TensorRTOutputPH_{number}", op="Identity", input=[value])
        node.attr["T"].type = 1
    return graph


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_like_tensorflows_own(tf, data):
    from tensorflow.python.framework import graph_to_function_def

    graph = segment(data.draw)
    ours = graph_to_function(graph, "f", "E")
    with tf.compat.v1.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
        operations = imported.get_operations()
        ports = [[o.outputs[0] for o in operations if o.name.startswith(p)] for p in ("TensorRTInput", "TensorRTOut")]
        theirs = graph_to_function_def.graph_to_function_def(imported, operations, *ports)
    arguments = {f"TensorRTInputPH_{i}": f"input_{i}" for i in range(len(ports[0]))}
    wanted = {n.name: [arguments.get(r, r) for r in n.input] for n in theirs.node_def}
    assert {n.name: list(n.input) for n in ours.node_def} == wanted
    assert [ours.ret[a.name] for a in ours.signature.output_arg] == [
        theirs.ret[a.name] for a in theirs.signature.output_arg
    ]


def test_arguments_and_results_without_nodes(tf):
    """_Arg and _Retval nodes have no place in a function; a result may be an argument."""
    graph = graph_def(
        """
        node { name: "InputPH_0" op: "_Arg" attr { key: "T" value { type: DT_INT32 } } }
        node { name: "input_0" op: "NoOp" input: "^InputPH_0" }
        node { name: "OutputPH_0" op: "_Retval" input: "InputPH_0" input: "^input_0"
          attr { key: "T" value { type: DT_INT32 } } }
        """
    )
    function = graph_to_function(graph, "f", "E")
    (argument,) = function.signature.input_arg
    assert argument.name == "input_0_1"
    assert argument.type == 3
    assert [(n.name, list(n.input)) for n in function.node_def] == [("input_0", [])]
    assert dict(function.ret) == {"output_0": "input_0_1"}


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("TensorRTInputPH_0", "TensorRTInputPH_1", r"its TensorRTInputPH_N have the numbers \[1\]"),
        ("TensorRTOutputPH_0", "TensorRTOutputPH_3", r"its TensorRTOutputPH_N have the numbers \[3\]"),
        ('input: "neg"', 'input: "neg:1"', "nothing in it is called neg:1"),
        ('input: "neg"', 'input: "pos"', "nothing in it is called pos"),
        ('op: "Neg"', 'op: "Nag"', r"uses the unknown op Nag \(neg\)"),
    ],
)
def test_damaged_segments(tf, old, new, match):
    with pytest.raises(SourceError, match=match):
        graph_to_function(graph_def(NEGATE_GRAPH.replace(old, new)), "f", "E")
