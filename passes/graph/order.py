"""Stable topological order, in plain integers."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def stable_order(sources: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Kahn's algorithm, where of several ready items the smallest number goes first.

    Args:
        sources: per item the numbers of those that have to come before it; repeats are allowed.

    Returns:
        The items in order, and per item how many of its sources never came: all zero unless there is a cycle, and then
        the order lacks the items on cycles and behind them.
    """
    users: list[list[int]] = [[] for _ in sources]
    waiting = []
    for item, before in enumerate(sources):
        distinct = set(before)
        waiting.append(len(distinct))
        for source in distinct:
            users[source].append(item)
    ready = [item for item, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        item = heapq.heappop(ready)
        order.append(item)
        for user in users[item]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    return order, waiting
