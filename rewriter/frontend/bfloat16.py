"""bfloat16 becomes float32: the converter writes bfloat16 constants as float16, and ONNX Runtime's CPU lacks kernels.

Where the bytes of the numbers count (they are read from a string or written into one, or taken for another type), the
node keeps bfloat16, between casts; such nodes stay in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewriter.frontend.callee import import_tensorflow
from rewriter.frontend.islands.dtypes import node_dtypes
from rewriter.frontend.structure import unique

#: DataType numbers.
BFLOAT16, _FLOAT32 = 14, 1
#: Operators that see the bytes of their elements; each has one output.
_OF_BYTES = frozenset({"Bitcast", "DecodePaddedRaw", "DecodeRaw", "Fingerprint", "ParseTensor", "SerializeTensor"})


def bfloat16_to_float32(graph_def: Any) -> bool:
    """Rewrites bfloat16 types and constants to float32, in a GraphDef and its functions; True if there was one."""
    library = {function.signature.name: function for function in graph_def.library.function}
    found = _rewrite(graph_def.node, library, in_function=False)
    for function in graph_def.library.function:
        made = [n.name for n in function.node_def if _sees_bytes(n, library) and BFLOAT16 in node_dtypes(n, library)[1]]
        found |= _rewrite(function.node_def, library, in_function=True)
        for key, source in list(function.ret.items()):  # writing reorders protobuf's map
            function.ret[key] = _after_cast(source, made)
        for argument in [*function.signature.input_arg, *function.signature.output_arg]:
            if argument.type == BFLOAT16:
                argument.type, found = _FLOAT32, True
    return found


def _rewrite(nodes: Any, library: Mapping[str, Any], in_function: bool) -> bool:
    """Rewrites the nodes of a graph or of a body in place."""
    exact = {node.name: node_dtypes(node, library) for node in nodes if _sees_bytes(node, library)}
    found = bool(exact)
    for node in nodes:
        if node.name not in exact:
            found |= _widen(node)
    if in_function:
        made = [name for name, (_, outputs) in exact.items() if BFLOAT16 in outputs]
        for node in nodes:
            node.input[:] = [_after_cast(source, made) for source in node.input]
    taken = {node.name for node in nodes}
    for node in [node for node in nodes if node.name in exact]:
        inputs, outputs = exact[node.name]
        for index, kind in enumerate(inputs):
            if kind == BFLOAT16:
                name = unique(f"{node.name}/to_bfloat16", taken)
                _cast(nodes, name, node.input[index], _FLOAT32, BFLOAT16)
                node.input[index] = f"{name}:y:0" if in_function else name
        if BFLOAT16 in outputs:
            name = node.name
            node.name = unique(f"{name}/bfloat16", taken)
            source = f"{node.name}:{_output(node)}:0" if in_function else node.name
            _cast(nodes, name, source, BFLOAT16, _FLOAT32)
    return found


def _sees_bytes(node: Any, library: Mapping[str, Any]) -> bool:
    """True for a node that needs its numbers in bfloat16."""
    if node.op not in _OF_BYTES:
        return False
    inputs, outputs = node_dtypes(node, library)
    return BFLOAT16 in (*inputs, *outputs)


def _after_cast(source: str, names: Sequence[str]) -> str:
    """Within a function: the output of the cast that has the name of the node which was read."""
    node, colon, _ = source.partition(":")
    return f"{node}:y:0" if colon and node in names else source


def _cast(nodes: Any, name: str, source: str, old: int, new: int) -> None:
    node = nodes.add(name=name, op="Cast", input=[source])
    node.attr["SrcT"].type, node.attr["DstT"].type = old, new


def _output(node: Any) -> str:
    """What the only output of an operator is called."""
    from tensorflow.python.framework import op_def_registry

    return str(op_def_registry.get(node.op).output_arg[0].name)


def _widen(node: Any) -> bool:
    """Rewrites the types and constants in the attributes of a node; True if there was one."""
    found = False
    for value in node.attr.values():
        if value.type == BFLOAT16:
            value.type, found = _FLOAT32, True
        for index, kind in enumerate(value.list.type):
            if kind == BFLOAT16:
                value.list.type[index], found = _FLOAT32, True
        if value.HasField("tensor") and value.tensor.dtype == BFLOAT16:
            tf = import_tensorflow()
            value.tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(value.tensor).astype("float32")))
    return found
