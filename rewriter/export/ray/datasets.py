"""An artifact over a dataset of Ray Data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.artifact import load_artifact
from rewriter.errors import ConversionError, InputError, InvalidParameterError
from rewriter.export.batching import batch_dimension, largest_batch
from rewriter.export.ray.checks import check_amount, checked_mapping, checked_range, shared_path
from rewriter.export.ray.importing import gpus_of_one, import_ray
from rewriter.export.ray.replica import ReplicaCore, ReplicaOptions, checked_load_options

__all__ = ["check_columns", "dense", "map_batches", "named"]


def map_batches(
    dataset: Any,
    artifact: str | Path,
    *,
    batch_size: int | None = None,
    actors: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    columns: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    keep: bool = True,
    strict: bool = False,
    warmup: bool = False,
    **load_options: Any,
) -> Any:
    """The dataset with the model's outputs as further columns, computed by a pool of actors that hold the artifact.

    1. Where inputs and outputs share a batch dimension, a row of the dataset is a row of a batch. Elsewhere a row holds
       whole inputs, and the model is run once a row.
    2. Ray runs a batch again whose actor was lost: no row is lost or doubled.
    3. Outputs that tables have no type for become one that holds them exactly: bfloat16 and float8 float32, int4 int8.

    Args:
        dataset: a `ray.data.Dataset`.
        artifact: the folder; every node that runs an actor must be able to read it under this path.
        batch_size: rows of a batch; default: what the engines' profiles take, or 8.
        actors: how many; or (least, most).
        num_cpus: CPUs that an actor takes, as Ray counts them; without `threads` it computes natively with as many
            threads, at least one.
        num_gpus: GPUs likewise; default: 1 where the cluster has one, else 0.
        columns: input name -> column; an input that is not named reads the column of its own name.
        outputs: output name -> column; an output that is not named goes to the column of its own name.
        keep: False drops the dataset's columns.
        strict: True: an actor that cannot use an engine fails, instead of running its segment natively.
        warmup: True runs each actor once before its first batch.
        load_options: further arguments of `rewriter.load`, by name.

    Raises:
        MissingDependencyError: Ray Data is not installed.
        ArtifactError: not an artifact, or a damaged one.
        InvalidParameterError: an unknown input or output, or an argument out of bounds.
        InputError: a column is missing or would be overwritten. Where Ray does not know the columns yet an actor finds
            out, and the error is Ray's, with this one inside.
    """
    data = import_ray("ray.data")
    if not isinstance(dataset, data.Dataset):
        raise InvalidParameterError(f"dataset must be a ray.data.Dataset, not a {type(dataset).__name__}")
    root = shared_path(artifact)
    found = load_artifact(root, check_hashes=False, signature=load_options.get("signature"))
    signature = found.signature
    reads = named("columns", columns, [spec.name for spec in signature.inputs])
    writes = named("outputs", outputs, [spec.name for spec in signature.outputs])
    if len(set(writes.values())) < len(writes):
        raise InvalidParameterError(f"outputs: two outputs go to one column: {sorted(writes.values())}")
    least, most = checked_range("actors", actors)
    check_amount("num_cpus", num_cpus)
    gpus = gpus_of_one(num_gpus)
    check_amount("num_gpus", gpus)
    size = largest_batch(signature, found.engines, batch_size, "batch_size")
    known = dataset.columns(fetch_if_missing=False)
    if known:
        check_columns(known, reads, writes if keep else {})
    loads = checked_load_options({"strict": strict, **load_options}, num_cpus)
    options = ReplicaOptions(str(root), size, warmup, load=loads)
    return dataset.map_batches(
        BatchActor,
        batch_size=size,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=gpus or None,
        fn_constructor_kwargs={"options": options, "reads": reads, "writes": writes, "keep": keep},
    )


class BatchActor:
    """What an actor of `map_batches` does; no Ray in it."""

    def __init__(
        self, options: ReplicaOptions, reads: Mapping[str, str], writes: Mapping[str, str], keep: bool
    ) -> None:
        self._core = ReplicaCore(options)
        self._reads, self._writes, self._keep = reads, writes, keep
        self._batched = batch_dimension(self._core.signature) is not None

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with the outputs.

        Raises:
            InputError: a column is missing, would be overwritten, or does not fit the input it is for.
            ConversionError: the model fails.
        """
        check_columns(batch, self._reads, self._writes if self._keep else {})
        kept = dict(batch) if self._keep else {}
        return {**kept, **self._outputs({name: batch[column] for name, column in self._reads.items()})}

    def _outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = min(len(values) for values in inputs.values())
        if self._batched:
            arrays = {name: dense(values, self._reads[name]) for name, values in inputs.items()}
            found = _all(self._core.answer([arrays]))[0]
            short = [name for name in self._writes if len(found[name]) != count]
            if short:
                raise ConversionError(f"output {short[0]!r} has {len(found[short[0]])} rows for {count} rows of inputs")
            return {column: _as_column(found[name]) for name, column in self._writes.items()}
        rows = _all(self._core.answer([{n: values[row] for n, values in inputs.items()} for row in range(count)]))
        return {column: _stacked([_as_column(row[name]) for row in rows]) for name, column in self._writes.items()}


def _all(answers: list[dict[str, np.ndarray] | ConversionError]) -> list[dict[str, np.ndarray]]:
    """The answers.

    Raises:
        ConversionError: the first one that is none.
    """
    found = []
    for answer in answers:
        if isinstance(answer, ConversionError):
            raise answer
        found.append(answer)
    return found


def _as_column(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that tables have; all values stay."""
    if array.dtype.isbuiltin != 2:  # 2: made by another package
        return array
    return array.astype(np.int8 if "int" in array.dtype.name else np.float32)


def check_columns(known: Collection[str], reads: Mapping[str, str], writes: Mapping[str, str]) -> None:
    """Refuses a dataset that lacks a column, or has one already.

    Args:
        known: the columns that it has.
        reads: input name -> column.
        writes: output name -> column, of those that are written beside the dataset's own.

    Raises:
        InputError: it is such a dataset; the message names the column.
    """
    missing = [column for column in reads.values() if column not in known]
    if missing:
        raise InputError(f"the dataset has no column {missing[0]!r} (it has {', '.join(known)}): say columns=")
    taken = [column for column in writes.values() if column in known]
    if taken:
        raise InputError(f"the dataset has a column {taken[0]!r} already: say outputs=, or keep=False")


def dense(values: np.ndarray, column: str) -> np.ndarray:
    """A column of arrays of one shape as one array.

    Raises:
        InputError: they have different shapes.
    """
    if values.dtype != object or not len(values) or not isinstance(values[0], np.ndarray):
        return values
    arrays = [np.asarray(value) for value in values]
    odd = next((array for array in arrays if array.shape != arrays[0].shape), None)
    if odd is not None:
        raise InputError(
            f"column {column!r} has rows of different shapes, {[*arrays[0].shape]} and {[*odd.shape]}, which make no "
            "batch: pad them, or say batch_size=1"
        )
    return np.stack(arrays)


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays as one, or as a column of arrays where their shapes differ."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    column = np.empty(len(arrays), object)
    column[:] = arrays
    return column


def named(what: str, given: Mapping[str, str] | None, names: list[str]) -> dict[str, str]:
    """Name -> column; a name that nothing is given for has the column of its own name.

    Raises:
        InvalidParameterError: `given` has a name that is none of `names`; `what` is the argument, for the message.
    """
    chosen = checked_mapping(what, given)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise InvalidParameterError(f"{what}: the model has no {unknown[0]!r}; it has: {', '.join(names)}")
    return {name: chosen.get(name, name) for name in names}
