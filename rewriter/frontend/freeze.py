"""From a callee to a frozen GraphDef: a fresh function is traced around it, so the user's own object stays whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rewriter.errors import ExportError
from rewriter.frontend.callee import Callee, import_tensorflow
from rewriter.frontend.samples import one_line

INPUT = "trt_rewriter_input_{}"
#: Constants of at least so many bytes are hidden from Grappler; smaller ones may be shapes or scales to fold.
LARGE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A graph without variables.

    Attributes:
        graph_def: the frozen, inlined, constant-folded GraphDef.
        inputs, outputs: tensor names ("node:0"), in the order of the signature.
        output_names: public names of the outputs.
        output_dtypes, output_shapes: TensorFlow's, before any rewriting.
        tables: lookup tables: shared name -> (keys, values).
        reduced: True when the graph computes in float16 or bfloat16 somewhere.
        quantised: True when it emulates quantisation somewhere.
    """

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    output_dtypes: tuple[Any, ...]
    output_shapes: tuple[tuple[int | None, ...] | None, ...]
    tables: Mapping[bytes, tuple[Any, Any]]
    reduced: bool
    quantised: bool = False


def freeze(callee: Callee) -> Frozen:
    """Traces, freezes and simplifies `callee`.

    Numbered steps: 1. trace a new tf.function that calls it, with an Identity for each output (so passed-through,
    repeated and constant outputs are tensors of their own). 2. Variables become constants. 3. Captured lookup
    tables become named tables. 4. `_XlaMustCompile` goes, for Grappler never inlines such functions. 5. bfloat16
    becomes float32, for the converter writes bfloat16 constants as float16. 6. Grappler folds and inlines, once.

    Raises:
        ExportError: TensorFlow cannot freeze the function, or the frozen graph exceeds 2 GB.
    """
    function, names = _trace(callee)
    count = len(callee.inputs)
    inputs = tuple(t.name for t in function.inputs[:count])
    outputs = tuple(t.name for t in function.outputs)
    try:
        graph_def = _to_constants(function, callee.reference_variables)
    except (ValueError, KeyError, StopIteration) as error:
        raise ExportError(f"TensorFlow cannot freeze {callee.origin}: {one_line(error)}") from error
    tables = _name_tables(function, graph_def)
    _strip_xla(graph_def)
    reduced = _computes_reduced(graph_def)
    _bfloat16_to_float32(graph_def)
    _check_size(graph_def, callee.origin)
    return Frozen(
        graph_def=_grapple(graph_def, inputs, outputs),
        inputs=inputs,
        outputs=outputs,
        output_names=tuple(names),
        output_dtypes=tuple(t.dtype for t in function.outputs),
        output_shapes=tuple(None if t.shape.rank is None else tuple(t.shape.as_list()) for t in function.outputs),
        tables=tables,
        reduced=reduced,
        quantised=any(node.op.startswith(("FakeQuant", "QuantizeAndDequantize")) for node in _all_nodes(graph_def)),
    )


def _trace(callee: Callee) -> tuple[Any, list[str]]:
    """A ConcreteFunction of our own around the callee, and the public names of its outputs."""
    tf = import_tensorflow()
    names: list[str] = []

    def body(*tensors: Any) -> list[Any]:
        outputs = callee.call(tensors)
        names[:] = list(outputs)
        return [tf.identity(value) for value in outputs.values()]

    specs = [tf.TensorSpec(a.shape, a.dtype, name=INPUT.format(i)) for i, a in enumerate(callee.inputs)]
    with tf.device("/CPU:0"):
        function = tf.function(body, autograph=False).get_concrete_function(*specs)
    return function, names


def _to_constants(function: Any, references: Mapping[str, Any]) -> Any:
    """The GraphDef of `function` with its variables as constants; functions are inlined where TensorFlow can.

    The pieces of `convert_variables_to_constants_v2` are called without its last step, which would import the whole
    graph again only for it to be exported again.
    """
    from tensorflow.python.framework import convert_to_constants
    from tf2onnx import tf_loader

    class Data(convert_to_constants._FunctionConverterDataInEager):  # type: ignore[misc]
        """Leaves reference variables alone: TensorFlow would look for them in the wrong graph."""

        def _should_convert(self, name: str) -> bool:
            return self.node_defs[name].op != "VariableV2" and bool(super()._should_convert(name))

    data = Data(func=function, lower_control_flow=False, aggressive_inlining=True)
    graph_def, _ = convert_to_constants._replace_variables_by_constants(data)
    if any(node.op.startswith("Assign") and node.op.endswith("VariableOp") for node in graph_def.node):
        graph_def = tf_loader.fix_freezing_errors(graph_def)
    _fill_references(graph_def, references)
    return tf_loader.fix_freezing_errors_part2(graph_def)


def _fill_references(graph_def: Any, references: Mapping[str, Any]) -> None:
    """Turns TF1 reference variables into constants; inlining has put a prefix before their names."""
    tf = import_tensorflow()
    for node in graph_def.node:
        if node.op == "VariableV2":
            value = references[next(name for name in references if f"/{node.name}".endswith(f"/{name}"))]
            node.op = "Const"
            node.attr.clear()
            tensor = tf.make_tensor_proto(value)
            node.attr["value"].tensor.CopyFrom(tensor)
            node.attr["dtype"].type = tensor.dtype


def _name_tables(function: Any, graph_def: Any) -> dict[bytes, tuple[Any, Any]]:
    """Exports the lookup tables that the graph reads: shared name -> (keys, values).

    Captured tables (resource placeholders, seen through the Identity nodes that inlining leaves) become HashTableV2
    nodes with a name of their own in `graph_def`, which is what the converter reads.
    """
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops
    from tf2onnx.tf_utils import HashTableInfo, get_hash_table_info, replace_placeholders_with_tables

    captured = {
        inner.name.split(":")[0]: outer for outer, inner in function.graph.captures if outer.dtype == tf.resource
    }
    nodes = {node.name: node for node in graph_def.node}
    handles: dict[bytes, tuple[Any, Any]] = {}
    placeholders: dict[str, Any] = {}
    for info in get_hash_table_info(graph_def):
        if info.shared_name is not None:
            handle = lookup_ops.hash_table_v2(info.key_dtype, info.val_dtype, shared_name=info.shared_name)
            handles[info.shared_name] = (handle, info)
    for node in graph_def.node:
        if node.op == "LookupTableFindV2":
            source = _through_identities(node.input[0], nodes)
            if source in captured:
                node.input[0] = source
                name = f"table_{source}".encode()
                info = HashTableInfo(name, node.attr["Tin"].type, node.attr["Tout"].type, source)
                handles[name] = (captured[source], info)
                placeholders[source] = info
    replace_placeholders_with_tables(graph_def, placeholders)
    return {name: _table(name, handle, info) for name, (handle, info) in handles.items()}


def _through_identities(name: str, nodes: Mapping[str, Any]) -> str:
    """The node behind a chain of Identity nodes."""
    while name in nodes and nodes[name].op == "Identity":
        name = nodes[name].input[0].split(":")[0]
    return name


def _table(name: bytes, handle: Any, info: Any) -> tuple[Any, Any]:
    """Keys and values of a lookup table."""
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops

    try:
        keys, values = lookup_ops.lookup_table_export_v2(handle, info.key_dtype, info.val_dtype)
    except tf.errors.OpError as error:
        raise ExportError(f"the lookup table {name.decode()} cannot be read: {one_line(error)}") from error
    return keys.numpy(), values.numpy()


def _all_nodes(graph_def: Any) -> list[Any]:
    """Nodes of the graph and of its function library."""
    return [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]


def _strip_xla(graph_def: Any) -> None:
    """Removes jit_compile marks: Grappler refuses to inline functions that carry them."""
    for holder in [*_all_nodes(graph_def), *graph_def.library.function]:
        for key in ("_XlaMustCompile", "_XlaHasReferenceVars", "_XlaScope", "_XlaCompile"):
            if key in holder.attr:
                del holder.attr[key]


def _computes_reduced(graph_def: Any) -> bool:
    """True when any node handles float16 or bfloat16."""
    tf = import_tensorflow()
    kinds = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}
    return any(
        value.type in kinds or kinds.intersection(value.list.type)
        for node in _all_nodes(graph_def)
        for value in node.attr.values()
    )


def _bfloat16_to_float32(graph_def: Any) -> None:
    """Rewrites every bfloat16 type and constant to float32, in the graph and its functions."""
    tf = import_tensorflow()
    old, new = tf.bfloat16.as_datatype_enum, tf.float32.as_datatype_enum
    for node in _all_nodes(graph_def):
        for value in node.attr.values():
            if value.type == old:
                value.type = new
            for index, kind in enumerate(value.list.type):
                if kind == old:
                    value.list.type[index] = new
            if value.HasField("tensor") and value.tensor.dtype == old:
                value.tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(value.tensor).astype("float32")))
    for function in graph_def.library.function:
        for argument in [*function.signature.input_arg, *function.signature.output_arg]:
            if argument.type == old:
                argument.type = new


def _check_size(graph_def: Any, origin: str) -> None:
    size = sum(len(node.attr["value"].tensor.tensor_content) for node in graph_def.node if node.op == "Const")
    if size >= 1 << 31:
        raise ExportError(
            f"{origin} has {size / 1e9:.1f} GB of weights and TensorFlow's GraphDef ends at 2.1 GB: "
            "convert it in parts, or export it to ONNX with external data and convert that"
        )


def _grapple(graph_def: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
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
