"""Which pass over an ONNX source changes what it computes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Mapping

from passes.base import PassRecord
from passes.model import Model
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.report import OUTDATED
from rewriter.comparing.bisection.sides import ModelSide
from rewriter.comparing.bisection.subject import Subject
from rewriter.source import SourceModel

#: Optional pass -> the field of RewriterConfig that switches it off.
_TOGGLES = {
    "fold_constants": "constant_folding",
    "common_subexpressions": "common_subgraph_elimination",
    "cancel_transposes": "layout_optimizer",
}
_FILE = "rewriter_config.json"


@dataclasses.dataclass(frozen=True)
class Blame:
    """The pass, and what can be done.

    Attributes:
        excluded: its name; () where no pass is to blame.
        option, verified, passed, notes, cause: as in `Bisection`.
    """

    excluded: tuple[str, ...] = ()
    option: str = ""
    verified: float | None = None
    passed: bool | None = None
    notes: tuple[str, ...] = ()
    cause: str = ""


class _FoundError(Exception):
    """Ends the pipeline: the pass is known."""


def blame_pass(subject: Subject, source: SourceModel, failed: Mapping[str, float]) -> Blame:
    """Cleans the source again, and compares the outputs after every pass that changed something.

    Raises:
        ConversionError: the model cannot be run after a pass.
        PassError: a pass left an invalid graph.
    """
    from rewriter.pass_selection import parse_rewriter_config
    from rewriter.runtime.native import evaluate

    guilty: list[tuple[str, float]] = []

    def watch(record: PassRecord, model: Model) -> None:
        if record.changes:
            outputs = _outputs(subject, source, model)
            if subject.beyond(outputs):
                guilty.append((record.name, max(outputs[name].relative for name in failed)))
                raise _FoundError

    with contextlib.suppress(_FoundError):
        parse_rewriter_config(None).pipeline(evaluate).run(source.model, watch)
    said = subject.artifact.params.get("passes")
    chosen = isinstance(said, Mapping) and bool(said.get("given"))
    if not guilty:
        notes = ["cleaned again by this version, without any option, the source computes what it should"]
        if chosen:
            notes.append("its passes were chosen by a RewriterConfig: if it differs again, convert without that")
        return Blame(notes=tuple(notes), cause=OUTDATED)
    if chosen:
        note = "the passes were chosen by a RewriterConfig: convert without it to see whether one differs"
        return Blame(notes=(note,))
    name, difference = guilty[0]
    told = f"the outputs differ (by {difference:.1e}) from the pass {name!r} on"
    if name not in _TOGGLES:
        return Blame((name,), notes=(f"{told}, and the conversion needs this pass: please report it",))
    config = {_TOGGLES[name]: "OFF"}
    cleaned, _ = parse_rewriter_config(config).pipeline(evaluate).run(source.model)
    outputs = _outputs(subject, source, cleaned)
    return Blame(
        (name,),
        f"--rewriter-config-template {shlex.quote(_FILE)}",
        max((outputs[n].relative for n in subject.limits), default=0.0),
        not subject.beyond(outputs),
        (f"{told}; {_FILE} is to hold {json.dumps(config)}, which leaves it out",),
    )


def _outputs(subject: Subject, source: SourceModel, model: Model) -> dict[str, Gap]:
    """Public output name -> gap between the source and a cleaned model of it."""
    tensors = {spec.name: spec.tensor for spec in source.signature.outputs}
    names = {spec.name: spec.tensor for spec in source.signature.inputs}
    left = ModelSide(source.model, "source").open(list(tensors.values()))
    right = ModelSide(model, "cleaned").open(list(tensors.values()))
    found = {spec.name: Gap() for spec in subject.signature.outputs}
    for feeds in subject.feeds:
        given = {names[spec.name]: feeds[spec.tensor] for spec in subject.signature.inputs}
        ours, theirs = left(given), right(given)
        for name in found:
            found[name] |= gap(ours[tensors[name]], theirs[tensors[name]])
    return found
