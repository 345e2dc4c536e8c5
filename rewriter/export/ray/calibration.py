"""Calibration over a dataset of Ray Data by a pool of actors: the ranges that one machine finds, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from passes.precision.ranges import RangeTable
from rewriter.artifact.manifest import MANIFEST_FILE
from rewriter.errors import BackendError, InvalidParameterError
from rewriter.export.batching import DEFAULT_MAXIMUM, why_no_batch
from rewriter.export.ray.checks import check_amount, check_count
from rewriter.export.ray.counting import CountingActor, Task
from rewriter.export.ray.datasets import named
from rewriter.export.ray.importing import import_ray
from rewriter.export.ray.pool import Pool, chunks
from rewriter.precision.calibration import METHODS, Progress, check_method, finished
from rewriter.precision.counts import Counts
from rewriter.precision.work import CalibrationWork, check_portable, work_for_artifact, work_for_source
from rewriter.source import Signature
from rewriter.views import ConversionViews

__all__ = ["CalibrationDataset", "calibrate"]

#: Batches of a chunk at most: so much is done again when an actor dies.
_LARGEST = 16

logger = logging.getLogger(__name__)


def calibrate(
    dataset: Any,
    model: Any,
    *,
    signature: str | None = None,
    method: str | None = None,
    percentile: float | None = None,
    batch_size: int | None = None,
    actors: int = 1,
    num_cpus: float = 1,
    columns: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> RangeTable:
    """Ranges for INT8 and FP8 over a dataset, found by several actors: give them to `Converter(calibration=...)`.

    1. The dataset's rows are taken in its order, `batch_size` at a time; the last batch may have fewer. One batch is
       one calibration input of a single machine: the result is that of `Converter.calibrate()` with these batches in
       any order. How many actors there are, which of them gets which rows and how often they die changes nothing.
    2. Bit for bit, as long as all machines compute the same values: the same ONNX Runtime on the same kind of
       processor. Another `batch_size` may change last bits (kernels differ by size), and more where the model mixes
       the rows of a batch; the histograms themselves add nothing up that could round.
    3. Rows that an actor had when it died are counted by another one. What it had counted of them is gone with it, so
       none is lost and none counts twice.
    4. The weights go to every node once. Actors need this package and ONNX Runtime, but neither TensorRT nor
       TensorFlow, and no shared folder. The data do not pass through this process.

    Args:
        dataset: a `ray.data.Dataset`.
        model: a `Converter` (INT8 or FP8, before or after `convert()`); an artifact's folder; or an ONNX model, or
            whatever else `Converter(model=...)` takes without further arguments. A converter is asked which tensors
            its segments need. Of other models all are calibrated that INT8 or FP8 may ask for, however they are cut.
        signature: which of several signatures of a converter or an artifact; default: the first.
        method: "percentile", "entropy" or "minmax"; default: the converter's, else "percentile".
        percentile: of "percentile", above 0 and at most 100; default: the converter's, else 99.999.
        batch_size: rows of a calibration input. Only where all inputs share an open first dimension: elsewhere a row
            holds whole inputs, and the model is run once a row. Default: 8 where there is one.
        actors: how many at most. Reading the dataset needs a CPU that no actor has, so there may be fewer.
        num_cpus: CPUs that an actor takes, as Ray counts them; ONNX Runtime gets as many threads, at least one.
        columns: input name -> column; an input that is not named reads the column of its own name.
        progress: called in this process with the number of batches that are done, and None: nobody knows of how many.

    Returns:
        The table; `samples` is the number of batches. What is odd about it is logged once, at the end.

    Raises:
        MissingDependencyError: Ray Data is not installed, or ONNX Runtime is not where an actor runs.
        InvalidParameterError: an argument is out of bounds, or there is nothing to calibrate.
        InputError: the dataset is empty, lacks a column, or has one that does not fit the input it is for.
        ConversionError: the model fails or has NaN in a tensor; the message names the rows.
        BackendError: rows that actors die of again and again, or data that Ray lost for good.
    """
    inputs = CalibrationDataset(dataset, batch_size, actors, num_cpus, columns)
    check_method(method or METHODS[0], 100 if percentile is None else percentile)
    import_ray("ray.data")
    work = _work(model, signature)
    wanted: dict[str, Any] = {"method": method, "percentile": percentile}
    work = dataclasses.replace(work, **{name: value for name, value in wanted.items() if value is not None})
    return inputs.calibrate(work, progress)


@dataclasses.dataclass(frozen=True)
class CalibrationDataset:
    """A dataset as the calibration inputs of a conversion, gone through by several actors.

    `converter.convert(calibration_input_fn=CalibrationDataset(dataset, actors=8))` calibrates when and for what the
    converter does, and keeps the ranges in it; of several signatures a dict with one for each. The result, and what the
    fields mean, is that of `calibrate`.

    Raises:
        InvalidParameterError: a field is out of bounds.
    """

    dataset: Any
    batch_size: int | None = None
    actors: int = 1
    num_cpus: float = 1
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_count("actors", self.actors)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        check_amount("num_cpus", self.num_cpus)

    def calibrate(self, work: CalibrationWork, progress: Progress | None = None) -> RangeTable:
        """Does the work.

        Raises:
            MissingDependencyError, InvalidParameterError, InputError, ConversionError, BackendError: as `calibrate`.
        """
        ray, data = import_ray(), import_ray("ray.data")
        if not isinstance(self.dataset, data.Dataset):
            raise InvalidParameterError(f"dataset must be a ray.data.Dataset, not a {type(self.dataset).__name__}")
        check_portable(work)
        rows = _rows_of_a_batch(work.signature, self.batch_size)
        reads = named("columns", self.columns, [spec.name for spec in work.signature.inputs])
        task = ray.put(Task(_in_memory(work), reads, rows, threads=max(1, int(self.num_cpus))))
        actor = ray.remote(CountingActor).options(num_cpus=self.num_cpus)
        count = _room(ray, self.actors, self.num_cpus)
        pool = Pool(ray, lambda: actor.remote(task), count)
        counts = Counts(work.tensors, work.method)

        def take(part: Counts) -> None:
            counts.merge(part)
            if progress is not None:
                progress(counts.samples, None)

        with _in_order(self.dataset), contextlib.closing(_blocks(self.dataset)) as blocks, pool:
            # Chunks of one batch first, so that all actors have work, then of more.
            pool.run(chunks(blocks, lambda number: (rows or 1) * min(_LARGEST, 1 + number // (4 * count))), take)
        return finished(counts, work.percentile)


def _work(model: Any, signature: str | None) -> CalibrationWork:
    """What a user's model comes to."""
    if isinstance(model, ConversionViews):
        return model.calibration_work(signature_key=signature)
    if isinstance(model, (str, os.PathLike)) and (Path(model) / MANIFEST_FILE).is_file():
        return work_for_artifact(Path(model), signature)
    if signature is not None:
        raise InvalidParameterError("signature= goes with a Converter or an artifact: give the model as a Converter")
    return work_for_source(model)


def _rows_of_a_batch(signature: Signature, wanted: int | None) -> int | None:
    """Rows of a calibration input; None where a row holds whole inputs."""
    reason = why_no_batch(dataclasses.replace(signature, outputs=()))
    if reason and (wanted or 1) > 1:
        raise InvalidParameterError(
            f"batch_size={wanted} needs a batch dimension that all inputs share, but {reason}: leave batch_size out, "
            "then a row of the dataset holds whole inputs"
        )
    return None if reason else wanted or DEFAULT_MAXIMUM


def _in_memory(work: CalibrationWork) -> CalibrationWork:
    """The same with plain arrays for weights that are maps of files, which other machines do not have."""
    weights = {name: np.ascontiguousarray(np.asarray(array)) for name, array in work.model.weights.items()}
    return dataclasses.replace(work, model=dataclasses.replace(work.model, weights=weights))


def _room(ray: Any, wanted: int, num_cpus: float) -> int:
    """How many actors leave a CPU for reading the dataset."""
    cpus = float(ray.cluster_resources().get("CPU", 0)) if ray.is_initialized() else 0.0
    room = wanted if num_cpus == 0 else int((cpus - 1) // num_cpus)
    if room >= wanted:
        return wanted
    logger.warning(
        "calibration: %d of %d actors, num_cpus=%g: the cluster has %g CPUs, and reading the dataset needs one%s",
        max(room, 1),
        wanted,
        num_cpus,
        cpus,
        "" if room >= 1 else ": if it stands still, say num_cpus=0",
    )
    return max(room, 1)


@contextlib.contextmanager
def _in_order(dataset: Any) -> Iterator[None]:
    """Has Ray Data hand out the rows in the dataset's order, so that batches are the same every time."""
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


def _blocks(dataset: Any) -> Generator[tuple[Any, int, int], None, None]:
    """References to the dataset's blocks, which stay where they are, with the first and the last row (exclusive).

    Raises:
        BackendError: Ray does not know how many rows a block has.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for entry, cut in zip(bundle.blocks, bundle.slices, strict=True):
            rows = entry.metadata.num_rows
            if rows is None:
                raise BackendError("Ray does not know how many rows a block of the dataset has: materialize() it first")
            yield entry.ref, *((0, rows) if cut is None else (cut.start_offset, cut.end_offset))
