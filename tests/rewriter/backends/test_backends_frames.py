from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.backends.frames import FrameError, read_frame, write_frame

HEADERS = st.dictionaries(
    st.text(max_size=5), st.integers() | st.text(max_size=9) | st.lists(st.booleans(), max_size=3)
)


class Dribble(io.RawIOBase):
    """A stream that gives at most `size` bytes a read, as pipes may."""

    def __init__(self, data, size):
        self._stream = io.BytesIO(data)
        self._size = size

    def read(self, size=-1):
        return self._stream.read(min(size, self._size))


@given(st.lists(st.tuples(HEADERS, st.binary(max_size=300)), max_size=4), st.integers(1, 64))
def test_frames_survive_the_pipe(frames, size):
    stream = io.BytesIO()
    for header, payload in frames:
        write_frame(stream, header, payload)
    reader = Dribble(stream.getvalue(), size)
    assert [read_frame(reader) for _ in frames] == frames
    assert read_frame(reader) is None


@given(HEADERS, st.binary(max_size=30), st.data())
def test_a_truncated_frame_is_an_error(header, payload, data):
    stream = io.BytesIO()
    write_frame(stream, header, payload)
    whole = stream.getvalue()
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(FrameError):
        read_frame(io.BytesIO(whole[:cut]))


@pytest.mark.parametrize("garbage", [b"Unsupported ONNX data type: STRING", b"TRTW" + b"\xff" * 40])
def test_garbage_is_an_error(garbage):
    with pytest.raises(FrameError, match="not a message"):
        read_frame(io.BytesIO(garbage))


def test_a_header_that_is_no_json_object_is_an_error():
    for text in (b"[]", b"{"):
        prefix = b"TRTW" + len(text).to_bytes(4, "big") + (0).to_bytes(8, "big")
        with pytest.raises(FrameError, match="header"):
            read_frame(io.BytesIO(prefix + text))
