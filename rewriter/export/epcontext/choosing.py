"""Which of an artifact's engines goes behind each EPContext node: such a node has one, an engine node may have many."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from rewriter.artifact import EngineEntry
from rewriter.backends.flavours import normalize_target
from rewriter.errors import ExportError


@dataclasses.dataclass(frozen=True)
class Choice:
    """The engines to export.

    Attributes:
        engines: operator of an engine node -> its engine.
        notes: where there was a choice, what was taken, a line each.
    """

    engines: Mapping[str, EngineEntry]
    notes: tuple[str, ...] = ()


def choose_engines(
    ops: Mapping[str, str], entries: Sequence[EngineEntry], flavour: str, target: str | None = None
) -> Choice:
    """One engine for every engine node.

    Rules:
        1. Only engines of `flavour` that are whole. With `target` only those that were built for it, and those that
           do not say what they were built for.
        2. All of one version of TensorRT, for one provider runs them: of the versions that every node has an engine of,
           that of the first node's first engine.
        3. Of what is left the first, in the artifact's order.

    Args:
        ops: operators of the engine nodes, in graph order -> why the node must never have an engine, "" for others.
        entries: the artifact's engines.
        flavour: "tensorrt_rtx" or "tensorrt".
        target: a compute capability, "SM89" or "8.9".

    Raises:
        InvalidParameterError: `target` is no compute capability.
        ExportError: a node has no such engine, or the nodes have none of a common version; the message names it.
    """
    wanted = None if target is None else normalize_target(target)
    usable = {op: _usable(op, reason, entries, flavour, wanted) for op, reason in ops.items()}
    found = {op: {entry.version for entry in engines} for op, engines in usable.items()}
    common = set.intersection(*found.values()) if found else set()
    if found and not common:
        told = "; ".join(f"{op}: {', '.join(sorted(versions))}" for op, versions in found.items())
        raise ExportError(
            f"no version of {flavour} has an engine for every segment ({told}): one provider runs them all, so build "
            "the missing ones with one version"
        )
    first = next((e.version for engines in usable.values() for e in engines if e.version in common), "")
    chosen = {op: next(e for e in engines if e.version == first) for op, engines in usable.items()}
    notes = tuple(_note(chosen[op], engines) for op, engines in usable.items() if len(engines) > 1)
    return Choice(chosen, notes)


def _usable(
    op: str, not_runnable: str, entries: Iterable[EngineEntry], flavour: str, target: str | None
) -> list[EngineEntry]:
    """The engines of one node that can be exported; at least one."""
    if not_runnable:
        raise ExportError(f"{op} must not run as an engine ({not_runnable}): convert the model without its fake list")
    own = [entry for entry in entries if entry.op == op]
    of_flavour = [entry for entry in own if entry.backend == flavour]
    whole = [entry for entry in of_flavour if entry.usable]
    fitting = [entry for entry in whole if target is None or not entry.targets or target in entry.targets]
    if fitting:
        return fitting
    if whole:
        known = ", ".join(dict.fromkeys(t for entry in whole for t in entry.targets))
        raise ExportError(
            f"{op} has no {flavour} engine for {target}; it has those for {known}: build one for {target}"
        )
    if of_flavour:
        raise ExportError(f"{op} has no usable {flavour} engine ({of_flavour[0].problem}): build it again")
    others = ", ".join(dict.fromkeys(entry.backend for entry in own))
    has = f"it has one of {others}" if others else "none was built"
    raise ExportError(f"{op} has no {flavour} engine ({has}): build one with backend={flavour!r}, then save it")


def _note(chosen: EngineEntry, engines: Sequence[EngineEntry]) -> str:
    """What was taken, of how many."""
    targets = ", ".join(chosen.targets) or "an unknown GPU"
    return (
        f"{chosen.op}: the first fitting one of {len(engines)} engines is exported ({chosen.backend} {chosen.version} "
        f"for {targets}, {chosen.precision}, key {chosen.key}); choose with target="
    )
