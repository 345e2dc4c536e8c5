"""Run by `test_calibration_live` with the interpreter of an environment that has Ray: three nodes; two actors die."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import ray
from ray.cluster_utils import Cluster

from rewriter.errors import ConversionError
from rewriter.export.ray import calibration, counting
from rewriter.precision.calibration import METHODS, finished
from rewriter.precision.calibration import calibrate as on_one_machine
from rewriter.precision.work import work_for_source

ROWS = 600


def values(batch):
    """Rows of very different size, so that the grid grows all the time."""
    rows = [np.random.default_rng(int(i)).standard_normal(16) * 1.02 ** int(i % 300) for i in batch["id"]]
    return {"features": np.stack(rows).astype(np.float32)}


def dataset(blocks=13):
    return ray.data.range(ROWS, override_num_blocks=blocks).map_batches(values, batch_size=None)


def dying(folder):
    """A `CountingActor` that kills its own process over rows 40 and 333, once each, having counted them."""

    class Dying(counting.CountingActor):
        def count(self, first, cuts, *blocks):
            found = super().count(first, cuts, *blocks)
            rows = sum(end - start for start, end in cuts)
            for row in (40, 333):
                marker = folder / str(row)
                if first <= row < first + rows and not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return found

    return Dying


def refusals(model):
    """What is said of a dataset that cannot be used: what is wrong with it -> the message."""

    def spoilt(batch):
        found = values(batch)
        found["features"][batch["id"] == 77] = np.nan
        return found

    found = {}
    for name, rows, options in (
        ("nan", ray.data.range(ROWS).map_batches(spoilt), {"columns": {"x": "features"}}),
        ("column", dataset(), {}),
        ("empty", dataset().filter(lambda row: False), {"columns": {"x": "features"}}),
        ("dtype", ray.data.from_numpy(np.zeros((20, 16))), {"columns": {"x": "data"}}),
    ):
        try:
            calibration.calibrate(rows, model, actors=2, num_cpus=0.5, **options)
        except ConversionError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main():
    model, artifact, result = sys.argv[1:]
    folder = Path(result).parent
    memory = 80 << 20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": memory, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
    ray.init(address=cluster.address)

    work = work_for_source(onnx.load(model))
    batches = [{"x": batch["features"]} for batch in dataset().iter_batches(batch_size=8, batch_format="numpy")]
    expected = {method: on_one_machine(work.model, work.tensors, batches, method=method) for method in METHODS}
    counted, done = [], []

    def seen(counts, percentile):
        counted.append({name: seen.total for name, seen in counts._seen.items()})
        return finished(counts, percentile)

    calibration.finished = seen
    options = {"columns": {"x": "features"}, "num_cpus": 0.5}
    equal = {}
    for method in METHODS:
        table = calibration.calibrate(dataset(5), model, method=method, actors=2, **options)
        equal[method] = table.to_json() == expected[method].to_json()
    plain = calibration.CountingActor
    calibration.CountingActor = dying(folder)
    table = calibration.calibrate(
        dataset(29), artifact, actors=4, progress=lambda batches, total: done.append(batches), **options
    )
    equal["killed"] = table.to_json() == expected["percentile"].to_json()
    calibration.CountingActor = plain

    def remove(batches, total):
        if len(nodes) == 2 and batches > 10:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    table = calibration.calibrate(dataset(29), artifact, actors=4, progress=remove, **options)
    equal["node removed"] = table.to_json() == expected["percentile"].to_json()
    found = {
        "equal": equal,
        "killed": sorted(path.name for path in folder.iterdir() if path.name in ("40", "333")),
        "nodes": len(nodes),
        "values": list(counted),
        "samples": table.samples,
        "done": done,
        "refused": refusals(model),
    }
    Path(result).write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
