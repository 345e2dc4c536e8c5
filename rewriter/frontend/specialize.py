"""Unknown dimensions get fixed sizes before anything is exported, so that shape arithmetic has nothing left to do.

A dimension is named as the signature shows it ("batch", "image_dim1", in ONNX files whatever their author wrote), or
as "input:axis" ("image:1"). One size holds for all dimensions that must be equal.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from passes.model import Model, stubs_as_inputs
from passes.segments import TensorSpec
from rewriter.errors import InputError, InvalidParameterError, SourceError
from rewriter.frontend.callee import Callee
from rewriter.frontend.naming import bodies
from rewriter.source import Signature, SourceModel

#: (input name, axis).
Dimension = tuple[str, int]
_AXIS = re.compile(r"\d+")
_NO_SAMPLES: tuple[Any, ...] = ()


def parse_specialize(text: str) -> dict[str, int]:
    """Reads "batch=8,image:1=224" as {"batch": 8, "image:1": 224}; the empty text as {}.

    Raises:
        InvalidParameterError: a part is not NAME=SIZE, or names what another part names with another size.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, size = (piece.strip() for piece in part.rpartition("="))
        if not (name and equals and _AXIS.fullmatch(size)):
            raise InvalidParameterError(f"specialize has {part!r}: write NAME=SIZE, as in batch=8 or image:1=224")
        if sizes.setdefault(name, int(size)) != int(size):
            raise InvalidParameterError(f"specialize gives {name!r} two sizes, {sizes[name]} and {size}")
    return check_specialize(sizes)


def check_specialize(sizes: Mapping[str, int] | str | None) -> dict[str, int]:
    """The sizes as a plain dictionary; {} for None.

    Raises:
        InvalidParameterError: no mapping of names to whole numbers of at least 1.
    """
    if sizes is None:
        return {}
    if isinstance(sizes, str):
        return parse_specialize(sizes)
    if not isinstance(sizes, Mapping):
        raise InvalidParameterError(f"specialize is {sizes!r}: give a mapping as {{'batch': 8, 'image:1': 224}}")
    for name, size in sizes.items():
        if not isinstance(name, str) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidParameterError(f"specialize has {name!r}: {size!r}; sizes are whole numbers of at least 1")
    return dict(sizes)


def resolve(sizes: Mapping[str, int], inputs: Sequence[TensorSpec], origin: str) -> dict[Dimension, int]:
    """The dimensions that `sizes` fixes.

    Args:
        sizes: dimension name or "input:axis" -> size.
        inputs: the inputs, with symbols in their shapes; dimensions of one symbol are equal.
        origin: one line for people.

    Raises:
        InvalidParameterError: an unknown name, a dimension that is fixed already at another size, or two sizes for
            dimensions that must be equal.
    """
    open_dimensions = {
        (spec.name, axis): size
        for spec in inputs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int)
    }
    found: dict[Dimension, tuple[str, int]] = {}
    for name, size in sizes.items():
        for dimension in _named(name, size, inputs, open_dimensions, origin):
            other = found.setdefault(dimension, (name, size))
            if other[1] != size:
                raise InvalidParameterError(
                    f"specialize sets {other[0]!r} to {other[1]} and {name!r} to {size}, which {origin} wants equal"
                )
    return {dimension: size for dimension, (_, size) in found.items()}


def _named(
    name: str,
    size: int,
    inputs: Sequence[TensorSpec],
    open_dimensions: Mapping[Dimension, str | None],
    origin: str,
) -> list[Dimension]:
    """The open dimensions that one name means."""
    by_symbol = [d for d, symbol in open_dimensions.items() if symbol == name]
    if by_symbol:
        return by_symbol
    owner, _, axis = name.rpartition(":")
    spec = next((s for s in inputs if s.name == owner), None)
    if spec is not None and spec.shape is None and _AXIS.fullmatch(axis):
        raise InvalidParameterError(
            f"specialize names {name!r}, but nothing is known of the shape of {owner!r} in {origin}: give the model a "
            "signature with a rank"
        )
    if spec is None or spec.shape is None or not _AXIS.fullmatch(axis) or int(axis) >= len(spec.shape):
        raise InvalidParameterError(f"specialize names {name!r}, which {origin} has not; {_listed(open_dimensions)}")
    dimension = (owner, int(axis))
    if dimension not in open_dimensions:
        fixed = spec.shape[int(axis)]
        if fixed != size:
            raise InvalidParameterError(f"specialize sets {name!r} to {size}, but {origin} has it fixed at {fixed}")
        return []
    symbol = open_dimensions[dimension]
    return [d for d, other in open_dimensions.items() if d == dimension or (symbol is not None and other == symbol)]


def _listed(open_dimensions: Mapping[Dimension, str | None]) -> str:
    """The dimensions that can be named."""
    by_symbol: dict[str, list[str]] = {}
    for (owner, axis), symbol in open_dimensions.items():
        by_symbol.setdefault(symbol or "", []).append(f"{owner}:{axis}")
    told = [f"{symbol} ({', '.join(where)})" if symbol else ", ".join(where) for symbol, where in by_symbol.items()]
    return f"its open dimensions are: {', '.join(told)}" if told else "it has no open dimensions"


def specialize_callee(callee: Callee, sizes: Mapping[str, int], samples: Sequence[Any] | None) -> Callee:
    """A TensorFlow source with fixed dimensions.

    Which dimensions must be equal is asked of TensorFlow only where an axis is open in several inputs; then the model
    runs on the first given sample, or on made-up ones. Where no made-up one fits, "input:axis" still works and means
    that one dimension.

    Args:
        callee: the source.
        sizes: dimension name or "input:axis" -> size; nothing happens for none.
        samples: the user's samples, which must have these sizes.

    Raises:
        InvalidParameterError: see `resolve`.
        InputError: a given sample has another size.
        SourceError: no made-up sample fits, and the names need one.
    """
    if not sizes:
        return callee
    symbols = _symbols(callee, sizes, samples)
    fixed = resolve(sizes, _specs(callee, symbols or {}), callee.origin)
    _check_samples(callee, fixed, samples or _NO_SAMPLES)
    arguments = [
        dataclasses.replace(a, shape=tuple(fixed.get((a.name, axis), d) for axis, d in enumerate(a.shape)))
        if a.shape is not None
        else a
        for a in callee.inputs
    ]
    left = None if symbols is None else {d: name for d, name in symbols.items() if d not in fixed}
    return dataclasses.replace(callee.fixed(arguments), symbols=left)


def _symbols(callee: Callee, sizes: Mapping[str, int], samples: Sequence[Any] | None) -> Mapping[Dimension, str] | None:
    """The symbols that the signature would show; None where they cannot be told."""
    from rewriter.frontend.noise import quiet
    from rewriter.frontend.samples import first_accepted, given_runs
    from rewriter.frontend.symbols import dimension_symbols, needs_run

    with quiet():
        if not needs_run(callee):
            return dimension_symbols(callee, None)
        try:
            run = given_runs(callee, samples[:1])[0] if samples else first_accepted(callee)[0]
        except SourceError:
            if not all(_is_explicit(name, callee) for name in sizes):
                raise
            return None
        return dimension_symbols(callee, run)


def _specs(callee: Callee, symbols: Mapping[Dimension, str]) -> tuple[TensorSpec, ...]:
    """The inputs, with symbols in their shapes."""
    return tuple(
        TensorSpec(
            a.name,
            onnx.TensorProto.UNDEFINED,
            None
            if a.shape is None
            else tuple(symbols.get((a.name, axis)) if d is None else d for axis, d in enumerate(a.shape)),
        )
        for a in callee.inputs
    )


def _is_explicit(name: str, callee: Callee) -> bool:
    """True for "input:axis"."""
    owner, _, axis = name.rpartition(":")
    return bool(_AXIS.fullmatch(axis)) and any(a.name == owner for a in callee.inputs)


def _check_samples(callee: Callee, fixed: Mapping[Dimension, int], samples: Sequence[Any]) -> None:
    from rewriter.frontend.samples import to_named

    for index, sample in enumerate(samples):
        arrays = to_named(callee, sample)
        for (owner, axis), size in fixed.items():
            if arrays[owner].shape[axis] != size:
                raise InputError(
                    f"specialize sets dimension {axis} of {owner!r} to {size}, but sample {index} has shape "
                    f"{list(arrays[owner].shape)}: leave one of them out, or make them agree"
                )


def specialize_onnx(source: SourceModel, sizes: Mapping[str, int]) -> SourceModel:
    """An ONNX source with fixed dimensions.

    Rules: 1. Every dimension of a symbol gets its size, in inputs, outputs and notes of inner shapes, bodies included.
    2. Output dimensions that ONNX's shape inference can now tell are fixed too. The weights are shared, not copied.

    Raises:
        InvalidParameterError: see `resolve`.
        SourceError: the graph cannot have these sizes (shape inference says why).
    """
    if not sizes:
        return source
    fixed = resolve(sizes, source.signature.inputs, source.origin)
    if not fixed:
        return source
    symbols = {
        symbol: fixed[spec.name, axis]
        for spec in source.signature.inputs
        for axis, symbol in enumerate(spec.shape or ())
        if isinstance(symbol, str) and (spec.name, axis) in fixed
    }
    proto = source.model.copy_proto()
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (value.name, axis) in fixed:
                dim.dim_value = fixed[value.name, axis]
    _substitute(proto.graph, symbols)
    model = Model(proto, source.model.weights)
    known = _inferred_outputs(source.model, model, source.origin)
    for value in proto.graph.output:
        for dim, size in zip(value.type.tensor_type.shape.dim, known.get(value.name, ()), strict=False):
            if size is not None and not dim.HasField("dim_value"):
                dim.dim_value = size
    from rewriter.frontend.onnx import signature_of

    return dataclasses.replace(source, model=model, signature=_like(signature_of(proto), source.signature))


def _like(found: Signature, before: Signature) -> Signature:
    return dataclasses.replace(found, name=before.name)


def _substitute(graph: onnx.GraphProto, symbols: Mapping[str, int]) -> None:
    """Puts sizes in the place of symbols, bodies included."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in symbols:
                    dim.dim_value = symbols[dim.dim_param]
    for node in graph.node:
        for body in bodies(node):
            _substitute(body, symbols)


def _inferred_outputs(before: Model, after: Model, origin: str) -> dict[str, tuple[int | None, ...]]:
    """Output name -> sizes that shape inference finds in the specialised graph.

    Raises:
        SourceError: it finds a contradiction that was not there before.
    """
    try:
        found = onnx.shape_inference.infer_shapes(stubs_as_inputs(after), strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        try:
            onnx.shape_inference.infer_shapes(stubs_as_inputs(before), strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError:
            return {}  # the graph was beyond ONNX's inference before, so this says nothing of the sizes
        from rewriter.frontend.samples import one_line

        raise SourceError(f"{origin} cannot have the sizes of specialize: {one_line(error)}") from error
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in found.graph.output
    }
