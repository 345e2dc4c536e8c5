"""What became of the engines that an artifact was to get, as values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rewriter.artifact.manifest import EngineEntry, entry_summary

__all__ = ["AddedEngine", "Extended", "MissingEngine"]


@dataclasses.dataclass(frozen=True)
class AddedEngine:
    """One engine that the artifact has: a new one, or one that was there already.

    Attributes:
        signature: the signature whose engine it is.
        entry: what the manifest says of it.
        seconds: wall time of its build, or of the copy out of the engine cache; None for one that was there.
    """

    signature: str
    entry: EngineEntry
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `trt-rewriter build --json` prints it."""
        return {"signature": self.signature, **entry_summary(self.entry), "seconds": self.seconds}


@dataclasses.dataclass(frozen=True)
class MissingEngine:
    """One engine that the artifact does not get; where it runs, its segment runs natively.

    Attributes:
        signature: the signature whose engine it would be.
        op: its engine node; "" for all of the signature.
        backend, version: the TensorRT package that was to build it.
        targets: compute capabilities that it was for, as "SM89"; () for the GPU of this machine.
        kind: a kind of `rewriter.backends.base.BuildFailure`, or "target" (the architecture lacks the arithmetic),
            "fault" (this version of TensorRT computes it wrongly), "lowering" (it cannot be given the arithmetic).
        reason: one line for people.
    """

    signature: str
    op: str
    backend: str
    version: str
    targets: tuple[str, ...]
    kind: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `trt-rewriter build --json` prints it."""
        return {**dataclasses.asdict(self), "targets": list(self.targets)}


@dataclasses.dataclass(frozen=True)
class Extended:
    """What `build_engines` did.

    Attributes:
        path: the artifact, resolved.
        added: the engines that it got, in the order in which it lists them.
        present: engines that do already what was asked for, each once.
        failures: what could not be built.
        notes: what else should be known: engine nodes that were left out, and why.
        seconds: wall time of all builds together.
    """

    path: Path
    added: tuple[AddedEngine, ...] = ()
    present: tuple[AddedEngine, ...] = ()
    failures: tuple[MissingEngine, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `trt-rewriter build --json` prints it."""
        return {
            "path": str(self.path),
            "added": [engine.to_json() for engine in self.added],
            "present": [engine.to_json() for engine in self.present],
            "failures": [failure.to_json() for failure in self.failures],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }
