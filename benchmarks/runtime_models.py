"""The models that the runtime is measured with: made with TensorFlow on one machine, filled on another.

    python benchmarks/runtime_models.py FOLDER [--only NAME...] [--fill | --convert PRECISION...]

Without an option it makes skeletons, FOLDER/NAME.skeleton (needs TensorFlow); --fill makes FOLDER/NAME.onnx of them;
--convert converts and builds these, FOLDER/NAME.PRECISION. A skeleton is the exported ONNX model whose large weights
are named by their seeds (`_skeleton.py`), so that all models together take two megabytes. Filling and converting need
neither TensorFlow nor a GPU. `artifact` does what is not done yet, so the other scripts need no steps before them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _skeleton
import numpy as np
from _common import add_project_to_path, print_table
from _skeleton import seeded
from onnx import TensorProto, helper, numpy_helper

add_project_to_path()

Feeds = dict[str, np.ndarray]
#: The sizes of one call, as a model's `feeds` takes them: (batch,), (batch, length), (batch, height, width).
Case = tuple[int, ...]

CHAIN_LAYERS, CHAIN_CHANNELS, CHAIN_SIZE = 48, 64, 28
#: Alternating pieces that the chain is cut into: the engines are the even ones.
CHAIN_STEPS = (1, 3, 7, 15)


@dataclasses.dataclass(frozen=True)
class RuntimeModel:
    """One model.

    Attributes:
        maker: (module of benchmarks/, function, arguments) that makes it.
        build: the cases that engines are built for: their profile spans them.
        checks: the cases that are compared.
        feeds: inputs of a case from a generator.
        denied: patterns of the nodes that stay native.
        samples: inputs of each case that engines are built for: more than one where values decide shapes.
        strategy: of the profiles. Kernels for exactly one shape are quicker than those for a range of shapes.
    """

    maker: tuple[str, str, tuple[Any, ...]]
    build: tuple[Case, ...]
    checks: tuple[Case, ...]
    feeds: Callable[[Case, np.random.Generator], Feeds]
    denied: tuple[str, ...] = ()
    samples: int = 1
    strategy: str = "Range"


def images(case: Case, rng: np.random.Generator, size: int) -> Feeds:
    """Images [batch, size, size, 3] in 0..255: waves of any contrast and colour plus noise: noise alone looks alike."""
    axis = np.linspace(0, np.pi, size, dtype=np.float32)
    waves = rng.uniform(1, 9, (case[0], 2, 3)).astype(np.float32)
    rows, columns = (np.sin(axis[None, :, None] * waves[:, None, part]) for part in (0, 1))
    smooth = rows[:, :, None, :] * columns[:, None, :, :]
    noise = rng.normal(0, 0.2, smooth.shape).astype(np.float32)
    contrast = rng.uniform(20, 120, (case[0], 1, 1, 3)).astype(np.float32)
    level = rng.uniform(60, 200, (case[0], 1, 1, 3)).astype(np.float32)
    return {"image": np.clip(level + contrast * (smooth + noise), 0, 255).astype(np.float32)}


def small_images(case: Case, rng: np.random.Generator) -> Feeds:
    """Normal images [batch, 64, 64, 3], each of a contrast of its own, so that more or fewer boxes are found."""
    contrast = rng.uniform(0.4, 1.5, (case[0], 1, 1, 1)).astype(np.float32)
    return {"image": contrast * rng.standard_normal((case[0], 64, 64, 3), np.float32)}


def any_images(case: Case, rng: np.random.Generator) -> Feeds:
    """Standard normal images [batch, height, width, 3]."""
    return {"image": rng.standard_normal((*case, 3), np.float32)}


def tokens(case: Case, rng: np.random.Generator, vocabulary: int) -> Feeds:
    """Token ids [batch, length] with a key mask that hides up to half of each row's end."""
    batch, length = case
    real = rng.integers((length + 1) // 2, length + 1, (batch, 1))
    return {
        "tokens": rng.integers(0, vocabulary, case).astype(np.int32),
        "mask": np.arange(length)[None, :] < real,
    }


def series(case: Case, rng: np.random.Generator) -> Feeds:
    """Sequences [batch, length, 8]."""
    return {"series": rng.standard_normal((*case, 8), np.float32)}


def feature_maps(case: Case, rng: np.random.Generator) -> Feeds:
    """The chain's input [batch, 64, 28, 28], of another size each time: the chain is homogeneous, so its output too."""
    shape = (case[0], CHAIN_CHANNELS, CHAIN_SIZE, CHAIN_SIZE)
    return {"x": rng.standard_normal(shape, np.float32) * np.float32(rng.uniform(0.5, 1.5))}


def chain_pieces(steps: int) -> list[range]:
    """The layers of each of `steps` pieces."""
    bounds = np.linspace(0, CHAIN_LAYERS, steps + 1).round().astype(int)
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def chain_denied(steps: int) -> tuple[str, ...]:
    """Patterns for the nodes of the odd pieces: those stay native."""
    layers = [layer for piece in chain_pieces(steps)[1::2] for layer in piece]
    return (f"^(conv|relu)_({'|'.join(f'{layer:02}' for layer in layers)})$",) if layers else ()


def make_chain() -> Any:
    """48 times Conv 3x3 (64 channels) and Relu on x [batch, 64, 28, 28]; no framework is needed."""
    from _runtime_tf import Made

    nodes, weights, value = [], [], "x"
    shape = (CHAIN_CHANNELS, CHAIN_CHANNELS, 3, 3)
    scale = np.float32((2 / (CHAIN_CHANNELS * 9)) ** 0.5)
    for layer in range(CHAIN_LAYERS):
        weights.append(numpy_helper.from_array(seeded(layer, shape) * scale, f"weight_{layer:02}"))
        inputs = [value, f"weight_{layer:02}"]
        nodes.append(helper.make_node("Conv", inputs, [f"c{layer:02}"], name=f"conv_{layer:02}", pads=[1] * 4))
        value = "y" if layer == CHAIN_LAYERS - 1 else f"r{layer:02}"
        nodes.append(helper.make_node("Relu", [f"c{layer:02}"], [value], name=f"relu_{layer:02}"))
    sizes = ["batch", CHAIN_CHANNELS, CHAIN_SIZE, CHAIN_SIZE]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", *ends, weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    return Made(model, dict.fromkeys(range(CHAIN_LAYERS), shape))


def _image_model(name: str, damping: float, builds: tuple[Case, ...], checks: tuple[Case, ...]) -> RuntimeModel:
    made = ("_runtime_tf", "application", (name, 224, damping))
    return RuntimeModel(made, builds, checks, functools.partial(images, size=224))


#: Name -> model. The chain's variants are one ONNX file, cut in different ways.
MODELS: dict[str, RuntimeModel] = {
    "ResNet50": dataclasses.replace(
        _image_model("ResNet50", 1.1, ((1,), (8,), (32,)), ((1,), (3,), (8,))), strategy="Range+Optimal"
    ),
    "MobileNetV3Small": _image_model("MobileNetV3Small", 0.9, ((1,), (8,)), ((1,), (4,), (8,))),
    "bert": RuntimeModel(
        ("_runtime_tf", "encoder", (4, 256, 4, 2000, 256)),
        ((1, 8), (4, 64), (8, 256)), ((1, 8), (2, 77), (8, 256), (5, 31)),
        functools.partial(tokens, vocabulary=2000),
    ),
    "unet": RuntimeModel(
        ("_runtime_tf", "zoo", ("unet_dynamic",)),
        ((1, 32, 32), (2, 128, 128)), ((1, 32, 48), (2, 64, 96), (1, 128, 128)), any_images,
    ),
    "detector": RuntimeModel(
        ("_runtime_tf", "detector", ()), ((1,), (2,), (6,)), ((1,), (2,), (4,)), small_images, samples=20,
    ),
    "detector_nms": RuntimeModel(
        ("_runtime_tf", "zoo", ("detector_nms",)), ((1,), (2,), (6,)), ((1,), (2,), (4,)), small_images, samples=20,
    ),
    "lstm": RuntimeModel(
        ("_runtime_tf", "zoo", ("lstm",)), ((1, 4), (8, 40)), ((1, 4), (3, 17), (8, 40)), series,
    ),
    **{
        f"chain{steps}": RuntimeModel(
            ("runtime_models", "make_chain", ()), ((1,), (8,), (16,)), ((1,), (8,), (5,)), feature_maps,
            chain_denied(steps), strategy="Range+Optimal",
        )
        for steps in CHAIN_STEPS
    },
}  # fmt: skip


def feeds_of(name: str, case: Case, number: int) -> Feeds:
    """Inputs number `number` of a case: other ones for another number, the same ones everywhere."""
    return MODELS[name].feeds(case, np.random.Generator(np.random.Philox([*case, number])))


def file_of(name: str) -> str:
    """What the files of a model are called: the chain's variants share one."""
    return "chain" if name.startswith("chain") else name


def make(name: str, folder: Path) -> dict[str, Any]:
    """Writes the skeleton of one model; returns a line for the table."""
    return _skeleton.write(file_of(name), MODELS[name].maker, folder)


def filled(name: str, folder: Path) -> Path:
    """The ONNX file of a model, made of its skeleton when it is not there yet."""
    return _skeleton.filled(file_of(name), folder)


def artifact(name: str, precision: str, folder: Path) -> Path:
    """The artifact of a model in one precision, converted and built when it is not there yet.

    NAME.PRECISION.json beside it holds what the conversion took and gave.
    """
    from rewriter import Converter

    out = folder / f"{name}.{precision}"
    facts_path = folder / f"{name}.{precision}.json"
    if out.exists() and facts_path.exists():
        return out
    model = MODELS[name]
    path = filled(name, folder)
    samples = [feeds_of(name, case, 1000 + number) for number in range(model.samples) for case in model.build]
    started = time.perf_counter()
    with Converter(
        model=str(path),
        backend="tensorrt_rtx",
        precision_mode=precision,
        use_dynamic_shape=True,
        dynamic_shape_profile_strategy=model.strategy,
        node_denylist=model.denied,
        progress=False,
    ) as converter:
        converter.convert()
        converter.build(lambda: iter(samples))
        converter.save(out, overwrite=True)
        report = converter.report
    facts = {
        "model": name,
        "precision": precision,
        "seconds": time.perf_counter() - started,
        "engines": sum(1 for engine in report.engines if engine.built),
        "segments": len(report.engines),
        "coverage": report.coverage,
        "native ops": sorted({verdict.op_type for verdict in report.native}),
        "MB": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6,
        "not built": [f"{engine.name}: {engine.reason}" for engine in report.engines if not engine.built],
    }
    facts_path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return out


def main() -> int:
    options = _parse()
    rows: list[Mapping[str, Any]] = []
    for name in options.only:
        if options.convert:
            for precision in options.convert:
                artifact(name, precision, options.folder)
                rows.append(json.loads((options.folder / f"{name}.{precision}.json").read_text(encoding="utf-8")))
                print(rows[-1], file=sys.stderr, flush=True)
        elif options.fill:
            path = filled(name, options.folder)
            rows.append({"model": path.name, "MB": path.stat().st_size / 1e6})
        elif not any(row["model"] == file_of(name) for row in rows):
            rows.append(make(name, options.folder))
            print(rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    return 0


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--fill", action="store_true", help="make the ONNX files of the skeletons")
    what.add_argument("--convert", nargs="+", metavar="PRECISION", help="make artifacts, e.g. FP32 FP16")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
