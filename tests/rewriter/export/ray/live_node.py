"""Run by `test_live` with the interpreter of an environment that has Ray: one node; writes what it found as JSON."""

import concurrent.futures
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import ray
from ray import serve

from rewriter.errors import InputError
from rewriter.export.ray import client, deployment, map_batches


def json_request(url, inputs):
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def serving(artifact):
    application = deployment(artifact, num_cpus=0.5, max_batch_size=8, batch_wait_timeout_s=0.05)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": 8123})
    handle = serve.run(application, name="rows", route_prefix="/")
    clients = [client("rows"), client(handle), client("http://127.0.0.1:8123/")]
    inputs = [np.full((1 + i % 3, 3), i, np.float32) for i in range(48)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: clients[i % 3].infer(x0=inputs[i])["y0"], range(len(inputs))))
    equal = all(np.array_equal(answer, 2 * array + 1) for answer, array in zip(answers, inputs, strict=True))
    refused = []
    for each in clients[1:]:
        try:
            each.infer(x0=np.zeros((1, 4), np.float32))
        except InputError as error:
            refused.append(str(error))
    found = {
        "equal": equal,
        "stats": handle.stats.remote().result(timeout_s=30),
        "clients": [each.stats() for each in clients],
        "refused": refused,
        "json": json_request("http://127.0.0.1:8123/", {"x0": [[1, 2, 3]]}),
        "wrong": json_request("http://127.0.0.1:8123/", {"nothing": 1}),
        "get": json.loads(urllib.request.urlopen("http://127.0.0.1:8123/", timeout=30).read())["requests"],
    }
    serve.shutdown()
    return found


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


def main():
    rows, whole, result = sys.argv[1:]
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=True)
    Path(result).write_text(json.dumps({"serve": serving(rows), "data": offline(rows, whole)}, default=str))
    ray.shutdown()


if __name__ == "__main__":
    main()
