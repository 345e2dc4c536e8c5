"""Models with island nodes, and SavedModels for them."""

import onnx
from onnx import TensorProto, helper

from passes.island_node import ISLAND_DOMAIN, ISLAND_DOMAIN_VERSION, IslandAttributes, make_island
from passes.model import Model, from_proto


def island(number, inputs, outputs, folder="/nowhere", ops=(), reasons=("no word for it",)):
    """An island node TFIsland_<number>."""
    attributes = IslandAttributes(
        str(folder),
        tuple(f"input_{i}" for i in range(len(inputs))),
        tuple(f"output_{i}" for i in range(len(outputs))),
        tuple(ops),
        tuple(reasons),
    )
    return make_island(f"TFIsland_{number:03d}", tuple(inputs), tuple(outputs), attributes)


def model(text: str, islands=(), infos=(), order=None) -> Model:
    """A parsed graph with island nodes put in topological order and the types of their outputs.

    `text` is a graph in ONNX's own notation; values that only islands make may be read in it.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}')
    nodes = [*proto.graph.node, *islands]
    known = {v.name for v in proto.graph.input} | {t.name for t in proto.graph.initializer} | {""}
    ordered = []
    while nodes:
        ready = next(n for n in nodes if known.issuperset(n.input))
        nodes.remove(ready)
        ordered.append(ready)
        known.update(ready.output)
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)
    if islands:
        proto.opset_import.add(domain=ISLAND_DOMAIN, version=ISLAND_DOMAIN_VERSION)
    for name, dtype, shape in infos:
        proto.graph.value_info.append(helper.make_tensor_value_info(name, dtype, shape))
    return from_proto(proto)


def save_island(folder, function, *specs):
    """Writes a SavedModel whose signature is `function`, positional in and a tuple out."""
    import tensorflow as tf

    names = [f"input_{i}" for i in range(len(specs))]

    class Module(tf.Module):
        pass

    module = Module()

    def call(**values):
        found = function(*(values[name] for name in names))
        found = found if isinstance(found, tuple) else (found,)
        return {f"output_{i}": value for i, value in enumerate(found)}

    signature = {
        name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in zip(names, specs, strict=True)
    }
    traced = tf.function(call).get_concrete_function(**signature)
    module.call = traced
    tf.saved_model.save(module, str(folder), signatures={"serving_default": traced})
    return folder


FLOAT, STRING, INT64 = TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT64
