"""Where every value of a fixed plan lies: lifetimes in, offsets in one arena out. Pure integers, no device."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

#: First and last step in which a value is alive, both included; -1 is the time before the first step.
_Lifetime = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class BufferPlan:
    """Offsets of values in one arena.

    Attributes:
        offsets: value name -> its first byte, a multiple of the alignment; values of zero bytes have one too.
        nbytes: size of the arena in bytes; 0 when no value needs a byte.
    """

    offsets: Mapping[str, int]
    nbytes: int


def plan_buffers(
    steps: Sequence[tuple[Collection[str], Collection[str]]],
    sizes: Mapping[str, int],
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
    alignment: int = 256,
) -> BufferPlan:
    """Places values in one arena so that no two that are alive in the same step share a byte.

    The rule is "greedy by size for offset calculation" of Pisarchyk and Lee, "Efficient Memory Management for Deep
    Neural Net Inference" (2020): the largest value first, each into the smallest gap that is free for as long as it
    lives, else behind all that live then. A value is alive

    1. from the step that writes it (inputs: from before the first step) to the last step that reads it;
    2. outputs: until after the last step;
    3. during its step when nobody reads it: whoever writes it needs the place.

    Args:
        steps: (read, written) value names of every step, in order of execution.
        sizes: value name -> bytes, at least 0. A value that is not in it lies elsewhere and gets no offset; neither
            does one that no step, input or output names.
        inputs: values that are there before the first step.
        outputs: values that are needed after the last step.
        alignment: of every offset, in bytes, at least 1.

    Raises:
        ValueError: a size is negative, the alignment is below 1, or a value is read before any step writes it.
    """
    if alignment < 1:
        raise ValueError(f"the alignment of buffers is {alignment} bytes, expected at least 1")
    lifetimes = {name: span for name, span in _lifetimes(steps, inputs, outputs).items() if name in sizes}
    rounded: dict[str, int] = {}
    for name in lifetimes:
        if sizes[name] < 0:
            raise ValueError(f"value {name!r} has a size of {sizes[name]} bytes")
        rounded[name] = -(-sizes[name] // alignment) * alignment
    arena = _Arena(len(rounded))
    # Of values of one size the longer lived goes first, then the earlier: the order never depends on hashes.
    order = sorted(rounded, key=lambda n: (-rounded[n], lifetimes[n][0] - lifetimes[n][1], lifetimes[n][0], n))
    placed = {name: arena.place(lifetimes[name], rounded[name]) if rounded[name] else 0 for name in order}
    return BufferPlan({name: placed[name] for name in lifetimes}, arena.nbytes)


def _lifetimes(
    steps: Sequence[tuple[Collection[str], Collection[str]]], inputs: Collection[str], outputs: Collection[str]
) -> dict[str, _Lifetime]:
    first = dict.fromkeys(sorted(inputs), -1)
    last = dict(first)
    for number, (read, written) in enumerate(steps):
        for name in sorted(set(read)):
            if name not in first:
                raise ValueError(f"value {name!r} is read in step {number}, but no earlier step writes it")
            last[name] = number
        for name in sorted(set(written)):
            first.setdefault(name, number)
            last[name] = number
    for name in sorted(set(outputs)):
        # An output that no step writes (a constant that was copied in) is there from the beginning.
        first.setdefault(name, -1)
        last[name] = len(steps)
    return {name: (first[name], last[name]) for name in first}


class _Arena:
    """What is placed so far, sorted by offset, in arrays: a search looks at all of it at once."""

    def __init__(self, capacity: int) -> None:
        self._count = 0
        self.nbytes = 0
        # Rows: first step, last step, begin, end (bytes).
        self._rows = np.zeros((4, capacity), np.int64)

    def place(self, lifetime: _Lifetime, size: int) -> int:
        """The offset of one more value of `size` bytes, which is taken from now on."""
        first, last, begin, end = self._rows[:, : self._count]
        alive = (first <= lifetime[1]) & (last >= lifetime[0])
        begins, ends = begin[alive], end[alive]
        # Before every living value there may be a gap, from the end of all those that begin earlier.
        floors = np.concatenate(([0], np.maximum.accumulate(ends))) if ends.size else np.zeros(1, np.int64)
        gaps = begins - floors[:-1]
        fitting = np.flatnonzero(gaps >= size)
        offset = int(floors[fitting[np.argmin(gaps[fitting])]] if fitting.size else floors[-1])
        self._insert(int(np.searchsorted(begin, offset, side="right")), (*lifetime, offset, offset + size))
        return offset

    def _insert(self, at: int, row: tuple[int, int, int, int]) -> None:
        self._rows[:, at + 1 : self._count + 1] = self._rows[:, at : self._count].copy()
        self._rows[:, at] = row
        self._count += 1
        self.nbytes = max(self.nbytes, row[3])
