"""Which of an engine node's engines this machine runs, and why no other: by what their entries say, without a GPU.

An artifact may hold engines of one segment for several GPUs, TensorRT packages and versions. Here they are put in
order of preference; those that can never run here get their reason. What is left to TensorRT is whether it takes an
engine that was built for an older GPU, or for one that its entry does not name.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import InvalidParameterError, MissingDependencyError
from rewriter.runtime.slot_values import StoredEngine

__all__ = ["Ranked", "choice_lines", "chosen", "none_chosen", "order", "rank", "usable_here", "version_problem"]

#: The package whose engines run on no other compute capability than the one that they were built for.
_BOUND_TO_ONE_GPU = "tensorrt"
#: Rank from which on an engine was built for other GPUs only.
_FOR_OTHERS = 2
#: Why an engine that may run here is not in memory.
NOT_NEEDED = "not needed so far"
KEPT_OUT = "wanted, but maximum_cached_engines is reached"
EVICTED = "closed to make room"
#: What is said of an engine that the artifact did not have.
_NEW = "built at run time"
#: Names of engine nodes that one line tells.
_MOST_NAMES = 3


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One engine with the judgement of it.

    Attributes:
        stored: the engine; where `problem` is not empty its entry says it, too, so that it is never opened.
        fit: how it goes with this machine's GPU, in a few words.
        problem: why it can never run here; "" when it may.
    """

    stored: StoredEngine
    fit: str
    problem: str = ""


def order(engines: Sequence[StoredEngine], gpu: tuple[int, int], installed: Callable[[str], str]) -> tuple[Ranked, ...]:
    """The engines of one node in order of preference.

    Rules:
        1. Last are those that can never run: damaged ones, and those of a TensorRT package that is not installed, or
           is in another version (engines run with the very version that built them).
        2. Engines built for this very compute capability go before those that name none, which were built for the GPU
           of the machine that built them; these before engines for older GPUs, the nearest first, and these before
           those for newer GPUs only. TensorRT decides whether it takes them. Those of classic TensorRT for other GPUs
           come after all of these, for it refuses them.
        3. Of equals the one that stands first goes first. (There is no choice between versions of one package: only
           one is installed.)

    Args:
        engines: as the artifact lists them.
        gpu: major and minor number of the GPU's compute capability.
        installed: package, "tensorrt_rtx" or "tensorrt" -> its version. It is asked once for each package, and raises
            MissingDependencyError where there is none.
    """
    versions: dict[str, str | Exception] = {}
    for stored in engines:
        flavour = stored.entry.backend
        if flavour not in versions and stored.entry.usable:
            try:
                versions[flavour] = installed(flavour)
            except (MissingDependencyError, InvalidParameterError) as error:
                versions[flavour] = error
    ranked = [_judged(stored, gpu, versions) for stored in engines]
    return tuple(
        sorted(
            ranked,
            key=lambda item: (
                bool(item.problem),
                *_place(item.stored.entry, gpu),
            ),
        )
    )


def _place(entry: EngineEntry, gpu: tuple[int, int]) -> tuple[bool, int, int]:
    """Lower is better, of engines against which nothing is known."""
    kind, distance, _ = rank(entry.targets, gpu)
    return kind >= _FOR_OTHERS and entry.backend == _BOUND_TO_ONE_GPU, kind, distance


def rank(targets: Sequence[str], gpu: tuple[int, int]) -> tuple[int, int, str]:
    """(class, distance, words): how engines built for these targets go with a GPU; lower is better.

    Targets are spelled as `rewriter.backends.flavours.normalize_target` does ("SM89"). The distance is 0 but for
    engines that are built for other GPUs only: the difference of the nearest architecture number.
    """
    own = gpu[0] * 10 + gpu[1]
    numbers = [int(target[2:]) for target in targets if target[:2] == "SM" and target[2:].isdigit()]
    if own in numbers:
        return 0, 0, f"built for this GPU, SM{own}"
    if not numbers:
        return 1, 0, "built for the GPU of the machine that built it"
    older = [number for number in numbers if number < own]
    if older:
        return 2, own - max(older), f"built for SM{max(older)}, which is older than this GPU, SM{own}"
    return 3, min(numbers) - own, f"built for SM{min(numbers)}, which is newer than this GPU, SM{own}"


def version_problem(entry: EngineEntry, installed: str | Exception) -> str:
    """Why an engine does not run with the TensorRT that is installed; "" when it does.

    Args:
        entry: the engine.
        installed: the version of its package, or what was raised for there is none.
    """
    if isinstance(installed, Exception):
        return f"it needs {entry.backend} {entry.version}: {installed}"
    if entry.version != installed:
        return (
            f"it was built by {entry.backend} {entry.version}, and engines run with that version only; "
            f"installed is {installed}"
        )
    return ""


def chosen(
    ranked: Sequence[Ranked],
    opened: Mapping[str, EngineEntry],
    refused: Mapping[str, str],
    blocked: str = "",
    waiting: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What became of the engines of one node, as `stats()["engines_chosen"]` tells it.

    Args:
        ranked: the engines in order.
        opened: key -> entry of those that are in memory.
        refused: key -> why TensorRT does not take it.
        blocked: why the node never runs an engine; "" when it may.
        waiting: key -> why one that could be in memory is not; default: no call needed it so far.

    Returns:
        engines: key of an engine in memory -> package, version, and why it was chosen; {} where all runs natively.
        others: key of another one -> why it was not.
    """
    waiting = waiting or {}
    fits = {item.stored.entry.key: item.fit for item in ranked}
    engines = {key: f"{entry.backend} {entry.version}: {fits.get(key, _NEW)}" for key, entry in opened.items()}
    problems = {item.stored.entry.key: item.problem for item in ranked}
    others = {
        key: problems.get(key)
        or refused.get(key)
        or blocked
        or f"{waiting.get(key, NOT_NEEDED)}: {fits.get(key, _NEW)}"
        for key in dict.fromkeys([*fits, *waiting])
        if key not in opened
    }
    return {"engines": engines, "others": others}


def none_chosen(entries: Iterable[EngineEntry], blocked: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """`stats()["engines_chosen"]` of a model that runs natively as a whole.

    Args:
        entries: all its engines.
        blocked: engine operator -> why the node runs natively although an engine could be used.
    """
    told: dict[str, dict[str, Any]] = {}
    for entry in entries:
        facts = told.setdefault(entry.op, {"engines": {}, "others": {}})
        facts["others"][entry.key] = entry.problem or blocked(entry.op)
    return told


def usable_here(
    entries: Sequence[EngineEntry], told: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> tuple[EngineEntry, ...]:
    """Those engines that this machine runs, now or when a call needs them; all where it runs none.

    What an engine of another version or for another GPU takes says nothing of what is computed by engines here.

    Args:
        entries: the engines.
        told: `stats()["engines_chosen"]`.
    """

    def possible(entry: EngineEntry) -> bool:
        facts = told.get(entry.op, {"engines": {}, "others": {}})
        why = facts["others"].get(entry.key, "")
        return entry.key in facts["engines"] or why.startswith((NOT_NEEDED, KEPT_OUT, EVICTED))

    return tuple(filter(possible, entries)) or tuple(entries)


def choice_lines(told: Mapping[str, Mapping[str, Mapping[str, str]]], known: Iterable[str] = ()) -> list[str]:
    """What `stats()["engines_chosen"]` says, in few lines: nodes with one answer share a line.

    Args:
        told: engine operator -> its `engines` in memory and the `others`.
        known: reasons that the reader has been told already; they are left out, and so are nodes without any other.
    """
    known = set(known)
    used: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    left: collections.Counter[str] = collections.Counter()
    for op, facts in told.items():
        others = [reason for reason in facts["others"].values() if reason not in known]
        left.update(others)
        if facts["engines"] or others:
            used[tuple(dict.fromkeys(facts["engines"].values()))].append(op)
    lines = [
        f"{_names(ops)} {'runs' if len(ops) == 1 else 'run'} {' and '.join(reasons) or 'natively, with no engine'}"
        for reasons, ops in used.items()
    ]
    return lines + [f"{count} engine{'' if count == 1 else 's'} not used: {why}" for why, count in left.items()]


def _names(ops: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B, C and 4 more`."""
    shown, more = list(ops[:_MOST_NAMES]), len(ops) - _MOST_NAMES
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _judged(stored: StoredEngine, gpu: tuple[int, int], versions: Mapping[str, str | Exception]) -> Ranked:
    entry = stored.entry
    problem = entry.problem or version_problem(entry, versions[entry.backend])
    if problem and not entry.problem:
        stored = dataclasses.replace(stored, entry=dataclasses.replace(entry, problem=problem))
    return Ranked(stored, rank(entry.targets, gpu)[2], problem)
