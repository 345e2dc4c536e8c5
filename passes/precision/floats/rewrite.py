"""Carries out a plan of lowering: what every node reads, where Casts stand, constants in their new type."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from passes.graph.editing import node_namer, replace_nodes, value_namer
from passes.graph.walk import bodies_of
from passes.model import Weights
from passes.precision.floats.constants import lower_array
from passes.precision.floats.facts import Facts
from passes.precision.floats.islands import takes_any
from passes.precision.floats.types import SHORT, attribute_int
from passes.precision.recipe import MARK, origin

_FLOAT = TensorProto.FLOAT
#: Operators whose clamped constants are masks, which sums meet later: a sum of two must not make an infinity.
_MASKS = frozenset({"Add", "Mul", "Sub", "Where"})


class Rewrite:
    """One rewrite, in place.

    A value lives in the type of its maker. `_lower_name` and `_float_name` say under which name it is read in the
    other one; a name that is asked for first brings a Cast with it, which stands behind the value itself.

    Args:
        facts: of the model whose proto is rewritten; its nodes are edited.
        low: per node of `facts`: is it lowered?
        proto: the model; its graph is edited.
    """

    def __init__(self, facts: Facts, low: Sequence[bool], proto: ModelProto) -> None:
        self._facts = facts
        self._low = low
        self._proto = proto
        self._values = value_namer(proto.graph)
        self._nodes = node_namer(proto.graph)
        self._lower_name: dict[str, str] = {}
        self._float_name: dict[str, str] = {}
        self._behind: dict[str, list[NodeProto]] = {}
        self._converted: dict[tuple[str, bool], str] = {}
        self._read: set[str] = set()
        self._lowered: set[str] = set()
        self._dropped: set[int] = set()
        self._no_ops: set[int] = set()
        self._position = 0

    def run(self) -> Weights:
        """Edits the graph; returns the arrays of new stubs."""
        for number, node in enumerate(self._facts.nodes):
            self._inputs(number, node)
            self._outputs(number, node)
        self._drop_casts()
        self._write(self._proto.graph)
        return self._constants()

    def _inputs(self, number: int, node: NodeProto) -> None:
        """Makes a node read every value in the type that it computes in."""
        facts, names = self._facts, self._facts.inputs[number]
        if facts.floats[number] and self._low[number] and not takes_any(facts, number):
            flags, _ = facts.lowered_flags(number)
            new = [
                self._as_low(n, node) if low else self._as_float(n, node) for n, low in zip(names, flags, strict=True)
            ]
        elif facts.floats[number] and self._low[number]:
            new = [self._as_it_is(name) for name in names]
        else:
            new = [self._as_float(name, node) for name in names]
        for i, (old, name) in enumerate(zip(names, new, strict=True)):
            if old != name:
                node.input[i] = name
        self._read.update(new)

    def _outputs(self, number: int, node: NodeProto) -> None:
        """Settles the type of what a node makes."""
        facts = self._facts
        if node.op_type == "Cast" and self._cast(number, node):
            return
        if not facts.floats[number] or not self._low[number]:
            return
        _, flags = facts.lowered_flags(number)
        for i, (name, low) in enumerate(zip(facts.outputs[number], flags, strict=True)):
            if not low:
                continue
            self._lowered.add(name)
            self._lower_name[name] = name
            if name in facts.results:
                lower = self._values.fresh(f"{name}{MARK}{SHORT[facts.low]}")
                node.output[i] = lower
                self._lower_name[name], self._float_name[name] = lower, name
                self._add_cast(name, lower, name, _FLOAT, node)
        if node.op_type == "Cast" and flags[0]:
            _set_int(node, "to", facts.low)
        elif node.op_type == "ConstantOfShape" and flags[0]:
            self._fill(node)

    def _cast(self, number: int, node: NodeProto) -> bool:
        """Casts of the source between float32 and the lower type: what they make is there already."""
        facts = self._facts
        source, made = facts.inputs[number][0], facts.outputs[number][0]
        target, low = attribute_int(node, "to"), facts.low
        if target == _FLOAT and facts.types.get(source) == low:
            self._lower_name[made] = self._as_it_is(source)
            self._dropped.add(number)
            return True
        if target == _FLOAT and facts.is_float(source) and self._low[number] and made not in facts.results:
            self._lower_name[made] = node.input[0]
            self._lowered.add(made)
            self._no_ops.add(number)
            return True
        if target == low and source in self._lowered and made not in facts.results:
            self._lower_name[made] = self._float_name[made] = self._lower_name[source]
            self._dropped.add(number)
            return True
        return False

    def _drop_casts(self) -> None:
        """Leaves the Casts that somebody reads after all."""
        facts = self._facts
        made = {number: facts.outputs[number][0] for number in self._dropped}
        unread = {n for n, name in made.items() if name not in self._read and name not in facts.results}
        self._dropped = unread | self._no_ops

    def _as_it_is(self, name: str) -> str:
        return self._lower_name[name] if name in self._lowered else self._float_name.get(name, name)

    def _as_low(self, name: str, reader: NodeProto) -> str:
        facts = self._facts
        if name in facts.constants:
            key = name, reader.op_type in _MASKS and facts.constants.overflows(name)
            if key not in self._converted:
                self._converted[key] = self._values.fresh(f"{name}{MARK}{SHORT[facts.low]}")
            return self._converted[key]
        if name not in self._lower_name:
            self._lower_name[name] = self._values.fresh(f"{name}{MARK}{SHORT[facts.low]}")
            self._add_cast(name, name, self._lower_name[name], facts.low, self._maker(name, reader))
        return self._lower_name[name]

    def _as_float(self, name: str, reader: NodeProto) -> str:
        if name in self._lowered and name not in self._float_name:
            self._float_name[name] = self._values.fresh(f"{name}{MARK}{SHORT[_FLOAT]}")
            self._add_cast(name, self._lower_name[name], self._float_name[name], _FLOAT, self._maker(name, reader))
        return self._float_name.get(name, name)

    def _maker(self, name: str, reader: NodeProto) -> NodeProto:
        """After which node a Cast is called: the one that makes the value, else the first that reads it."""
        number = self._facts.producer.get(name)
        return reader if number is None else self._facts.nodes[number]

    def _add_cast(self, behind: str, source: str, target: str, dtype: int, named_after: NodeProto) -> None:
        name = self._nodes.fresh(f"{origin(named_after.name)}{MARK}cast")
        self._read.add(source)
        self._behind.setdefault(behind, []).append(helper.make_node("Cast", [source], [target], name, to=dtype))

    def _fill(self, node: NodeProto) -> None:
        """Gives a ConstantOfShape its value in the lower type."""
        low = self._facts.low
        for attribute in node.attribute:
            if attribute.name == "value":
                array = lower_array(numpy_helper.to_array(attribute.t), low)
                attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
                return
        node.attribute.append(helper.make_attribute("value", helper.make_tensor("value", low, [1], [0.0])))

    def _write(self, graph: GraphProto) -> None:
        """Puts the Casts into a graph, takes superfluous ones out; bodies first, as `Facts` counts the nodes."""
        new: list[NodeProto] = []
        for name in (*[value.name for value in graph.input], *[tensor.name for tensor in graph.initializer]):
            new += self._behind.pop(name, ())
        gone: set[str] = set()
        for node in graph.node:
            for _, body in bodies_of(node):
                self._write(body)
            number = self._position
            self._position += 1
            if number in self._dropped:
                gone.update(self._facts.outputs[number])
            else:
                new.append(node)
            for name in self._facts.outputs[number]:
                new += self._behind.pop(name, ())
        if len(new) != len(graph.node) or gone:
            replace_nodes(graph, new)
        self._declare(graph, gone)

    def _declare(self, graph: GraphProto, gone: set[str]) -> None:
        """Corrects what the graph says about its inner values."""
        for value in graph.value_info:
            if value.name in self._lowered and value.name not in self._facts.results:
                value.type.tensor_type.elem_type = self._facts.low
        if gone:
            kept = [value for value in graph.value_info if value.name not in gone]
            del graph.value_info[:]
            graph.value_info.extend(kept)

    def _constants(self) -> Weights:
        """Adds the converted constants behind the others and removes what nobody reads any more."""
        graph, weights = self._proto.graph, {}
        results = {value.name for value in graph.output}
        made = []
        for (name, mask), new_name in self._converted.items():
            tensor, array = self._facts.constants.lowered(name, new_name, mask=mask)
            made.append(tensor)
            if array is not None:
                weights[new_name] = array
        sources = {name for name, _ in self._converted}
        kept = [t for t in graph.initializer if t.name not in sources or t.name in self._read or t.name in results]
        if len(kept) != len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)
        graph.initializer.extend(made)
        return weights


def _set_int(node: NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
