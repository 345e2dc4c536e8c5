"""What an actor of `calibrate` does: it runs the model on the rows it is given, and returns what it counted in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.errors import InputError
from rewriter.export.ray.datasets import check_columns, dense
from rewriter.export.ray.importing import import_ray
from rewriter.precision.calibration import SampleCounter
from rewriter.precision.counts import Counts
from rewriter.precision.work import CalibrationWork
from rewriter.runtime.inputs import bind, to_feeds


@dataclasses.dataclass(frozen=True)
class Task:
    """What every actor is told; it travels once to every node.

    Attributes:
        work: model, tensors and method; the weights are plain arrays, which processes of one node share.
        reads: input name -> column.
        batch: rows of a calibration input; None where a row holds whole inputs.
        threads: of ONNX Runtime.
    """

    work: CalibrationWork
    reads: Mapping[str, str]
    batch: int | None
    threads: int


class RowCounter:
    """Counts rows; no Ray in it.

    Raises:
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, task: Task) -> None:
        work = task.work
        self._task = task
        self._counter = SampleCounter(work.model, work.tensors, work.method, threads=task.threads)

    def count(self, first: int, columns: Mapping[str, np.ndarray]) -> Counts:
        """What is counted in some rows, and nothing else.

        Args:
            first: the place of the first row in the dataset: where a batch begins.
            columns: column -> its values in these rows.

        Raises:
            InputError: a column is missing or does not fit its input; the message names the rows.
            ConversionError: the model fails, or a tensor has NaN in it; likewise.
        """
        check_columns(columns, self._task.reads, {})
        size = self._task.batch or 1
        rows = len(next(iter(columns.values())))
        counts = self._counter.none()
        for start in range(0, rows, size):
            end = min(start + size, rows)
            number = (first + start) // size
            last = first + end - 1
            where = f" (rows {first + start} to {last})" if self._task.batch else f" (row {last})"
            self._counter.add(counts, number, self._feeds(columns, start, end, f"{number}{where}"), where)
        return counts

    def _feeds(self, columns: Mapping[str, np.ndarray], start: int, end: int, place: str) -> dict[str, np.ndarray]:
        given = {}
        signature = self._task.work.signature
        try:
            for name, column in self._task.reads.items():
                values = columns[column]
                given[name] = dense(values[start:end], column) if self._task.batch else values[start]
            return to_feeds(signature, bind(signature, (given,), {}))
        except InputError as error:
            raise InputError(f"calibration sample {place}: {error}") from error


class CountingActor:
    """A `RowCounter` as an actor; made of nothing that can fail, so that `load` can say what does.

    Args:
        task: what is to be done.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._counter: RowCounter | None = None

    def load(self) -> None:
        """Makes the actor ready.

        Raises:
            SourceError, MissingDependencyError: as `RowCounter` raises them.
        """
        self._counter = RowCounter(self._task)

    def count(self, first: int, cuts: Sequence[tuple[int, int]], *blocks: Any) -> Counts:
        """What is counted in the rows of some blocks of a dataset.

        Args:
            first: the place of the first row in the dataset.
            cuts: of every block the first and the last row (exclusive).
            blocks: the blocks themselves.

        Raises:
            InputError, ConversionError: as `RowCounter.count` raises them.
        """
        assert self._counter is not None, "load() comes first"  # noqa: S101 - the pool sees to it
        accessor = import_ray("ray.data.block").BlockAccessor
        parts = [
            accessor.for_block(accessor.for_block(block).slice(start, end)).to_batch_format("numpy")
            for block, (start, end) in zip(blocks, cuts, strict=True)
        ]
        return self._counter.count(first, joined(parts))


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Columns of several blocks, one below the other; those that not all blocks have are left out."""
    found = {}
    for column in parts[0]:
        arrays = [part[column] for part in parts if column in part]
        if len(arrays) < len(parts):
            continue
        if len({(array.dtype, array.shape[1:]) for array in arrays}) == 1:
            found[column] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        else:  # rows of other shapes
            rows = [row for array in arrays for row in array]
            found[column] = np.empty(len(rows), object)
            found[column][:] = rows
    return found
