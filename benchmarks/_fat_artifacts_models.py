"""The bundle of `fat_artifacts.py`: artifacts of small models with engines for single targets, and for all of them.

The weights repeat after `PERIOD` values, so that hundreds of megabytes of engines travel as half a megabyte; no kernel
is the faster for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path

add_project_to_path()

PERIOD = 1009
#: Targets with an engine each; the engine "together" serves all of them.
TARGETS = ("SM80", "SM86", "SM89", "SM120")
TOGETHER, OTHER, NARROW, OWN = "together", "other", "narrow", "own"
#: Batches that engines are built for, and those of "narrow", which is built for `NARROW_TARGET`.
BATCHES, NARROW_BATCHES, NARROW_TARGET = (1, 4, 16), (1, 4), "SM89"
#: The model with which the choice is looked at.
SMALLEST = "conv_small"
ARCHIVE = "fat_artifacts.tar.xz"


@dataclasses.dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        make: gives its ONNX model, with input "x" of [N, *item] and output "y".
        item: shape of one item of the batch.
        precision: of its engines; TensorRT-RTX 1.4 computes FP32 in TF32.
        tolerance: largest max|difference| / max|native| that passes: what TF32 or FP16 may cost.
    """

    make: Callable[[], Any]
    item: tuple[int, ...]
    precision: str
    tolerance: float


class _Graph:
    """Collects nodes and weights; every value and weight gets a number for a name."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._count = 0

    def weight(self, *shape: int, scale: float) -> str:
        random = np.random.default_rng(self._count)
        tile = (random.standard_normal(PERIOD) * scale).astype(np.float32)
        return self.constant(np.resize(tile, shape))

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        self._count += 1
        self._weights.append(numpy_helper.from_array(np.asarray(values), f"w{self._count}"))
        return f"w{self._count}"

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self._count += 1
        output = f"v{self._count}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], f"{op}_{self._count}", **attributes))
        return output

    def model(self, result: str, item: Sequence[int], output: Sequence[int]) -> Any:
        from onnx import TensorProto, helper

        self._nodes.append(helper.make_node("Identity", [result], ["y"], "last"))
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *item])
        found = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *output])
        graph = helper.make_graph(self._nodes, "model", [given], [found], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutions(channels: int, layers: int, side: int) -> Any:
    """A network of convolutions: [N, 3, side, side] to [N, 10]."""
    graph, value, before = _Graph(), "x", 3
    for _ in range(layers):
        kernel = graph.weight(channels, before, 3, 3, scale=(2 / (9 * before)) ** 0.5)
        value = graph.add(
            "Conv", value, kernel, graph.weight(channels, scale=0.1), kernel_shape=[3, 3], pads=[1, 1, 1, 1]
        )
        value, before = graph.add("Relu", value), channels
    value = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    head = graph.weight(channels, 10, scale=channels**-0.5)
    return graph.model(graph.add("Gemm", value, head, graph.weight(10, scale=0.1)), [3, side, side], [10])


def transformer(hidden: int, heads: int, length: int, blocks: int) -> Any:
    """Blocks of BERT: [N, length, hidden] to the same shape."""
    graph, value = _Graph(), "x"
    split = graph.constant(np.array([0, length, heads, hidden // heads]))
    joined = graph.constant(np.array([0, length, hidden]))
    scale, half, one, root = (graph.constant(np.float32(v)) for v in ((hidden // heads) ** -0.5, 0.5, 1.0, 0.5**0.5))

    def dense(given: str, rows: int, columns: int) -> str:
        product = graph.add("MatMul", given, graph.weight(rows, columns, scale=rows**-0.5))
        return graph.add("Add", product, graph.weight(columns, scale=0.02))

    def normal(given: str) -> str:
        ones = graph.constant(np.ones(hidden, np.float32))
        return graph.add("LayerNormalization", given, ones, graph.weight(hidden, scale=0.02), axis=-1, epsilon=1e-6)

    def headed(given: str, order: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", dense(given, hidden, hidden), split), perm=order)

    for _ in range(blocks):
        query, key, content = (headed(value, order) for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        scores = graph.add("Softmax", graph.add("Mul", graph.add("MatMul", query, key), scale), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", scores, content), perm=[0, 2, 1, 3])
        value = normal(graph.add("Add", value, dense(graph.add("Reshape", mixed, joined), hidden, hidden)))
        wide = dense(value, hidden, 4 * hidden)
        curve = graph.add("Add", graph.add("Erf", graph.add("Mul", wide, root)), one)
        wide = graph.add("Mul", graph.add("Mul", wide, half), curve)
        value = normal(graph.add("Add", value, dense(wide, 4 * hidden, hidden)))
    return graph.model(value, [length, hidden], [length, hidden])


MODELS = {
    "conv_small": Model(lambda: convolutions(32, 6, 32), (3, 32, 32), "FP32", 1e-2),
    "conv_mid": Model(lambda: convolutions(128, 8, 56), (3, 56, 56), "FP16", 2e-2),
    "bert_small": Model(lambda: transformer(256, 4, 64, 2), (64, 256), "FP32", 1e-2),
    "bert_768": Model(lambda: transformer(768, 12, 128, 1), (128, 768), "FP16", 2e-2),
}


def feeds(model: str, batch: int) -> dict[str, np.ndarray]:
    """Inputs of a model, the same ones for the same batch everywhere."""
    values = np.random.default_rng(batch).standard_normal((batch, *MODELS[model].item))
    return {"x": values.astype(np.float32)}


def make(folder: Path, python: str, other: str) -> Path:
    """Builds all engines and packs the artifacts; needs no GPU.

    Args:
        folder: of the archive; is made where it is not there.
        python: interpreter with the TensorRT-RTX that the GPU machine has.
        other: one with another version, whose engine must not run there; "" for none.

    Returns:
        The archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fat-artifacts-") as scratch:
        place = Path(scratch)
        for name in MODELS:
            for target in TARGETS:
                _convert(name, python, (target,), BATCHES, place / name / target)
            _convert(name, python, TARGETS, BATCHES, place / name / TOGETHER)
        _convert(SMALLEST, python, (NARROW_TARGET,), NARROW_BATCHES, place / SMALLEST / NARROW)
        if other:
            _convert(SMALLEST, other, (), BATCHES, place / SMALLEST / OTHER)
        with tarfile.open(folder / ARCHIVE, "w:xz", preset=9) as archive:
            archive.add(place, ".")
    return folder / ARCHIVE


def _convert(name: str, python: str, targets: tuple[str, ...], batches: Sequence[int], output: Path) -> None:
    """One artifact; its engines are built by the TensorRT-RTX of an interpreter, for its default targets with ()."""
    from rewriter import Converter
    from rewriter.backends.client import ProcessBackend
    from rewriter.backends.tensorrt_rtx import FLAVOUR

    command = (python, "-m", "rewriter.backends.worker", "--module", FLAVOUR.module)
    options = {"precision_mode": MODELS[name].precision, "verify": False, "progress": False}
    with (
        ProcessBackend(FLAVOUR, targets, command=command) as backend,
        Converter(model=MODELS[name].make(), backend=backend, minimum_segment_size=1, **options) as converter,
    ):
        converter.convert()
        converter.build(lambda: (feeds(name, batch) for batch in batches))
        converter.save(output)
        print(f"{name}, {output.name}: {backend.flavour} {backend.version}", flush=True)


@contextlib.contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """A temporary folder with MODEL/VARIANT artifacts of a bundle.

    Raises:
        SystemExit: there is no bundle in the folder.
    """
    if not (folder / ARCHIVE).is_file():
        raise SystemExit(f"error: no {ARCHIVE} in {folder}: make it with fat_artifacts.py {folder} --make")
    with tempfile.TemporaryDirectory(prefix="fat-artifacts-") as scratch:
        with tarfile.open(folder / ARCHIVE) as archive:
            archive.extractall(scratch, filter="data")
        yield Path(scratch)
