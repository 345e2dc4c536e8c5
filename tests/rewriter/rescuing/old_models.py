"""SavedModels as TF-TRT wrote them: its own steps, with stock ops in the place of those that TensorFlow has no more.

`tensorflow.python.compiler.tensorrt.trt_convert` is still there, its ops and its segmenter are not. So the steps of
`TrtGraphConverterV2` are taken (freeze, cut segments out of the graph, a native function each, rebuild the function,
engine resources, save), with a PartitionedCall for every engine and a table out of a text file for every resource,
which take and give the same. TensorFlow writes the whole file; at last those ops get TF-TRT's spelling.
"""

import dataclasses
import gc
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.rewriter.rescuing.spelling import DEVICE, spell

#: Ops that stay outside of segments.
OUTSIDE = {"Placeholder", "NoOp", "LookupTableFindV2", "ReadVariableOp", "Cast"}


@dataclasses.dataclass(frozen=True)
class Style:
    """What the user asked of TF-TRT, and which TF-TRT it was."""

    engines: int = 1
    precision: str = "FP32"
    built: bool = True  # build() was called: engines lie in assets
    frozen: bool = True  # False: the experimental feature disable_graph_freezing
    own_trackable: bool = True  # False: as until TensorFlow 2.9, engines hang on the loaded model
    resaved: bool = False  # loaded and saved once more, with a TensorFlow that had TF-TRT
    native_segments: bool = True  # False: the experimental feature remove_native_segments
    strategy: str = ""  # "": implicit batch
    calibration: bytes = b""
    workspace: tuple = (1 << 30,)  # of each engine in turn
    cached_engines: int = 1
    allow_build: bool = True
    scope: str = ""  # of names of engines
    funcdef_name: bool = False  # TensorFlow 1.13: segment_funcdef_name, and the segment in the node
    library: bool = True  # False: a tool dropped the function library
    arguments: bool = False  # the segment in the node has _Arg and _Retval nodes
    resource_ops: tuple = ("CreateTRTResourceHandle", "resource_handle", "InitializeTRTResource")


def convert(tf, source, target, style=None, key="serving_default"):
    """What `TrtGraphConverterV2(source).convert(); .build(); .save(target)` left behind."""
    from tensorflow.python.compiler.tensorrt import trt_convert
    from tensorflow.python.framework import convert_to_constants

    style = style or Style()
    loaded = tf.saved_model.load(str(source))
    function = loaded.signatures[key]
    if style.frozen:
        frozen = convert_to_constants.convert_variables_to_constants_v2(function)
    else:
        inlined = trt_convert._apply_inlining(function)
        trt_convert._annotate_variable_ops(function, inlined)
        frozen = trt_convert._construct_function_from_graph_def(function, inlined)
    ends = [t.name for t in (*frozen.inputs, *frozen.outputs)]
    graph_def, segments = cut_all(tf, optimized(frozen, ends), ends, style)
    converted = trt_convert._construct_function_from_graph_def(function, graph_def, frozen)
    trackable = tf.Module() if style.own_trackable else loaded
    trackable.trt_engine_resources = {}
    with tempfile.TemporaryDirectory() as folder:
        if style.built:
            for name in segments:
                path = Path(folder) / f"trt-serialized-engine.{name.split('/')[-1]}"
                path.write_text("an engine\n")
                trackable.trt_engine_resources[name.split("/")[-1]] = _resource(name, str(path))
        tf.saved_model.save(trackable, str(target), signatures={key: converted})
    if style.resaved:
        again = tf.saved_model.load(str(target))
        target = target.with_name(target.name + "_again")
        tf.saved_model.save(again, str(target), signatures=dict(again.signatures))
        del again
    del loaded, function, frozen, converted, trackable
    _collect()
    spell(target, style, segments, stripped=True)
    return target


def convert_tf1(tf, source, target, style=None, key="serving_default"):
    """What `TrtGraphConverter(input_saved_model_dir=source).convert(); .save(target)` left behind."""
    from tensorflow.python.framework import convert_to_constants

    style = style or Style(built=False)
    loaded = tf.saved_model.load(str(source))
    function = loaded.signatures[key]
    frozen = convert_to_constants.convert_variables_to_constants_v2(function)
    inputs, outputs = [t.name for t in frozen.inputs], [t.name for t in frozen.outputs]
    graph_def, segments = cut_all(tf, optimized(frozen, inputs + outputs), inputs + outputs, style)
    _, specs = function.structured_input_signature
    v1 = tf.compat.v1
    with v1.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def(
            {spec: info(graph.get_tensor_by_name(f"{spec}:0")) for spec in specs},
            {
                name: info(graph.get_tensor_by_name(tensor))
                for name, tensor in zip(sorted(function.structured_outputs), outputs, strict=True)
            },
            "tensorflow/serving/predict",
        )
        builder = v1.saved_model.Builder(str(target))
        with v1.Session(graph=graph) as session:
            builder.add_meta_graph_and_variables(session, ["serve"], {key: signature})
        builder.save()
    spell(target, style, segments, stripped=False)
    return target


def _collect():
    """Collects what a conversion leaves: TF-TRT takes functions away that their owners take away once more."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda told: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def optimized(frozen, ends):
    """The GraphDef after the optimizers that TF-TRT ran before its own, which leave few control inputs."""
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.grappler import tf_optimizer
    from tensorflow.python.training import saver

    meta_graph = saver.export_meta_graph(graph_def=frozen.graph.as_graph_def(), graph=frozen.graph)
    fetches = meta_graph_pb2.CollectionDef()
    fetches.node_list.value.extend(ends)
    meta_graph.collection_def["train_op"].CopyFrom(fetches)
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.extend(["function", "pruning", "dependency", "constfold", "dependency"])
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def _resource(name, path):
    """The class _TRTEngineResource of trt_convert.py, with stock ops."""
    import tensorflow as tf
    from tensorflow.python.trackable import asset, resource

    class TRTEngineResource(resource.TrackableResource):
        def __init__(self):
            super().__init__(device="CPU")
            self._filename = self._track_trackable(asset.Asset(path), "_serialized_trt_resource_filename")

        def _create_resource(self):
            return tf.raw_ops.HashTableV2(
                key_dtype=tf.string, value_dtype=tf.int64, shared_name=f"TRT/{name.split('/')[-1]}"
            )

        def _initialize(self):
            tf.raw_ops.InitializeTableFromTextFileV2(
                table_handle=self.resource_handle, filename=self._filename, key_index=-2, value_index=-1
            )

        def _destroy_resource(self):
            tf.raw_ops.DestroyResourceOp(resource=self._create_resource(), ignore_lookup_error=True)

    return TRTEngineResource()


# --- Segments ---------------------------------------------------------------------------------------------------------


def cut_all(tf, graph_def, ends, style):
    """Cuts `style.engines` segments out: the graph with a call for each, and name -> the segment's own graph."""
    fixed = {name.split(":")[0] for name in ends}
    inner = [n.name for n in graph_def.node if n.op not in OUTSIDE | {"Const"} and n.name not in fixed]
    size = -(-len(inner) // style.engines)
    segments = {}
    for number in range(style.engines):
        name = f"{style.scope}TRTEngineOp_000_{number:03d}"
        graph_def, segments[name] = cut(tf, graph_def, inner[number * size : (number + 1) * size], name)
    return graph_def, segments


def cut(tf, graph_def, inside, name):
    """One segment: constants that it reads go with it."""
    nodes = {n.name: n for n in graph_def.node}
    constants = {r for n in inside for r in map(_node, nodes[n].input) if nodes[r].op == "Const"}
    dtypes = _dtypes(tf, graph_def)
    inside = [n.name for n in graph_def.node if n.name in {*inside, *constants}]
    read = [r for n in inside for r in nodes[n].input if r[0] != "^"]
    before = sorted({r for n in inside for r in nodes[n].input if r[0] == "^" and _node(r) not in inside})
    inputs = list(dict.fromkeys(_full(r) for r in read if _node(r) not in inside))
    outer = [n for n in graph_def.node if n.name not in inside]
    followed = [r for n in outer for r in n.input if r[0] != "^" and _node(r) in set(inside) - constants]
    outputs = list(dict.fromkeys(map(_full, followed)))
    segment = type(graph_def)(versions=graph_def.versions)
    for number, reference in enumerate(inputs):
        node = segment.node.add(name=f"TensorRTInputPH_{number}", op="Placeholder")
        node.attr["dtype"].type = dtypes[reference]
    for n in inside:
        node = segment.node.add()
        node.CopyFrom(nodes[n])
        node.device = DEVICE
        within = [r for r in node.input if r[0] != "^" or _node(r) in inside]
        node.input[:] = [r if _node(r) in inside else f"TensorRTInputPH_{inputs.index(_full(r))}" for r in within]
    for number, reference in enumerate(outputs):
        node = segment.node.add(name=f"TensorRTOutputPH_{number}", op="Identity", input=[reference])
        node.attr["T"].type = dtypes[reference]
    result = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    result.library.function.append(segment_function(tf, segment, f"{name}_native_segment"))
    engine = result.node.add(name=name, op="PartitionedCall", input=[*inputs, *before])
    engine.attr["Tin"].list.type.extend([dtypes[r] for r in inputs])
    engine.attr["Tout"].list.type.extend([dtypes[r] for r in outputs])
    engine.attr["f"].func.name = f"{name}_native_segment"
    still_read = {_node(r) for n in outer for r in n.input}
    for n in graph_def.node:
        if n.name not in inside or n.name in constants & still_read:
            node = result.node.add()
            node.CopyFrom(n)
            for index, r in enumerate(node.input):
                if r[0] == "^" and _node(r) in set(inside) - constants:
                    node.input[index] = f"^{name}"
                elif _full(r) in outputs:
                    node.input[index] = f"{name}:{outputs.index(_full(r))}"
    return result, segment


def segment_function(tf, segment, name):
    """The function that TF-TRT registers for a segment, by TensorFlow's own means."""
    from tensorflow.python.framework import graph_to_function_def

    lower = type(segment)()
    lower.CopyFrom(segment)
    for node in lower.node:
        for prefix in ("TensorRTInputPH_", "TensorRTOutputPH_"):
            node.name = node.name.replace(prefix, prefix.lower())
            node.input[:] = [r.replace(prefix, prefix.lower()) for r in node.input]
    with tf.compat.v1.Graph().as_default() as graph:
        tf.import_graph_def(lower, name="")
        operations = graph.get_operations()
        inputs = [o.outputs[0] for o in operations if o.name.startswith("tensorrtinputph_")]
        outputs = [o.outputs[0] for o in operations if o.name.startswith("tensorrtoutputph_")]
        function = graph_to_function_def.graph_to_function_def(
            graph, operations, inputs, outputs, [f"{t.op.name}_retval" for t in outputs]
        )
    function.signature.name = name
    return function


def _node(reference):
    return reference.split(":")[0].removeprefix("^")


def _full(reference):
    return reference if ":" in reference else f"{reference}:0"


def _dtypes(tf, graph_def):
    with tf.compat.v1.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        return {t.name: t.dtype.as_datatype_enum for o in graph.get_operations() for t in o.outputs}


# --- Models -----------------------------------------------------------------------------------------------------------


def save_cnn(tf, path):
    """image [None, 8, 8, 3] -> emb [None, 4], logits [None, 5]."""
    rng = np.random.default_rng(5)
    module = tf.Module()
    module.kernel = tf.Variable(rng.standard_normal((3, 3, 3, 4)), dtype=tf.float32, name="kernel")
    module.bias = tf.Variable(rng.standard_normal(4), dtype=tf.float32, name="bias")
    module.dense = tf.Variable(rng.standard_normal((4, 5)), dtype=tf.float32, name="dense")

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")])
    def call(image):
        features = tf.nn.relu(tf.nn.conv2d(image, module.kernel, 1, "SAME") + module.bias)
        emb = tf.reduce_mean(features, [1, 2])
        return {"logits": tf.nn.softmax(tf.matmul(emb, module.dense)), "emb": emb}

    module.call = call
    tf.saved_model.save(module, str(path), signatures={"serving_default": call})
    return {"image": rng.standard_normal((2, 8, 8, 3)).astype(np.float32)}


def save_multi(tf, path):
    """Two inputs of different dtypes, three outputs, a split (a node with several results)."""
    module = tf.Module()

    @tf.function(
        input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x"), tf.TensorSpec([None], tf.int32, name="index")]
    )
    def call(x, index):
        left, right = tf.split(x * 2.0, 2, axis=1)
        return {"sum": left + right, "prod": tf.sigmoid(left) * right, "index": index + tf.shape(left)[1]}

    module.call = call
    tf.saved_model.save(module, str(path), signatures={"serving_default": call})
    rng = np.random.default_rng(6)
    return {"x": rng.standard_normal((3, 6)).astype(np.float32), "index": np.arange(3, dtype=np.int32)}


def save_nchw(tf, path):
    """Channels first within, as the layout optimizer left graphs on a machine with a GPU."""
    rng = np.random.default_rng(8)
    module = tf.Module()
    kernel = tf.constant(rng.standard_normal((3, 3, 3, 4)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")])
    def call(image):
        x = tf.nn.conv2d(tf.transpose(image, [0, 3, 1, 2]), kernel, 1, "SAME", data_format="NCHW")
        x = tf.nn.max_pool2d(tf.nn.bias_add(x, tf.ones(4), data_format="NCHW"), 2, 2, "VALID", data_format="NCHW")
        return {"y": tf.transpose(x, [0, 2, 3, 1])}

    module.call = call
    tf.saved_model.save(module, str(path), signatures={"serving_default": call})
    return {"image": rng.standard_normal((2, 8, 8, 3)).astype(np.float32)}


def save_table(tf, path, folder):
    """Words in a file beside the model (a user's asset), looked up before anything is computed."""
    words = folder / "words.txt"
    words.write_text("a\nb\nc\n")
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        ),
        default_value=-1,
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def call(word):
        number = tf.cast(module.table.lookup(word), tf.float32)
        return {"y": tf.sqrt(number * 3.0 + 7.0)}

    module.call = call
    tf.saved_model.save(module, str(path), signatures={"serving_default": call})
    return {"word": np.array([b"c", b"a", b"?"], object)}


def outputs(tf, path, inputs, key="serving_default"):
    """What a SavedModel computes."""
    function = tf.saved_model.load(str(path)).signatures[key]
    return {name: t.numpy() for name, t in function(**{k: tf.constant(v) for k, v in inputs.items()}).items()}
