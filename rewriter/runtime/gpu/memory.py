"""Device memory that all plans and engines share: they never run at once, for there is one stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.handles import DeviceBuffer


class SharedMemory:
    """One block of device memory that grows to the largest size asked for.

    What was bound to the block before it grew must be bound again: `generation` tells.

    Attributes:
        generation: how often the block was replaced.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.generation = 0
        self._cuda = cuda
        self._buffer: DeviceBuffer | None = None

    @property
    def nbytes(self) -> int:
        """Its size in bytes; 0 before the first `ensure`."""
        return self._buffer.nbytes if self._buffer else 0

    @property
    def pointer(self) -> int:
        """Its address; 0 before the first `ensure`."""
        return self._buffer.pointer if self._buffer else 0

    def ensure(self, nbytes: int) -> int:
        """Makes the block at least so large; returns its address.

        Raises:
            DeviceMemoryError: there is not enough memory; the block is gone then.
        """
        if self._buffer is None or self._buffer.nbytes < nbytes:
            self.release()
            self._buffer = self._cuda.allocate(max(nbytes, 1))
        return self._buffer.pointer

    def release(self) -> None:
        """Gives the block back, in the order of the stream; harmless when repeated."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self.generation += 1
            buffer.free()
