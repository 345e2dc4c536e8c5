"""What TensorRT takes: one verdict per node, each "no" with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from passes.model import Model

#: Rule of the nodes that TensorRT refuses and that are cut as if it took them.
FAKELIST = "fakelist"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether TensorRT takes one node.

    Attributes:
        node: the node's name, unique in the whole model, bodies of If/Loop/Scan included.
        op_type: its operator, with the domain in front unless it is the default one.
        supported: the answer.
        rule: a short slug of who decided: "parser", "build", "dtype", "rank", "denylist", "crash", "min_segment" ...
            A positive verdict of the rule `FAKELIST` is a pretence: the node may lie in a segment, but that is never
            built.
        reason: one sentence for people; empty only when supported. Of a pretence: why TensorRT does not take the node.
    """

    node: str
    op_type: str
    supported: bool
    rule: str = "parser"
    reason: str = ""

    @property
    def pretended(self) -> bool:
        """True for a node that counts as supported only because its operator is on the fake list."""
        return self.supported and self.rule == FAKELIST

    def __post_init__(self) -> None:
        if not self.supported and not self.reason:
            raise ValueError(f"a denial needs a reason: node {self.node!r}, rule {self.rule!r}")


@dataclasses.dataclass(frozen=True)
class SupportMap:
    """Verdicts by node name, in graph order; a denial, once given, is never overwritten."""

    verdicts: Mapping[str, Verdict]

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> SupportMap:
        """Collects verdicts; of several for one node the first denial wins."""
        found: dict[str, Verdict] = {}
        for verdict in verdicts:
            if verdict.node not in found or (found[verdict.node].supported and not verdict.supported):
                found[verdict.node] = verdict
        return cls(found)

    def deny(self, denials: Iterable[Verdict]) -> SupportMap:
        """A new map with these denials added."""
        return SupportMap.of([*self.verdicts.values(), *denials])

    def pretend(self, marks: Iterable[Verdict]) -> SupportMap:
        """A new map in which these positive verdicts stand in the place of other positive ones; denials stay."""
        found = {mark.node: mark for mark in marks if self.supported(mark.node)}
        return SupportMap({**self.verdicts, **found})

    def supported(self, node: str) -> bool:
        """True when there is a positive verdict for the node named `node`."""
        verdict = self.verdicts.get(node)
        return verdict is not None and verdict.supported

    def denials(self) -> tuple[Verdict, ...]:
        """All negative verdicts, in graph order."""
        return tuple(v for v in self.verdicts.values() if not v.supported)

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts.values())


class SupportOracle(Protocol):
    """Answers which nodes of a model TensorRT takes (implemented in `rewriter.backends.oracle`)."""

    def examine(self, model: Model) -> SupportMap:
        """One verdict for every node, bodies of If/Loop/Scan included."""
        ...
