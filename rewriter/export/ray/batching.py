"""Several requests as one run of the model, and its outputs as several answers. Pure: nothing here knows Ray.

Rows of different requests may lie in one batch only where the signature says that the model works row by row. A
signature cannot say that a model does not mix rows inside (a softmax over the batch): serve such a one with a maximum
of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.source import Signature

__all__ = ["DEFAULT_MAXIMUM", "Group", "Inputs", "batch_dimension", "groups", "join", "largest_batch", "run", "split"]

#: Public name -> array.
Inputs = Mapping[str, np.ndarray]
#: Rows of a batch where no engine's profile sets a limit.
DEFAULT_MAXIMUM = 8


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
    """The name of the dimension along which requests may be joined; None where there is none.

    1. Every input and every output has it as its first dimension: one open dimension, under one name.
    2. It stands nowhere else: where [batch, batch] comes out, each row would see the rows of others.
    """
    specs = (*signature.inputs, *signature.outputs)
    shapes = [spec.shape for spec in specs if spec.shape]
    first = {shape[0] for shape in shapes}
    if not signature.inputs or len(shapes) < len(specs) or len(first) != 1:
        return None
    name = first.pop()
    if not isinstance(name, str) or any(name in shape[1:] for shape in shapes):
        return None
    return name


def largest_batch(signature: Signature, engines: Sequence[EngineEntry] = (), wanted: int | None = None) -> int:
    """How many rows a batch may have: 1 where requests cannot be joined.

    Args:
        signature: names and shapes.
        engines: those whose profiles limit the batch: of each engine that reads inputs of the model, the most rows
            that one of its profiles takes; the least of these counts.
        wanted: the user's limit, 1 or more; default: what the engines take, or `DEFAULT_MAXIMUM`.

    Raises:
        InvalidParameterError: `wanted` is no such number, or above 1 although requests cannot be joined.
    """
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise InvalidParameterError(f"max_batch_size must be a whole number of at least 1, not {wanted!r}")
    if batch_dimension(signature) is None:
        if (wanted or 1) > 1:
            raise InvalidParameterError(
                f"max_batch_size={wanted} cannot be had: the inputs and outputs of {signature.name!r} do not share an "
                "open first dimension; leave it out"
            )
        return 1
    if wanted is not None:
        return wanted
    tensors = {spec.tensor for spec in signature.inputs}
    limits = []
    for entry in engines:
        taken = [
            found.maximum[0]
            for profile in entry.profiles
            for name, found in profile.items()
            if name in tensors and not found.is_values and found.maximum
        ]
        limits += [max(taken)] if taken else []
    return min(limits, default=DEFAULT_MAXIMUM)


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
        maximum: rows of a batch; 1 joins nothing.
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


def _rows(request: Inputs) -> int | None:
    """The common first dimension of a request's arrays; None where there is none."""
    counts = {array.shape[0] if array.ndim else None for array in request.values()}
    return counts.pop() if len(counts) == 1 else None
