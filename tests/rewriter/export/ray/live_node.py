"""Run by `test_live` with the interpreter of an environment that has Ray: one node; writes what it found as JSON."""

import asyncio
import concurrent.futures
import importlib.util
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import ray
from ray import serve

from rewriter.errors import ConversionError, InputError
from rewriter.export.ray import client, deployment, map_batches

URL = "http://127.0.0.1:8123/"
#: Deployments that end soon after their last request.
QUICK = {"graceful_shutdown_wait_loop_s": 0.1}
_spec = importlib.util.spec_from_file_location("ray_models", Path(__file__).with_name("ray_models.py"))
ray_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ray_models)


def wait(found, seconds, what):
    """Polls until there is something; what it is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"no {what} within {seconds} s; Serve says {serve.status()}")


def json_request(url, inputs):
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def answers(artifact):
    """Handles, HTTP and curl; wrong inputs; what stats() says."""
    application = deployment(artifact, num_cpus=0.5, max_batch_size=8, batch_wait_timeout_s=0.05)
    handle = serve.run(application, name="rows", route_prefix="/")
    clients = [client("rows"), client(handle), client(URL)]
    inputs = [np.full((1 + i % 3, 3), i, np.float32) for i in range(48)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: clients[i % 3].infer(x0=inputs[i])["y0"], range(len(inputs))))
    refused = []
    for each in clients[1:]:
        try:
            each.infer(x0=np.zeros((1, 4), np.float32))
        except InputError as error:
            refused.append(str(error))
    with urllib.request.urlopen(URL, timeout=30) as response:
        stats = json.loads(response.read())
    return {
        "equal": all(np.array_equal(answer, 2 * array + 1) for answer, array in zip(found, inputs, strict=True)),
        "async": asyncio.run(asked_at_once(clients)),
        "clients": [each.stats() for each in clients],
        "refused": refused,
        "json": json_request(URL, {"x0": [[1, 2, 3]]}),
        "wrong": json_request(URL, {"nothing": 1}),
        "curl": curl('{"inputs": {"x0": [[1, 2, 3]]}}'),
        "stats": stats,
    }


async def asked_at_once(clients):
    found = await asyncio.gather(*(each.infer_async(x0=[[1, 2, 3]]) for each in clients))
    return [each["y0"].tolist() for each in found]


def curl(body):
    """What curl prints; None where there is none."""
    if shutil.which("curl") is None:
        return None
    return json.loads(subprocess.run(["curl", "-s", URL, "-d", body], capture_output=True, check=True).stdout)


def composed(artifact):
    """An application whose ingress holds the handle of our deployment; what waits in a batch when it is deleted."""

    @serve.deployment(ray_actor_options={"num_cpus": 0.5})
    class Outer:
        def __init__(self, model):
            self.model = model

        async def total(self, inputs):
            return float((await self.model.infer.remote({"x0": inputs}))["y0"].sum())

    inner = deployment(
        artifact, name="inner", num_cpus=0.5, num_gpus=0, batch_wait_timeout_s=1, deployment_options=QUICK
    )
    outer = serve.run(Outer.bind(inner), name="composed", route_prefix=None)
    total = outer.total.remote(np.ones((2, 3), np.float32)).result(timeout_s=30)
    handle = serve.get_deployment_handle("inner", "composed")
    waiting = [handle.infer.remote({"x0": np.full((1, 3), i, np.float32)}) for i in range(3)]
    handle.stats.remote().result(timeout_s=30)  # the replica has those before it, too
    serve.delete("composed", _blocking=False)
    return {"total": total, "waiting": [each.result(timeout_s=30)["y0"].tolist() for each in waiting]}


def scaled(artifact):
    """Two replicas under load, where Serve decides on their number."""
    scaling = {"min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 0.2, "look_back_period_s": 1,
               "metrics_interval_s": 0.2, "target_ongoing_requests": 2}  # fmt: skip
    application = deployment(
        artifact, num_replicas="auto", num_cpus=0.5, num_gpus=0, batch_wait_timeout_s=0.3,
        deployment_options={"autoscaling_config": scaling, **QUICK},
    )  # fmt: skip
    handle = serve.run(application, name="scaled", route_prefix=None)
    replicas = set()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        end = time.monotonic() + 30
        while len(replicas) < 2 and time.monotonic() < end:
            # Too few to fill a batch, so that they wait.
            list(pool.map(lambda _: client(handle).infer(x0=[[1, 2, 3]]), range(6)))
            replicas.add(handle.stats.remote().result(timeout_s=30)["replica"])
    serve.delete("scaled")
    return len(replicas)


def restarted(artifact):
    """A replica whose runs fail is replaced by Serve, and the new one serves."""
    application = deployment(
        artifact, num_cpus=0.5, num_gpus=0, unhealthy_after=3, batch_wait_timeout_s=0,
        deployment_options={"health_check_period_s": 0.5, **QUICK},
    )  # fmt: skip
    handle = serve.run(application, name="fragile", route_prefix=None)
    asked = client(handle, timeout_s=20)
    replica = handle.stats.remote().result(timeout_s=30)["replica"]
    refused = []
    for _ in range(3):
        try:
            asked.infer(x0=[7])
        except ConversionError as error:
            refused.append(str(error))
    good = wait(lambda: other_replica(handle, replica), 60, "new replica") and asked.infer(x0=[2])["y0"].tolist()
    serve.delete("fragile")
    return {"refused": refused, "good": good}


def other_replica(handle, known):
    try:
        return handle.stats.remote().result(timeout_s=10)["replica"] != known
    except ray.exceptions.RayError:
        return False


def unreadable(artifact, folder):
    """What Serve says of an artifact that a node cannot read."""
    gone = shutil.copytree(artifact, folder / "gone")
    application = deployment(gone, num_cpus=0.5, num_gpus=0, deployment_options={"max_constructor_retry_count": 1})
    shutil.rmtree(gone)
    try:
        serve.run(application, name="unreadable", route_prefix=None)
    except RuntimeError as error:
        (state,) = serve.status().applications["unreadable"].deployments.values()
        return [str(error), state.message]
    finally:
        serve.delete("unreadable")


def offline(rows, whole):
    table = ray.data.range(50).map_batches(lambda b: {**b, "x": np.repeat(b["id"][:, None], 3, 1).astype(np.float32)})
    found = map_batches(table, rows, columns={"x0": "x"}, actors=2, num_cpus=0.5).take_all()
    right = all(row["y0"].tolist() == [2 * row["id"] + 1] * 3 for row in found)
    sums = map_batches(table, whole, columns={"x0": "x"}, outputs={"y0": "sum"}, keep=False, num_cpus=0.5).take_all()
    return {
        "ids": sorted(int(row["id"]) for row in found) == list(range(50)),
        "right": right,
        "sums": sorted(float(row["sum"]) for row in sums) == [3.0 * i for i in range(50)],
    }


def timed(part, arguments):
    """What the part found; how long it took goes to the log."""
    began = time.monotonic()
    found = part(*arguments)
    print(f"{part.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    return found


def main():
    rows, whole, result = sys.argv[1:]
    folder = Path(result).parent
    fragile = ray_models.save_fragile(folder / "fragile")
    began = time.monotonic()
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=True)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": 8123})
    print(f"Ray and Serve started: {time.monotonic() - began:.1f} s", flush=True)
    found = {}
    parts = (
        ("scaled", scaled, (rows,)),
        ("serve", answers, (rows,)),
        ("composed", composed, (rows,)),
        ("restarted", restarted, (fragile,)),
        ("unreadable", unreadable, (rows, folder)),
    )
    for name, part, arguments in parts:
        found[name] = timed(part, arguments)
    found["data"] = timed(offline, (rows, whole))
    serve.shutdown()
    Path(result).write_text(json.dumps(found, default=str))
    ray.shutdown()


if __name__ == "__main__":
    main()
