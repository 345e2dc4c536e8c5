"""Which of an artifact's engines goes behind each EPContext node: such a node has one, an engine node may have many."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from rewriter.artifact import EngineEntry
from rewriter.backends.flavours import normalize_target
from rewriter.errors import ExportError

#: What is said of an engine whose entry names no compute capability.
_UNNAMED = "the GPU it was built on"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The engines to export.

    Attributes:
        engines: operator of an engine node -> its engine.
        notes: what was taken where there was a choice, and for which GPUs the export is, a line each.
    """

    engines: Mapping[str, EngineEntry]
    notes: tuple[str, ...] = ()


def choose_engines(
    ops: Mapping[str, str],
    entries: Sequence[EngineEntry],
    flavour: str,
    target: str | None = None,
    engine_version: str | None = None,
) -> Choice:
    """One engine for every engine node, all of one TensorRT and for the same GPUs: one provider on one GPU runs them.

    Rules:
        1. Only engines of `flavour` that are whole, and of `engine_version` where that is given.
        2. All for a common GPU. With `target` it is that one; without, those engines are taken that have the most GPUs
           in common, of equals the first in the artifact's order. An engine whose entry names no GPU is for any, but
           comes after those that name it.
        3. All of one version of TensorRT: the newest that every node has such an engine of.
        4. Of what is left the first, in the artifact's order.

    Args:
        ops: operators of the engine nodes, in graph order -> why the node must never have an engine, "" for others.
        entries: the artifact's engines.
        flavour: "tensorrt_rtx" or "tensorrt".
        target: a compute capability, "SM89" or "8.9".
        engine_version: a version of TensorRT, "1.7.1.116".

    Raises:
        InvalidParameterError: `target` is no compute capability.
        ExportError: a node has no such engine, or the nodes have none of a common version, or none for a common GPU;
            the message names it.
    """
    wanted = None if target is None else normalize_target(target)
    whole = {op: _whole(op, reason, entries, flavour) for op, reason in ops.items()}
    fitting = {op: _for_target(op, engines, flavour, wanted) for op, engines in whole.items()}
    for version in _versions(fitting, flavour, engine_version):
        usable = {op: [entry for entry in engines if entry.version == version] for op, engines in fitting.items()}
        gpus = _common(usable) if wanted is None else (wanted,)
        if gpus is not None:
            chosen = {op: min(engines, key=lambda entry: _misses(entry, gpus)) for op, engines in usable.items()}
            return Choice(chosen, tuple(_notes(chosen, whole, gpus)))
    told = "; ".join(f"{op}: {_targets(engines)}" for op, engines in fitting.items())
    raise ExportError(f"no GPU has a {flavour} engine for every segment ({told}): build the missing ones for one GPU")


def _whole(op: str, not_runnable: str, entries: Iterable[EngineEntry], flavour: str) -> list[EngineEntry]:
    """The engines of one node that can be exported; at least one."""
    if not_runnable:
        raise ExportError(f"{op} must not run as an engine ({not_runnable}): convert the model without its fake list")
    own = [entry for entry in entries if entry.op == op]
    of_flavour = [entry for entry in own if entry.backend == flavour]
    whole = [entry for entry in of_flavour if entry.usable]
    if whole:
        return whole
    if of_flavour:
        raise ExportError(f"{op} has no usable {flavour} engine ({of_flavour[0].problem}): build it again")
    others = ", ".join(dict.fromkeys(entry.backend for entry in own))
    has = f"it has one of {others}" if others else "none was built"
    raise ExportError(f"{op} has no {flavour} engine ({has}): trt-rewriter build ARTIFACT --backends {flavour}")


def _for_target(op: str, engines: Sequence[EngineEntry], flavour: str, target: str | None) -> list[EngineEntry]:
    """Those of a node's engines that are for the GPU that was asked for; at least one."""
    fitting = [entry for entry in engines if target is None or not entry.targets or target in entry.targets]
    if target is not None and not fitting:
        raise ExportError(
            f"{op} has no {flavour} engine for {target}; it has those for {_targets(engines)}: trt-rewriter build "
            f"ARTIFACT --backends {flavour} --targets {target.lower()}"
        )
    return fitting


def _versions(fitting: Mapping[str, Sequence[EngineEntry]], flavour: str, asked: str | None) -> list[str]:
    """The versions that all nodes have engines of, the newest first; only the one that was asked for."""
    found = {op: {entry.version for entry in engines} for op, engines in fitting.items()}
    if asked is not None:
        lacking = next((op for op, versions in found.items() if asked not in versions), None)
        if lacking is not None:
            known = ", ".join(_sorted(found[lacking]))
            raise ExportError(
                f"{lacking} has no engine of {flavour} {asked}; it has those of {known}: take one of them"
            )
        return [asked]
    common = set.intersection(*found.values())
    if not common:
        told = "; ".join(f"{op}: {', '.join(_sorted(versions))}" for op, versions in found.items())
        raise ExportError(
            f"no version of {flavour} has an engine for every segment ({told}): one provider runs them all, so build "
            "the missing ones with one version"
        )
    return _sorted(common)[::-1]


def _sorted(versions: Iterable[str]) -> list[str]:
    """The oldest first: "1.10" comes after "1.9"."""
    return sorted(versions, key=lambda text: ([int(number) for number in re.findall(r"\d+", text)], text))


def _common(usable: Mapping[str, Sequence[EngineEntry]]) -> tuple[str, ...] | None:
    """The most GPUs that all nodes have engines for; () where no engine names one, None where they have none."""
    sets = dict.fromkeys(entry.targets for engines in usable.values() for entry in engines if entry.targets)
    best = max((tuple(t for t in targets if _everywhere(t, usable)) for targets in sets), key=len, default=())
    return best if best or not sets else None


def _everywhere(target: str, usable: Mapping[str, Sequence[EngineEntry]]) -> bool:
    """Whether every node has an engine for that GPU."""
    return all(any(target in e.targets or not e.targets for e in engines) for engines in usable.values())


def _misses(entry: EngineEntry, gpus: Sequence[str]) -> tuple[int, bool]:
    """How many of the GPUs an engine does not name; of those that name none of them, others go last."""
    missing = sum(target not in entry.targets for target in gpus)
    return missing, missing == len(gpus) > 0 and bool(entry.targets)


def _targets(engines: Iterable[EngineEntry]) -> str:
    found = (entry.targets or (_UNNAMED,) for entry in engines)
    return ", ".join(dict.fromkeys(target for targets in found for target in targets))


def _notes(
    chosen: Mapping[str, EngineEntry], whole: Mapping[str, Sequence[EngineEntry]], gpus: Sequence[str]
) -> Iterable[str]:
    """What was taken where there was a choice, and what was left."""
    if all(len(engines) == 1 for engines in whole.values()):
        return
    first = next(iter(chosen.values()))
    yield (
        f"exported are the engines of {first.backend} {first.version} for {', '.join(gpus) or _UNNAMED}; target and "
        "engine_version (--target, --engine-version) choose others"
    )
    left = collections.Counter(
        f"{entry.backend} {entry.version} for {_targets([entry])}"
        for op, engines in whole.items()
        for entry in engines
        if entry is not chosen[op]
    )
    for words, count in left.items():
        yield f"not exported: {count} engine{'' if count == 1 else 's'} of {words}"
