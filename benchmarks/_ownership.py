"""Whose time is it? A sampling clock that runs a `trt-rewriter` command and books every moment to its owner.

The definition, in full (`Owners`): a moment belongs to the innermost frame on the main thread's stack that one of these
owns.

* TensorFlow (Keras with it) and tf2onnx: their packages. What they call belongs to them, onnx and numpy included;
  a function of ours that they call back belongs to us.
* TensorRT: the waits for answers of its process, as long as the process says that it was inside the parser or the
  builder (or imported the package). The rest of such a wait is ours: frames, weights, hashes of the engine.
* ONNX Runtime and onnx, where we call them.
* Ours: `rewriter` and `passes`, with everything else that they call (numpy, protobuf, the standard library).
* Python: what nobody owns. This clock's own looks are booked to nobody, but told.

Imports are booked as a stage of their own, to whose module is imported.

    python benchmarks/_ownership.py RESULT.json convert SRC -o OUT ...
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

OURS = "ours"
PYTHON = "Python"
TENSORRT = "TensorRT"
START = "start of TensorRT's process"
#: Package -> who it belongs to. What they call is theirs.
ACTORS = {
    "tensorflow": "TensorFlow", "keras": "TensorFlow", "tf_keras": "TensorFlow", "tf2onnx": "tf2onnx",
    "rewriter": OURS, "passes": OURS,
}  # fmt: skip
#: Package -> its name, where an actor calls it.
LIBRARIES = {"onnxruntime": "ONNX Runtime", "onnx": "onnx"}
#: (end of the file, function) -> who it belongs to; None: to whoever calls it.
FUNCTIONS = {
    ("rewriter/backends/process.py", "receive"): None,
    ("rewriter/backends/client.py", "_await"): TENSORRT,
    ("rewriter/backends/client.py", "_started"): START,
}
#: Those whose time no converter of TensorFlow models for TensorRT can do without.
THEIRS = ("TensorFlow", "tf2onnx", TENSORRT)
#: Stages beside the converter's own.
PROCESS, IMPORTS, BETWEEN = "process start and end", "imports", "between stages"
#: Seconds between two looks at the stack.
INTERVAL = 0.004

_ROOT = str(Path(__file__).resolve().parent.parent) + "/"

#: stage -> owner -> seconds.
Ledger = dict[str, dict[str, float]]


class Owners:
    """Finds the owner of a stack; remembers what it has found of each piece of code."""

    def __init__(self) -> None:
        self._known: dict[CodeType, tuple[str, str | None]] = {}

    def of(self, frame: FrameType | None) -> tuple[str, bool]:
        """(owner, whether a module is being imported) of a stack that ends in `frame`."""
        owner, library, importing = "", "", False
        while frame is not None:
            kind, name = self._known.get(frame.f_code) or self._look(frame.f_code)
            if kind == "import":
                importing = True
            elif owner:
                pass  # only whether it is an import is still asked
            elif kind == "library" and name is not None:
                library = library or name
            elif kind == "actor" and name is not None:
                owner = library if name == OURS and library else name
            frame = frame.f_back
        return owner or library or PYTHON, importing

    def _look(self, code: CodeType) -> tuple[str, str | None]:
        found = kind_of(code.co_filename, code.co_name)
        self._known[code] = found
        return found


def kind_of(file: str, function: str) -> tuple[str, str | None]:
    """("actor" | "library" | "import" | "", name) of a piece of code."""
    if file.startswith("<frozen importlib") and function == "_find_and_load":
        return "import", None
    for (end, name), owner in FUNCTIONS.items():
        if name == function and file.endswith(end):
            return ("actor", owner) if owner else ("", None)
    package = package_of(file)
    if package in ACTORS:
        return "actor", ACTORS[package]
    return ("library", LIBRARIES[package]) if package in LIBRARIES else ("", None)


def package_of(file: str) -> str:
    """The top-level package that a source file belongs to: the folder after the last root of packages, or ""."""
    for root in ("/site-packages/", "/dist-packages/", _ROOT):
        _, found, rest = file.rpartition(root)
        if found:
            return rest.partition("/")[0].removesuffix(".py")
    return ""


class Sampler:
    """Looks at the main thread's stack every `INTERVAL` and books the time since the last look.

    A call into C is looked at when it is over, in the frame that made it, and so booked in full. The main thread only.
    """

    def __init__(self) -> None:
        self.ledger: Ledger = {}
        self.looks, self.overhead = 0, 0.0
        self._owners = Owners()
        self._stages = [BETWEEN]
        self._inside: dict[str, float] = {}
        self._last = time.monotonic()

    def start(self) -> None:
        """From now on."""
        self._last = time.monotonic()
        signal.signal(signal.SIGALRM, self._look)
        signal.siginterrupt(signal.SIGALRM, False)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)

    def stop(self) -> None:
        """Until now."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.book(self._stages[-1], PYTHON, time.monotonic() - self._last)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    @contextlib.contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """The block belongs to `stage`."""
        self._stages.append(stage)
        try:
            yield
        finally:
            self._stages.pop()

    def book(self, stage: str, owner: str, seconds: float) -> None:
        """Adds seconds, or takes some away."""
        row = self.ledger.setdefault(stage, {})
        row[owner] = row.get(owner, 0.0) + seconds

    def answered(self, seconds: float) -> None:
        """An answer has come from TensorRT's process, which spent so long inside TensorRT."""
        stage = self._stages[-1]
        self._inside[stage] = self._inside.get(stage, 0.0) + seconds

    def settled(self) -> Ledger:
        """The ledger, with the waits for TensorRT cut down to what its process spent in TensorRT; call it once."""
        for stage, inside in self._inside.items():
            waited = self.ledger.get(stage, {}).get(TENSORRT, 0.0)
            if waited > inside:
                self.book(stage, TENSORRT, inside - waited)
                self.book(stage, OURS, waited - inside)
        return self.ledger

    def _look(self, _number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        owner, importing = self._owners.of(frame)
        self.book(IMPORTS if importing else self._stages[-1], owner, now - self._last)
        self.looks += 1
        self._last = time.monotonic()
        self.overhead += self._last - now


def watch(sampler: Sampler) -> None:
    """Tells `sampler` of the converter's stages, and of the answers of TensorRT's process."""
    from rewriter.backends.client import ProcessBackend
    from rewriter.frontend.tensorflow import Clock
    from rewriter.progress import Stages

    for clock in (Clock, Stages):
        _label(clock, sampler)
    wait = ProcessBackend._await

    def told(self: Any, *arguments: Any) -> Any:
        answer = wait(self, *arguments)
        sampler.answered(float(answer.get("seconds", 0.0)))
        return answer

    ProcessBackend._await = told  # type: ignore[method-assign]


def _label(clock: Any, sampler: Sampler) -> None:
    plain = clock.stage

    @contextlib.contextmanager
    def stage(self: Any, name: str) -> Iterator[None]:
        with sampler.at(name), plain(self, name):
            yield

    clock.stage = stage


def main(argv: list[str]) -> int:
    """Runs a command of `trt-rewriter` and writes what was booked."""
    begun = time.monotonic()
    sampler = Sampler()
    sampler.start()
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from rewriter.cli import main as command

    watch(sampler)
    status = command(argv[1:])
    sampler.stop()
    result: Mapping[str, Any] = {
        "ledger": sampler.settled(),
        "looks": sampler.looks,
        "overhead": sampler.overhead,
        "begun": begun,
        "ended": time.monotonic(),
    }
    Path(argv[0]).write_text(json.dumps(result), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
