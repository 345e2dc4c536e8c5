"""What the accuracy guard decided, as frozen values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from passes.precision.recipe import Recipe
from rewriter.accuracy.target import Judgement
from rewriter.comparing.comparison import finite_json


@dataclasses.dataclass(frozen=True)
class KeptNode:
    """A node that keeps its precision: its name in the cleaned model, its operator, its segment, and why."""

    node: str
    op_type: str
    segment: str
    reason: str


@dataclasses.dataclass(frozen=True)
class GuardReport:
    """What the guard measured and decided.

    Attributes:
        target: the goal in words.
        precision: the recipe's label.
        before, after: value, limit and words with everything lowered, and with all but `kept` lowered.
        kept: one entry a node.
        rung: where they go: "unquantized" (INT8 and FP8 leave them in the recipe's float type) or "kept" (the source's
            own arithmetic).
        nodes: number of nodes that lowering changes if it may.
        inputs: number of inputs each run goes over.
        runs: runs of the emulated model.
        seconds: what all of it took.
        exhausted: the runs allowed were used up, so more may be kept than necessary.
        measurements: per run, in order: "level" ("segments", "nodes", "rest"), "lowered" (nodes), "value", "passed".
    """

    target: str
    precision: str
    before: Judgement
    after: Judgement
    kept: tuple[KeptNode, ...]
    rung: str
    nodes: int
    inputs: int
    runs: int
    seconds: float
    exhausted: bool
    measurements: tuple[Mapping[str, Any], ...]

    @property
    def text(self) -> str:
        """One line for people."""
        cost = f"{self.runs} run(s) over {self.inputs} input(s), {self.seconds:.1f} s"
        if not self.kept:
            return f"{self.target}: met with everything lowered; {self.after.text}; {cost}"
        spent = "; the runs allowed were used up, so it may be more than necessary" if self.exhausted else ""
        return (
            f"{self.target}: met with {len(self.kept)} of {self.nodes} nodes kept; {self.after.text}; with everything "
            f"lowered {self.before.text}; {cost}{spent}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON knows (what is not finite becomes a text), and `text`."""
        plain: dict[str, Any] = finite_json({"text": self.text, **dataclasses.asdict(self)})
        return plain


@dataclasses.dataclass(frozen=True)
class GuardResult:
    """The decision.

    Attributes:
        recipe: the one given, with the kept nodes in `unquantized` or `kept`.
        kept: node name -> why it keeps its precision, in the order of the model.
        before, after: the judgements with everything lowered, and by `recipe`.
        report: all of it for the report.
    """

    recipe: Recipe
    kept: Mapping[str, str]
    before: Judgement
    after: Judgement
    report: GuardReport
