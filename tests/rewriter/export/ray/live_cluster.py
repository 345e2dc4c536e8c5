"""Run by `test_live` with the interpreter of an environment that has Ray: three nodes; a replica and an actor die."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import ray
from ray import serve
from ray.cluster_utils import Cluster

from rewriter.errors import BackendError
from rewriter.export.ray import client, datasets, deployment, map_batches

URL = "http://127.0.0.1:8123/"


class Load:
    """Clients that ask without a pause until they are stopped."""

    def __init__(self, clients):
        self.clients, self.answered, self.wrong, self.lost = clients, 0, 0, []
        self.longest = 0.0
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(each,)) for each in clients]
        for thread in self._threads:
            thread.start()

    def _ask(self, asked):
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            inputs = np.full((1, 3), number, np.float32)
            try:
                equal = np.array_equal(asked.infer(x0=inputs)["y0"], 2 * inputs + 1)
            except BackendError as error:
                with self._lock:
                    self.lost.append(str(error))
                continue
            with self._lock:
                self.answered += 1
                self.longest = max(self.longest, time.monotonic() - began)
                self.wrong += not equal

    def more(self, count, seconds=60):
        """Waits until so many more answers came."""
        wait(lambda goal=self.answered + count: self.answered >= goal, seconds, "answers")

    def new_losses(self):
        """How many requests were lost since this was asked."""
        with self._lock:
            found, self.lost = len(self.lost), []
        return found

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def wait(found, seconds, what):
    """Polls until there is something; what it is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"no {what} within {seconds} s")


def pids(handle, count=40):
    """Process ids of the replicas that answer now; those that cannot be asked are left out."""
    found = set()
    for _ in range(count):
        try:
            found.add(handle.stats.remote().result(timeout_s=10)["pid"])
        except ray.exceptions.RayError:
            continue
    return found


def two_nodes(handle):
    state = serve.status().applications["rows"].deployments["trt-rewriter"]
    return state.status.value == "HEALTHY" and len(pids(handle)) == 2


def serving(cluster, nodes, artifact):
    application = deployment(
        artifact,
        num_replicas=2,
        num_cpus=0.5,
        num_gpus=0,
        deployment_options={
            "ray_actor_options": {"num_cpus": 0.5, "resources": {"worker": 0.1}},
            "max_replicas_per_node": 1,
            "health_check_period_s": 2,
            "health_check_timeout_s": 4,
        },
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": 8123})
    handle = serve.run(application, name="rows", route_prefix="/")
    sure = Load([client(URL), client("rows")])
    once = Load([client(target, retries=0) for target in (URL, URL, "rows", "rows")])
    lost = {}

    def after(event):
        """Waits for answers to both; notes what was lost without a second try."""
        sure.more(25)
        once.more(25)
        lost[event] = once.new_losses()

    try:
        after("start")
        before = pids(handle)
        os.kill(min(before), signal.SIGKILL)
        wait(lambda: two_nodes(handle), 90, "second replica after the kill")
        after("kill")
        cluster.remove_node(nodes[0], allow_graceful=False)
        after("removal")
        cluster.add_node(num_cpus=2, resources={"worker": 1}, object_store_memory=80 << 20)
        wait(lambda: two_nodes(handle), 90, "second replica on the new node")
        after("addition")
    finally:
        sure.stop()
        once.stop()
    found = {"answered": sure.answered, "wrong": sure.wrong + once.wrong, "lost": sure.lost, "lost_by_once": lost}
    found.update(answered_once=once.answered, longest_s=[sure.longest, once.longest])
    found["clients"] = [each.stats() for each in sure.clients + once.clients]
    serve.shutdown()
    return found


def offline(artifact, folder):
    marker = Path(folder) / "killed"

    def rows(batch):
        return {**batch, "x": np.repeat(batch["id"][:, None], 3, 1).astype(np.float32)}

    class Dying(datasets.BatchActor):
        """Kills its own process once, in the middle."""

        def __call__(self, batch):
            if 40 in batch["id"] and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    datasets.BatchActor = Dying
    table = ray.data.range(96, override_num_blocks=12).map_batches(rows, batch_size=8)
    found = map_batches(table, artifact, columns={"x0": "x"}, actors=2, num_cpus=0.5).take_all()
    right = all(row["y0"].tolist() == [2 * row["id"] + 1] * 3 for row in found)
    ids = sorted(int(row["id"]) for row in found)
    return {"killed": marker.exists(), "once": ids == list(range(96)), "right": right}


def main():
    rows, _, result = sys.argv[1:]
    head = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, resources={"worker": 1}, object_store_memory=80 << 20) for _ in range(2)]
    ray.init(address=cluster.address)
    served = serving(cluster, nodes, rows)
    data = offline(rows, Path(result).parent)
    Path(result).write_text(json.dumps({"serve": served, "data": data}, default=str))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
