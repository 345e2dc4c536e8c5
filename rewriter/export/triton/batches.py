"""Requests of one call: which are computed together, and what each gets back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rewriter.errors import ConversionError

Arrays = Mapping[str, np.ndarray]


def answer(
    requests: Sequence[Arrays], run: Callable[[Arrays], Arrays], max_batch_size: int
) -> list[Arrays | ConversionError]:
    """Outputs, or the error, of each request.

    Rules:
        1. With a batch dimension (`max_batch_size` above 0) requests that differ in nothing but their first dimension
           are computed together, in their order, up to `max_batch_size` rows.
        2. Where a group fails, or its outputs do not have a row for each row, its requests are computed one by one:
           an error is the answer to the request that made it, and to no other.

    Args:
        requests: input name -> array.
        run: computes the model.
        max_batch_size: 0 computes every request by itself.
    """
    answers: list[Arrays | ConversionError] = [{} for _ in requests]
    for group in groups(requests, max_batch_size):
        for number, result in zip(group, _together([requests[i] for i in group], run), strict=True):
            answers[number] = result
    return answers


def groups(requests: Sequence[Arrays], max_batch_size: int) -> list[list[int]]:
    """Numbers of the requests that are computed together (rule 1)."""
    if not max_batch_size:
        return [[number] for number in range(len(requests))]
    found: list[list[int]] = []
    open_groups: dict[object, tuple[list[int], int]] = {}
    for number, request in enumerate(requests):
        key = tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in request.items()))
        rows = _rows(request)
        group, before = open_groups.get(key, ([], 0))
        if not group or before + rows > max_batch_size or not rows:
            group, before = [], 0
            found.append(group)
        group.append(number)
        open_groups[key] = (group, before + rows)
    return found


def _rows(request: Arrays) -> int:
    """The size of the batch; 0 where the inputs do not agree."""
    sizes = {array.shape[0] if array.ndim else 0 for array in request.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def _together(requests: Sequence[Arrays], run: Callable[[Arrays], Arrays]) -> list[Arrays | ConversionError]:
    if len(requests) > 1:
        joined = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
        rows = [_rows(request) for request in requests]
        result = _tried(joined, run)
        if not isinstance(result, ConversionError) and all(_rows({"": a}) == sum(rows) for a in result.values()):
            ends = np.cumsum(rows).tolist()
            return [
                {name: array[end - count : end] for name, array in result.items()}
                for end, count in zip(ends, rows, strict=True)
            ]
    return [_tried(request, run) for request in requests]


def _tried(request: Arrays, run: Callable[[Arrays], Arrays]) -> Arrays | ConversionError:
    try:
        return run(request)
    except ConversionError as error:
        return error
