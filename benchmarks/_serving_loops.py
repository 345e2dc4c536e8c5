"""What the workers of serving.py share: how they are told what to do, and the loops that ask a model."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, relative_difference

add_project_to_path()

Arrays = Mapping[str, np.ndarray]
#: One request: inputs -> outputs.
Call = Callable[[Arrays], Arrays]
#: Makes the calls of one thread: clients are not shared between threads.
Opener = Callable[[], Call]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model, what it is asked, and what `load()` answers.

    Attributes:
        name: of the model.
        path: the artifact.
        requests: inputs of one row each.
        expected: their outputs, computed in this process with one thread.
        call: the same call again.
    """

    name: str
    path: Path
    requests: tuple[Arrays, ...]
    expected: tuple[Arrays, ...]
    call: Call

    def worst(self, answers: Mapping[int, list[Arrays]]) -> float:
        """Largest relative difference of answers (by request) from those expected; a shape of [n, 1] is as [n]."""
        return max(
            (
                relative_difference(_flat(np.asarray(answer[name]), array.ndim), array)
                for number, found in answers.items()
                for answer in found
                for name, array in self.expected[number].items()
            ),
            default=0.0,
        )

    def apart(self) -> float:
        """How far the answers to neighbouring requests are from each other: a comparison must be able to tell them."""
        pairs = zip(range(1, len(self.expected)), self.expected, strict=False)
        return float(np.median([self.worst({number: [answer]}) for number, answer in pairs]))


def open_models(folder: Path) -> dict[str, Asked]:
    """The models that serving.py put into a folder."""
    from rewriter import load

    found = {}
    for path in sorted((folder / "models").iterdir()):
        with np.load(folder / "inputs" / f"{path.name}.npz") as file:
            arrays = {name: file[name] for name in file.files}
        count = min(len(array) for array in arrays.values())
        requests = tuple({name: array[i : i + 1] for name, array in arrays.items()} for i in range(count))
        call = load(path, provider="cpu", threads=1).run
        expected = tuple({name: np.array(value) for name, value in call(dict(each)).items()} for each in requests)
        found[path.name] = Asked(path.name, path, requests, expected, call)
    return found


def _flat(array: np.ndarray, dimensions: int) -> np.ndarray:
    """The array without the last dimension that Triton adds to outputs of a batch dimension only."""
    return array[..., 0] if array.ndim == dimensions + 1 and array.shape[-1] == 1 else array


def one_client(asked: Asked, call: Call, count: int) -> dict[str, Any]:
    """Seconds of so many requests, one after the other, and the largest difference from the answers of `load()`."""
    answers: dict[int, list[Arrays]] = {}
    seconds = []
    for i in range(count):
        number = i % len(asked.requests)
        began = time.perf_counter()
        answer = call(asked.requests[number])
        seconds.append(time.perf_counter() - began)
        answers.setdefault(number, []).append(answer)
    return {"seconds": seconds, "worst": asked.worst(answers)}


def many_clients(
    asked: Asked, opener: Opener, clients: int, requests: int, runs: Callable[[], Mapping[int, int]]
) -> dict[str, Any]:
    """Clients in threads, each of which asks again as soon as it was answered, until all requests are shared out.

    Args:
        asked: the model.
        opener: connects one client.
        clients: how many.
        requests: of all clients together.
        runs: asks the server for rows of a run -> how many runs of so many rows there were.

    Returns:
        seconds: from the first request to the last answer; connections are made, and used once, before.
        requests: how many there were.
        runs: of the model for them: rows -> number, as text.
        worst: largest difference from the answers of `load()`.

    Raises:
        RuntimeError: a request failed; the text is that of the first failure.
    """
    each = max(1, requests // clients)
    barrier = threading.Barrier(clients + 1)
    answers: dict[int, list[Arrays]] = {}
    failures: list[str] = []
    lock = threading.Lock()

    def client(first: int) -> None:
        try:
            call = opener()
            call(asked.requests[0])
            barrier.wait()  # all are connected
            barrier.wait()  # the server was asked what it did so far
            for i in range(each):
                number = (first * each + i) % len(asked.requests)
                answer = call(asked.requests[number])
                with lock:
                    answers.setdefault(number, []).append(answer)
        except Exception as error:  # noqa: BLE001 - told by the one who waits for the threads
            failures.append(f"{type(error).__name__}: {error}")
            barrier.abort()

    threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    before: Mapping[int, int] = {}
    try:
        barrier.wait(timeout=120)
        before = runs()
        barrier.wait(timeout=120)
    except threading.BrokenBarrierError:
        failures.append("a client could not connect")
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise RuntimeError(f"{asked.name}, {clients} clients: {failures[0]}")
    made = {str(rows): number - before.get(rows, 0) for rows, number in runs().items()}
    made = {rows: number for rows, number in made.items() if number}
    return {"seconds": seconds, "requests": each * clients, "runs": made, "worst": asked.worst(answers)}


def obey(actions: Mapping[str, Callable[..., Any]], channel: int) -> None:
    """Does what lines of JSON on the standard input say, {"do": name, **arguments}, and answers each with a line.

    An action that fails is answered with {"error": text}; the end of the input is the end.
    """
    with os.fdopen(channel, "w", encoding="utf-8") as out:
        for line in sys.stdin:
            words = json.loads(line)
            try:
                answer = {"ok": actions[words.pop("do")](**words)}
            except Exception as error:  # noqa: BLE001 - the other process tells it
                answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
            out.write(json.dumps(answer) + "\n")
            out.flush()


def private_output() -> int:
    """A descriptor for answers; whatever else prints goes to the standard error stream from now on."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel
