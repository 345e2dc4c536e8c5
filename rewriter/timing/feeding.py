"""What an artifact is timed on: samples of the shapes that were asked for, and how many items one holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import InvalidParameterError
from rewriter.runtime.inputs import bind, describe, to_array
from rewriter.runtime.warmup import warmup_samples
from rewriter.shapes.sampling import shaped_input_fn, unknown_dimensions
from rewriter.source import Signature

Sample = dict[str, np.ndarray]
Shape = tuple[int, ...]


def samples_for(
    signature: Signature,
    engines: Sequence[EngineEntry],
    *,
    given: Sequence[Mapping[str, Any]] = (),
    shapes: Mapping[str, Sequence[Shape]] | None = None,
    batch_sizes: Sequence[int] = (),
) -> list[Sample]:
    """Inputs by public name, one set for each row of the result.

    1. The user's own, as they are given.
    2. Made-up ones of the i-th shapes.
    3. Made-up ones of each batch size: the first dimension of every input that leaves it open.
    4. Else the shapes that the engines are tuned for; without such the fixed shapes, or batches 1 and 8.

    Args:
        signature: the inputs.
        engines: of the artifact; their profiles say what they are tuned for.
        given: the user's inputs.
        shapes: input name -> shapes.
        batch_sizes: numbers of rows.

    Raises:
        InvalidParameterError: more than one of the last three; shapes that do not fit; or a dimension that nothing
            fixes, the message names it.
        InputError: given inputs do not fit the signature.
    """
    if sum(map(bool, (given, shapes, batch_sizes))) > 1:
        raise InvalidParameterError("--inputs, --shapes and --batch-size each say what is run: give one of them")
    if given:
        bound = [bind(signature, (sample,), {}) for sample in given]
        return [{spec.name: to_array(values[spec.name], spec) for spec in signature.inputs} for values in bound]
    if shapes or batch_sizes:
        return list(shaped_input_fn(signature, shapes or _batches(signature, batch_sizes))())
    if engines and unknown_dimensions(signature):
        try:
            return warmup_samples(signature, engines, None)
        except InvalidParameterError:  # the engines do not read that input themselves: the next line words it
            pass
    return list(shaped_input_fn(signature, {})())


def items_of(signature: Signature, sample: Mapping[str, Any]) -> int:
    """How many items one call computes: the rows of its batch.

    That is the size of the first dimension of the inputs that leave it open, or of all inputs when none does; 1 where
    these differ, or there is no such dimension.
    """
    ranked = [spec for spec in signature.inputs if np.ndim(sample[spec.name])]
    free = [spec for spec in ranked if spec.shape is None or not isinstance(spec.shape[0], int)]
    sizes = {int(np.shape(sample[spec.name])[0]) for spec in free or ranked}
    return sizes.pop() if len(sizes) == 1 else 1


def shape_words(sample: Mapping[str, Any]) -> str:
    """The shapes of a sample in one line: "image 8x224x224x3, size 2"."""
    return ", ".join(f"{name} {'x'.join(map(str, np.shape(value))) or 'scalar'}" for name, value in sample.items())


def _batches(signature: Signature, sizes: Sequence[int]) -> dict[str, list[Shape]]:
    """The shapes of all inputs with an open first dimension, for each batch size."""
    if min(sizes) < 1:
        raise InvalidParameterError(f"--batch-size must be at least 1, not {min(sizes)}")
    found: dict[str, list[Shape]] = {}
    for spec in signature.inputs:
        if spec.is_static or spec.shape == ():
            continue
        rest = None if spec.shape is None else spec.shape[1:]
        fixed = tuple(size for size in rest or () if isinstance(size, int))
        if rest is None or len(fixed) != len(rest):
            raise InvalidParameterError(
                f"--batch-size fixes first dimensions only, which is not all that input {spec.name!r} "
                f"({describe(spec)}) leaves open: use --shapes {spec.name}:..."
            )
        found[spec.name] = [(size, *fixed) for size in sizes]
    if not found:
        raise InvalidParameterError("--batch-size: the shapes of all inputs are fixed, so leave it out")
    return found
