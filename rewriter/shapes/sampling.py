"""Made-up inputs for building engines: shapes from the user or the signature, values from the export's own check."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError
from rewriter.runtime.inputs import disagreement
from rewriter.runtime.native import numpy_dtype
from rewriter.source import Signature

#: Batches built for when the user names no shapes.
DEFAULT_BATCHES = (1, 8)
_SEED = 7

Sample = dict[str, np.ndarray]
InputFn = Callable[[], Iterator[Sample]]
#: So many shapes of one input are its minimum, optimum and maximum.
_TRIPLE = 3


@dataclasses.dataclass(frozen=True)
class MadeInputs:
    """An `input_fn` that makes its samples up, one at a time.

    Attributes:
        signature: the inputs.
        plans: per sample the shape of every input, by public name.
        base: known good inputs by public name; their values are repeated or cut to the shapes.
        optimum: number of the sample that "Range" profiles are tuned for; None leaves that to what is seen.
    """

    signature: Signature
    plans: tuple[Mapping[str, tuple[int, ...]], ...]
    base: Mapping[str, Any]
    optimum: int | None = None

    def __call__(self) -> Iterator[Sample]:
        """The samples."""
        for plan in self.plans:
            yield {spec.name: _values(spec, plan[spec.name], self.base) for spec in self.signature.inputs}


def profile_input_fn(
    signature: Signature,
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    samples: Sequence[Mapping[str, Any]] = (),
) -> MadeInputs:
    """Samples for building engines, as `shaped_input_fn` makes them, with one rule more.

    Three shapes of an input are its minimum, optimum and maximum, in this order. The profiles of the model's inputs
    are then exactly these, and what lies between engines is tuned for what it has at the optimum. Any other number
    of shapes are just shapes to cover.

    Args:
        signature: the inputs.
        shapes: input name -> one shape, or some; may be empty.
        samples: known good inputs by name.

    Raises:
        InvalidParameterError: as `shaped_input_fn`; or three shapes are not minimum <= optimum <= maximum.
    """
    shapes = check_shapes(shapes)
    made = shaped_input_fn(signature, shapes, samples)
    check_profile_shapes(shapes)
    if all(len(given) != _TRIPLE for given in shapes.values()):
        return made
    wanted = {name: given[1 % len(given)] for name, given in shapes.items()}
    found = (i for i, plan in enumerate(made.plans) if all(plan[name] == shape for name, shape in wanted.items()))
    return dataclasses.replace(made, optimum=next(found))


def check_shapes(shapes: Mapping[str, Any]) -> dict[str, list[tuple[int, ...]]]:
    """The user's shapes as lists of tuples: each input has one shape, or some.

    Raises:
        InvalidParameterError: no mapping, or something in it that is no shape; the message names the input.
    """
    if not isinstance(shapes, Mapping):
        raise InvalidParameterError(f"shapes must be a dict of input name to shape, not {type(shapes).__name__}")
    return {name: _as_shapes(name, given) for name, given in shapes.items()}


def _as_shapes(name: str, given: Any) -> list[tuple[int, ...]]:
    """One shape, or some, as a list of shapes."""
    try:
        # A list of numbers is one shape, and so is (); a list of anything else is a list of shapes.
        items = list(given)
        single = all(hasattr(item, "__index__") for item in items)
        if single and (items or isinstance(given, tuple)):
            items = [items]
        found = [tuple(operator.index(size) for size in shape) for shape in items]
    except TypeError as error:
        raise InvalidParameterError(f"the shapes of input {name!r} must be one shape or some, not {given!r}") from error
    if not found or any(size < 0 for shape in found for size in shape):
        raise InvalidParameterError(f"the shapes of input {name!r} must be one shape or some, not {given!r}")
    return found


def check_profile_shapes(shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> None:
    """Checks what can be said of shapes before the model is known (see `profile_input_fn`).

    Raises:
        InvalidParameterError: numbers of shapes that differ, or three shapes that are no minimum, optimum and maximum.
    """
    _check_counts(shapes)
    for name, given in shapes.items():
        if len(given) == _TRIPLE:
            _check_order(name, given)


def check_named_shapes(signature: Signature, shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> None:
    """Checks each shape against the input that it names.

    Raises:
        InvalidParameterError: an unknown input, a wrong rank, or a fixed dimension contradicted.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    for name, given in shapes.items():
        if name not in specs:
            raise InvalidParameterError(f"shapes name the input {name!r}, the signature has {', '.join(specs)}")
        for shape in given:
            _check_fits(specs[name], shape)


def shapes_by_signature(signatures: Mapping[str, Signature], shapes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Shares shapes out: every signature takes those of its own inputs.

    Args:
        signatures: by name.
        shapes: input name -> its shapes.

    Raises:
        InvalidParameterError: no mapping, or shapes for an input that no signature has.
    """
    given = check_shapes(shapes)
    known = {key: [spec.name for spec in signature.inputs] for key, signature in signatures.items()}
    for name in given:
        if not any(name in names for names in known.values()):
            listed = "; ".join(f"{key}: {', '.join(names)}" for key, names in known.items())
            raise InvalidParameterError(f"shapes name the input {name!r}, the signatures have {listed}")
    return {key: {name: given[name] for name in given if name in names} for key, names in known.items()}


def _check_counts(shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> None:
    counts = {len(given) for given in shapes.values()} - {1}
    if 0 in counts or len(counts) > 1:
        text = ", ".join(f"{name!r} has {len(given)}" for name, given in shapes.items())
        raise InvalidParameterError(f"inputs must have the same number of shapes (or one): {text}")


def _check_order(name: str, given: Sequence[tuple[int, ...]]) -> None:
    text = ", ".join("x".join(map(str, shape)) or "scalar" for shape in given)
    if len({len(shape) for shape in given}) > 1:
        raise InvalidParameterError(f"the shapes of input {name!r} differ in rank: {text}")
    for axis, sizes in enumerate(zip(*given, strict=True)):
        if list(sizes) != sorted(sizes):
            raise InvalidParameterError(
                f"three shapes of an input are its minimum, optimum and maximum, but dimension {axis} of input "
                f"{name!r} does not grow: {text}"
            )


def shaped_input_fn(
    signature: Signature,
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    samples: Sequence[Mapping[str, Any]] = (),
) -> MadeInputs:
    """Samples of the given shapes.

    1. The i-th sample takes the i-th shape of every named input; an input with one shape keeps it throughout.
    2. A symbolic dimension has one size in a sample: what a named input says holds for all that share the symbol.
    3. What stays unknown: a first dimension takes `DEFAULT_BATCHES` when no shapes are given at all; any other
       takes its size in `samples[0]`.

    Args:
        signature: the inputs.
        shapes: input name -> one shape, or some; may be empty.
        samples: known good inputs by name; their values are repeated or cut to the new shapes.

    Raises:
        InvalidParameterError: unknown input, wrong rank, a fixed dimension contradicted, numbers of shapes that
            differ, one symbol with two sizes, or a dimension that nothing fixes.
    """
    shapes = check_shapes(shapes)
    check_named_shapes(signature, shapes)
    _check_counts(shapes)
    base = dict(samples[0]) if samples else {}
    batches = (None,) * max(map(len, shapes.values())) if shapes else DEFAULT_BATCHES
    plans = [
        _resolve(signature, {n: g[i % len(g)] for n, g in shapes.items()}, base, batch)
        for i, batch in enumerate(batches)
    ]
    return MadeInputs(signature, tuple(plan for plan, _ in itertools.groupby(plans)), base)


def batch_input_fn(signature: Signature, max_batch_size: int, samples: Sequence[Mapping[str, Any]] = ()) -> MadeInputs:
    """Samples of batch 1 and `max_batch_size` for static engines; the batch is an unknown first dimension.

    Raises:
        InvalidParameterError: a dimension other than the batch is unknown; the message names it.
    """
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape or (None, None)):
            if axis > 0 and not isinstance(dim, int):
                raise InvalidParameterError(
                    f"is_dynamic_op=False needs fixed shapes, but dimension {axis} ({dim or 'unknown'}) of input "
                    f"{spec.name!r} is not: use is_dynamic_op=True and build()"
                )
    base = dict(samples[0]) if samples else {}
    plans = tuple(_resolve(signature, {}, base, batch) for batch in sorted({1, max_batch_size}))
    return MadeInputs(signature, plans, base)


def unknown_dimensions(signature: Signature) -> list[str]:
    """Words for every input dimension without a fixed size, in signature order."""
    return [
        f"dimension {axis} ({dim or 'unknown'}) of input {spec.name!r}"
        for spec in signature.inputs
        for axis, dim in enumerate(spec.shape if spec.shape is not None else (None,))
        if not isinstance(dim, int)
    ]


def _check_fits(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    wanted = spec.shape
    if wanted is None:
        return
    if len(wanted) != len(shape) or any(isinstance(w, int) and w != d for w, d in zip(wanted, shape, strict=True)):
        text = "x".join("?" if d is None else str(d) for d in wanted) or "scalar"
        raise InvalidParameterError(
            f"shape {'x'.join(map(str, shape)) or '[]'} does not fit input {spec.name!r} ({text})"
        )


def _resolve(
    signature: Signature, given: Mapping[str, tuple[int, ...]], base: Mapping[str, Any], batch: int | None
) -> dict[str, tuple[int, ...]]:
    """The shape of every input in one sample."""
    two = disagreement(signature, given)
    if two:
        raise InvalidParameterError(f"shapes of one sample must agree: {two}")
    sizes = {
        dim: size
        for spec in signature.inputs
        for dim, size in zip(spec.shape or (), given.get(spec.name, ()), strict=False)
        if isinstance(dim, str)
    }
    shapes = {}
    for spec in signature.inputs:
        known = tuple(np.shape(base[spec.name])) if spec.name in base else None
        shapes[spec.name] = given[spec.name] if spec.name in given else _shape(spec, sizes, known, batch)
    return shapes


def _shape(
    spec: TensorSpec, sizes: Mapping[str, int], known: tuple[int, ...] | None, batch: int | None
) -> tuple[int, ...]:
    if spec.shape is None and known is not None:
        return known
    shape = []
    for axis, dim in enumerate(spec.shape if spec.shape is not None else (None,)):
        if isinstance(dim, int):
            shape.append(dim)
        elif isinstance(dim, str) and dim in sizes:
            shape.append(sizes[dim])
        elif axis == 0 and batch is not None:
            shape.append(batch)
        elif known is not None and spec.shape is not None:
            shape.append(known[axis])
        else:
            what = f"dimension {axis} ({dim or 'unknown'}) of input {spec.name!r}"
            raise InvalidParameterError(f"{what} is not fixed: give its shapes, for example --shapes {spec.name}:...")
    return tuple(shape)


def _values(spec: TensorSpec, shape: tuple[int, ...], base: Mapping[str, Any]) -> np.ndarray:
    known = base.get(spec.name)
    if known is not None and np.size(known):
        return np.resize(np.asarray(known), shape)
    if spec.dtype == TensorProto.STRING:
        return np.full(shape, "sample", dtype=object)
    dtype = numpy_dtype(spec.dtype)
    random = np.random.default_rng(_SEED)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)
