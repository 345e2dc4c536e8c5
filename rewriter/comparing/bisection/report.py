"""What a bisection found, as a frozen value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rewriter.comparing.comparison import finite_json

#: The cause where the source, converted once more, computes what it should.
OUTDATED = "the artifact was converted from another or an older version of this source: convert it again"


@dataclasses.dataclass(frozen=True)
class Contribution:
    """How far the result of one node (or segment) is off when it is fed with the reference's values.

    Attributes:
        node: the node's name; "" for a whole segment.
        op_type: its operator.
        segment: the engine node that it belongs to; None for none.
        own: max|difference| / max|reference| of its results.
    """

    node: str
    op_type: str
    segment: str | None
    own: float

    @property
    def text(self) -> str:
        """In words, for people."""
        name = f"node {self.node!r} ({self.op_type})" if self.node else "the whole segment"
        return f"{name}{f' of {self.segment}' if self.segment else ''}, off by {self.own:.1e} on its own"


@dataclasses.dataclass(frozen=True)
class Bisection:
    """Where two ways of computing a model begin to differ by more than a tolerance.

    All differences are max|result - reference| / max|reference| over all samples; infinite where NaN or infinities
    stand in other places.

    Attributes:
        reference, result: who is held against whom: "source", "native", "emulated" or "tensorrt".
        tolerance: largest difference of a value that passes.
        outputs: public name of every output beyond its tolerance -> its difference.
        segment: the engine node whose segment holds `node`; None for a node that no engine computes.
        node: the first node whose result is beyond the tolerance and reaches an output so; "" where nothing was found,
            or only the segment.
        op_type: its operator (TensorFlow's, where the source is a TensorFlow model and knows it).
        value: the name of that result.
        difference: its difference.
        before: the largest difference of what goes into it.
        own: its difference when it is fed with the reference's values; None where that was not measured.
        contribution: where `own` is within the tolerance: the largest contribution to what adds up, if one was found.
        option: the options of `trt-rewriter convert`, beside those of the conversion, that exclude what differs; ""
            where there are none.
        excluded: names of the nodes (or operators of TensorFlow) that `option` excludes.
        verified: the largest difference of an output with `option`; None: not measured.
        passed: whether all outputs are within their tolerances then; None: not measured.
        notes: what could not be looked into, and what else is worth knowing; one line each.
        cause: what differs as a whole, where no node is to blame; "" where that is not so.
    """

    reference: str
    result: str
    tolerance: float
    outputs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    segment: str | None = None
    node: str = ""
    op_type: str = ""
    value: str = ""
    difference: float = 0.0
    before: float = 0.0
    own: float | None = None
    contribution: Contribution | None = None
    option: str = ""
    excluded: tuple[str, ...] = ()
    verified: float | None = None
    passed: bool | None = None
    notes: tuple[str, ...] = ()
    cause: str = ""

    @property
    def found(self) -> bool:
        """True when a node or a segment was found."""
        return bool(self.node or self.segment)

    @property
    def accumulated(self) -> bool:
        """True when the node's own difference is within the tolerance: what goes into it brings the rest."""
        return self.own is not None and self.own <= self.tolerance

    def text(self) -> str:
        """Some lines for people."""
        pair = f"{self.result} against {self.reference}"
        if not self.outputs:
            lines = [f"Bisection of {pair}: no output is beyond its tolerance (the strictest is {self.tolerance:.1e})."]
            return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
        worst = max(self.outputs, key=lambda name: self.outputs[name])
        lines = [
            f"Bisection of {pair}, tolerance {self.tolerance:.1e}: output {worst!r} differs by "
            f"{_figure(self.outputs[worst])}"
        ]
        lines += self._place()
        lines += self._advice()
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _place(self) -> list[str]:
        if self.cause:
            return [f"  cause: {self.cause}"]
        if not self.found:
            return ["  no node was found where it begins"]
        lines = []
        if self.reference != "source":
            lines.append(f"  first segment: {self.segment or 'none, the node is in no engine'}")
        if self.node:
            lines.append(f"  first node:    {self.node!r} ({self.op_type})")
        lines.append(
            f"  its result:    {self.value!r} differs by {_figure(self.difference)}, what goes into it by at most "
            f"{_figure(self.before)}"
        )
        if self.own is not None:
            kind = "what goes into it brings the rest" if self.accumulated else "so the difference is its own"
            lines.append(f"  on its own:    {_figure(self.own)} when fed with the {self.reference} values; {kind}")
        if self.contribution is not None:
            lines.append(f"  most of that:  {self.contribution.text}")
        return lines

    def _advice(self) -> list[str]:
        if not self.option:
            return []
        lines = [f"  to exclude it: trt-rewriter convert ... {self.option}"]
        if self.verified is not None:
            verdict = "every output is within its tolerance" if self.passed else "some output is still beyond its own"
            lines.append(f"  measured so:   {verdict} then; the largest difference of one is {_figure(self.verified)}")
        else:
            lines.append("  not measured:  convert again with it and compare")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON knows (what is not finite becomes a text), with `found`, `accumulated` and `text`."""
        data = {**dataclasses.asdict(self), "found": self.found, "accumulated": self.accumulated, "text": self.text()}
        plain: dict[str, Any] = finite_json(data)
        return plain


def _figure(value: float) -> str:
    return "infinity (NaN, infinity or another shape)" if math.isinf(value) else f"{value:.1e}"
