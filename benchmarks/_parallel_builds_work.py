"""What `parallel_builds.py` measures, each piece in a process of its own: conversions, extensions, memory of children.

The models are chains of equal segments with an operator between them that no TensorRT has, so that every segment gets
an engine of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path

add_project_to_path()

#: Channels, rows and columns of the residual blocks.
CHANNELS, SIDE = 32, 16
#: Seconds between two looks at the memory of the children.
LOOK = 0.02
#: The artifact that is extended has engines for this target already, which tell the shapes.
FIRST_TARGET = "SM75"


def chain(kind: str, segments: int, size: int) -> Any:
    """The ONNX model.

    Args:
        kind: "blocks": a segment is `size` residual blocks of two convolutions each, [1, 32, 16, 16];
            "weights": one product with a matrix of `size` MiB, and a bias.
        segments: how many of them one after another.
        size: of each.
    """
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(7)
    width = round((size * 2**20 / 4) ** 0.5) if kind == "weights" else 0
    shape = [1, width] if width else [1, CHANNELS, SIDE, SIDE]
    nodes, weights, typed = [], [], []
    counter = itertools.count()

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{next(counter)}"
        nodes.append(helper.make_node(op, list(inputs), [output], f"{op}_{output}", **attributes))
        return output

    def weight(*dimensions: int) -> str:
        name = f"w{next(counter)}"
        scale = np.float32(np.prod(dimensions[1:]) ** -0.5 if len(dimensions) > 1 else 0.1)
        values = (random.random(dimensions, np.float32) - np.float32(0.5)) * scale
        weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(value: str) -> str:
        kernel = weight(CHANNELS, CHANNELS, 3, 3)
        return add("Conv", value, kernel, weight(CHANNELS), kernel_shape=[3, 3], pads=[1] * 4)

    value = "x"
    for _ in range(segments):
        if width:
            value = add("Relu", add("Add", add("MatMul", value, weight(width, width)), weight(width)))
        else:
            for _ in range(size):
                value = add("Relu", add("Add", convolution(add("Relu", convolution(value))), value))
        value = add("Scaler", value, domain="ai.onnx.ml", offset=[0.5], scale=[0.5])
        typed.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "chain", [given], [typed.pop()], weights, value_info=typed)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def convert(kind: str, segments: int, size: int, jobs: int, folder: str) -> dict[str, Any]:
    """One conversion; `seconds` are those of `Converter.build` alone."""
    from rewriter import Converter

    model = chain(kind, segments, size)
    with Converter(model=model, backend="tensorrt_rtx", verify=False, progress=False) as converter, Watch() as watch:
        converter.convert()
        started = time.perf_counter()
        converter.build(jobs=jobs)
        seconds = time.perf_counter() - started
        artifact = converter.save(Path(folder, "artifact"))
    return {"seconds": seconds, **_engines(artifact), **watch.told()}


def prepare(segments: int, size: int, folder: str) -> dict[str, Any]:
    """The artifact that `extend` adds engines to."""
    from rewriter import Converter

    model = chain("blocks", segments, size)
    options = {"backend": "tensorrt_rtx", "verify": False, "progress": False}
    with Converter(model=model, targets=[FIRST_TARGET], **options) as converter:
        converter.convert()
        converter.build()
        return {"artifact": str(converter.save(folder))}


def extend(artifact: str, targets: list[str], jobs: int, folder: str) -> dict[str, Any]:
    """Engines for more targets, added to a copy of an artifact; `seconds` are those of the builds."""
    import shutil

    from rewriter.extending import build_engines

    copy = shutil.copytree(artifact, Path(folder, "artifact"))
    with Watch() as watch:
        extended = build_engines(copy, targets=targets, backends=["tensorrt_rtx"], jobs=jobs, progress=False)
    if extended.failures:
        raise RuntimeError(f"no engine: {extended.failures[0].reason}")
    return {"seconds": extended.seconds, **_engines(copy, without=(FIRST_TARGET,)), **watch.told()}


def probe() -> dict[str, Any]:
    """A child that has loaded TensorRT and built nothing: seconds until it answers, the second of two, and its MiB."""
    from rewriter.backends import open_backend

    seconds = 0.0
    for _ in range(2):
        with Watch() as watch:
            started = time.perf_counter()
            with open_backend("tensorrt_rtx") as backend:
                version = backend.version
                seconds = time.perf_counter() - started
                time.sleep(5 * LOOK)
    return {"start_s": seconds, "idle_mib": watch.told()["child_mib"], "version": version}


class Watch:
    """Looks at the processes below this one while it is open: how many there were, and the most memory of one.

    What counts is the kernel's high-water mark of the resident set (`VmHWM`), shared libraries included; the one that
    `getrusage` tells of children is at least that of the process which started them. Linux only: elsewhere None.
    """

    def __init__(self) -> None:
        self._peaks: dict[int, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def told(self) -> dict[str, Any]:
        """`children` and `child_mib`, the most of one."""
        return {"children": len(self._peaks) or None, "child_mib": max(self._peaks.values(), default=None)}

    def _look(self) -> None:
        while not self._end.wait(LOOK):
            for process in _below(Path("/proc/self")):
                peak = _peak_mib(process)
                if peak is not None:
                    self._peaks[process] = max(peak, self._peaks.get(process, 0.0))


def _below(place: Path) -> Iterator[int]:
    """All processes that a process has started, and those that these have."""
    found: set[int] = set()
    for file in place.glob("task/*/children"):
        with contextlib.suppress(OSError):  # it has ended
            found.update(map(int, file.read_text("ascii").split()))
    for process in sorted(found):
        yield process
        yield from _below(Path(f"/proc/{process}"))


def _peak_mib(process: int) -> float | None:
    """The most memory that a process had so far; None when it has ended or was not replaced by its program yet."""
    try:
        text = Path(f"/proc/{process}/status").read_text("ascii", errors="replace")
        own, other = Path(f"/proc/{process}/cmdline").read_bytes(), Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return None if own == other or "VmHWM" not in lines else int(lines["VmHWM"].split()[0]) / 1024


def _engines(artifact: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """How many engines an artifact has, how large they are, and one hash of all their bytes."""
    from rewriter.artifact import load_artifact

    entries = load_artifact(artifact, check_hashes=False).engines
    entries = [entry for entry in entries if tuple(entry.targets) != without]
    told = sorted((entry.op, tuple(entry.targets), entry.sha256) for entry in entries)
    return {
        "engines": len(entries),
        "MB": sum(entry.size for entry in entries) / 1e6,
        "sha256": hashlib.sha256(repr(told).encode()).hexdigest(),
    }


#: Name -> what a process of its own does.
WORK: Mapping[str, Any] = {"convert": convert, "prepare": prepare, "extend": extend, "probe": probe}
