"""Several requests as one run of the model, and its outputs as several answers: one rule for all servers. Pure.

Rows of different requests may lie in one batch only where the signature says that the model works row by row. A
signature cannot say that a model does not mix rows inside (a softmax over the batch): serve such a one with a maximum
of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.source import Signature

__all__ = [
    "DEFAULT_MAXIMUM",
    "LARGEST_NUMBER",
    "EngineRows",
    "Group",
    "Inputs",
    "batch_dimension",
    "checked_maximum",
    "engine_rows",
    "groups",
    "join",
    "largest_batch",
    "run",
    "split",
    "why_no_batch",
]

#: Public name -> array.
Inputs = Mapping[str, np.ndarray]
#: Rows of a batch where no engine's profile sets a limit.
DEFAULT_MAXIMUM = 8
#: The largest number that servers' settings hold.
LARGEST_NUMBER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class EngineRows:
    """What the profiles of engines say of a batch's rows.

    Attributes:
        maximum: the most that run in engines on every machine; None where no profile says.
        optima: those that the engines are tuned for, ascending.
    """

    maximum: int | None = None
    optima: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Requests that are run together.

    Attributes:
        members: their places in the list of requests, ascending.
        rows: how many rows each of them has; () for a single request that is run as it is.
    """

    members: tuple[int, ...]
    rows: tuple[int, ...] = ()


def batch_dimension(signature: Signature) -> str | None:
    """The name of the dimension along which requests may be joined; None where there is none (`why_no_batch`)."""
    if why_no_batch(signature):
        return None
    shape = signature.inputs[0].shape
    return str(shape[0]) if shape else None


def why_no_batch(signature: Signature) -> str:
    """Why the inputs and outputs share no batch dimension, in a few words; "" where they do.

    1. Every input and every output has it as its first dimension: one open dimension, under one name.
    2. It stands nowhere else: where [batch, batch] comes out, each row would see the rows of others.
    """
    specs = (*signature.inputs, *signature.outputs)
    if not signature.inputs:
        return "the model has no input"
    batch = signature.inputs[0].shape[0] if signature.inputs[0].shape else None
    return next((reason for reason in (_why_not(spec, batch) for spec in specs) if reason), "")


def engine_rows(signature: Signature, engines: Sequence[EngineEntry]) -> EngineRows:
    """How many rows a batch may have to run in engines.

    1. Only profiles of inputs of the model count, and only of engines that can be used.
    2. Engines of one node for one GPU, package and version stand in for each other: of their profiles the one that
       takes most rows counts. Of all nodes, GPUs, packages and versions the least of these counts, so that a batch
       fits wherever the artifact is used.
    """
    tensors = {spec.tensor for spec in signature.inputs}
    limits: dict[Any, int] = {}
    optima: set[int] = set()
    for entry in engines:
        place = (entry.op, entry.backend, entry.version, entry.targets)
        for item in (item for profile in entry.profiles for name, item in profile.items() if name in tensors):
            if entry.usable and not item.is_values and item.maximum:
                limits[place] = max(limits.get(place, 0), item.maximum[0])
                optima.add(item.optimum[0])
    return EngineRows(min(limits.values(), default=None), tuple(sorted(optima)))


def checked_maximum(
    signature: Signature, wanted: int | None, least: int = 1, name: str = "max_batch_size"
) -> int | None:
    """The user's limit of a batch as it is.

    Args:
        signature: names and shapes.
        wanted: the limit; None where the user has none.
        least: the smallest number that is allowed.
        name: the argument, for the message.

    Raises:
        InvalidParameterError: `wanted` is no such number (servers count in 32 bits), or above 1 although requests
            cannot be joined.
    """
    if wanted is None:
        return None
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not least <= wanted <= LARGEST_NUMBER:
        more = f" and at most {LARGEST_NUMBER}" if isinstance(wanted, int) and wanted > LARGEST_NUMBER else ""
        raise InvalidParameterError(f"{name} must be a whole number of at least {least}{more}, not {wanted!r}")
    reason = why_no_batch(signature) if wanted > 1 else ""
    if reason:
        raise InvalidParameterError(
            f"{name}={wanted} needs a batch dimension that all inputs and outputs of {signature.name!r} share, "
            f"but {reason}: leave {name} out"
        )
    return wanted


def largest_batch(
    signature: Signature,
    engines: Sequence[EngineEntry] = (),
    wanted: int | None = None,
    name: str = "max_batch_size",
) -> int:
    """How many rows a batch may have: 1 where requests cannot be joined.

    Args:
        signature: names and shapes.
        engines: those whose profiles limit the batch (`engine_rows`).
        wanted: the user's limit, 1 or more; default: what the engines take, or `DEFAULT_MAXIMUM`.
        name: the argument that it is, for the message.

    Raises:
        InvalidParameterError: as `checked_maximum`.
    """
    checked_maximum(signature, wanted, name=name)
    if why_no_batch(signature):
        return 1
    return wanted or engine_rows(signature, engines).maximum or DEFAULT_MAXIMUM


def groups(requests: Sequence[Inputs], maximum: int) -> tuple[Group, ...]:
    """Which requests are run together.

    1. Only requests whose arrays agree in dtype and in all dimensions but the first, which must be the same in all
       arrays of a request.
    2. A group holds at most `maximum` rows. A request of more rows is run alone, as it is: none is ever divided.
    3. Requests fill groups in their order; groups are ordered by their first request.
    """
    found: list[Group] = []
    open_groups: dict[Any, int] = {}
    for number, request in enumerate(requests):
        rows = _rows(request)
        if maximum <= 1 or rows is None or rows > maximum:
            found.append(Group((number,)))
            continue
        kind = tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in request.items()))
        place = open_groups.get(kind)
        if place is not None and sum(found[place].rows) + rows <= maximum:
            group = found[place]
            found[place] = Group((*group.members, number), (*group.rows, rows))
        else:
            open_groups[kind] = len(found)
            found.append(Group((number,), (rows,)))
    return tuple(found)


def join(requests: Sequence[Inputs], group: Group) -> dict[str, np.ndarray]:
    """The arrays of a group's requests, one below the other."""
    members = [requests[number] for number in group.members]
    if len(members) == 1:
        return dict(members[0])
    return {name: np.concatenate([member[name] for member in members]) for name in members[0]}


def split(outputs: Inputs, rows: Sequence[int]) -> list[dict[str, np.ndarray]] | None:
    """Each request's rows of the outputs, in copies of their own; None where an output has not one row for each."""
    total = sum(rows)
    if any(array.ndim == 0 or array.shape[0] != total for array in outputs.values()):
        return None
    ends = np.cumsum(rows)
    return [
        {name: array[end - count : end].copy() for name, array in outputs.items()}
        for count, end in zip(rows, ends, strict=True)
    ]


def run(
    requests: Sequence[Inputs], maximum: int, call: Callable[[dict[str, np.ndarray]], Inputs]
) -> list[dict[str, np.ndarray] | ConversionError]:
    """The answer to every request, in their order: its outputs, or why it has none.

    Where a group fails, or an output has not one row for each of its rows, its requests are run one by one, so that
    none pays for another.

    Args:
        requests: arrays that fit the signature.
        maximum: rows of a batch; 1 or 0 joins nothing.
        call: the model.
    """
    answers: dict[int, dict[str, np.ndarray] | ConversionError] = {}
    for group in groups(requests, maximum):
        parts = _joined_run(requests, group, call) if len(group.members) > 1 else None
        if parts is None:
            parts = [_single_run(requests[number], call) for number in group.members]
        answers.update(zip(group.members, parts, strict=True))
    return [answers[number] for number in range(len(requests))]


def _joined_run(
    requests: Sequence[Inputs], group: Group, call: Callable[[dict[str, np.ndarray]], Inputs]
) -> Sequence[dict[str, np.ndarray] | ConversionError] | None:
    try:
        return split(call(join(requests, group)), group.rows)
    except ConversionError:
        return None  # each is run again by itself, and the one that cannot be run says why


def _single_run(
    request: Inputs, call: Callable[[dict[str, np.ndarray]], Inputs]
) -> dict[str, np.ndarray] | ConversionError:
    try:
        return dict(call(dict(request)))
    except ConversionError as error:
        return error


def _why_not(spec: TensorSpec, batch: int | str | None) -> str:
    """Why a tensor does not begin with the dimension `batch`, which the first input begins with; "" if it does."""
    if spec.shape is None:
        return f"{spec.name!r} has an unknown number of dimensions"
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


def _rows(request: Inputs) -> int | None:
    """The common first dimension of a request's arrays; None where there is none."""
    counts = {array.shape[0] if array.ndim else None for array in request.values()}
    return counts.pop() if len(counts) == 1 else None
