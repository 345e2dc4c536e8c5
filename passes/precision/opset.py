"""Raises the opset of a model: FP8 is known from 19 on, INT4 from 21 on, exporters write 18.

From 13 to 22 nearly all operators only gain types and attributes whose defaults mean what was meant before. The few
others are rewritten (`_RULES`) or refused with the reason; a test compares every schema, so that none is forgotten.
onnx.version_converter does not know all of this and wants the weights in the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from passes.base import Change, PassError, PassResult
from passes.graph.editing import Namer, label, value_namer
from passes.graph.walk import iter_nodes
from passes.model import Model
from passes.precision.recipe import MARK

#: Versions of the default domain that are known here.
OLDEST, NEWEST = 13, 22


@dataclasses.dataclass(frozen=True)
class RaiseOpset:
    """Brings the default domain to `version` at least; a model that has it stays as it is.

    Attributes:
        version: the opset that a later step needs, `OLDEST` .. `NEWEST`.
    """

    version: int
    name: str = "raise_opset"

    def run(self, model: Model) -> PassResult:
        """Raises the opset.

        Raises:
            PassError: a node cannot be carried over; the message names it and says why.
        """
        return raise_opset(model, self.version)


def opset_of(proto: ModelProto) -> int:
    """Version of the default domain; 0 when the model does not import it."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def raise_opset(model: Model, version: int) -> PassResult:
    """The model with the default domain at `version` or what is higher already; every node means what it meant.

    Raises:
        PassError: a node cannot be carried over, the model is older than `OLDEST`, or `version` is not known here.
    """
    before = opset_of(model.proto)
    if before >= version:
        return PassResult(model)
    if before < OLDEST or version > NEWEST:
        raise PassError(
            f"raise_opset: from opset {before} to {version} cannot be gone, only from {OLDEST} on and up to {NEWEST}: "
            "convert the model with onnx.version_converter first"
        )
    proto = model.copy_proto()
    workshop = _Workshop(before, version, value_namer(proto.graph))
    changes = [Change("raise-opset", "model", f"opset {before} -> {version}")]
    for node in iter_nodes(proto):
        for rule in _RULES:
            if before < rule.since <= version and node.op_type in rule.operators and not node.domain:
                reason = rule.apply(workshop, node)
                if reason:
                    changes.append(Change("raise-opset", node.name, reason))
    proto.graph.initializer.extend(workshop.made)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = version
    needed = helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    proto.ir_version = max(proto.ir_version, needed)
    return PassResult(model.with_proto(proto), tuple(changes))


@dataclasses.dataclass
class _Workshop:
    """What rules need beside the node."""

    before: int
    version: int
    values: Namer
    made: list[TensorProto] = dataclasses.field(default_factory=list)

    def constant(self, array: np.ndarray, base: str) -> str:
        """Name of a new main-graph initializer."""
        tensor = numpy_helper.from_array(array, self.values.fresh(base))
        self.made.append(tensor)
        return tensor.name

    def refuse(self, node: NodeProto, why: str) -> PassError:
        """The error for a node that cannot be carried over."""
        return PassError(
            f"raise_opset: node {label(node)} cannot be carried from opset {self.before} to {self.version}: {why}; "
            "keep it out of the engines (node_denylist) or export the model with the newer opset"
        )


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What to do with nodes of `operators` on the way past opset `since`.

    `apply` edits the node and returns what it did ("" for nothing), or raises `_Workshop.refuse`.
    """

    since: int
    operators: frozenset[str]
    apply: Callable[[_Workshop, NodeProto], str]


def _take(node: NodeProto, name: str) -> object:
    """Removes an attribute; returns its value, None without one."""
    for i, attribute in enumerate(node.attribute):
        if attribute.name == name:
            value: object = helper.get_attribute_value(attribute)
            del node.attribute[i]
            return value
    return None


def _has(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name for attribute in node.attribute)


def _truth(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _set_input(node: NodeProto, index: int, name: str) -> None:
    """Sets an optional input, with the ones before it left out."""
    node.input.extend([""] * (index + 1 - len(node.input)))
    node.input[index] = name


def _batch_normalization(workshop: _Workshop, node: NodeProto) -> str:
    """Before 14 more than one output meant training; the extra ones are gone since."""
    if len([name for name in node.output if name]) > 1:
        raise workshop.refuse(node, "it normalises as in training")
    del node.output[1:]
    return ""


def _roi_align(_: _Workshop, node: NodeProto) -> str:
    """Before 16 there was no half-pixel shift; since then there is, unless told otherwise."""
    if _has(node, "coordinate_transformation_mode"):
        return ""
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "output_half_pixel"))
    return "coordinate_transformation_mode is written out"


def _reduce(workshop: _Workshop, node: NodeProto) -> str:
    """The axes became an input in 18."""
    axes = _take(node, "axes")
    if axes is None:
        return ""
    name = workshop.constant(np.asarray(axes, np.int64), f"{node.name}{MARK}axes")
    _set_input(node, 1, name)
    return "axes are an input"


def _split(_: _Workshop, node: NodeProto) -> str:
    """Since 18 the number of equal parts must be said."""
    if (len(node.input) > 1 and node.input[1]) or _has(node, "num_outputs"):
        return ""
    node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))
    return "num_outputs is written out"


def _grid_sample(_: _Workshop, node: NodeProto) -> str:
    """Two modes got other names in 20."""
    mode = _take(node, "mode")
    if mode is None:
        return ""
    old = bytes(mode).decode()  # type: ignore[call-overload]
    new = {"bilinear": "linear", "bicubic": "cubic"}.get(old, old)
    node.attribute.append(helper.make_attribute("mode", new))
    return f"mode is called {new!r}" if new != old else ""


def _dft(workshop: _Workshop, node: NodeProto) -> str:
    """The axis became an input in 20, with another default."""
    axis = _take(node, "axis")
    name = workshop.constant(np.array(1 if axis is None else axis, np.int64), f"{node.name}{MARK}axis")
    _set_input(node, 2, name)
    return "axis is an input"


def _group_normalization(workshop: _Workshop, node: NodeProto) -> str:
    """Scale and bias are of another length since 21."""
    raise workshop.refuse(node, "its scale and bias are per group, later ones are per channel")


def _pool(workshop: _Workshop, node: NodeProto) -> str:
    """Since 22 a window that would begin in the padding on the far side is left out."""
    if _truth(node, "ceil_mode"):
        raise workshop.refuse(node, "with ceil_mode its last windows are counted differently")
    return ""


_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_RULES = (
    _Rule(14, frozenset({"BatchNormalization"}), _batch_normalization),
    _Rule(16, frozenset({"RoiAlign"}), _roi_align),
    _Rule(18, frozenset(f"Reduce{name}" for name in _REDUCE), _reduce),
    _Rule(18, frozenset({"Split"}), _split),
    _Rule(20, frozenset({"GridSample"}), _grid_sample),
    _Rule(20, frozenset({"DFT"}), _dft),
    _Rule(21, frozenset({"GroupNormalization"}), _group_normalization),
    _Rule(22, frozenset({"AveragePool", "LpPool", "MaxPool"}), _pool),
)
