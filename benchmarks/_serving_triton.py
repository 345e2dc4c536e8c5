"""The part of serving.py that a Python with nvidia-pytriton and tritonclient runs: a tritonserver and its clients.

python benchmarks/_serving_triton.py FOLDER   what serving.py put there

Lines of JSON on its standard input say what to do, lines on its standard output what came of it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from _serving_loops import Arrays, Asked, Call, many_clients, obey, one_client, open_models, private_output

ROOT = Path(__file__).resolve().parent.parent
JOINED, SINGLE = "joined", "single"


def live_server() -> ModuleType:
    """The module with which the tests start a tritonserver."""
    path = ROOT / "tests" / "rewriter" / "export" / "triton" / "live_server.py"
    spec = importlib.util.spec_from_file_location("live_server", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is missing: run the benchmark in a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TritonWorker:
    """A server with every model twice: requests joined, and one by one."""

    def __init__(self, folder: Path) -> None:
        from rewriter.export.triton import export_triton

        self._models = open_models(folder)
        place = folder / "triton"
        place.mkdir()
        self._server = live_server().Server(sys.executable, place)
        for name, asked in self._models.items():
            for how, options in ((JOINED, {}), (SINGLE, {"max_batch_size": 1})):
                export_triton(
                    asked.path, self._server.repository, name=f"{name}-{how}", kind="cpu", threads=1, **options
                )
                self._server.load(f"{name}-{how}")
        self._calls: dict[tuple[str, str], Call] = {}

    def facts(self) -> dict[str, str]:
        """Versions."""
        names = ("nvidia-pytriton", "tritonclient", "onnxruntime", "numpy")
        server = json.loads(self._server.get("/v2"))["version"]
        found = {"python": platform.python_version(), "server": server}
        return {**found, **{name: importlib.metadata.version(name) for name in names}}

    def apart(self) -> dict[str, float]:
        """How far the answers to different requests are from each other, for each model."""
        return {name: asked.apart() for name, asked in self._models.items()}

    def latency(self, path: str, model: str, count: int) -> dict[str, Any]:
        """One client of the model that joins nothing; "in process" is `load()`."""
        asked = self._models[model]
        if (path, model) not in self._calls:
            self._calls[path, model] = asked.call if path == "in process" else self._open(path, asked, SINGLE)
        return one_client(asked, self._calls[path, model], count)

    def rate(self, path: str, model: str, how: str, clients: int, requests: int) -> dict[str, Any]:
        """Several clients at once."""
        asked = self._models[model]

        def runs() -> dict[int, int]:
            found = self._server.stats(f"{model}-{how}").get("batch_stats", [])
            return {int(entry["batch_size"]): int(entry["compute_infer"]["count"]) for entry in found}

        return many_clients(asked, lambda: self._open(path, asked, how), clients, requests, runs)

    def end(self) -> dict[str, Any]:
        """Stops the server: its exit status, and how many blocks of shared memory it left."""
        self._calls.clear()
        status, left = self._server.stop()
        return {"status": status, "left": len(left)}

    def _open(self, path: str, asked: Asked, how: str) -> Call:
        if path == "Triton HTTP":
            import tritonclient.http as protocol

            client = protocol.InferenceServerClient(self._server.http)
        else:
            import tritonclient.grpc as protocol

            client = protocol.InferenceServerClient(self._server.grpc)
        outputs = list(asked.expected[0])

        def call(inputs: Arrays) -> Mapping[str, np.ndarray]:
            tensors = []
            for name, array in inputs.items():
                tensor = protocol.InferInput(name, list(array.shape), "FP32")
                tensor.set_data_from_numpy(array)
                tensors.append(tensor)
            answer = client.infer(f"{asked.name}-{how}", tensors)
            return {name: answer.as_numpy(name) for name in outputs}

        return call


def main() -> int:
    channel = private_output()
    worker = TritonWorker(Path(sys.argv[1]))
    obey({name: getattr(worker, name) for name in ("facts", "apart", "latency", "rate", "end")}, channel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
