"""native -> tensorrt: the engine, and by engines of its first nodes the node, that leaves the tolerance."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from passes.extract import Extractor
from passes.segments import SegmentModel
from rewriter.comparing.bisection.emulated import near_when_lowered, own_when_lowered
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.notes import place_notes
from rewriter.comparing.bisection.options import option_line, patterns
from rewriter.comparing.bisection.prefixes import shortest_failing
from rewriter.comparing.bisection.report import Bisection, Contribution
from rewriter.comparing.bisection.sides import ModelSide, Run, Side, made
from rewriter.comparing.bisection.subject import Subject
from rewriter.comparing.bisection.walk import Place, ancestors
from rewriter.errors import ConversionError
from rewriter.shapes.harvest import MAX_VALUES, InputSet, Observed

logger = logging.getLogger(__name__)

_PAIR = ("native", "tensorrt")
_SHOWN = 5


class EngineRunner(Protocol):
    """What runs engines. `GpuRunner` is one; tests have another."""

    @property
    def values(self) -> Side:
        """The artifact with its engines; gives the values of the spliced main graph."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What is to be known of the engines that ran so far; one line each."""
        ...

    def engine(self, op: str) -> Run:
        """The artifact's own engine of an engine node, by itself: takes its data inputs, gives its outputs.

        Raises:
            ConversionError: there is none that can be used.
        """
        ...

    def build(self, part: SegmentModel, sets: Sequence[InputSet]) -> Run:
        """An engine of some nodes, in the arithmetic of the artifact, for the inputs in `sets`.

        Raises:
            ConversionError: it cannot be built or run.
        """
        ...

    def split(self, op: str, parts: Sequence[tuple[SegmentModel, Sequence[InputSet]]]) -> Side:
        """The artifact with engines of `parts` in the place of the engine `op`; what lies in none of them is native.

        Raises:
            ConversionError: a part cannot be built.
        """
        ...


def bisect_engines(subject: Subject, runner: EngineRunner) -> Bisection:
    """Finds the first engine whose result leaves the tolerance, then the node by engines of its first nodes.

    Raises:
        ConversionError: the model or its engines cannot be run.
    """
    found = _bisect(subject, runner)
    return dataclasses.replace(found, notes=(*found.notes, *runner.notes))


def _bisect(subject: Subject, runner: EngineRunner) -> Bisection:
    native = ModelSide(subject.native, "native")
    failed = subject.beyond(subject.outputs(native, runner.values))
    limit = subject.limit(failed)
    if not failed:
        return Bisection(*_PAIR, limit)
    place, gaps = subject.find(native, runner.values, made(subject.artifact.model), failed)
    if place is None:
        return Bisection(*_PAIR, limit, failed, notes=("no value at a boundary of an engine is beyond the tolerance",))
    search = _Search(subject, native, runner)
    name = subject.index.names[place.node]
    segment = subject.homes.get(name) if name not in subject.holders else None
    found = Bisection(
        *_PAIR,
        limit,
        failed,
        segment=segment,
        node="" if segment else name,
        op_type="" if segment else subject.index.nodes[place.node].op_type,
        value=place.value,
        difference=gaps[place.value].relative,
        before=place.before,
    )
    own = search.own(segment) if segment else None
    if segment and own is not None and own > limit:
        return search.inside(found, segment, [place.value], own, limit)
    return search.accumulated(found, place, own)


class _Search:
    """What is asked of engines, one after another.

    Args:
        subject: what is bisected.
        native: computes the values that engines are fed with and held against.
        runner: runs and builds engines.
    """

    def __init__(self, subject: Subject, native: ModelSide, runner: EngineRunner) -> None:
        self._subject, self._native, self._runner = subject, native, runner
        self._extractor = Extractor(subject.native)
        self._problems: list[str] = []
        self._notes: list[str] = []

    def own(self, op: str) -> float | None:
        """How far the results of an engine are off when it is fed with native values; None where it does not run."""
        segment = self._extract(self._subject.segments[op], op)
        try:
            return _worst(self._gaps(segment, self._runner.engine(op))).relative
        except ConversionError as error:
            self._notes.append(f"{op} cannot be run by itself: {error}")
            return None

    def inside(self, found: Bisection, op: str, values: Sequence[str], own: float, limit: float) -> Bisection:
        """With the node of engine `op`, some of whose results (`values`) differ by themselves."""
        nodes = self._nodes(op, values)
        measured: dict[int, dict[str, Gap]] = {}

        def fails(number: int) -> bool | None:
            answer = self._prefix(nodes[:number])
            if answer is not None:
                measured[number] = answer
                return _worst(answer).relative > limit
            return None

        step = shortest_failing(len(nodes), fails)
        node = self._subject.index.positions([nodes[step.bad - 1]])[0]
        gaps = measured.get(step.bad, {})
        worst = max(gaps, key=lambda name: gaps[name].relative, default=found.value)
        before = _worst(measured.get(step.good, {}))
        notes = [
            f"the node was found by building engines of the first nodes of {op} ({step.tests} build(s)); TensorRT "
            "fuses such an engine otherwise than the whole one"
        ]
        if step.bad - step.good > 1:
            others = nodes[step.good : step.bad - 1]
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            notes.append(f"it may also be one of {', '.join(map(repr, others[:_SHOWN]))}{more}: {self._problems[-1]}")
        found = dataclasses.replace(
            found,
            node=self._subject.index.names[node],
            op_type=self._subject.index.nodes[node].op_type,
            value=worst,
            difference=gaps[worst].relative if gaps else found.difference,
            before=before.relative,
            own=own,
            notes=(*found.notes, *notes),
        )
        return self._advised(found, op, node)

    def accumulated(self, found: Bisection, place: Place, own: float | None) -> Bisection:
        """With the engine that brings most of what adds up."""
        subject = self._subject
        above = ancestors(subject.units, subject.tensors(found.outputs))
        ops = [op for op in (subject.units.nodes[number].op_type for number in sorted(above)) if op in subject.segments]
        measured = [(self.own(op), op) for op in ops]
        ranked = sorted(((own, op) for own, op in measured if own), key=lambda entry: (-entry[0], entry[1]))
        notes = () if found.segment else place_notes(subject, place, accumulated=True)
        found = dataclasses.replace(found, own=own, notes=(*found.notes, *notes, *dict.fromkeys(self._notes)))
        if not ranked:
            return dataclasses.replace(found, notes=(*found.notes, "no engine is off on its own"))
        worst, op = ranked[0]
        # Half of what the engine is off: the node at which most of it has come about.
        outputs = self._extract(subject.segments[op], op).segment.outputs
        half = self.inside(dataclasses.replace(found, value=outputs[-1]), op, outputs, worst, worst / 2)
        return dataclasses.replace(
            found,
            contribution=Contribution(half.node, half.op_type, op, worst),
            option=half.option,
            excluded=half.excluded,
            verified=half.verified,
            passed=half.passed,
            notes=half.notes,
        )

    def _nodes(self, op: str, values: Sequence[str]) -> list[str]:
        """The nodes of an engine that these values are computed with, in topological order."""
        index = self._subject.index
        above = ancestors(index, values)
        return [index.names[number] for number in index.positions(self._subject.segments[op]) if number in above]

    def _extract(self, names: Sequence[str], op: str) -> SegmentModel:
        return self._extractor.extract_nodes((), names, op, hashed=False)

    def _prefix(self, names: Sequence[str]) -> dict[str, Gap] | None:
        """The gaps of an engine of these nodes; None where it cannot be built."""
        part = self._extract(names, "TRTEngineOp_prefix")
        try:
            return self._gaps(part, self._runner.build(part, self._sets(part)))
        except ConversionError as error:
            logger.info("an engine of the first %d nodes cannot be built: %s", len(names), error)
            self._problems.append(f"no engine of the first {len(names)} nodes could be built ({error})")
            return None

    def _gaps(self, part: SegmentModel, run: Run) -> dict[str, Gap]:
        """The gaps of the results of some nodes that are fed with native values."""
        names = [*part.segment.inputs, *part.segment.outputs]
        native = self._values(names)
        found = {name: Gap() for name in part.segment.outputs}
        for feeds in self._subject.feeds:
            values = native(feeds)
            results = run({name: values[name] for name in part.segment.inputs})
            for name in found:
                found[name] |= gap(values[name], results[name])
        return found

    def _values(self, names: Sequence[str]) -> Run:
        """Native values, inputs of the model among them."""
        computed = [name for name in dict.fromkeys(names) if name in self._subject.index.producer]
        run = self._native.open(computed) if computed else None

        def values(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            return {**feeds, **(run(feeds) if run else {})}

        return values

    def _sets(self, part: SegmentModel) -> list[InputSet]:
        """What some nodes read, per sample, each once."""
        native = self._values(part.segment.inputs)
        found: list[InputSet] = []
        for feeds in self._subject.feeds:
            values = native(feeds)
            seen = {name: _observed(values[name]) for name in part.segment.inputs}
            if seen not in found:
                found.append(seen)
        return found

    def _advised(self, found: Bisection, op: str, node: int) -> Bisection:
        """With the option, tried by engines of what comes before the node and of what comes after it."""
        names = self._subject.excluded(node)
        option = option_line("--node-denylist", patterns(names))
        notes = (*found.notes, *_emulation_notes(self._subject, node, found.tolerance))
        found = dataclasses.replace(found, option=option, excluded=names, notes=notes)
        every = self._subject.index.positions(self._subject.segments[op])
        place = every.index(node)
        pieces = [[self._subject.index.names[n] for n in piece] for piece in (every[:place], every[place + 1 :])]
        parts = [self._extract(piece, f"{op}_{i}") for i, piece in enumerate(pieces) if piece]
        try:
            side = self._runner.split(op, [(part, self._sets(part)) for part in parts])
            outputs = self._subject.outputs(self._native, side)
        except ConversionError as error:
            note = f"what the option brings was not measured: {error}"
            return dataclasses.replace(found, notes=(*found.notes, note))
        worst = max((outputs[name].relative for name in self._subject.limits), default=0.0)
        return dataclasses.replace(found, verified=worst, passed=not self._subject.beyond(outputs))


def _emulation_notes(subject: Subject, node: int, limit: float) -> tuple[str, ...]:
    """Whether emulation shows what the engine does, there or nearby: then it is enough that nodes keep their precision.

    The same error can be seen some nodes away, for TensorRT's kernels take several nodes.
    """
    try:
        lowered = own_when_lowered(subject, node)
        near = near_when_lowered(subject, node) if lowered <= limit else None
    except ConversionError as error:
        return (f"whether it is the precision is not known: {error}",)
    if lowered > limit:
        keep = option_line("--keep-nodes", patterns(subject.excluded(node)))
        return (f"emulation shows it, too ({lowered:.1e}), so it is the precision: {keep} may do",)
    if near is None:
        return ()
    found, steps = near
    where = f"{abs(steps)} node(s) {'before' if steps > 0 else 'behind'} it, at {found.node!r} ({found.own:.1e})"
    left = "" if found.verified is None else f" (in emulation it leaves {found.verified:.1e})"
    may = f": {found.option} may do{left}" if found.option else ""
    return (f"emulation shows such an error {where}, so it is likely the precision{may}",)


def _worst(gaps: Mapping[str, Gap]) -> Gap:
    return max(gaps.values(), key=lambda item: item.relative, default=Gap())


def _observed(array: np.ndarray) -> Observed:
    small = array.dtype in (np.int32, np.int64) and array.ndim <= 1 and array.size <= MAX_VALUES
    return Observed(tuple(array.shape), tuple(int(v) for v in array.reshape(-1)) if small else None)
