"""The plans of an executor: which input shapes are bound and ready, and why others are not."""

from __future__ import annotations

import collections
import logging
from typing import TYPE_CHECKING, Any

from rewriter.errors import EngineError
from rewriter.runtime.gpu.discovery import reason_of
from rewriter.runtime.gpu.plan import FixedPlan

if TYPE_CHECKING:
    from rewriter.runtime.gpu.discovery import Trace
    from rewriter.runtime.gpu.pieces import Pieces

_LOG = logging.getLogger(__name__)
#: Plans kept, the least recently used goes: a plan is small, but its CUDA graph holds memory of the driver.
MAX_PLANS = 64

#: The shapes of all inputs, in the order of the schedule.
Key = tuple[tuple[int, ...], ...]


class PlanTable:
    """Plans by input shapes. Not thread-safe: the executor holds its lock.

    A plan is made when its shapes are met for the second time, so that shapes that come once cost nothing.

    Args:
        pieces: what plans are made of.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._traces: collections.OrderedDict[Key, Trace] = collections.OrderedDict()
        self._plans: collections.OrderedDict[Key, FixedPlan] = collections.OrderedDict()
        self._no_graph: collections.Counter[str] = collections.Counter()
        self._no_plan: collections.Counter[str] = collections.Counter()

    def get(self, key: Key) -> FixedPlan | None:
        """The plan of these shapes, if they were met before and its engines are still the right ones; else None.

        Raises:
            DeviceMemoryError: no memory to make it.
        """
        plan = self._plans.get(key)
        if plan is not None:
            if plan.holds():
                self._plans.move_to_end(key)
                return plan
            self._drop(key)
            return None
        trace = self._traces.pop(key, None)
        return None if trace is None else self._make(key, trace)

    def remember(self, key: Key, trace: Trace) -> None:
        """Keeps what a discovery found out, for the next call of these shapes."""
        if trace.unfixable:
            self._no_plan[trace.unfixable] += 1
            return
        trace.outputs = {}
        self._traces[key] = trace
        while len(self._traces) > MAX_PLANS:
            self._traces.popitem(last=False)

    def count_graph(self, plan: FixedPlan) -> None:
        """Notes why a plan has no CUDA graph, if it has none."""
        if plan.no_graph:
            self._no_graph[plan.no_graph] += 1
            _LOG.info("no CUDA graph: %s", plan.no_graph)

    def fail(self, key: Key, error: Exception) -> None:
        """Frees a plan that failed, and notes why; its shapes are discovered anew."""
        self._no_plan[reason_of(error)] += 1
        _LOG.debug("the plan of %s failed: %s", key, error)
        self._drop(key)

    def _drop(self, key: Key) -> None:
        self._plans.pop(key).close()

    def clear(self) -> None:
        """Frees all plans."""
        self._traces.clear()
        while self._plans:
            self._plans.popitem()[1].close()

    def stats(self) -> dict[str, Any]:
        """Counters, see `HybridExecutor.stats`."""
        return {
            "plans": len(self._plans),
            "graphs": sum(plan.captured for plan in self._plans.values()),
            "no_plan": dict(self._no_plan),
            "no_graph": dict(self._no_graph),
        }

    def _make(self, key: Key, trace: Trace) -> FixedPlan | None:
        if not self._pieces.still_hold(trace.answers):  # an engine is closed by now, or a better one is there
            return None
        try:
            plan = FixedPlan(self._pieces, trace)
        except EngineError as error:
            self._no_plan[reason_of(error)] += 1
            return None
        if not plan.holds():  # a build ended just now
            plan.close()
            return None
        self._plans[key] = plan
        while len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)[1].close()
        if plan.no_graph:
            self.count_graph(plan)
        return plan
