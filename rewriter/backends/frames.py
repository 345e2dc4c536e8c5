"""Messages between the program and the process that runs TensorRT: a JSON header and raw bytes, length-prefixed."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

_PREFIX = struct.Struct(">4sIQ")
_MAGIC = b"TRTW"
_LARGEST_HEADER = 1 << 28
_LARGEST_PAYLOAD = 1 << 32

Header = dict[str, Any]


class FrameError(RuntimeError):
    """The other side sent something that is not a message."""


def write_frame(stream: IO[bytes], header: Header, payload: bytes = b"") -> None:
    """Writes one message and flushes.

    Raises:
        OSError: the other side is gone.
    """
    head = json.dumps(header).encode()
    stream.write(_PREFIX.pack(_MAGIC, len(head), len(payload)) + head)
    stream.write(payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[Header, bytes] | None:
    """Reads one message; None at the end of the stream.

    Raises:
        FrameError: the bytes are no message, or end in the middle of one.
    """
    prefix = _read(stream, _PREFIX.size)
    if not prefix:
        return None
    if len(prefix) < _PREFIX.size:
        raise FrameError("the message ended within its prefix")
    magic, head_size, payload_size = _PREFIX.unpack(prefix)
    if magic != _MAGIC or head_size > _LARGEST_HEADER or payload_size > _LARGEST_PAYLOAD:
        raise FrameError(f"not a message: {prefix!r}")
    head, payload = _read(stream, head_size), _read(stream, payload_size)
    if len(head) < head_size or len(payload) < payload_size:
        raise FrameError("the message ended in its middle")
    try:
        header = json.loads(head)
    except ValueError as error:
        raise FrameError(f"the header is not JSON: {head[:80]!r}") from error
    if not isinstance(header, dict):
        raise FrameError(f"the header is not an object: {head[:80]!r}")
    return header, payload


def _read(stream: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes, or fewer at the end of the stream."""
    parts = []
    while size:
        part = stream.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
