"""Made-up inputs that make a converted function ready before its first call."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import InvalidParameterError
from rewriter.runtime.choosing import usable_here
from rewriter.runtime.inputs import describe_shape, iterate_samples, sample_feeds, to_feeds
from rewriter.shapes.sampling import check_named_shapes, check_shapes, shaped_input_fn
from rewriter.source import Signature

Shape = tuple[int, ...]


def warmup_feeds(
    signature: Signature,
    engines: Sequence[EngineEntry],
    shapes: Mapping[str, Any] | None,
    samples: Iterable[Any] | None,
    chosen: Mapping[str, Any] | None = None,
) -> list[dict[str, np.ndarray]]:
    """What a warm-up runs, by ONNX input name: the caller's samples, or made-up ones (see `warmup_samples`).

    Args:
        signature: names and shapes.
        engines: those whose optima are taken without `shapes`.
        shapes: the caller's shapes.
        samples: the caller's samples.
        chosen: `stats()["engines_chosen"]`: of the engines those count that run here.

    Raises:
        InvalidParameterError: shapes and samples, no sample at all, or as `warmup_samples`.
        InputError: a sample does not fit the signature.
    """
    if samples is None:
        here = usable_here(engines, chosen or {})
        return [to_feeds(signature, sample) for sample in warmup_samples(signature, here, shapes)]
    if shapes is not None:
        raise InvalidParameterError("warmup takes shapes or samples, not both: samples have their shapes")
    feeds = list(sample_feeds(signature, iterate_samples(samples)))
    if not feeds:
        raise InvalidParameterError("samples hold nothing: warmup needs at least one")
    return feeds


def warmup_samples(
    signature: Signature, engines: Sequence[EngineEntry], shapes: Mapping[str, Any] | None
) -> list[dict[str, np.ndarray]]:
    """Inputs by public name, one set for every combination of shapes to be ready for.

    1. `shapes` gives an input one shape, or a list of them; the i-th set takes the i-th shape of each.
    2. Without `shapes`: where engines read the model's inputs themselves, the optimum of each of their profiles.
    3. Fixed dimensions are known, and a symbol has the same size everywhere.

    Raises:
        InvalidParameterError: an unknown input, a shape that does not fit, or a dimension that nothing fixes; the
            message names it.
    """
    plans = _optima(signature, engines) if shapes is None else [_checked(signature, shapes)]
    samples: list[dict[str, np.ndarray]] = []
    for plan in plans:
        _check_complete(signature, plan)
        known = {spec.name: [spec.shape] for spec in signature.inputs if spec.is_static}
        samples += shaped_input_fn(signature, {**known, **plan})()  # type: ignore[dict-item]
    return samples


def _checked(signature: Signature, shapes: Mapping[str, Any]) -> dict[str, list[Shape]]:
    """The user's shapes as lists."""
    checked = check_shapes(shapes)
    check_named_shapes(signature, checked)
    return checked


def _optima(signature: Signature, engines: Sequence[EngineEntry]) -> list[dict[str, list[Shape]]]:
    """The shapes of open inputs at the optimum of the engines' profiles; the i-th profiles of all nodes go together."""
    nodes: dict[str, list[Any]] = {}
    for entry in engines:
        nodes.setdefault(entry.op, []).extend(entry.profiles)
    plans: list[dict[str, list[Shape]]] = []
    for profiles in itertools.zip_longest(*nodes.values(), fillvalue={}):
        plan: dict[str, list[Shape]] = {}
        for profile in profiles:
            for spec in signature.inputs:
                item = profile.get(spec.tensor)
                if item is not None and not item.is_values and not spec.is_static:
                    plan.setdefault(spec.name, [item.optimum])
        if plan not in plans:
            plans.append(plan)
    whole = [plan for plan in plans if not _open_dimension(signature, plan)]
    return whole or plans[:1] or [{}]


def _check_complete(signature: Signature, plan: Mapping[str, Sequence[Shape]]) -> None:
    unknown = _open_dimension(signature, plan)
    if unknown is None:
        return
    spec, what = unknown
    example = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape or (1,))
    raise InvalidParameterError(
        f"warmup needs the shape of input {spec.name!r} {describe_shape(spec)}, for {what} is not fixed: give it, for "
        f"example shapes={{{spec.name!r}: {example}}}"
    )


def _open_dimension(signature: Signature, plan: Mapping[str, Sequence[Shape]]) -> tuple[TensorSpec, str] | None:
    """The first input with a dimension that neither the signature nor a shape in `plan` fixes, and which one it is."""
    specs = {spec.name: spec for spec in signature.inputs}
    symbols = {dim for name in plan for dim in specs[name].shape or () if isinstance(dim, str)}
    for spec in signature.inputs:
        if spec.name in plan:
            continue
        if spec.shape is None:
            return spec, "its rank"
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, int) and dim not in symbols:
                return spec, f"dimension {axis}"
    return None
