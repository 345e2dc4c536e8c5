"""Readable, stable names for the unknown dimensions of inputs, shared where TensorFlow needs them equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rewriter.frontend.callee import Callee
from rewriter.frontend.samples import Run, evaluate, tensorflow_errors, with_texts

#: Models with more unknown dimensions than this are not probed: each probe runs the model once or twice.
MAX_PROBES = 12
Dimension = tuple[str, int]


def needs_run(callee: Callee) -> bool:
    """True where only TensorFlow can tell which unknown dimensions must be equal."""
    return any(not _is_one_group(callee, axis, found) for axis, found in _by_axis(callee).items())


def _by_axis(callee: Callee) -> dict[int, list[Dimension]]:
    by_axis: dict[int, list[Dimension]] = {}
    for argument in callee.inputs:
        for axis, size in enumerate(argument.shape or ()):
            if size is None:
                by_axis.setdefault(axis, []).append((argument.name, axis))
    return by_axis


def _is_one_group(callee: Callee, axis: int, dimensions: Sequence[Dimension]) -> bool:
    """True for a single dimension, and for a batch that the framework shares."""
    return len(dimensions) == 1 or (axis == 0 and callee.batch_is_shared)


def dimension_symbols(callee: Callee, run: Run | None) -> dict[Dimension, str]:
    """(input name, axis) -> symbol for every unknown dimension.

    Unknown first dimensions that must be equal are "batch", as is the only one; others are "<input>_dim<axis>",
    after the first input of a group that must be equal. Whether two must be equal is asked of TensorFlow: it
    refuses them different and takes them changed together, on `run` resized; without a run (see `needs_run`) none
    but those that are known to be equal are. Names that the callee has already stay.
    """
    if callee.symbols is not None:
        return dict(callee.symbols)
    symbols: dict[Dimension, str] = {}
    for axis, dimensions in _by_axis(callee).items():
        groups = _groups(callee, run, axis, dimensions)
        for number, group in enumerate(groups):
            name = f"{group[0][0]}_dim{axis}"
            if axis == 0 and number == 0 and (len(group) > 1 or len(groups) == 1):
                name = "batch"
            symbols.update(dict.fromkeys(group, name))
    taken = {a.name for a in callee.inputs}
    return {d: (f"{s}_size" if s == "batch" and s in taken else s) for d, s in symbols.items()}


def _groups(callee: Callee, run: Run | None, axis: int, dimensions: list[Dimension]) -> list[list[Dimension]]:
    """Dimensions of one axis in groups that must be equal; the first group is that of the first dimension."""
    if _is_one_group(callee, axis, dimensions):
        return [dimensions]
    if run is None or len(dimensions) > MAX_PROBES:
        return [[d] for d in dimensions]
    groups: list[list[Dimension]] = []
    for dimension in dimensions:
        for group in groups:
            if _must_be_equal(callee, run, group, dimension):
                group.append(dimension)
                break
        else:
            groups.append([dimension])
    return groups


def _must_be_equal(callee: Callee, run: Run, group: list[Dimension], other: Dimension) -> bool:
    """True when TensorFlow refuses `other` changed alone but takes it changed with the group."""
    size = run.inputs[other[0]].shape[other[1]]
    if run.inputs[group[0][0]].shape[group[0][1]] != size:
        return False
    changed = size + 1 if other[1] == 0 else size * 2
    return not _accepts(callee, run, {other: changed}) and _accepts(
        callee, run, dict.fromkeys([*group, other], changed)
    )


def other_sizes(symbols: Mapping[Dimension, str], run: Run) -> dict[Dimension, int]:
    """Sizes that differ from those of `run`: the batch one less (or 2), the n-th other symbol n + 1 times as large."""
    names = list(dict.fromkeys(symbols.values()))
    factors = {name: index + 2 for index, name in enumerate(n for n in names if not _counts(n, symbols))}
    sizes = {}
    for (owner, axis), name in symbols.items():
        size = run.inputs[owner].shape[axis]
        sizes[owner, axis] = size * factors[name] if name in factors else max(size - 1, 0) or 2
    return sizes


def _counts(name: str, symbols: Mapping[Dimension, str]) -> bool:
    """True for symbols of first dimensions, which count examples."""
    return all(axis == 0 for (_, axis), other in symbols.items() if other == name)


def witnesses(callee: Callee, runs: Sequence[Run], symbols: Mapping[Dimension, str]) -> tuple[Run, ...]:
    """`runs`, and runs that show which dimensions depend on values, as far as TensorFlow takes their inputs.

    Where all runs have the same sizes that is a resized copy of the first. Models of integers, booleans or strings are
    run with the same row everywhere, and those of strings with other texts too: how many different ones there are, or
    how many words, must not pass for a size of the input.
    """
    if not symbols:
        return tuple(runs)
    found: list[Run | None] = list(runs)
    if len({tuple(a.shape for a in run.inputs.values()) for run in runs}) == 1:
        found.append(_try(callee, runs[0], other_sizes(symbols, runs[0])))
    largest = max((run for run in found if run is not None), key=lambda run: sum(a.size for a in run.inputs.values()))
    kinds = {array.dtype.kind for array in largest.inputs.values()}
    if kinds & set("biuOSU"):
        found.append(_run(callee, {name: _one_row(array) for name, array in largest.inputs.items()}))
    if kinds & set("OSU"):
        found.append(_run(callee, {name: with_texts(array) for name, array in largest.inputs.items()}))
    return tuple(run for run in found if run is not None)


def _one_row(array: np.ndarray) -> np.ndarray:
    """The first row everywhere."""
    return np.array(np.broadcast_to(array[:1], array.shape)) if array.ndim and len(array) else array


def output_symbols(
    runs: Sequence[Run], symbols: Mapping[Dimension, str], name: str, rank: int
) -> tuple[str | None, ...]:
    """For each dimension of output `name` the one symbol that had its size in every run, of runs that differ."""
    values = {s: tuple(run.inputs[owner].shape[axis] for run in runs) for (owner, axis), s in symbols.items()}
    telling = {s: sizes for s, sizes in values.items() if len(set(sizes)) > 1}
    found: list[str | None] = []
    for axis in range(rank):
        sizes = tuple(run.outputs[name].shape[axis] for run in runs)
        equal = [s for s, other in telling.items() if other == sizes]
        found.append(equal[0] if len(equal) == 1 else None)
    return tuple(found)


def _accepts(callee: Callee, run: Run, sizes: Mapping[Dimension, int]) -> bool:
    return _try(callee, run, sizes) is not None


def _try(callee: Callee, run: Run, sizes: Mapping[Dimension, int]) -> Run | None:
    """The sample with some dimensions resized (values repeat), if TensorFlow takes it."""
    return _run(callee, {name: _resized(array, name, sizes) for name, array in run.inputs.items()})


def _run(callee: Callee, inputs: Mapping[str, np.ndarray]) -> Run | None:
    """A run of made-up inputs, if TensorFlow takes them."""
    try:
        return evaluate(callee, inputs)
    except tensorflow_errors():
        return None


def _resized(array: np.ndarray, name: str, sizes: Mapping[Dimension, int]) -> np.ndarray:
    """`array` repeated or cut to the wanted sizes."""
    for (owner, axis), size in sizes.items():
        if owner == name:
            array = np.take(array, np.arange(size) % max(array.shape[axis], 1), axis=axis)
    return array
