"""TF-TRT's names, attributes and devices for the stock ops of a SavedModel; see `old_models`."""

from pathlib import Path

#: Attributes that TF2 leaves out of what it saves when they have these values.
DEFAULTS = {
    "max_cached_engines_count": 1,
    "max_batch_size": 1,
    "calibration_data": b"",
    "use_calibration": True,
    "segment_funcdef_name": b"",
    "fixed_input_size": True,
    "static_engine": True,
    "profile_strategy": b"",
    "use_explicit_precision": False,
}
DEVICE = "/job:localhost/replica:0/task:0/device:GPU:0"


def spell(path, style, segments, stripped):
    """Gives the stock ops of a SavedModel TF-TRT's names, attributes and devices.

    `stripped`: attributes at the defaults of the op are left out, as TF2 does when it saves.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    file = Path(path) / "saved_model.pb"
    message = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in message.meta_graphs:
        graph_def = meta_graph.graph_def
        spell_nodes(graph_def.node, None, style, segments)
        for function in graph_def.library.function:
            spell_nodes(function.node_def, function, style, segments)
            if stripped:
                _strip_defaults(function.node_def)
        _drop_segments(graph_def, style)
        for op in meta_graph.meta_info_def.stripped_op_list.op:
            op.name = {"HashTableV2": style.resource_ops[0], "PartitionedCall": "TRTEngineOp"}.get(op.name, op.name)
        meta_graph.meta_info_def.tensorflow_version = "2.13.1"
    file.write_bytes(message.SerializeToString())


def spell_nodes(nodes, function, style, segments):
    """The nodes of a graph (`function` None) or of a function body."""
    results = {}
    create, handle, initialize = style.resource_ops
    for node in nodes:
        if node.op == "HashTableV2" and node.attr["shared_name"].s.startswith(b"TRT/"):
            name = node.attr["shared_name"].s.removeprefix(b"TRT/")
            node.op = create
            results[f"{node.name}:table_handle:0"] = f"{node.name}:{handle}:0"
            _clear(node)
            node.attr["resource_name"].s = name
            node.device = DEVICE
        elif node.op == "InitializeTableFromTextFileV2" and node.input[0] in results:
            node.op = initialize
            _clear(node)
            node.attr["max_cached_engines_count"].i = style.cached_engines
            node.device = DEVICE
        elif node.op.endswith("PartitionedCall") and "_native_segment" in node.attr["f"].func.name:
            results.update({f"{node.name}:output:{i}": f"{node.name}:out_tensor:{i}" for i in range(9)})
            spell_engine(node, style, segments)
    if function is not None:
        for node in nodes:
            node.input[:] = [results.get(r, r) for r in node.input]
        for key, value in function.ret.items():
            function.ret[key] = results.get(value, value)


def spell_engine(node, style, segments):
    """The attributes that convert_graph.cc gives an engine."""
    name = next(n for n in segments if node.name.endswith(n))
    called = node.attr["f"].func.name
    inputs, outputs = list(node.attr["Tin"].list.type), list(node.attr["Tout"].list.type)
    node.op = "TRTEngineOp"
    node.device = DEVICE
    _clear(node)
    a = node.attr
    a["InT"].list.type.extend(inputs)
    a["OutT"].list.type.extend(outputs)
    for _ in inputs:
        a["input_shapes"].list.shape.add().unknown_rank = True
    shape = a["output_shapes"].list.shape
    for _ in outputs:
        shape.add().unknown_rank = True
    if style.native_segments:
        if style.funcdef_name:
            a["segment_funcdef_name"].s = called.encode()
        else:
            a["segment_func"].func.name = called
    a["serialized_segment"].s = _in_the_node(segments[name], style)
    a["static_engine"].b = False
    a["calibration_data"].s = style.calibration
    a["max_cached_engines_count"].i = style.cached_engines
    a["workspace_size_bytes"].i = style.workspace[list(segments).index(name) % len(style.workspace)]
    a["precision_mode"].s = style.precision.encode()
    a["use_calibration"].b = bool(style.calibration)
    if style.funcdef_name:
        a["fixed_input_size"].b = True
        a["cached_engine_batches"].list.i.extend([4, 8])
        return
    a["max_batch_size"].i = 1
    a["_use_implicit_batch"].b = not style.strategy
    a["use_explicit_precision"].b = False
    a["_allow_build_at_runtime"].b = style.allow_build
    if style.strategy:
        a["profile_strategy"].s = style.strategy.encode()
        a["_profile_generation_mode"].b = False


def _strip_defaults(nodes):
    for node in nodes:
        for name, value in DEFAULTS.items() if "TRT" in node.op else ():
            if name in node.attr and getattr(node.attr[name], node.attr[name].WhichOneof("value")) == value:
                del node.attr[name]


def _in_the_node(segment, style):
    if not style.funcdef_name:
        return b""
    graph = type(segment)()
    graph.CopyFrom(segment)
    for node in graph.node if style.arguments else ():
        if node.name.startswith(("TensorRTInputPH_", "TensorRTOutputPH_")):
            dtype = node.attr["dtype" if node.op == "Placeholder" else "T"].type
            node.op = "_Arg" if node.op == "Placeholder" else "_Retval"
            node.attr.clear()
            node.attr["T"].type = dtype
            node.attr["index"].i = int(node.name.rsplit("_", 1)[1])
    return graph.SerializeToString()


def _drop_segments(graph_def, style):
    if style.native_segments and style.library:
        return
    functions = graph_def.library.function
    for index in reversed([i for i, f in enumerate(functions) if "_native_segment" in f.signature.name]):
        del functions[index]


def _clear(node):
    for name in [name for name in node.attr if name not in ("_output_shapes", "_class")]:
        del node.attr[name]
