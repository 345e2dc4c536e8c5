"""What one replica, or one actor of a pool, does: it holds a loaded artifact and answers requests. Knows no Ray."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.errors import ArtifactError, BackendError, ConversionError, InputError, InvalidParameterError
from rewriter.export.batching import batch_dimension, largest_batch, run
from rewriter.export.ray.checks import check_count
from rewriter.export.ray.wire import checked
from rewriter.runtime.loading import load
from rewriter.runtime.options import RuntimeOptions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReplicaOptions:
    """How a replica is made; it travels to every node.

    Attributes:
        artifact: the folder, readable on every node that runs a replica.
        max_batch_size: rows of a batch; None: `largest_batch`.
        warmup: True runs the optimum of every engine's profile before the replica is ready.
        unhealthy_after: so many failed runs in a row make the replica unhealthy; None: none do.
        load: further options of `rewriter.load`.

    Raises:
        InvalidParameterError: `unhealthy_after` is no number of at least 1.
    """

    artifact: str
    max_batch_size: int | None = None
    warmup: bool = True
    unhealthy_after: int | None = 5
    load: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unhealthy_after is not None:
            check_count("unhealthy_after", self.unhealthy_after)


def checked_load_options(given: Mapping[str, Any], num_cpus: float) -> dict[str, Any]:
    """Options of `rewriter.load` for a replica, checked here, before processes are started that would all fail.

    Args:
        given: by name; `threads` may be missing.
        num_cpus: CPUs that the replica takes; as many threads, at least one, where `threads` is missing.

    Raises:
        InvalidParameterError: `load` has no such option, or does not take its value.
    """
    known = inspect.signature(load).parameters.keys() - {"path"}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InvalidParameterError(f"unknown option {unknown[0]!r}: rewriter.load has {', '.join(sorted(known))}")
    options = {"threads": max(1, int(num_cpus)), **given}
    RuntimeOptions(**{name: value for name, value in options.items() if name != "signature"})
    return options


class ReplicaCore:
    """A loaded artifact that answers lists of requests. Thread-safe.

    Raises:
        ArtifactError: the artifact cannot be read here; the message names the node.
        ConversionError: as `rewriter.load` and `ConvertedFunction.warmup` raise it.
    """

    def __init__(self, options: ReplicaOptions) -> None:
        self._options = options
        try:
            self._function = load(options.artifact, **options.load)
        except ArtifactError as error:
            raise ArtifactError(
                f"{error} (on node {socket.gethostname()}: each node needs the artifact under this path)"
            ) from error
        self.signature = self._function.signature
        self.max_batch_size = largest_batch(self.signature, self._function.engines, options.max_batch_size)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._failures = 0
        self._warmup = self._warm() if options.warmup else None

    def answer(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, np.ndarray] | ConversionError]:
        """The outputs of every request by public name, or why it has none."""
        answers: dict[int, dict[str, np.ndarray] | ConversionError] = {}
        good: dict[int, dict[str, np.ndarray]] = {}
        for number, request in enumerate(requests):
            try:
                good[number] = checked(self.signature, request)
            except InputError as error:
                answers[number] = error
        found = run(list(good.values()), self.max_batch_size, self._call)
        answers.update(zip(good, found, strict=True))
        with self._lock:
            self._counts["requests"] += len(requests)
            self._counts["failed"] += sum(isinstance(each, ConversionError) for each in answers.values())
        return [answers[number] for number in range(len(requests))]

    def check_health(self) -> None:
        """Nothing where all is well.

        Raises:
            BackendError: the last `unhealthy_after` runs failed, whatever their inputs.
        """
        with self._lock:
            failures = self._failures
        limit = self._options.unhealthy_after
        if limit is not None and failures >= limit:
            raise BackendError(f"{self._options.artifact}: the last {failures} runs failed: the replica is to restart")

    def stats(self) -> dict[str, Any]:
        """Counters of this replica.

        Returns:
            requests, failed: answered, and those among them without outputs.
            batches: rows of a run -> number of runs (-1: no common number).
            failures_in_a_row: see `check_health`.
            pid: of the process.
            max_batch_size: the limit.
            warmup: what the warm-up told, or {"skipped": why}; None where none was asked for.
            function: `ConvertedFunction.stats()`.
        """
        with self._lock:
            counts, batches, failures = dict(self._counts), dict(self._batches), self._failures
        return {
            "requests": counts.get("requests", 0),
            "failed": counts.get("failed", 0),
            "batches": batches,
            "failures_in_a_row": failures,
            "pid": os.getpid(),
            "max_batch_size": self.max_batch_size,
            "warmup": self._warmup,
            "function": self._function.stats(),
        }

    def close(self) -> None:
        """Frees the model; harmless when repeated."""
        self._function.close()

    def _warm(self) -> dict[str, Any]:
        """Runs the engines' optima, or else one row and the largest batch, where only the rows are open."""
        shapes = None
        specs = self.signature.inputs
        if batch_dimension(self.signature) and not any(entry.profiles for entry in self._function.engines):
            sizes = sorted({1, self.max_batch_size})
            shapes = {spec.name: [(size, *(spec.shape or ())[1:]) for size in sizes] for spec in specs}
        try:
            return self._function.warmup(shapes)
        except InvalidParameterError as error:  # further open dimensions, or inputs that cannot be made up
            logger.warning("%s: no warm-up, so first requests are slower: %s", self._options.artifact, error)
            return {"skipped": str(error)}

    def _call(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
        with self._lock:
            self._batches[rows.pop() if len(rows) == 1 else -1] += 1
        try:
            outputs = self._function.run(inputs)
        except InputError:
            raise
        except Exception:  # also what the package does not expect, as MemoryError
            with self._lock:
                self._failures += 1
            raise
        with self._lock:
            self._failures = 0
        return outputs
