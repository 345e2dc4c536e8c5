"""Operations of one call of a converted model, for sizes that its samples show."""

from __future__ import annotations

from collections.abc import Mapping

from passes.graph.flops import Estimate, estimate
from passes.model import Model
from rewriter.errors import InvalidParameterError
from rewriter.params import check_count
from rewriter.source import SourceModel


def count_operations(
    model: Model, source: SourceModel, sizes: Mapping[str, int] | None = None, default_dim: int = 1
) -> Estimate:
    """Counts the operations of every node of a cleaned model.

    Args:
        model: the cleaned model.
        source: what it was made from: its signature names dimensions, its samples show sizes.
        sizes: dimension name -> size; wins over the rule: the first dimension of each input is 1, others are as in the
            first sample.
        default_dim: the size of the dimensions that nothing is known of.

    Raises:
        InvalidParameterError: a size is no integer of at least 1, or of a dimension that the model does not have.
    """
    given, default = check_sizes(sizes, default_dim)
    counted = estimate(model, {**sample_sizes(source), **given}, default)
    for name in given:
        if name not in counted.sizes:
            known = ", ".join(counted.sizes) or "none"
            raise InvalidParameterError(f"sizes names {name!r}, which is no open dimension of the model: {known}")
    return counted


def check_sizes(sizes: object, default_dim: object) -> tuple[dict[str, int], int]:
    """Sizes of dimensions by their names, and that of the others, as integers.

    Raises:
        InvalidParameterError: no mapping of names to integers of at least 1; the message names the dimension.
    """
    if sizes is not None and not (isinstance(sizes, Mapping) and all(isinstance(name, str) for name in sizes)):
        raise InvalidParameterError(f"sizes must be a dict of dimension name to size, not {sizes!r}")
    default = _size("default_dim", default_dim)
    return {name: _size(f"the size of {name}", size) for name, size in (sizes or {}).items()}, default


def _size(name: str, value: object) -> int:
    found = check_count(name, value)
    if found is None:
        raise InvalidParameterError(f"{name} must be an integer of at least 1, not None")
    return found


def sample_sizes(source: SourceModel) -> dict[str, int]:
    """Names of dimensions -> sizes: 1 for the first of an input, the sample's for the others."""
    found: dict[str, int] = {}
    for spec in source.signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if not isinstance(dim, str):
                continue
            if axis == 0:
                found[dim] = 1
            elif source.samples and dim not in found:
                shape = getattr(source.samples[0].get(spec.name), "shape", ())
                if axis < len(shape):
                    found[dim] = max(int(shape[axis]), 1)
    return found
