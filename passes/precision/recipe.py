"""What arithmetic the engines use, as one frozen value."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from onnx import NodeProto

#: Modes, from the source's own arithmetic to the lowest. TF32 is FP32 with permission to use TF32 tensor cores.
MODES = ("FP32", "TF32", "FP16", "BF16", "INT8", "FP8")
#: Modes that put QuantizeLinear / DequantizeLinear pairs in.
QUANTIZED_MODES = ("INT8", "FP8")
#: What floating-point nodes may compute in.
FLOAT_TYPES = ("FP32", "FP16", "BF16")
#: Operators that are quantised: those with int8 and FP8 kernels, and the residual Add that TensorRT fuses with one.
QUANTIZED_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Add")
#: Between the name of a node of the original model and what a lowering step made beside it ("conv//quantize").
MARK = "//"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that `lower()` needs beside the segment and the ranges.

    Attributes:
        mode: one of `MODES`.
        float_type: one of `FLOAT_TYPES`: what nodes that are not quantised compute in. It follows from the mode for
            FP32, TF32, FP16 and BF16 (see `of`); INT8 and FP8 take FP16 unless told otherwise, as TF-TRT did.
        keep_ops: operator types that stay as the source has them.
        keep_nodes: regular expressions (`re.search`); nodes whose name one of them finds stay as they are.
        kept: exact names of nodes that stay as they are: what the accuracy guard and failed builds decided.
        unquantized: exact names of nodes that INT8 and FP8 leave in `float_type`, likewise.
        quantize_ops: operator types that INT8 and FP8 quantise.
        asymmetric: what becomes of a trained (fake-quantisation) range that symmetric int8 cannot hold exactly:
            "symmetrise" widens it and reports by how much values can change; "refuse" makes it an error.
        int4_block: 0, or the number of weights along the inner dimension that share a scale: constant weights of
            MatMul become INT4.
    """

    mode: str = "FP32"
    float_type: str = "FP32"
    keep_ops: tuple[str, ...] = ()
    keep_nodes: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()
    unquantized: frozenset[str] = frozenset()
    quantize_ops: tuple[str, ...] = QUANTIZED_OPS
    asymmetric: str = "symmetrise"
    int4_block: int = 0

    @classmethod
    def of(cls, mode: str, float_type: str | None = None, **more: Any) -> Recipe:
        """The recipe of a mode; `float_type` matters to INT8 and FP8 only (default FP16)."""
        natural = {"FP32": "FP32", "TF32": "FP32", "FP16": "FP16", "BF16": "BF16"}
        return cls(mode, natural.get(mode) or float_type or "FP16", **more)

    @property
    def label(self) -> str:
        """For people and keys: "FP32", "INT8+FP16", "FP16+INT4"."""
        parts = [self.mode]
        if self.quantizes and self.float_type != "FP32":
            parts.append(self.float_type)
        if self.int4_block:
            parts.append("INT4")
        return "+".join(parts)

    @property
    def quantizes(self) -> bool:
        """True when activations are quantised, so that ranges are needed."""
        return self.mode in QUANTIZED_MODES

    @property
    def changes(self) -> bool:
        """True when lowering does anything at all."""
        return self.quantizes or self.float_type != "FP32" or self.int4_block > 0

    def keeps(self, node: NodeProto) -> bool:
        """True when the node stays as the source has it."""
        return (
            node.op_type in self.keep_ops
            or origin(node.name) in self.kept
            or any(re.search(pattern, node.name) for pattern in self.keep_nodes)
        )

    def leaves(self, node: NodeProto) -> bool:
        """True when the node is not to be quantised; `float_type` may lower it all the same."""
        return origin(node.name) in self.unquantized or self.keeps(node)

    def to_json(self) -> dict[str, Any]:
        """Plain values, equal for equal recipes."""
        return {**dataclasses.asdict(self), "kept": sorted(self.kept), "unquantized": sorted(self.unquantized)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_json`.

        Raises:
            ValueError: an unknown mode or type, or a field that is missing or unknown.
        """
        try:
            names = ("keep_ops", "keep_nodes", "quantize_ops")
            sets = ("kept", "unquantized")
            values = {**{n: tuple(data[n]) for n in names}, **{n: frozenset(data[n]) for n in sets}}
            recipe = cls(**{**data, **values})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the precision recipe lacks or misspells a field: {error}") from error
        if recipe.mode not in MODES or recipe.float_type not in FLOAT_TYPES:
            raise ValueError(f"unknown precision {recipe.mode!r} with {recipe.float_type!r}")
        return recipe


def origin(name: str) -> str:
    """The node of the original model that a node of a lowered one stems from (itself, if it is one)."""
    return name.partition(MARK)[0]
