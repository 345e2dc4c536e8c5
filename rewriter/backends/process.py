"""A child process that is spoken to in frames: started, watched, and its death explained."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

from rewriter.backends.frames import FrameError, Header, read_frame, write_frame

_KEPT_LINES = 40
_REAP_SECONDS = 5.0


class ChildDied(RuntimeError):  # noqa: N818 -- it reports an event; the caller decides whether it is an error
    """The child ended or went silent; the message says how, with the last lines it wrote to stderr."""


class Child:
    """One running child process.

    Args:
        command: program and arguments.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, which then ends the child
        )
        self.owner = os.getpid()
        self._frames: queue.Queue[tuple[Header, bytes] | FrameError | None] = queue.Queue()
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        assert self._process.stdout is not None and self._process.stderr is not None  # noqa: PT018, S101 -- PIPE above
        self._threads = [
            threading.Thread(target=self._read_frames, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_lines, args=(self._process.stderr,), daemon=True),
        ]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # Ctrl-C: nobody but this object knows of the process yet
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Sends one message.

        Raises:
            ChildDied: nobody reads.
        """
        assert self._process.stdin is not None  # noqa: S101 -- PIPE above
        try:
            write_frame(self._process.stdin, header, payload)
        except OSError as error:
            raise ChildDied(self._explain()) from error

    def receive(self, timeout: float) -> tuple[Header, bytes]:
        """The next message; waits at most `timeout` seconds, and kills the child when they have passed.

        Raises:
            ChildDied: it ended, hung, or sent something else.
        """
        try:
            frame = self._frames.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise ChildDied(f"it gave no sign of life for {timeout:g} s and was ended") from None
        if frame is None:
            raise ChildDied(self._explain())
        if isinstance(frame, FrameError):
            self.kill()
            raise ChildDied(f"it sent something unreadable: {frame}") from frame
        return frame

    def kill(self) -> None:
        """Ends the process and waits for it; harmless when repeated."""
        self._process.kill()
        self._collect()

    def interrupt(self) -> None:
        """Ends the process while another thread waits for its answer, which reaps it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Asks the process to end by closing its stdin, then makes sure; in a forked copy it does nothing."""
        if self.owner != os.getpid():
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._collect()

    def _collect(self) -> None:
        """Reaps the process and closes the pipes."""
        self._process.wait()
        for thread in self._threads:
            thread.join(_REAP_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _explain(self) -> str:
        """How the process ended."""
        try:
            status = self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it closed its pipes and was ended"
        self._collect()
        how = f"it was killed by {_signal_name(-status)}" if status < 0 else f"it ended with status {status}"
        last = " | ".join(line for line in list(self._lines)[-3:])
        return f"{how}; last words: {last}" if last else how

    def _read_frames(self, stream: IO[bytes]) -> None:
        try:
            while (frame := read_frame(stream)) is not None:
                self._frames.put(frame)
        except FrameError as error:
            self._frames.put(error if self.alive else None)
        except (OSError, ValueError):  # the pipe was closed under this thread by kill() or close()
            pass
        self._frames.put(None)

    def _read_lines(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                if line.strip():
                    self._lines.append(line.decode(errors="replace").strip())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
