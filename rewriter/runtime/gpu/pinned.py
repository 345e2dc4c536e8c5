"""Page-locked host memory: buffers by size class, kept for the next call."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.errors import ConverterStateError

SMALLEST_CLASS = 12
"""Binary logarithm of the smallest buffer, one page of the host: page-locking works by pages."""

IDLE_BYTES = 1 << 29
"""Most bytes that lie idle, 512 MiB. Page-locked memory cannot be swapped out, so all other programs miss it; yet
locking costs about a millisecond for each few MiB, so a usual batch (a few hundred MiB at the very most) must come from
the pool."""


class HostBuffer:
    """Page-locked memory of the host, lent by a pool.

    Attributes:
        pointer: Address.
        nbytes: Bytes asked for (there may be more).
    """

    __slots__ = ("_block", "_pool", "nbytes", "pointer")

    def __init__(self, pool: PinnedPool, block: _Block, nbytes: int):
        self._pool: PinnedPool | None = pool
        self._block: _Block | None = block
        self.pointer = block.pointer
        self.nbytes = nbytes

    def array(self, dtype: Any, shape: Sequence[int], offset: int = 0) -> np.ndarray:
        """The memory as an array (not copied, not initialised). Its contents are the caller's until ``release``.

        Args:
            dtype: numpy dtype, also those of ml_dtypes.
            shape: Its shape.
            offset: Bytes from the start of the buffer.

        Raises:
            ConverterStateError: The buffer was released.
        """
        if self._block is None:
            raise ConverterStateError("the page-locked buffer was released: take another one from pinned()")
        array: np.ndarray = np.ndarray(shape, dtype, self._block.memory, offset)
        return array

    def release(self) -> None:
        """Gives the memory back; arrays made of it must not be used any more. A second call does nothing."""
        block, pool = self._block, self._pool
        self._block = self._pool = None
        if block is not None and pool is not None:
            pool._take_back(block)


class _Block:
    """One allocation. It is freed when nothing refers to it any more: no pool, no buffer, and no array of it."""

    __slots__ = ("memory", "pointer", "size_class")

    def __init__(self, pointer: int, size_class: int, free: Callable[[int], None]):
        self.pointer = pointer
        self.size_class = size_class
        owner: Any = (ctypes.c_char * (1 << size_class)).from_address(pointer)
        # Arrays hold `memory`, which holds `owner`: so a forgotten array can be stale after release(), but never point
        # to freed memory.
        weakref.finalize(owner, free, pointer).atexit = False
        self.memory = np.frombuffer(owner, np.uint8)


class PinnedPool:
    """Buffers of page-locked memory in powers of two, thread-safe.

    Args:
        allocate: Makes page-locked memory: bytes -> address.
        free: Gives it back.
        idle_bytes: Most bytes that lie idle.
    """

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], None], idle_bytes: int = IDLE_BYTES):
        self._allocate = allocate
        self._free = free
        self._maximum = idle_bytes
        self._idle: dict[int, list[_Block]] = {}
        self._idle_bytes = 0
        self._closed = False
        # Reentrant: the garbage collector may run another buffer's end in the middle of our own critical section.
        self._lock = threading.RLock()

    @property
    def idle_bytes(self) -> int:
        """Bytes that lie idle now."""
        return self._idle_bytes

    def take(self, nbytes: int) -> HostBuffer:
        """A buffer of at least this many bytes.

        Raises:
            DeviceMemoryError: The system locks no more memory.
        """
        size_class = max(SMALLEST_CLASS, (nbytes - 1).bit_length())
        with self._lock:
            blocks = self._idle.get(size_class)
            if blocks:
                self._idle_bytes -= 1 << size_class
                return HostBuffer(self, blocks.pop(), nbytes)
        return HostBuffer(self, _Block(self._allocate(1 << size_class), size_class, self._free), nbytes)

    def _take_back(self, block: _Block) -> None:
        with self._lock:
            if self._closed or self._idle_bytes + (1 << block.size_class) > self._maximum:
                return  # the last reference goes with the caller's frame, and the memory with it
            self._idle.setdefault(block.size_class, []).append(block)
            self._idle_bytes += 1 << block.size_class

    def close(self) -> None:
        """Frees what lies idle; buffers that are still lent out are freed when they come back."""
        with self._lock:
            self._closed = True
            self._idle, self._idle_bytes = {}, 0
