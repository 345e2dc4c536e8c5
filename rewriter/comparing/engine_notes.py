"""What the engines of an artifact cannot do: those that are not there, not usable, or not made for the shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.artifact import Artifact
    from rewriter.artifact.manifest import EngineEntry
    from rewriter.backends.base import Profile

#: Engine nodes, or shapes, that a note names.
_MOST = 3

Shapes = Mapping[str, tuple[int, ...]]


def state_notes(artifact: Artifact) -> list[str]:
    """Engine nodes of which no engine is built, and engines whose files cannot be used; no GPU is needed to tell."""
    from passes.engine_node import engine_nodes

    ops = list(dict.fromkeys(node.op_type for _, node in engine_nodes(artifact.model.proto)))
    built = {entry.op for entry in artifact.engines}
    missing = [op for op in ops if op not in built]
    notes = []
    if missing:
        notes.append(
            f"no engine is built for {len(missing)} of {len(ops)} engine node(s) ({_few(missing)}): the artifact was "
            "converted without building it (--no-engines, no shapes), or the build failed"
        )
    problems: dict[str, list[str]] = {}
    for entry in artifact.engines:
        if not entry.usable:
            problems.setdefault(entry.problem, []).append(entry.op)
    notes += [f"{len(found)} engine(s) cannot be used ({_few(found)}): {why}" for why, found in problems.items()]
    return notes


def shape_notes(artifact: Artifact, samples: Iterable[Shapes]) -> list[str]:
    """Shapes of samples that no profile takes of a node whose engine reads the model's inputs itself.

    Args:
        artifact: its usable engines count.
        samples: per sample the shapes by public name.
    """
    tensors = {spec.tensor: spec.name for spec in artifact.signature.inputs}
    nodes: dict[str, list[EngineEntry]] = {}
    for entry in artifact.engines:
        if entry.usable:
            nodes.setdefault(entry.op, []).append(entry)
    wrong: dict[str, list[str]] = {}
    for sample in samples:
        shapes = {tensor: sample[name] for tensor, name in tensors.items() if name in sample}
        refusing = [op for op, entries in nodes.items() if not any(_takes(entry, shapes) for entry in entries)]
        if refusing:
            words = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in sample.items())
            wrong.setdefault(words, refusing)
    return [
        f"no engine of {_few(ops)} is built for {words}: TensorRT would not use one there"
        for words, ops in list(wrong.items())[:_MOST]
    ]


def _takes(entry: EngineEntry, shapes: Shapes) -> bool:
    """False where the model's inputs, as far as the engine reads them, fit none of its profiles."""
    return not entry.profiles or any(_fits(profile, shapes) for profile in entry.profiles)


def _fits(profile: Profile, shapes: Shapes) -> bool:
    for tensor, shape in shapes.items():
        item = profile.get(tensor)
        if item is None or item.is_values:
            continue
        bounds = (item.minimum, item.maximum)
        if any(len(bound) != len(shape) for bound in bounds):
            return False
        if not all(low <= size <= high for low, size, high in zip(bounds[0], shape, bounds[1], strict=True)):
            return False
    return True


def _few(names: Sequence[str]) -> str:
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"{', '.join(found[:_MOST])}{more}"
