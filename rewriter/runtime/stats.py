"""The counters of a converted function: kept under one lock, read as plain values."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from rewriter.artifact.manifest import EngineEntry
from rewriter.runtime.executor import Execution


class CallCounters:
    """What a converted function counts of its calls. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._engine_calls = 0
        self._warmup_calls = 0
        self._fallbacks: collections.Counter[str] = collections.Counter()
        self._said: set[str] = set()

    def add(self, execution: Execution, *, warmup: bool = False, final: bool = True) -> list[str]:
        """Counts one finished call.

        Args:
            execution: what it gave.
            warmup: True counts it apart, and none of its fallbacks.
            final: False: its fallbacks are passing, and not told.

        Returns:
            The reasons for fallbacks that have not been told before.
        """
        with self._lock:
            if warmup:
                self._warmup_calls += 1
            else:
                self._calls += 1
                self._engine_calls += execution.engine_runs > 0
                if execution.fallbacks:
                    self._fallbacks.update(execution.fallbacks)
            if not execution.fallbacks:
                return []
            news = [reason for reason in execution.fallbacks if final and reason not in self._said]
            self._said.update(news)
            return news

    def to_dict(self) -> dict[str, Any]:
        """The counters under the names of `ConvertedFunction.stats`."""
        with self._lock:
            return {
                "calls": self._calls,
                "engine_calls": self._engine_calls,
                "native_calls": self._calls - self._engine_calls,
                "warmup_calls": self._warmup_calls,
                "fallbacks": dict(self._fallbacks),
            }


def build_totals(slots: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What was built at run time, over all engine nodes.

    Args:
        slots: the counters of each engine node, as `EngineSlot.stats` gives them; what one lacks counts as none.

    Returns:
        engines: engines built. seconds: time that took. running: builds not finished yet. failed: reason -> builds.
    """
    totals: dict[str, Any] = {"engines": 0, "seconds": 0.0, "running": 0}
    failed: collections.Counter[str] = collections.Counter()
    for slot in slots:
        totals["engines"] += slot.get("builds", 0)
        totals["seconds"] += slot.get("build_seconds", 0.0)
        totals["running"] += int(slot.get("building", 0))
        failed.update(slot.get("failed_builds", {}))
    return {**totals, "failed": dict(failed)}


def unusable(entries: Iterable[EngineEntry]) -> dict[str, str]:
    """Engine operator -> what is wrong with its engines that cannot be used, each problem once."""
    found: dict[str, dict[str, None]] = {}
    for entry in entries:
        if not entry.usable:
            found.setdefault(entry.op, {})[entry.problem] = None
    return {op: "; ".join(problems) for op, problems in found.items()}


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counters of several executors as one: numbers are added up, mappings joined in the same way.

    What is neither (a text) is taken from the last part that has it.
    """
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            known = total.get(name)
            if isinstance(value, Mapping):
                total[name] = merged([known or {}, value])
            elif isinstance(value, (int, float)) and isinstance(known, (int, float)):
                total[name] = known + value
            else:
                total[name] = value
    return total


def grown(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The top-level numbers of `after` less those of `before`; what is no number is left out."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
