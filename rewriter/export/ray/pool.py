"""A pool of actors that does every chunk of a dataset's rows once, whichever of them die on the way."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rewriter.errors import BackendError, ConversionError
from rewriter.runtime.inputs import first_line

#: So often may the same rows fail, and so many actors one after the other die before they are ready.
TRIES = 4
#: Chunks that an actor has at once: it computes one while the next one's rows are on their way.
_AHEAD = 2
#: Seconds of standstill after which the log says so, again and again.
_PATIENCE = 60.0

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Rows of a dataset that follow each other.

    Attributes:
        first: the place of the first one in the dataset.
        rows: how many.
        blocks: references to the blocks they lie in.
        cuts: of each block the first row and the last one (exclusive).
        tries: how often they were lost: with an actor that died, or with the node that held them or their counts.
    """

    first: int
    rows: int
    blocks: tuple[Any, ...]
    cuts: tuple[tuple[int, int], ...]
    tries: int = 0


def chunks(blocks: Iterable[tuple[Any, int, int]], rows: Callable[[int], int]) -> Iterator[Chunk]:
    """Every row of the blocks once, in their order.

    Args:
        blocks: a reference, the first row and the last one (exclusive) of each.
        rows: number of a chunk -> how many rows it has; the last one has what is left.
    """
    first = number = held = 0
    parts: list[tuple[Any, int, int]] = []
    for block, begin, end in blocks:
        start = begin
        while start < end:
            cut = min(end, start + rows(number) - held)
            parts.append((block, start, cut))
            held += cut - start
            start = cut
            if held == rows(number):
                yield _chunk(first, held, parts)
                first, number, held, parts = first + held, number + 1, 0, []
    if parts:
        yield _chunk(first, held, parts)


def _chunk(first: int, rows: int, parts: Iterable[tuple[Any, int, int]]) -> Chunk:
    blocks, starts, ends = zip(*parts, strict=True)
    return Chunk(first, rows, blocks, tuple(zip(starts, ends, strict=True)))


class Pool:
    """Actors with the methods `load()` and `count(first, cuts, *blocks)`.

    1. An actor gets chunks when its `load` is through.
    2. Where an actor dies, another one takes its place, and its chunks are done again from their beginning; so is a
       chunk whose result was lost with a node. One result of every chunk is taken, and that of one call only.
    3. The first error of an actor's own ends all.

    Also a context manager: at its end the actors are killed.

    Args:
        ray: the package.
        make: makes an actor.
        size: how many.
    """

    def __init__(self, ray: Any, make: Callable[[], Any], size: int) -> None:
        self._ray = ray
        self._make = make
        self._size = size
        self._deaths = 0  # in a row, of actors that were not ready
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Chunk]] = {}
        self._ready: list[Any] = []
        self._again: deque[Chunk] = deque()

    def __enter__(self) -> Pool:
        for _ in range(self._size):
            self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        for actor in (*self._starting.values(), *self._ready):
            self._ray.kill(actor)

    def run(self, work: Iterator[Chunk], take: Callable[[Any], object]) -> None:
        """Does all chunks.

        Args:
            work: the chunks; the next one is asked for when an actor has room for it.
            take: called with the result of every chunk, in the order in which they come in.

        Raises:
            ConversionError: what an actor raised.
            BackendError: actors die again and again, or Ray lost a block of the dataset.
        """
        left = True
        while True:
            while (left or self._again) and (actor := self._free()) is not None:
                chunk = self._again.popleft() if self._again else next(work, None)
                if chunk is None:
                    left = False
                    continue
                self._submit(actor, chunk)
            if not left and not self._running and not self._again:
                return
            self._settle(self._wait(), take)

    def _start(self) -> None:
        actor = self._make()
        self._starting[actor.load.remote()] = actor

    def _free(self) -> Any:
        """The ready actor with the fewest chunks; None where all have enough."""
        held = {id(actor): 0 for actor in self._ready}
        for actor, _ in self._running.values():
            held[id(actor)] = held.get(id(actor), 0) + 1
        actor = min(self._ready, key=lambda one: held[id(one)], default=None)
        return actor if actor is not None and held[id(actor)] < _AHEAD else None

    def _submit(self, actor: Any, chunk: Chunk) -> None:
        self._running[actor.count.remote(chunk.first, chunk.cuts, *chunk.blocks)] = (actor, chunk)

    def _wait(self) -> Any:
        """The reference of a call that has come to its end, well or badly."""
        while True:
            done, _ = self._ray.wait([*self._running, *self._starting], num_returns=1, timeout=_PATIENCE)
            if done:
                return done[0]
            logger.warning(
                "calibration: nothing new in %.0f s; %d chunks of rows are on their way, %d actors are ready and %d "
                "are not: has the cluster room for them?",
                _PATIENCE,
                len(self._running),
                len(self._ready),
                len(self._starting),
            )

    def _settle(self, reference: Any, take: Callable[[Any], object]) -> None:
        """Deals with what a call brought."""
        actor, chunk = self._running.pop(reference, (None, None))
        loading = self._starting.pop(reference, None)
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError) as error:
            self._died(actor or loading, chunk, error)
        except exceptions.RayError as error:
            self._failed(chunk, error)
        else:
            if loading is None:
                take(result)
            else:
                self._deaths = 0
                self._ready.append(loading)

    def _failed(self, chunk: Chunk | None, error: Exception) -> None:
        """Raises, unless the chunk need only be done again: a result may go with its node after all was well.

        Raises:
            ConversionError: what the actor raised.
            BackendError: anything else.
        """
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, ConversionError):
            raise cause from error
        if chunk is None or not isinstance(cause, self._ray.exceptions.ObjectLostError):
            raise BackendError(f"calibration failed{_place(chunk)}: {first_line(cause)}") from error
        self._lost(chunk, cause)

    def _died(self, actor: Any, chunk: Chunk | None, error: Exception) -> None:
        """Another actor for one that is gone, and its chunk to be done again.

        Raises:
            BackendError: that has happened too often.
        """
        if chunk is not None:
            self._lost(chunk, error)
            if actor not in self._ready:
                return  # its other chunk has told already
            self._ready.remove(actor)
        else:
            self._deaths += 1
            if self._deaths >= TRIES:
                words = f"{TRIES} actors in a row died before they were ready: {first_line(error)}"
                raise BackendError(words) from error
        logger.warning("calibration: an actor died%s; another one takes its place", _place(chunk))
        self._ray.kill(actor)  # it may only be out of reach
        self._start()

    def _lost(self, chunk: Chunk, error: Exception) -> None:
        """Has a chunk done again.

        Raises:
            BackendError: that has happened too often.
        """
        if chunk.tries + 1 >= TRIES:
            raise BackendError(
                f"calibration failed {TRIES} times{_place(chunk)}, last: {first_line(error)}: do actors run out of "
                "memory (a smaller batch_size needs less), or do nodes come and go all the time?"
            ) from error
        self._again.append(dataclasses.replace(chunk, tries=chunk.tries + 1))


def _place(chunk: Chunk | None) -> str:
    return f" over the rows {chunk.first} to {chunk.first + chunk.rows - 1}" if chunk else " before it was ready"
