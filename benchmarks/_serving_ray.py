"""The part of serving.py that a Python with Ray runs: Ray Serve, Ray Data, and replicas that are killed.

python benchmarks/_serving_ray.py FOLDER      what serving.py put there

Lines of JSON on its standard input say what to do, lines on its standard output what came of it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _serving_loops import Asked, Call, many_clients, obey, one_client, open_models, private_output

#: Logical CPUs of the cluster: enough for all replicas and actors, however few cores there are.
CPUS = 8
#: A replica or actor takes half of one and computes with one thread.
SHARE = 0.5
JOINED, SINGLE = "joined", "single"
SECONDS = 120


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


def wait(found: Callable[[], Any], what: str) -> None:
    """Waits until there is something.

    Raises:
        TimeoutError: not within `SECONDS`.
    """
    end = time.monotonic() + SECONDS
    while not found():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {SECONDS} s")
        time.sleep(0.1)


class RayWorker:
    """A cluster of this machine, with every model served twice: requests joined, and one by one."""

    def __init__(self, folder: Path) -> None:
        import ray
        from ray import serve

        self._models = open_models(folder)
        self._port = free_port()
        ray.init(num_cpus=CPUS, include_dashboard=False, object_store_memory=400 << 20, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self._port})
        self._handles = {
            (name, how): self._run(asked, f"{name}-{how}", max_batch_size=None if how == JOINED else 1)
            for name, asked in self._models.items()
            for how in (JOINED, SINGLE)
        }
        self._calls: dict[tuple[str, str], Call] = {}

    def facts(self) -> dict[str, str]:
        """Versions."""
        names = ("ray", "onnxruntime", "numpy")
        return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}

    def apart(self) -> dict[str, float]:
        """How far the answers to different requests are from each other, for each model."""
        return {name: asked.apart() for name, asked in self._models.items()}

    def latency(self, path: str, model: str, count: int) -> dict[str, Any]:
        """One client of the deployment that joins nothing; "in process" is `load()`."""
        asked = self._models[model]
        if (path, model) not in self._calls:
            self._calls[path, model] = asked.call if path == "in process" else self._open(path, model, SINGLE)
        return one_client(asked, self._calls[path, model], count)

    def rate(self, path: str, model: str, how: str, clients: int, requests: int) -> dict[str, Any]:
        """Several clients at once."""

        def runs() -> dict[int, int]:
            found = self._handles[model, how].stats.remote().result(timeout_s=SECONDS)["batches"]
            return {int(rows): number for rows, number in found.items()}

        return many_clients(self._models[model], lambda: self._open(path, model, how), clients, requests, runs)

    def data(self, model: str, rows: int, batch: int, actors: int) -> dict[str, Any]:
        """`map_batches` over so many rows, beside a loop of `load()` over them with one thread and with all cores."""
        import ray

        from rewriter import load
        from rewriter.export.ray import map_batches

        asked = self._models[model]
        names = list(asked.requests[0])
        numbers = np.arange(rows) % len(asked.requests)
        arrays = {name: np.concatenate([asked.requests[i][name] for i in numbers]) for name in names}
        table = ray.data.from_items(
            [{"row": i, **{name: arrays[name][i] for name in names}} for i in range(rows)], override_num_blocks=8
        ).materialize()
        found: dict[str, Any] = {"rows": rows}
        for key, threads in (("loop_s", 1), ("loop_all_s", None)):
            with load(asked.path, provider="cpu", threads=threads) as function:
                began = time.perf_counter()
                for start in range(0, rows, batch):
                    function.run({name: array[start : start + batch] for name, array in arrays.items()})
                found[key] = time.perf_counter() - began
        began = time.perf_counter()
        answers = map_batches(table, asked.path, batch_size=batch, actors=actors, num_cpus=SHARE, threads=1).take_all()
        found["actors_s"] = time.perf_counter() - began
        outputs = list(asked.expected[0])
        seen = Counter(row["row"] for row in answers)
        found["once"] = len(answers) == rows and set(seen) == set(range(rows))
        by_request: dict[int, list[Any]] = {}
        for row in answers:
            by_request.setdefault(int(numbers[row["row"]]), []).append({name: row[name] for name in outputs})
        return {**found, "worst": asked.worst(by_request)}

    def calibration(self, model: str, rows: int, batch: int, actors: int) -> dict[str, Any]:
        """Ranges of a model by one machine and by actors, and whether they are the same, bit for bit."""
        import ray

        from rewriter.export.ray import calibrate
        from rewriter.precision.calibration import calibrate as on_one_machine
        from rewriter.precision.work import work_for_artifact

        asked = self._models[model]
        names = list(asked.requests[0])
        items = [{name: asked.requests[i % len(asked.requests)][name][0] for name in names} for i in range(rows)]
        items = [
            {name: value * np.float32(1 + i / rows) for name, value in item.items()} for i, item in enumerate(items)
        ]
        work = work_for_artifact(asked.path)
        tensors = {spec.name: spec.tensor for spec in work.signature.inputs}
        batches = [
            {tensors[name]: np.stack([item[name] for item in items[start : start + batch]]) for name in names}
            for start in range(0, rows, batch)
        ]
        began = time.perf_counter()
        one = on_one_machine(work.model, work.tensors, batches, method=work.method, percentile=work.percentile)
        middle = time.perf_counter()
        table = ray.data.from_items(items, override_num_blocks=8).materialize()
        ready = time.perf_counter()
        many = calibrate(table, asked.path, batch_size=batch, actors=actors, num_cpus=SHARE)
        ended = time.perf_counter()
        return {
            "rows": rows,
            "batch": batch,
            "tensors": len(work.tensors),
            "one_s": middle - began,
            "actors_s": ended - ready,
            "equal": one.to_json() == many.to_json(),
        }

    def kill(self, model: str, clients: int, kills: int) -> dict[str, Any]:
        """Kills one of two replicas, several times, under the load of clients with the retry and without.

        Returns:
            answered, lost, wrong: requests of the clients with the retry ("sure") and of those without ("once").
            retries: of the former.
        """
        from ray import serve

        from rewriter.export.ray import client

        asked = self._models[model]
        options = {"health_check_period_s": 2, "health_check_timeout_s": 4}
        handle = self._run(asked, "pair", max_batch_size=None, num_replicas=2, deployment_options=options)
        url = f"http://127.0.0.1:{self._port}/pair"
        targets = (url, "pair") * clients
        sure = _Load(asked, [client(target) for target in targets[:clients]])
        once = _Load(asked, [client(target, retries=0) for target in targets[:clients]])

        def two() -> bool:
            state = serve.status().applications["pair"].deployments["trt-rewriter"]
            return state.status.value == "HEALTHY" and len(self._pids(handle)) == 2

        try:
            for _ in range(kills):
                wait(two, "second replica")
                os.kill(min(self._pids(handle)), signal.SIGKILL)
                goal = sure.answered + 50, once.answered + 50
                wait(lambda goal=goal: sure.answered >= goal[0] and once.answered >= goal[1], "answers")  # type: ignore[misc]
            wait(two, "second replica")
        finally:
            sure.stop()
            once.stop()
            serve.delete("pair")
        retries = sum(each.stats()["retries"] for each in sure.clients)
        return {"kills": kills, "clients": clients, "retries": retries, "sure": sure.counts(), "once": once.counts()}

    def end(self) -> bool:
        """Stops the cluster."""
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()
        return True

    def _run(self, asked: Asked, name: str, **options: Any) -> Any:
        from ray import serve

        from rewriter.export.ray import deployment

        application = deployment(asked.path, num_cpus=SHARE, num_gpus=0, provider="cpu", threads=1, **options)
        return serve.run(application, name=name, route_prefix=f"/{name}")

    def _open(self, path: str, model: str, how: str) -> Call:
        from rewriter.export.ray import client

        name = f"{model}-{how}"
        asked = client(f"http://127.0.0.1:{self._port}/{name}" if path == "Ray HTTP" else name, retries=0)
        return lambda inputs: asked.infer(**inputs)

    @staticmethod
    def _pids(handle: Any) -> set[int]:
        """Process ids of the replicas that answer now."""
        import ray

        found = set()
        for _ in range(20):
            try:
                found.add(handle.stats.remote().result(timeout_s=10)["pid"])
            except ray.exceptions.RayError:
                continue  # a replica that was just killed
        return found


class _Load:
    """Clients that ask without a pause until they are stopped."""

    def __init__(self, asked: Asked, clients: list[Any]) -> None:
        self.clients, self.answered = clients, 0
        self._lost, self._worst, self._asked = 0, 0.0, asked
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(each,)) for each in clients]
        for thread in self._threads:
            thread.start()

    def counts(self) -> Mapping[str, Any]:
        return {"answered": self.answered, "lost": self._lost, "worst": self._worst}

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: Any) -> None:
        from rewriter.errors import BackendError

        number = 0
        while not self._stop.is_set():
            number = (number + 1) % len(self._asked.requests)
            try:
                answer = client.infer(**self._asked.requests[number])
            except BackendError:
                with self._lock:
                    self._lost += 1
                continue
            difference = self._asked.worst({number: [answer]})
            with self._lock:
                self.answered += 1
                self._worst = max(self._worst, difference)


def main() -> int:
    channel = private_output()
    worker = RayWorker(Path(sys.argv[1]))
    names = ("facts", "apart", "latency", "rate", "data", "calibration", "kill", "end")
    obey({name: getattr(worker, name) for name in names}, channel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
