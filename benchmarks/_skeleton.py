"""Models without their weights: what is large and random is kept as the seed that it was made from.

`strip` takes out of a model each large weight that is a seeded array, possibly transposed, reshaped and scaled along
one axis (as an exporter and the folding of batch norms leave it); `fill` makes it again. So a ResNet50 travels in less
than a megabyte, and is the same model wherever it is filled.
"""

from __future__ import annotations

import base64
import importlib
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

#: Smaller weights travel as they are, elements.
MINIMUM = 16384
#: The entry of `metadata_props` that tells how to fill a skeleton.
KEY = "trt_rewriter.benchmark.seeded"
#: Largest difference between a weight and what its seed gives, relative to the weight's largest element.
EXACT = 1e-5
_PROBES = 64


def seeded(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 values of `shape`, the same ones for the same seed everywhere."""
    return np.random.Generator(np.random.Philox(seed)).standard_normal(tuple(shape), dtype=np.float32)


def strip(proto: ModelProto, known: Mapping[int, Sequence[int]]) -> tuple[ModelProto, list[str]]:
    """The model without the large weights that can be made again.

    Args:
        proto: with its weights inside; not changed.
        known: seed -> shape of the seeded arrays that the weights were made from, up to scale.

    Returns:
        The skeleton, and the names of large weights that were not recognised: they are still in it.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(proto)
    arrays = {seed: seeded(seed, shape) for seed, shape in known.items()}
    recipes, strangers = {}, []
    for tensor in skeleton.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MINIMUM:
            continue
        recipe = _recognise(numpy_helper.to_array(tensor), arrays)
        if recipe is None:
            strangers.append(tensor.name)
            continue
        recipes[tensor.name] = recipe
        stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        tensor.CopyFrom(stub)
    skeleton.metadata_props.add(key=KEY, value=json.dumps(recipes))
    return skeleton, strangers


def fill(skeleton: ModelProto) -> ModelProto:
    """The model that a skeleton stands for; a model without seeded weights comes back as it is.

    Raises:
        ValueError: the values are not those of the machine that made the skeleton.
    """
    proto = ModelProto()
    proto.CopyFrom(skeleton)
    recipes: dict[str, Any] = next((json.loads(p.value) for p in proto.metadata_props if p.key == KEY), {})
    for tensor in proto.graph.initializer:
        if tensor.name not in recipes:
            continue
        recipe = recipes[tensor.name]
        scale = np.frombuffer(base64.b64decode(recipe["scale"]), np.float32)
        array = seeded(recipe["seed"], recipe["shape"]).transpose(recipe["permutation"]).reshape(tuple(tensor.dims))
        if recipe["axis"] is not None:
            scale = scale.reshape([-1 if axis == recipe["axis"] else 1 for axis in range(array.ndim)])
        array = np.ascontiguousarray(array * scale)
        if not np.isclose(_size(array), recipe["size"], rtol=1e-5):
            raise ValueError(f"{tensor.name} came out otherwise than where the skeleton was made: another numpy?")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    keep = [p for p in proto.metadata_props if p.key != KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(keep)
    return proto


def _recognise(array: np.ndarray, arrays: Mapping[int, np.ndarray]) -> dict[str, Any] | None:
    """How `array` comes from one of `arrays`; None where it does not."""
    flat = np.linspace(0, array.size - 1, _PROBES).astype(np.int64)
    signs = np.sign(array.reshape(-1)[flat])
    for seed, source in arrays.items():
        if source.size != array.size:
            continue
        for permutation in itertools.permutations(range(source.ndim)):
            turned = source.transpose(permutation)
            # All scales are positive: the signs alone tell, without a copy.
            if not np.array_equal(np.sign(turned[np.unravel_index(flat, turned.shape)]), signs):
                continue
            found = _scale(array, turned.reshape(array.shape))
            if found is not None:
                axis, scale = found
                return {
                    "seed": seed,
                    "shape": list(source.shape),
                    "permutation": list(permutation),
                    "axis": axis,
                    "scale": base64.b64encode(scale.astype(np.float32).tobytes()).decode("ascii"),
                    "size": _size(array),
                }
    return None


def _scale(array: np.ndarray, base: np.ndarray) -> tuple[int | None, np.ndarray] | None:
    """(axis, factors along it) with array = base * factors; axis None is one factor for all; None: there are none."""
    limit = EXACT * float(np.abs(array).max())
    for axis in (None, *range(array.ndim)):
        others = tuple(a for a in range(array.ndim) if a != axis)
        product = np.sum(array * base, axis=others, keepdims=True, dtype=np.float64)
        factors = (product / np.sum(np.square(base), axis=others, keepdims=True, dtype=np.float64)).astype(np.float32)
        if np.abs(array - base * factors).max() <= limit:
            return axis, factors.reshape(-1)
    return None


def _size(array: np.ndarray) -> float:
    """One number that another order or scale of the values would change."""
    return float(np.abs(array.astype(np.float64).reshape(-1)) @ np.linspace(1, 2, array.size))


def write(name: str, maker: tuple[str, str, tuple[Any, ...]], folder: Path) -> dict[str, Any]:
    """Makes a model and writes its skeleton, FOLDER/NAME.skeleton; returns a line for the table.

    Args:
        name: of its files.
        maker: (module of benchmarks/, function, arguments); the function gives a `_runtime_tf.Made`.
        folder: is made where it is not there.
    """
    started = time.perf_counter()
    module, function, arguments = maker
    made = getattr(importlib.import_module(module), function)(*arguments)
    skeleton, strangers = strip(made.proto, made.known)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.skeleton"
    path.write_bytes(skeleton.SerializeToString())
    return {
        "model": name,
        "full MB": made.proto.ByteSize() / 1e6,
        "skeleton MB": path.stat().st_size / 1e6,
        "large weights kept": len(strangers),
        "seconds": time.perf_counter() - started,
    }


def filled(name: str, folder: Path) -> Path:
    """The ONNX file of a model, FOLDER/NAME.onnx, made of its skeleton when it is not there yet."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        skeleton = ModelProto.FromString((folder / f"{name}.skeleton").read_bytes())
        temporary = path.with_suffix(f".{os.getpid()}.tmp")  # several processes may come at once
        onnx.save(fill(skeleton), str(temporary))
        temporary.rename(path)
    return path
