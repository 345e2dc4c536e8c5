"""The child process that runs TensorRT: requests come in on stdin as frames, answers go out on stdout.

Requests: {"command": "parse" | "build" | "cancel", "id": n, ...} with the serialised ONNX model as payload. Weights
come as places in files, which are mapped here, so that they are never copied. An answer tells the seconds spent inside
TensorRT. TensorRT may crash this process; the parent (`client`) turns that into an answer. The process ends when its
stdin does, in the middle of a build as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rewriter.backends.base import BuildFailure, BuildOptions, InputProfile
from rewriter.backends.frames import FrameError, Header, read_frame, write_frame
from rewriter.backends.trt_api import Session, Weight

#: Exit status when the module cannot be imported; the reason was sent before.
EXIT_NO_MODULE = 3


class Worker:
    """Answers requests one after another.

    Args:
        session: the TensorRT module in use.
        requests: frames from the parent; None ends the loop.
        out: where answers go.
        cancelled: ids of requests that are to stop.
    """

    def __init__(
        self, session: Session, requests: queue.Queue[tuple[Header, bytes] | None], out: BinaryIO, cancelled: set[int]
    ) -> None:
        self._session = session
        self._requests = requests
        self._out = out
        self._cancelled = cancelled
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Runs until the requests end."""
        for header, payload in iter(self._requests.get, None):
            number = int(header.get("id", 0))
            try:
                answer = self._answer(header, payload)
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            self._cancelled.discard(number)
            self._send({**answer, "id": number})

    def _send(self, header: Header) -> None:
        with self._sending:  # progress may come from a thread of TensorRT's
            write_frame(self._out, header)

    def _answer(self, header: Header, payload: bytes) -> Header:
        maps, weights = map_weights(header.get("weights", ()))
        try:
            if header["command"] == "parse":
                errors = self._session.parse(payload, weights)
                return {"errors": [dataclasses.asdict(e) for e in errors], "seconds": self._session.seconds}
            if header["command"] == "build":
                return self._build(header, payload, weights)
            raise ValueError(f"unknown command {header['command']!r}")
        finally:
            del maps  # the addresses in `weights` are valid until here

    def _build(self, header: Header, payload: bytes, weights: tuple[Weight, ...]) -> Header:
        number = int(header["id"])

        def step(phase: str, done: int, total: int) -> bool:
            self._send({"event": "progress", "id": number, "step": [phase, done, total]})
            return number not in self._cancelled

        profiles = [{n: _profile(p) for n, p in profile.items()} for profile in header["profiles"]]
        options = header["options"]
        result = self._session.build(
            payload,
            weights,
            profiles,
            BuildOptions(**{**options, "targets": tuple(options["targets"])}),
            Path(header["output"]),
            step=step if header.get("progress") else None,
        )
        if isinstance(result, BuildFailure):
            return {"failure": dataclasses.asdict(result), "seconds": self._session.seconds}
        engine = {**dataclasses.asdict(result), "path": str(result.path)}
        return {"engine": engine, "seconds": self._session.seconds}


def map_weights(places: Any) -> tuple[list[np.ndarray], tuple[Weight, ...]]:
    """Maps the files that hold the weights; the addresses are good while the returned arrays live.

    Raises:
        ValueError: a file is shorter than its weights: reading the map would kill the process.
        OSError: a file cannot be read.
    """
    files: dict[str, np.ndarray] = {}
    weights = []
    for place in places:
        path, offset, nbytes = place["file"], int(place["offset"]), int(place["nbytes"])
        if path not in files:
            files[path] = np.memmap(path, np.uint8, "r")
        if offset + nbytes > files[path].size:
            raise ValueError(f"weight {place['name']!r} needs {nbytes} bytes at {offset} of {path}, which is shorter")
        weights.append(Weight(place["name"], files[path].ctypes.data + offset, nbytes))
    return list(files.values()), tuple(weights)


def _profile(value: Mapping[str, Any]) -> InputProfile:
    return InputProfile(
        tuple(value["minimum"]), tuple(value["optimum"]), tuple(value["maximum"]), bool(value["is_values"])
    )


def _read_requests(stream: BinaryIO, requests: queue.Queue[tuple[Header, bytes] | None], cancelled: set[int]) -> None:
    """Feeds the queue; ends the process with its parent, whatever it is doing then."""
    while True:
        try:
            frame = read_frame(stream)
        except FrameError as error:
            sys.stderr.write(f"trt-rewriter worker: {error}\n")
            os._exit(2)
        if frame is None:
            os._exit(0)
        if frame[0].get("command") == "cancel":
            cancelled.add(int(frame[0]["id"]))
        else:
            requests.put(frame)


def main(arguments: list[str] | None = None) -> int:
    """Imports the module named by --module, says hello, and serves; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rewriter.backends.worker", description=__doc__)
    parser.add_argument("--module", required=True, choices=("tensorrt", "tensorrt_rtx"))
    module = parser.parse_args(arguments).module
    # TensorRT prints to file descriptor 1 now and then: it gets stderr there, and the frames a descriptor of their own.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        session = Session(importlib.import_module(module))
    except (ImportError, OSError, RuntimeError, TypeError, AttributeError) as error:
        write_frame(out, {"event": "failed", "reason": f"{type(error).__name__}: {error}"})
        return EXIT_NO_MODULE
    requests: queue.Queue[tuple[Header, bytes] | None] = queue.Queue()
    cancelled: set[int] = set()
    heavy = [name for name in ("onnx", "tensorflow", "onnxruntime") if name in sys.modules]
    write_frame(
        out,
        {"event": "ready", "version": session.version, "targets": list(session.known_targets()), "heavy": heavy},
    )
    reader = threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests, cancelled), daemon=True)
    reader.start()
    Worker(session, requests, out, cancelled).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
