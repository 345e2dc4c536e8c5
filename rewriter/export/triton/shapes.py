"""What of a model's shapes Triton is told: is there a batch, how large may it be, what is warmed up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import Profile
from rewriter.errors import InvalidParameterError
from rewriter.runtime.warmup import warmup_samples
from rewriter.source import Signature

#: The largest batch where no engine sets a limit.
DEFAULT_MAX_BATCH = 8


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


def why_no_batch(signature: Signature) -> str:
    """Why the inputs and outputs share no batch dimension, in a few words; "" where they do.

    They do when all of them have one named dimension in front, and no input or output has it anywhere else.
    """
    specs = (*signature.inputs, *signature.outputs)
    if not signature.inputs:
        return "the model has no input"
    batch = signature.inputs[0].shape[0] if signature.inputs[0].shape else None
    return next((reason for reason in (_why_not(spec, batch) for spec in specs) if reason), "")


def _why_not(spec: TensorSpec, batch: int | str | None) -> str:
    """Why a tensor does not begin with the dimension `batch`, which the first input begins with; "" if it does."""
    if not spec.shape:
        return f"{spec.name!r} has no dimensions"
    first, *others = spec.shape
    if isinstance(first, int):
        return f"the first dimension of {spec.name!r} is always {first}"
    if first is None:
        return f"the first dimension of {spec.name!r} has no name that tells it to be the batch"
    if first != batch:
        return f"{spec.name!r} begins with dimension {first!r}, the first input with {batch!r}"
    return f"dimension {first!r} of {spec.name!r} is more than its first" if first in others else ""


def find_batching(signature: Signature, engines: Sequence[EngineEntry], wanted: int | None = None) -> Batching:
    """How Triton may batch a model.

    Rules:
        1. Only where every input and output shares the batch dimension (`why_no_batch`).
        2. The limit is what every engine node can take: of its engines' profiles the largest maximum of an input of
           the model. Where no engine reads one, `DEFAULT_MAX_BATCH`.
        3. `wanted` replaces that limit; 0 turns batches off.
        4. Preferred are the optima of these profiles, those above 1 and up to the limit.

    Raises:
        InvalidParameterError: `wanted` is negative, or above 0 where there is no batch dimension.
    """
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0):
        raise InvalidParameterError(f"max_batch_size must be a number from 0, not {wanted!r}")
    reason = why_no_batch(signature)
    if reason:
        if wanted:
            raise InvalidParameterError(
                f"max_batch_size {wanted} needs a batch dimension that all inputs and outputs share, but {reason}: "
                "leave max_batch_size out"
            )
        return Batching(0, reason=f"Triton does not batch this model: {reason}")
    if wanted == 0:
        return Batching(0)
    limits: dict[str, int] = {}
    optima: set[int] = set()
    names = {spec.tensor for spec in signature.inputs}
    for entry in engines:
        for profile in entry.profiles:
            for batch in _batches(profile, names):
                limits[entry.op] = max(limits.get(entry.op, 0), batch[1])
                optima.add(batch[0])
    limit = min(limits.values(), default=0)
    maximum = wanted or limit or DEFAULT_MAX_BATCH
    reason = ""
    if not limit and wanted is None:
        reason = f"no profile limits the batch: max_batch_size is {maximum}, choose another with max_batch_size=..."
    elif limit and maximum > limit:
        reason = f"batches above {limit} do not fit the engines' profiles: they run natively"
    return Batching(maximum, tuple(sorted(b for b in optima if 1 < b <= maximum)), reason)


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
        if not batching.maximum or not all(_rest_is_fixed(spec) for spec in signature.inputs):
            return [], f"no warm-up: {error}"
        shapes = [{spec.name: (1, *_numbers(spec)) for spec in signature.inputs}]
    if batching.maximum:
        shapes = [s for s in shapes if all(shape[0] <= batching.maximum for shape in s.values())]
    return [Warmup(s) for s in shapes if s], ""


def _batches(profile: Profile, names: set[str]) -> list[tuple[int, int]]:
    """(optimum, maximum) of the batch, for each input of the model in a profile."""
    items = (item for name, item in profile.items() if name in names)
    return [(item.optimum[0], item.maximum[0]) for item in items if not item.is_values and item.maximum]


def _rest_is_fixed(spec: TensorSpec) -> bool:
    return spec.shape is not None and all(isinstance(dim, int) for dim in spec.shape[1:])


def _numbers(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(dim for dim in (spec.shape or ())[1:] if isinstance(dim, int))
