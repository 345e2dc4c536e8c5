"""TensorFlow's own graph optimiser, run once over a frozen graph."""

from __future__ import annotations

import dataclasses
from typing import Any

from rewriter.errors import ExportError
from rewriter.frontend.samples import one_line

#: Constants of at least so many bytes are hidden from Grappler; smaller ones may be shapes or scales to fold.
LARGE = 1 << 16


#: Runs always: the converter to ONNX reads no function calls.
REQUIRED_OPTIMIZER = "function"
#: Grappler knows one or two iterations.
MAXIMUM_ITERATIONS = 2


@dataclasses.dataclass(frozen=True)
class GrapplerOptions:
    """What Grappler does with a frozen graph.

    Attributes:
        optimizers: Grappler's names, in order; "function" is put first where it is missing.
        iterations: how often the list is gone through, 1 or 2. One by default, not Grappler's two: in the second it
            multiplies scales into convolution weights, which tf2onnx does as well and about five times faster
            (ResNet50).
        minimum_nodes: graphs of fewer nodes only get functions inlined; -1 for none.
        toggles: fields of Grappler's RewriterConfig that tell how far an optimizer goes, with "ON" or "AGGRESSIVE".
        timeout_ms: milliseconds for all of it; 0 for Grappler's default (5 minutes), -1 for no limit.
        fail_on_errors: an optimizer that fails is an error, instead of being passed over.
        verify_between, verify_after: Grappler checks the graph's structure after each optimizer, or at the end.
    """

    optimizers: tuple[str, ...] = (REQUIRED_OPTIMIZER, "constfold", "dependency")
    iterations: int = 1
    minimum_nodes: int = -1
    toggles: tuple[tuple[str, str], ...] = ()
    timeout_ms: int = 0
    fail_on_errors: bool = False
    verify_between: bool = False
    verify_after: bool = False


def grapple(
    graph_def: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], options: GrapplerOptions | None = None
) -> Any:
    """One run of Grappler; by default function inlining, constant folding and dependency clean-up.

    Large constants are hidden from it behind placeholders: Grappler copies the graph many times, and what it would
    fold into weights the converter folds as well.

    Raises:
        ExportError: an optimizer failed and `fail_on_errors` is set, or a check that was asked for.
    """
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow.python.framework import errors_impl
    from tensorflow.python.grappler import tf_optimizer

    options = options or GrapplerOptions()
    light, hidden = _hide_large(graph_def)
    meta = meta_graph_pb2.MetaGraphDef(graph_def=light)
    meta.collection_def["train_op"].node_list.value.extend([*inputs, *outputs])
    try:
        optimized = tf_optimizer.OptimizeGraph(_config(options, len(graph_def.node)), meta)
    except (errors_impl.OpError, ValueError, RuntimeError) as error:
        raise ExportError(
            f"TensorFlow's graph optimiser failed ({', '.join(options.optimizers)}): {one_line(error)}. "
            "Choose other optimizers in rewriter_config_template, or none"
        ) from error
    for node in optimized.node:
        if node.name in hidden:
            node.CopyFrom(hidden[node.name])
    _forget_unknown_ranks(optimized)
    return optimized


def _config(options: GrapplerOptions, nodes: int) -> Any:
    """The ConfigProto for a graph of so many nodes."""
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

    config = config_pb2.ConfigProto()
    config.graph_options.infer_shapes = True
    rewrite = config.graph_options.rewrite_options
    # Grappler would leave functions in graphs below its own minimum as well.
    rewrite.min_graph_nodes = -1
    rewrite.meta_optimizer_iterations = min(options.iterations, MAXIMUM_ITERATIONS)
    for field, word in options.toggles:
        setattr(rewrite, field, rewriter_config_pb2.RewriterConfig.Toggle.Value(word))
    rewrite.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    chosen = options.optimizers if nodes >= options.minimum_nodes else ()
    first = () if REQUIRED_OPTIMIZER in chosen else (REQUIRED_OPTIMIZER,)
    rewrite.optimizers[:] = [*first, *chosen]
    # Quantisation is structure, not arithmetic: it says which values are 8 bits wide.
    rewrite.experimental_disable_folding_quantization_emulation = True
    rewrite.meta_optimizer_timeout_ms = options.timeout_ms
    rewrite.fail_on_optimizer_errors = options.fail_on_errors
    on = rewriter_config_pb2.RewriterConfig.ON
    if options.verify_between:
        rewrite.inter_optimizer_verifier_config.structure_verifier = on
    if options.verify_after:
        rewrite.post_optimization_verifier_config.structure_verifier = on
    return config


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
