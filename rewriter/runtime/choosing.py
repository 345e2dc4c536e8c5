"""Which of an engine node's engines this machine runs, and why no other: by what their entries say, without a GPU.

An artifact may hold engines of one segment for several GPUs, TensorRT packages and versions. Here they are put in
order of preference; those that can never run here get their reason. What is left to TensorRT is whether it takes an
engine that was built for an older GPU, or for one that its entry does not name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import InvalidParameterError, MissingDependencyError
from rewriter.runtime.slot_values import StoredEngine

__all__ = ["Ranked", "chosen", "order", "rank", "version_problem"]


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
           those for newer GPUs only. TensorRT decides whether it takes them.
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
                *rank(item.stored.entry.targets, gpu)[:2],
            ),
        )
    )


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
    ranked: Sequence[Ranked], opened: Mapping[str, EngineEntry], refused: Mapping[str, str], blocked: str = ""
) -> dict[str, Any]:
    """What became of the engines of one node, as `stats()["engines_chosen"]` tells it.

    Args:
        ranked: the engines in order.
        opened: key -> entry of those that are in memory.
        refused: key -> why TensorRT does not take it.
        blocked: why the node never runs an engine; "" when it may.

    Returns:
        engines: key of an engine in memory -> package, version, and why it was chosen; {} where all runs natively.
        others: key of another one -> why it was not.
    """
    fits = {item.stored.entry.key: item.fit for item in ranked}
    engines = {
        key: f"{entry.backend} {entry.version}: {fits.get(key, 'built at run time')}" for key, entry in opened.items()
    }
    others = {
        key: item.problem or refused.get(key) or blocked or f"not needed so far: {item.fit}"
        for item in ranked
        if (key := item.stored.entry.key) not in opened
    }
    return {"engines": engines, "others": others}


def _judged(stored: StoredEngine, gpu: tuple[int, int], versions: Mapping[str, str | Exception]) -> Ranked:
    entry = stored.entry
    problem = entry.problem or version_problem(entry, versions[entry.backend])
    if problem and not entry.problem:
        stored = dataclasses.replace(stored, entry=dataclasses.replace(entry, problem=problem))
    return Ranked(stored, rank(entry.targets, gpu)[2], problem)
