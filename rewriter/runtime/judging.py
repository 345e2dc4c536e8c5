"""Which of an artifact's engines this machine would choose, told from what is written of them: nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rewriter.artifact.manifest import EngineEntry
from rewriter.runtime import device
from rewriter.runtime.choosing import order
from rewriter.runtime.slot_values import StoredEngine

__all__ = ["installed_version", "judged"]

_ORDINALS = ("first", "second", "third")


def judged(
    engines: Sequence[StoredEngine],
    gpus: Sequence[tuple[int, int]] | None = None,
    installed: Callable[[str], str] | None = None,
) -> Mapping[str, str]:
    """What this machine thinks of engines, as far as can be known without TensorRT trying them.

    Args:
        engines: of any engine nodes.
        gpus: compute capabilities of the machine's GPUs; default: those that the driver reports. Where they differ,
            each is told by itself.
        installed: package -> its version (see `rewriter.runtime.choosing.order`); default: it is imported.

    Returns:
        Engine file in the artifact -> its place among the engines of its node and why ("first choice here: built for
        this GPU, SM89"), or why it never runs here; {} without a GPU. What is damaged is not judged.
    """
    if gpus is None:
        gpus = () if device.missing_gpu() else device.installed_compute_capabilities()
    different = sorted(set(gpus))
    told: dict[str, list[str]] = {}
    for gpu in different:
        where = f"on SM{gpu[0]}{gpu[1]}" if len(different) > 1 else "here"
        for op in dict.fromkeys(stored.entry.op for stored in engines):
            own = [stored for stored in engines if stored.entry.op == op and stored.entry.usable]
            for file, words in _of_node(own, gpu, where, installed or installed_version):
                told.setdefault(file, []).append(words)
    return {file: "; ".join(dict.fromkeys(words)) for file, words in told.items()}


def installed_version(flavour: str) -> str:
    """The version of a TensorRT package.

    Raises:
        MissingDependencyError: it is not installed, or cannot be loaded.
        InvalidParameterError: no such package.
    """
    from rewriter.runtime.gpu.engine import import_runtime

    return str(import_runtime(flavour).__version__)


def _of_node(
    engines: Sequence[StoredEngine], gpu: tuple[int, int], where: str, installed: Callable[[str], str]
) -> list[tuple[str, str]]:
    found = []
    for number, item in enumerate(order(engines, gpu, installed)):
        entry: EngineEntry = item.stored.entry
        place = _ORDINALS[number] if number < len(_ORDINALS) else f"{number + 1}th"
        words = f"never {where}: {item.problem}" if item.problem else f"{place} choice {where}: {item.fit}"
        found.append((entry.file, words))
    return found
