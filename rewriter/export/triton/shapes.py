"""What of a model's shapes Triton is told: is there a batch, how large may it be, what is warmed up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import InvalidParameterError
from rewriter.export.batching import DEFAULT_MAXIMUM, checked_maximum, engine_rows, why_no_batch
from rewriter.runtime.warmup import warmup_samples
from rewriter.source import Signature


@dataclasses.dataclass(frozen=True)
class Batching:
    """How Triton may batch.

    Attributes:
        maximum: the largest batch; 0: none, every request runs as it is.
        preferred: batches that engines are tuned for, ascending; () where no profile says.
        reason: why there is no batch, or where the limit comes from where no engine sets it; "" for nothing to say.
    """

    maximum: int
    preferred: tuple[int, ...] = ()
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Warmup:
    """One set of input shapes that is run before a model counts as ready.

    Attributes:
        shapes: public input name -> whole shape, the batch included.
    """

    shapes: dict[str, tuple[int, ...]]


def find_batching(signature: Signature, engines: Sequence[EngineEntry], wanted: int | None = None) -> Batching:
    """How Triton may batch a model.

    Rules:
        1. Only where every input and output shares the batch dimension (`rewriter.export.batching.why_no_batch`).
        2. The limit is what the engines take (`engine_rows`). Where no profile says, `DEFAULT_MAXIMUM`.
        3. `wanted` replaces that limit; 0 turns batches off.
        4. Preferred are the optima of the profiles, those above 1 and up to the limit.

    Raises:
        InvalidParameterError: `wanted` is negative, or above 1 where there is no batch dimension.
    """
    checked_maximum(signature, wanted, least=0)
    reason = why_no_batch(signature)
    if reason:
        return Batching(0, reason=f"Triton does not batch this model: {reason}")
    if wanted == 0:
        return Batching(0)
    rows = engine_rows(signature, engines)
    maximum = wanted or rows.maximum or DEFAULT_MAXIMUM
    if rows.maximum is None and wanted is None:
        reason = f"no profile limits the batch: max_batch_size is {maximum}, choose another with max_batch_size=..."
    elif rows.maximum is not None and maximum > rows.maximum:
        reason = f"batches above {rows.maximum} do not fit the profiles of every engine: they may run natively"
    return Batching(maximum, tuple(b for b in rows.optima if 1 < b <= maximum), reason)


def find_warmups(signature: Signature, engines: Sequence[EngineEntry], batching: Batching) -> tuple[list[Warmup], str]:
    """What is to be warmed up, and why it is nothing ("" otherwise).

    Rules:
        1. One set of shapes for each profile: its optimum, batches above the limit excepted.
        2. Without profiles a batch of 1, where the batch is all that is open.
        3. Nothing where an engine reads values (not only shapes) of an input: Triton warms up with zeros.
    """
    names = {spec.tensor: spec.name for spec in signature.inputs}
    for entry in engines:
        for profile in entry.profiles:
            read = next((names[key] for key, item in profile.items() if item.is_values and key in names), "")
            if read:
                return [], f"no warm-up: the values of input {read!r} decide on shapes, and Triton warms up with zeros"
    try:
        shapes = [{n: tuple(a.shape) for n, a in s.items()} for s in warmup_samples(signature, engines, None)]
    except InvalidParameterError as error:
        fixed = _rest_is_fixed if batching.maximum else _is_fixed
        unknown = next((spec.name for spec in signature.inputs if not fixed(spec)), "")
        if unknown:
            return [], f"no warm-up: no profile says how large the open dimensions of input {unknown!r} are"
        if not batching.maximum:
            return [], f"no warm-up: {error}"
        shapes = [{spec.name: (1, *_numbers(spec)) for spec in signature.inputs}]
    if batching.maximum:
        shapes = [s for s in shapes if all(shape[0] <= batching.maximum for shape in s.values())]
    return [Warmup(s) for s in shapes if s], ""


def _is_fixed(spec: TensorSpec) -> bool:
    return spec.is_static


def _rest_is_fixed(spec: TensorSpec) -> bool:
    return spec.shape is not None and all(isinstance(dim, int) for dim in spec.shape[1:])


def _numbers(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(dim for dim in (spec.shape or ())[1:] if isinstance(dim, int))
