"""Which inputs and outputs of a node take a lower float type, as the operators' schemas say."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import onnx
from onnx import NodeProto, TensorProto

from passes.graph.walk import plain_domain

#: `Recipe.float_type` -> element type of the lowered values.
LOW_TYPES: Mapping[str, int] = {"FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
#: Element type -> how names of new values and nodes call it.
SHORT: Mapping[int, str] = {TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16"}
#: Operator -> numbers of inputs that stay float32 although the schema lets them be something else.
FIXED_INPUTS: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2), "Upsample": (1,)}

#: Per input or output: does it change its type?
Flags = tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Type texts of an operator's formal inputs and outputs, and the variables that may be float32 or the lower type.

    Attributes:
        inputs, outputs: one text a formal parameter: "T", "tensor(float)".
        variables: type variables that may be lowered.
        single: True when several actual inputs of the last, variadic one share one type.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variables: frozenset[str]
    single: bool

    def lowered_inputs(self, count: int) -> Flags:
        """Which of `count` actual inputs may be lowered."""
        if not self.single or not self.inputs:
            return (False,) * count
        last = len(self.inputs) - 1
        return tuple([self.inputs[min(i, last)] in self.variables for i in range(count)])

    def lowered_outputs(self, node: NodeProto, lowered: Flags) -> Flags:
        """Which outputs of `node` are lowered when the inputs `lowered` are: those that share their type variable."""
        if not self.outputs:
            return (False,) * len(node.output)
        last = len(self.inputs) - 1
        bound = {self.inputs[min(i, last)] for i, low in enumerate(lowered) if low}
        return tuple([self.outputs[min(i, len(self.outputs) - 1)] in bound for i in range(len(node.output))])


#: Their float types are spelt out in old schemas; TensorRT takes any, as long as scale and value agree.
_QUANTISATION = {
    "QuantizeLinear": Signature(("T", "T", "Q"), ("Q",), frozenset({"T"}), True),
    "DequantizeLinear": Signature(("Q", "T", "Q"), ("T",), frozenset({"T"}), True),
}


@functools.lru_cache(maxsize=4096)
def signature(op_type: str, domain: str, version: int, low: int) -> Signature | None:
    """The signature of an operator for one lower type; None for an operator that ONNX does not know.

    BF16 came late to many schemas (Conv: opset 22) although TensorRT builds it in any opset, so it counts when the
    newest version of the operator has it.
    """
    domain = plain_domain(domain)
    if not domain and op_type in _QUANTISATION:
        return _QUANTISATION[op_type]
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    allowed = _variables(schema, low)
    if low == TensorProto.BFLOAT16:
        allowed |= _variables(onnx.defs.get_schema(op_type, domain), low) & _variables(schema, TensorProto.FLOAT)
    inputs = tuple(i.type_str for i in schema.inputs)
    mixed = bool(schema.inputs) and not schema.inputs[-1].is_homogeneous
    return Signature(inputs, tuple(o.type_str for o in schema.outputs), frozenset(allowed), not mixed)


def _variables(schema: onnx.defs.OpSchema, low: int) -> set[str]:
    names: Mapping[int, str] = {
        TensorProto.FLOAT: "float",
        TensorProto.FLOAT16: "float16",
        TensorProto.BFLOAT16: "bfloat16",
    }
    wanted = {"tensor(float)", f"tensor({names[low]})"}
    return {c.type_param_str for c in schema.type_constraints if wanted <= set(c.allowed_type_strs)}


def attribute_int(node: NodeProto, name: str) -> int | None:
    """The value of an integer attribute, None where the node lacks it."""
    return next((int(a.i) for a in node.attribute if a.name == name), None)
