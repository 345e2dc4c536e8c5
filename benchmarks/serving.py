"""What does a server cost, and what does it bring, beside `load()` in the own process?

    python benchmarks/serving.py [--ray-python FILE] [--triton-python FILE] [--rounds 5] [--json FILE]

It needs two further environments, for Ray and Triton go with no other packages: one with `trt-rewriter[cpu,ray]`, one
with `trt-rewriter[cpu,triton]` and nvidia-pytriton; what is not there is left out, and told. Everything runs on this
machine, and computes with one thread: what is measured is the way to a model and back, not the model. Ray gets a
network of its own where that is allowed, so that it finds no cluster that runs here.

A cluster of Ray and a tritonserver run side by side, each with every model twice: requests joined along the batch
dimension, for which one may wait 5 ms (Ray) or 1 ms (Triton), the defaults; and one by one. In every round all paths
take turns. Medians over the rounds:

    one request   one client, one row, nothing joined; "adds" is what the path takes more than the same call in the
                  client's own process; "in process" is that call, in either environment
    clients       1, 4 and 8 threads that ask again as soon as they are answered; "rows of a run" is from the server's
                  own statistics
    rows          `map_batches` beside a loop over the same rows, from the call to the last row: the start of the actors
                  is in it
    calibration   `calibrate` over a dataset beside one machine's, and whether the tables are the same
    kills         one of two replicas is killed, while clients ask with the retry and without

Every answer is compared with what `load()` gives in the same run; the exit status is 1 when one differs by more than
1e-5, a table is another one, or a client with the retry lost a request.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from _common import add_project_to_path
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart
from _serving_report import IN_PROCESS, MODELS, failures, kept_facts, tables

add_project_to_path()

ROOT = Path(__file__).resolve().parent.parent
PATHS = {"ray": ("Ray handle", "Ray HTTP"), "triton": ("Triton HTTP", "Triton gRPC")}
#: Requests of a round: of one client, and of all clients together.
REQUESTS = {"trivial": (60, 0), "digits": (60, 160), "ResNet50": (6, 16)}
CLIENTS = (1, 4, 8)
#: Model -> (numbers of rows, rows of a batch) of `map_batches`.
ROWS = {"digits": ((4000, 40000), 64), "ResNet50": ((32, 192), 8)}
ACTORS = 2
#: Turns of what takes long.
MOST_TURNS = 3
SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0"}


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    with tempfile.TemporaryDirectory(prefix="serving-", ignore_cleanup_errors=True) as folder:
        document = measure(arguments, Path(folder))
    print(render(document))
    rows = document.pop("latency")
    export_metrics(arguments, rows, **document)
    return 1 if failures({**document, "rows": rows}) else 0


def render(document: Mapping[str, Any]) -> str:
    """All tables, and the verdict."""
    return tables(_with_rows(document))


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """Figures for the prose: see `_serving_report.kept_facts`."""
    return kept_facts(_with_rows(document))


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """One request on each path, beside the call in the own process."""
    rows = _with_rows(document)["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    paths = list(dict.fromkeys(row["path"] for row in rows))
    # Both environments measure the call in the own process; the first one's is drawn.
    times = {(row["model"], row["path"]): row["ms"]["middle"] for row in reversed(rows)}
    series = {path: [times.get((model, path)) for model in models] for path in paths}
    title = "One request of one row, one client"
    return {"request": Bars(title, "milliseconds", models, series, log=True, places=2)} if rows else {}


def _with_rows(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document as it is written: there the rows of one request are "rows"."""
    return document if "rows" in document else {**document, "rows": document["latency"]}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures; the key "latency" holds the rows of one request."""
    left_out = prepare(folder)
    workers: dict[str, Worker] = {}
    try:
        for kind, python in (("ray", arguments.ray_python), ("triton", arguments.triton_python)):
            if python:
                print(f"{kind}: starting ...", file=sys.stderr, flush=True)
                workers[kind] = Worker(kind, python, folder)
            else:
                left_out.append(f"{kind}: --{kind}-python names no Python that has it")
        models = [name for name in MODELS if (folder / "models" / name).is_dir()]
        found: dict[str, Any] = {"versions": {kind: worker.ask("facts") for kind, worker in workers.items()}}
        found["apart"] = {kind: worker.ask("apart") for kind, worker in workers.items()}
        found["latency"] = latencies(workers, models, arguments.rounds)
        found["rates"] = rates(workers, [name for name in models if REQUESTS[name][1]], arguments.rounds)
        if "ray" in workers:
            found["data"] = [
                row for name in models if name in ROWS for row in over_rows(workers["ray"], name, arguments)
            ]
            print("calibration ...", file=sys.stderr, flush=True)
            rounds = range(min(arguments.rounds, MOST_TURNS))
            work = {"model": "ResNet50", "rows": 32, "batch": 4, "actors": ACTORS}
            found["calibration"] = [workers["ray"].ask("calibration", **work) for _ in rounds]
            print("kills ...", file=sys.stderr, flush=True)
            found["kills"] = workers["ray"].ask("kill", model="trivial", clients=4, kills=arguments.kills)
        found["ends"] = {kind: worker.ask("end") for kind, worker in workers.items()}
        return {**found, "left_out": left_out}
    finally:
        for worker in workers.values():
            worker.close()


def prepare(folder: Path) -> list[str]:
    """Converts the models, without engines, and writes inputs for them.

    Returns:
        What is left out, and why.
    """
    from _resnet import resnet50
    from onnx import parser

    (folder / "models").mkdir()
    (folder / "inputs").mkdir()
    random = np.random.default_rng(0)
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        trivial (float[batch, 3] x) => (float[batch, 3] y) {
            two = Constant<value = float {2.0}> ()
            y = Mul(x, two) }"""
    )
    _save("trivial", proto, {"x": random.standard_normal((16, 3), np.float32)}, folder)
    _save(
        "ResNet50", without_softmax(resnet50()), {"image": random.standard_normal((8, 3, 224, 224), np.float32)}, folder
    )
    try:
        import tensorflow  # noqa: F401 - only whether it is there
    except ImportError:
        return ["digits: the demonstration's model is one of TensorFlow, which is not installed"]
    from rewriter.demo import digits_path, load_digits_test

    _save("digits", str(digits_path()), {"image": load_digits_test()[0][:64]}, folder)
    return []


def without_softmax(proto: Any) -> Any:
    """The model up to its logits: of random weights, the softmax is the same for every image."""
    logits = proto.graph.node[-1].input[0]
    del proto.graph.node[-1]
    proto.graph.output[0].name = logits
    return proto


def _save(name: str, model: Any, inputs: Mapping[str, np.ndarray], folder: Path) -> None:
    from rewriter import Converter

    print(f"{name} ...", file=sys.stderr, flush=True)
    with Converter(model=model, progress=False, verify=False) as converter:
        converter.convert()
        converter.save(folder / "models" / name)
    np.savez(folder / "inputs" / f"{name}.npz", **inputs)


def latencies(workers: Mapping[str, Worker], models: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """One request, for each model and path; the environments' own calls among them."""
    turns = [(kind, path) for kind in workers for path in (IN_PROCESS, *PATHS[kind])]
    rows = []
    for model in models:
        print(f"{model}: one request ...", file=sys.stderr, flush=True)
        found: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        worst = dict.fromkeys(turns, 0.0)
        for number in range(-1, rounds):  # the first round warms up
            for turn in turns[:: -1 if number % 2 else 1]:
                kind, path = turn
                answer = workers[kind].ask("latency", path=path, model=model, count=REQUESTS[model][0])
                worst[turn] = max(worst[turn], answer["worst"])
                if number >= 0:
                    found[turn].append(1e3 * statistics.median(answer["seconds"]))
        for kind, path in turns:
            own, base = found[kind, path], found[kind, IN_PROCESS]
            rows.append(
                {
                    "model": model,
                    "environment": kind,
                    "path": path,
                    "ms": spread(own),
                    "adds_ms": spread([a - b for a, b in zip(own, base, strict=True)]),
                    "times": spread([a / b for a, b in zip(own, base, strict=True)]),
                    "worst": worst[kind, path],
                }
            )
    return rows


def rates(workers: Mapping[str, Worker], models: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Rows a second of several clients, joined and one by one."""
    rows = []
    for model in models:
        for clients in CLIENTS:
            print(f"{model}: {clients} client(s) ...", file=sys.stderr, flush=True)
            turns = [(kind, path, how) for kind in workers for path in PATHS[kind] for how in ("single", "joined")]
            answers: dict[tuple[str, str, str], list[dict[str, Any]]] = {turn: [] for turn in turns}
            for number in range(rounds):
                for turn in turns[:: -1 if number % 2 else 1]:
                    kind, path, how = turn
                    work = {"path": path, "model": model, "how": how, "clients": clients}
                    answers[turn].append(workers[kind].ask("rate", **work, requests=REQUESTS[model][1]))
            rows += [
                {"model": model, "clients": clients, "path": path, **_rate(answers, kind, path)}
                for kind in workers
                for path in PATHS[kind]
            ]
    return rows


def _rate(answers: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]], kind: str, path: str) -> dict[str, Any]:
    single, joined = answers[kind, path, "single"], answers[kind, path, "joined"]
    rate = {
        how: [each["requests"] / each["seconds"] for each in found] for how, found in (("s", single), ("j", joined))
    }
    return {
        "single": spread(rate["s"]),
        "joined": spread(rate["j"]),
        "ratio": spread([j / s for j, s in zip(rate["j"], rate["s"], strict=True)]),
        "rows_of_a_run": mean_rows([each["runs"] for each in joined]),
        "worst": max(each["worst"] for each in (*single, *joined)),
    }


def mean_rows(runs: Sequence[Mapping[str, int]]) -> float | None:
    """Mean rows of the model's runs in all rounds; None where the server told of none."""
    count = sum(sum(each.values()) for each in runs)
    return sum(int(rows) * number for each in runs for rows, number in each.items()) / count if count else None


def over_rows(ray: Worker, model: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """`map_batches` and the loops, a row for each number of rows."""
    print(f"{model}: over rows ...", file=sys.stderr, flush=True)
    counts, batch = ROWS[model]
    work = {"model": model, "batch": batch, "actors": ACTORS}
    ray.ask("data", **work, rows=counts[0])  # the first processes of Ray Data start slower
    turns = range(min(arguments.rounds, MOST_TURNS))
    answers = [{rows: ray.ask("data", **work, rows=rows) for rows in counts} for _ in turns]
    return [{"model": model, "batch": batch, **_over([found[rows] for found in answers])} for rows in counts]


def _over(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "rows": answers[0]["rows"],
        **{key: spread([each[key] for each in answers]) for key in ("loop_s", "loop_all_s", "actors_s")},
        "ratio": spread([each["loop_s"] / each["actors_s"] for each in answers]),
        "once": all(each["once"] for each in answers),
        "worst": max(each["worst"] for each in answers),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, the least and the most."""
    return {"middle": statistics.median(values), "low": min(values), "high": max(values)}


class Worker:
    """A process of another environment that does what it is told.

    Args:
        kind: "ray" or "triton".
        python: its Python.
        folder: of the models.

    Raises:
        RuntimeError: it does not start; the text has the end of what it printed.
    """

    def __init__(self, kind: str, python: str, folder: Path) -> None:
        self._log = folder / f"{kind}.log"
        home = folder / f"{kind}-home"
        home.mkdir()
        command = [python, str(Path(__file__).with_name(f"_serving_{kind}.py")), str(folder)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])
        # A short name, for the sockets in it may have 107 characters.
        self._short = tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)
        own = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": self._short.name}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                isolated(command) if kind == "ray" else command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, env={**kept, **SETTINGS, **own}, cwd=folder,
            )  # fmt: skip

    def ask(self, action: str, **words: Any) -> Any:
        """What the worker's action of that name returns.

        Raises:
            RuntimeError: it failed, or the worker ended; the text has the end of what it printed.
        """
        try:
            self._pipe(self._process.stdin).write(json.dumps({"do": action, **words}) + "\n")
            self._pipe(self._process.stdin).flush()
            line = self._pipe(self._process.stdout).readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"the process ended:\n{self._told()}"}
        if "error" in answer:
            raise RuntimeError(f"{action} {words}: {answer['error']}")
        return answer["ok"]

    def close(self) -> None:
        """Ends the process: the end of its input is the end of its work."""
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()
        self._short.cleanup()

    def _told(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        if pipe is None:
            raise RuntimeError("the worker was started without pipes")
        return pipe


def isolated(command: Sequence[str]) -> list[str]:
    """The command in a network of its own, with loopback only; as it is where none may be made."""
    able = shutil.which("unshare") and shutil.which("ip")
    if not able or subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        return list(command)
    return ["unshare", "-n", "bash", "-c", 'ip link set lo up; exec "$@"', "bash", *command]


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in PATHS:
        variable = f"TRT_REWRITER_{kind.upper()}_PYTHON"
        parser.add_argument(
            f"--{kind}-python", default=os.environ.get(variable, ""), metavar="FILE",
            help=f"the Python of its environment (default: what {variable} says)",
        )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of every path (default %(default)s)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="replicas to kill (default %(default)s)")
    add_metrics_options(parser)
    arguments = parse(parser, words)
    if arguments.rounds < 1 or arguments.kills < 1:
        parser.error("--rounds and --kills must be at least 1")
    for kind in PATHS:
        python = getattr(arguments, f"{kind}_python")
        if python and not Path(python).is_file():
            parser.error(f"--{kind}-python {python}: there is no such file")
    if not arguments.ray_python and not arguments.triton_python:
        parser.error("nothing to measure: give --ray-python, --triton-python or both")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
