"""TensorFlow's own graph optimiser, run once over a frozen graph."""

from __future__ import annotations

from typing import Any

#: Constants of at least so many bytes are hidden from Grappler; smaller ones may be shapes or scales to fold.
LARGE = 1 << 16


def grapple(graph_def: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """One run of Grappler: function inlining, constant folding, dependency clean-up.

    Large constants are hidden from it behind placeholders: Grappler copies the graph many times, and what it would
    fold into weights the converter folds as well. One iteration, not the default two: in the second Grappler
    multiplies scales into convolution weights, which tf2onnx does as well and about five times faster (ResNet50).
    """
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    config = config_pb2.ConfigProto()
    config.graph_options.infer_shapes = True
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    options.optimizers[:] = ["function", "constfold", "dependency"]
    options.experimental_disable_folding_quantization_emulation = True
    light, hidden = _hide_large(graph_def)
    meta = meta_graph_pb2.MetaGraphDef(graph_def=light)
    meta.collection_def["train_op"].node_list.value.extend([*inputs, *outputs])
    optimized = tf_optimizer.OptimizeGraph(config, meta)
    for node in optimized.node:
        if node.name in hidden:
            node.CopyFrom(hidden[node.name])
    _forget_unknown_ranks(optimized)
    return optimized


def _forget_unknown_ranks(graph_def: Any) -> None:
    """Drops notes that the rank of a branch's or loop body's argument is unknown.

    Grappler writes them when it inlines, and TensorFlow prefers them to the shapes of the caller, without which
    the converter leaves a Conv in a branch half converted.
    """
    for function in graph_def.library.function:
        for note in function.arg_attr.values():
            if any(shape.unknown_rank for shape in note.attr["_output_shapes"].list.shape):
                del note.attr["_output_shapes"]


def _hide_large(graph_def: Any) -> tuple[Any, dict[str, Any]]:
    """A copy with a Placeholder for each large Const, and those Const nodes by name."""
    light = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    hidden = {}
    for node in graph_def.node:
        if node.op == "Const" and len(node.attr["value"].tensor.tensor_content) >= LARGE:
            stand_in = light.node.add(name=node.name, op="Placeholder", input=node.input)
            stand_in.attr["dtype"].CopyFrom(node.attr["dtype"])
            stand_in.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
            hidden[node.name] = node
        else:
            light.node.add().CopyFrom(node)
    return light, hidden
