"""source -> native: where the export, or a pass over an ONNX source, changes what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rewriter.comparing.bisection.cleaning import blame_pass
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.notes import place_notes
from rewriter.comparing.bisection.own import own_gaps
from rewriter.comparing.bisection.report import Bisection
from rewriter.comparing.bisection.sides import ModelSide, made
from rewriter.comparing.bisection.subject import Subject
from rewriter.errors import ConversionError
from rewriter.source import SourceModel

if TYPE_CHECKING:
    from rewriter.frontend.reference import Reference

#: What the source is: opened, or the path of the model.
Source: TypeAlias = "Reference | str | Path"

_PAIR = ("source", "native")


def bisect_source(subject: Subject, source: Reference | str | Path) -> Bisection:
    """Finds the first value that the source and the native model share by name and that differs.

    TensorFlow's tensors keep their names in ONNX; a pass keeps the names of the values that it does not replace. What
    lies between two shared values cannot be told apart.

    Raises:
        SourceError: the source cannot be read.
        ConversionError: one of the two cannot be run.
        MissingDependencyError: TensorFlow or ONNX Runtime is needed and not installed.
    """
    from rewriter.frontend.reference import open_reference

    opened = open_reference(source) if isinstance(source, (str, Path)) else source
    native = ModelSide(subject.native, "native")
    outputs = _outputs(subject, opened, native)
    failed = subject.beyond(outputs)
    if not failed:
        return Bisection(*_PAIR, subject.limit(()))
    if opened.callee is not None:
        from rewriter.comparing.bisection.exported import bisect_export

        return bisect_export(subject, opened.callee, native, failed)
    if opened.source is None:
        raise ConversionError(f"{opened.origin} can be run, but not looked into: give the path of the model")
    return _bisect_onnx(subject, opened.source, native, failed)


def _outputs(subject: Subject, source: Reference, native: ModelSide) -> dict[str, Gap]:
    """Public output name -> its gap; the source runs as its user runs it."""
    specs = subject.signature.outputs
    run = native.open([spec.tensor for spec in specs])
    found: dict[str, Gap] = {spec.name: Gap() for spec in specs}
    for sample, feeds in zip(subject.samples, subject.feeds, strict=True):
        theirs, ours = source.run(sample), run(feeds)
        missing = sorted(set(found) - set(theirs))
        if missing:
            raise ConversionError(f"{source.origin} has no output {missing[0]!r}: it was converted from another model")
        for spec in specs:
            found[spec.name] |= gap(theirs[spec.name], ours[spec.tensor])
    return found


def _bisect_onnx(subject: Subject, source: SourceModel, native: ModelSide, failed: Mapping[str, float]) -> Bisection:
    """An ONNX source: the first pass that changes what it computes, and shared names.

    Where no pass does, the artifact was not made from this source, and no node of it is to blame.
    """
    reference = _Renamed(ModelSide(source.model, "source"), _tensors(subject, source))
    shared = frozenset(subject.values).intersection(made(source.model) | reference.names.keys())
    limit = subject.limit(failed)
    blamed = blame_pass(subject, source, failed)
    if blamed.cause:
        return Bisection(*_PAIR, limit, failed, notes=blamed.notes, cause=blamed.cause)
    place, gaps = subject.find(reference, native, shared, failed)
    if place is None:
        return Bisection(*_PAIR, limit, failed, option=blamed.option, notes=blamed.notes)
    index = subject.index
    name = index.names[place.node]
    inside = [v for v in index.makes[place.node] if v in shared]
    own = own_gaps(
        reference, native.model, shared, inside, subject.feeds, subject.sizes, honest=False, most=subject.most
    )
    mine = max((item.relative for item in own.values()), default=None)
    accumulated = mine is not None and mine <= limit
    return Bisection(
        *_PAIR,
        limit,
        failed,
        segment=subject.homes.get(name),
        node=name,
        op_type=index.nodes[place.node].op_type,
        value=place.value,
        difference=gaps[place.value].relative,
        before=place.before,
        own=mine,
        option=blamed.option,
        excluded=blamed.excluded,
        verified=blamed.verified,
        passed=blamed.passed,
        notes=(*place_notes(subject, place, accumulated=accumulated, engines=False), *blamed.notes),
    )


def _tensors(subject: Subject, source: SourceModel) -> dict[str, str]:
    """Name in the native model -> name in the source, for the signature's tensors that passes renamed."""
    theirs = {spec.name: spec.tensor for spec in (*source.signature.inputs, *source.signature.outputs)}
    ours = (*subject.signature.inputs, *subject.signature.outputs)
    return {spec.tensor: theirs[spec.name] for spec in ours if theirs.get(spec.name, spec.tensor) != spec.tensor}


class _Renamed:
    """A side whose values have other names in its own model.

    Args:
        side: computes the model.
        names: name asked for -> name there.
    """

    def __init__(self, side: ModelSide, names: Mapping[str, str]) -> None:
        self._side, self.names = side, dict(names)

    def open(self, names: Any) -> Any:
        """See `Side`."""
        run = self._side.open([self.names.get(name, name) for name in names])

        def renamed(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            found = run({self.names.get(name, name): value for name, value in feeds.items()})
            return {name: found[self.names.get(name, name)] for name in names}

        return renamed
