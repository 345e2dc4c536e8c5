"""The file that an engine is written to: piece by piece, hashed on the way, in place only when it is whole."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

#: Bytes from which a piece is hashed in a thread of its own while it is written; both let other threads run.
_LARGE = 1 << 20


class PlanFile:
    """A context manager around a sibling of `output` that `commit` renames into place.

    Attributes:
        size: bytes written so far.
        error: what the system said when a piece could not be written; TensorRT cannot pass it on.
        seconds: what writing and hashing took so far.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        self.seconds = 0.0

    def __enter__(self) -> PlanFile:
        self._file = self._partial.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._partial.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        """Appends a piece (any buffer); returns its bytes, or 0 after an error, which ends a build."""
        piece = memoryview(data).cast("B")
        start = time.perf_counter()
        hashing = threading.Thread(target=self._digest.update, args=(piece,)) if piece.nbytes >= _LARGE else None
        if hashing is None:
            self._digest.update(piece)
        else:
            hashing.start()
        try:
            assert self._file is not None, "write outside the with block"  # noqa: S101 - a defect of ours
            self._file.write(piece)
        except OSError as error:
            self.error = error
            return 0
        finally:
            if hashing is not None:
                hashing.join()
        self.size += piece.nbytes
        self.seconds += time.perf_counter() - start
        return piece.nbytes

    def commit(self) -> None:
        """Puts the file in place."""
        assert self._file is not None, "commit outside the with block"  # noqa: S101 - a defect of ours
        self._file.close()
        self._partial.replace(self._output)


def stream_to(trt: Any, plan: PlanFile) -> Any:
    """A stream writer of the module `trt` over `plan`."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)  # pybind11 needs the explicit call

        def write(self, data: Any) -> int:
            return plan.write(data)

    return Writer()
