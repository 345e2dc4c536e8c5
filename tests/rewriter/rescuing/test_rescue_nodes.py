"""Engine nodes become calls: in graphs, in function bodies, with and without what they need."""

import re

import numpy as np
import pytest

from rewriter.errors import SourceError
from rewriter.rescuing import rescue_graph_def
from rewriter.rescuing.nodes import replace_engines
from tests.rewriter.rescuing.graphs import (
    BY_FUNCTION,
    BY_NAME,
    ENGINE,
    NEGATE,
    NEGATE_GRAPH,
    frozen,
    function_def,
    graph_def,
)

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def evaluate(tf):
    def run(graph):
        function = tf.compat.v1.wrap_function(
            lambda x: tf.import_graph_def(graph, {"x": x}, ["y:0"])[0], [tf.TensorSpec([None], tf.float32)]
        )
        return function(tf.constant([1.0, -2.0])).numpy()

    return run


@pytest.mark.parametrize("name", [BY_FUNCTION, BY_NAME, ""])
def test_engine_of_a_frozen_graph(tf, evaluate, name):
    graph = frozen(ENGINE + name)
    before = graph.SerializeToString(deterministic=True)
    fixed, report = rescue_graph_def(graph)
    assert graph.SerializeToString(deterministic=True) == before
    np.testing.assert_array_equal(evaluate(fixed), [1.0, 2.0])
    node = next(node for node in fixed.node if node.name == "E")
    assert node.op == "PartitionedCall"
    assert list(node.input) == ["x", "^before"]
    assert node.device == ""
    assert sorted(node.attr) == ["Tin", "Tout", "_output_shapes", "config", "config_proto", "executor_type", "f"]
    assert fixed.library.function[0].node_def[0].device == ""
    (engine,) = report.engines
    assert (engine.name, engine.place, engine.nodes) == ("E", "", 1)
    assert re.fullmatch("E_native_segment_[0-9a-f]{12}", engine.segment)
    assert [function.signature.name for function in fixed.library.function] == [engine.segment]
    assert node.attr["f"].func.name == engine.segment
    assert report.params.precision_mode == "FP16"


def test_graph_without_engines_is_what_it_was(tf):
    graph = graph_def('node { name: "x" op: "Placeholder" attr { key: "dtype" value { type: DT_FLOAT } } }')
    fixed, report = rescue_graph_def(graph)
    assert fixed is graph
    assert report.engines == ()
    assert report.notes == ()
    assert report.profile_strategy is None


@pytest.mark.parametrize("name", [BY_FUNCTION, BY_NAME, ""])
def test_segment_out_of_the_node(tf, evaluate, name):
    graph = frozen(ENGINE + name, segment=None)
    content = graph_def(NEGATE_GRAPH).SerializeToString()
    next(node for node in graph.node if node.name == "E").attr["serialized_segment"].s = content
    fixed, report = rescue_graph_def(graph)
    np.testing.assert_array_equal(evaluate(fixed), [1.0, 2.0])
    assert report.rebuilt == ("E",)
    assert fixed.library.function[0].signature.name.startswith("E_native_segment_")
    assert report.notes[-1].startswith("the function with the native segment of E is not in the file")


@pytest.mark.parametrize("content", [b"", b"\x08\x01 an engine \xff", b"ptrt\x00\x00"])
def test_engine_without_a_segment(tf, content):
    graph = frozen(segment=None)
    next(node for node in graph.node if node.name == "E").attr["serialized_segment"].s = content
    with pytest.raises(SourceError, match=r"TRTEngineOp E of the GraphDef has lost its native segment \(E_native_seg"):
        rescue_graph_def(graph)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('key: "InT" value { list { type: DT_FLOAT', 'key: "InT" value { list { type: DT_INT32',
         r"E of the GraphDef takes \(int32\) and its native segment E_native_segment \(float\)"),
        ('key: "OutT" value { list { type: DT_FLOAT', 'key: "OutT" value { list { type: DT_HALF type: DT_HALF',
         r"gives \(half, half\) and its native segment E_native_segment \(float\)"),
        ('attr { key: "InT" value { list { type: DT_FLOAT } } }', "", "is damaged: it has no attribute InT"),
        ('input: "x" input', 'input: "x" input: "x" input', "has 2 inputs and 1 dtypes for them"),
    ],
)  # fmt: skip
def test_engine_that_does_not_fit_its_segment(tf, old, new, match):
    assert old in ENGINE
    with pytest.raises(SourceError, match=match):
        rescue_graph_def(frozen(ENGINE.replace(old, new) + BY_FUNCTION))


def test_engine_within_a_function(tf):
    """A loop's body, say: results have other names there, and control results keep theirs."""
    graph = frozen()
    outer = function_def(
        f"""
        signature {{ name: "body" input_arg {{ name: "x" type: DT_FLOAT }} output_arg {{ name: "r" type: DT_FLOAT }}
          output_arg {{ name: "s" type: DT_FLOAT }} control_output: "c" }}
        node_def {{ name: "before" op: "NoOp" }}
        node_def {{ {ENGINE + BY_FUNCTION} }}
        node_def {{ name: "EE" op: "Neg" input: "E:out_tensor:0" input: "^E"
          attr {{ key: "T" value {{ type: DT_FLOAT }} }} }}
        ret {{ key: "r" value: "E:out_tensor:0" }}
        ret {{ key: "s" value: "EE:y:0" }}
        control_ret {{ key: "c" value: "E" }}
        """
    )
    graph.library.function.append(outer)
    replaced = replace_engines(graph, "it")
    assert [(engine.name, engine.place) for engine in replaced.engines] == [("E", ""), ("E", "body")]
    body = graph.library.function[1]
    assert list(body.node_def[2].input) == ["E:output:0", "^E"]
    assert dict(body.ret) == {"r": "E:output:0", "s": "EE:y:0"}
    assert dict(body.control_ret) == {"c": "E"}


STATEFUL = """
node_def { name: "random" op: "RandomUniform" input: "tensorrtinputph_0"
  attr { key: "T" value { type: DT_INT32 } } attr { key: "dtype" value { type: DT_FLOAT } } }
"""
CALL = 'node_def { name: "call" op: "PartitionedCall" attr { key: "f" value { func { name: "inner" } } } }'


@pytest.mark.parametrize("how", ["op", "flag", "called"])
def test_segment_with_state(tf, how):
    """Its call must not be pruned, nor merged with another."""
    graph = frozen(segment=NEGATE + {"op": STATEFUL, "flag": "", "called": CALL}[how])
    graph.library.function[0].signature.is_stateful = how == "flag"
    inner = function_def('signature { name: "inner" }' + STATEFUL)
    graph.library.function.append(inner)
    fixed, _ = rescue_graph_def(graph)
    assert next(node for node in fixed.node if node.name == "E").op == "StatefulPartitionedCall"


def test_functions_that_call_each_other(tf):
    graph = frozen(segment=NEGATE + CALL)
    graph.library.function.append(function_def('signature { name: "inner" }' + CALL))
    fixed, _ = rescue_graph_def(graph)
    assert next(node for node in fixed.node if node.name == "E").op == "PartitionedCall"


def test_calibrating_node_of_old(tf):
    """TRTCalibOp stood for a segment while ranges were collected; it says no precision."""
    engine = ENGINE.replace("TRTEngineOp", "TRTCalibOp").replace("precision_mode", "ignored")
    _, report = rescue_graph_def(frozen(engine + BY_NAME))
    assert report.params.precision_mode == "INT8"
    assert "TF-TRT never calibrated it: no engine has a calibration table" in report.notes
