"""TensorFlow's stage: what Grappler is told, and that every optimizer that runs leaves an export that is right."""

import numpy as np
import pytest

from passes.testing import assert_close
from rewriter.errors import ExportError, InvalidParameterError
from rewriter.frontend import load_source
from rewriter.frontend.grappler import GrapplerOptions, _config, grapple
from rewriter.pass_selection import CustomOptimizer, RewriterConfig, parse_rewriter_config
from rewriter.pass_selection.config import FIELDS, read_config
from rewriter.pass_selection.table import OPTIMIZERS
from rewriter.runtime.native import NativeSession, evaluate

pytestmark = pytest.mark.tensorflow

IN_TENSORFLOW = [optimizer.name for optimizer in OPTIMIZERS if optimizer.grappler]


@pytest.fixture(scope="module")
def proto(tf):
    from tensorflow.core.protobuf import rewriter_config_pb2

    return rewriter_config_pb2.RewriterConfig


@pytest.fixture(scope="module")
def mixed(tf):
    """Something for each optimizer: asserts, no-ops, equal nodes, shape arithmetic, constants, a loop, a branch."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 4], tf.float32, name="x")])
    def function(x):
        tf.debugging.assert_greater(tf.shape(x)[0], 0)
        x = tf.debugging.check_numerics(x, "not finite")
        shape = tf.shape(x)
        y = tf.reshape(tf.reshape(x, [shape[0] * shape[1], 4]), tf.shape(x))
        y = tf.transpose(tf.identity(tf.transpose(y, [0, 2, 1])), [0, 2, 1])
        y = tf.sqrt(tf.abs(y) + tf.abs(y)) * 2.0 * 3.0 + x * 2.0 + x * 2.0
        y = tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, tf.tanh(v) + tf.exp(x)), (0, y))[1]
        y = tf.cond(tf.reduce_sum(y) > 0, lambda: y + tf.square(x), lambda: y - tf.square(x))
        weights = tf.constant(np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4))
        return tf.add_n([y, y, tf.matmul(y, tf.transpose(weights) * 2.0)])

    return function


def test_without_a_template_grappler_is_told_what_it_always_was(tf, proto):
    expected = proto(
        min_graph_nodes=-1,
        meta_optimizer_iterations=proto.ONE,
        function_optimization=proto.AGGRESSIVE,
        optimizers=["function", "constfold", "dependency"],
        experimental_disable_folding_quantization_emulation=True,
    )
    config = _config(GrapplerOptions(), 3)
    assert config.graph_options.rewrite_options == expected
    assert config.graph_options.infer_shapes


def test_a_template_reaches_grappler(tf, proto):
    template = {
        "optimizers": ["constfold", "pruning"],
        "arithmetic_optimization": "AGGRESSIVE",
        "meta_optimizer_iterations": "TWO",
        "meta_optimizer_timeout_ms": 5000,
        "fail_on_optimizer_errors": True,
        "post_optimization_verifier_config": {"structure_verifier": "ON"},
    }
    options = parse_rewriter_config(template).grappler
    told = _config(options, 4).graph_options.rewrite_options
    assert list(told.optimizers) == ["function", "constfold", "pruning", "arithmetic"]
    assert (told.arithmetic_optimization, told.meta_optimizer_iterations) == (proto.AGGRESSIVE, proto.TWO)
    assert (told.meta_optimizer_timeout_ms, told.fail_on_optimizer_errors) == (5000, True)
    assert told.post_optimization_verifier_config.structure_verifier == proto.ON
    # Three nodes are fewer than TensorFlow's own minimum.
    assert list(_config(options, 3).graph_options.rewrite_options.optimizers) == ["function"]


def test_our_dataclass_has_the_fields_of_the_proto(tf, proto):
    assert set(FIELDS) == {field.name for field in proto.DESCRIPTOR.fields}
    assert read_config(proto()) == read_config(RewriterConfig())


def test_a_proto_says_the_same_as_a_mapping(tf, proto):
    template = proto(
        optimizers=["constfold", "layout"],
        remapping=proto.OFF,
        memory_optimization=proto.NO_MEM_OPT,
        cpu_layout_conversion=proto.NHWC_TO_NCHW,
        min_graph_nodes=-1,
        meta_optimizer_iterations=proto.TWO,
        fail_on_optimizer_errors=True,
    )
    template.auto_parallel.enable = True
    template.scoped_allocator_opts.enable_op.append("Add")
    template.inter_optimizer_verifier_config.structure_verifier = proto.ON
    entry = template.custom_optimizers.add(name="TensorRTOptimizer")
    entry.parameter_map["precision_mode"].s = b"fp16"
    entry.parameter_map["minimum_segment_size"].i = 7
    entry.parameter_map["use_calibration"].b = False
    mapping = {
        "optimizers": ["constfold", "layout"],
        "remapping": "OFF",
        "memory_optimization": "NO_MEM_OPT",
        "cpu_layout_conversion": "NHWC_TO_NCHW",
        "min_graph_nodes": -1,
        "meta_optimizer_iterations": "TWO",
        "fail_on_optimizer_errors": True,
        "auto_parallel": {"enable": True},
        "scoped_allocator_opts": {"enable_op": ["Add"]},
        "inter_optimizer_verifier_config": {"structure_verifier": "ON"},
        "custom_optimizers": [
            CustomOptimizer(
                "TensorRTOptimizer", {"minimum_segment_size": 7, "precision_mode": "fp16", "use_calibration": False}
            )
        ],
    }
    assert read_config(template) == read_config(mapping)
    assert parse_rewriter_config(template) == parse_rewriter_config(mapping)


def test_what_a_proto_cannot_say(tf, proto):
    template = proto()
    template.custom_optimizers.add(name="fold_constants").parameter_map["max_bytes"].type = 1
    with pytest.raises(
        InvalidParameterError, match=r"'max_bytes' of custom optimizer 'fold_constants' must be .* type"
    ):
        parse_rewriter_config(template)
    with pytest.raises(InvalidParameterError, match=r"not ConfigProto: give its graph_options\.rewrite_options"):
        parse_rewriter_config(tf.compat.v1.ConfigProto())


def graph_of(function):
    concrete = function.get_concrete_function()
    return (
        concrete.graph.as_graph_def(),
        tuple(t.name for t in concrete.inputs),
        tuple(t.name for t in concrete.outputs),
    )


def test_an_optimizer_that_fails_is_an_error_where_that_is_asked_for(tf):
    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32)])
    def function(x):
        return tf.nn.relu(x) + tf.abs(x)

    graph, inputs, outputs = graph_of(function)
    node = next(n for n in graph.node if n.op == "Relu")
    node.input[0] = "nowhere"
    with pytest.raises(ExportError, match=r"graph optimiser failed .function, constfold, dependency.: .*nowhere"):
        grapple(graph, inputs, outputs, GrapplerOptions(fail_on_errors=True))


def count(model, op):
    return sum(node.op_type == op for node in model.proto.graph.node)


def ops(graph):
    return [node.op for node in graph.node]


def test_optimizers_do_their_work(tf, mixed):
    graph, inputs, outputs = graph_of(mixed)
    alone = grapple(graph, inputs, outputs, GrapplerOptions(optimizers=()))
    default = grapple(graph, inputs, outputs)
    assert {"Assert", "CheckNumerics"} & set(ops(default)) == {"Assert", "CheckNumerics"}
    stripped = grapple(graph, inputs, outputs, GrapplerOptions(("debug_stripper", "dependency")))
    assert not {"Assert", "CheckNumerics"} & set(ops(stripped))
    merged = grapple(graph, inputs, outputs, GrapplerOptions(("common_subgraph_elimination",)))
    assert ops(merged).count("Abs") < ops(alone).count("Abs") == 2
    small = grapple(graph, inputs, outputs, GrapplerOptions(minimum_nodes=10_000))
    assert sorted(ops(small)) == sorted(ops(alone))


@pytest.mark.parametrize("name", ["", *IN_TENSORFLOW, "all"])
def test_every_optimizer_leaves_a_right_export(tf, cnn, mixed, name):
    # The export is compared with TensorFlow; one that is wrong raises.
    names = {"": (), "all": tuple(IN_TENSORFLOW)}.get(name, ("function", "constfold", name, "dependency"))
    options = GrapplerOptions(optimizers=names, fail_on_errors=True)
    for model in (cnn, mixed):
        load_source(model, grappler=options)


def test_passes_of_tf_trts_default_template_on_a_network(tf, cnn, proto):
    template = proto(
        optimizers=["pruning", "debug_stripper", "layout", "dependency", "constfold", "common_subgraph_elimination"],
        meta_optimizer_iterations=proto.ONE,
    )
    template.custom_optimizers.add(name="constfold")
    selection = parse_rewriter_config(template)
    source = load_source(cnn, grappler=selection.grappler)
    model, records = selection.pipeline(evaluate).run(source.model)
    plain = load_source(cnn)
    default, _ = parse_rewriter_config().pipeline(evaluate).run(plain.model)
    assert count(model, "Transpose") == count(default, "Transpose") - 1  # the one before the average over the image
    assert len(model.proto.graph.node) < len(default.proto.graph.node)
    names = [record.name for record in records]
    assert names[:4] == ["canonicalize", "infer_shapes", "scatter_reductions", "infer_shapes"]
    assert names[4:8] == ["cancel_transposes", "fold_constants", "common_subexpressions", "fold_constants"]
    feeds = {source.signature.inputs[0].tensor: np.ones((1, 8, 8, 3), np.float32)}
    assert_close(NativeSession(model).run(feeds), NativeSession(default).run(feeds))
