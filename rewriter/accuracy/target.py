"""`AccuracyTarget`: how far the lowered model may differ from the native one, and on which data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.comparing.comparison import difference
from rewriter.errors import InputError, InvalidParameterError
from rewriter.params import check_input_fn
from rewriter.runtime.inputs import iterate_samples

#: Public output name -> array: what one call gives.
Outputs = Mapping[str, np.ndarray]
#: Scores the outputs of all inputs, in the order of the data; higher is better.
Metric = Callable[[list[Outputs]], float]

_GOALS = ("max_rel_diff", "max_drop", "minimum")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict on one lowered model.

    Attributes:
        passed: the target is met.
        value: what was measured: a relative difference, a drop of the metric, or the metric itself. Infinite where
            outputs have NaN or infinities in other places than the native ones, or another shape; -inf for a metric
            that is not a number.
        limit: what it is held against.
        excess: how far beyond the limit, whatever the goal: larger is worse, up to 0 passes.
        text: the finding in words, without the verdict.
    """

    passed: bool
    value: float
    limit: float
    excess: float
    text: str


@dataclasses.dataclass(frozen=True)
class AccuracyTarget:
    """What must not get lost in lower precision; give exactly one of `max_rel_diff`, `max_drop` and `minimum`.

    Args:
        data: inputs as `build(input_fn)` takes them: a list of arrays, tuples in signature order or dicts by name,
            or a function that yields such. Labels belong into the metric.
        max_rel_diff: largest max|lowered - native| / max|native| of any output, over all data. Whole numbers count as
            numbers: for a model that returns the index of a class, a metric says more.
        metric: takes the outputs of all inputs, a list of dicts (public output name -> array) in the order of the
            data, and returns a number; higher is better. For example
            `lambda outputs: np.mean([o["logits"].argmax(-1) == y for o, y in zip(outputs, labels)])`.
        max_drop: by how much the metric may fall below that of the native model.
        minimum: what the metric must reach.
        runs: runs of the emulated model over all data that the search may take; where it would take more, more nodes
            than necessary are kept.

    Raises:
        InvalidParameterError: none or several goals; a metric without its goal or the reverse; a limit that is no
            number or negative; data of a wrong kind.
    """

    data: Iterable[Any] | Callable[[], Iterable[Any]] = dataclasses.field(repr=False)
    max_rel_diff: float | None = dataclasses.field(default=None, kw_only=True)
    metric: Metric | None = dataclasses.field(default=None, kw_only=True, repr=False)
    max_drop: float | None = dataclasses.field(default=None, kw_only=True)
    minimum: float | None = dataclasses.field(default=None, kw_only=True)
    runs: int = dataclasses.field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        given = [name for name in _GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidParameterError(
                f"AccuracyTarget needs exactly one of {', '.join(_GOALS)}, not {' and '.join(given) or 'none'}"
            )
        if isinstance(self.runs, bool) or not isinstance(self.runs, int) or self.runs < 1:
            raise InvalidParameterError(f"AccuracyTarget: runs must be an integer of at least 1, not {self.runs!r}")
        goal = given[0]
        limit = _number(getattr(self, goal))
        if limit is None or (limit < 0 and goal != "minimum"):
            kind = "a finite number" if goal == "minimum" else "a finite number of at least 0"
            raise InvalidParameterError(f"AccuracyTarget: {goal} must be {kind}, not {getattr(self, goal)!r}")
        if (self.metric is not None) != (goal != "max_rel_diff"):
            words = "does not go with max_rel_diff" if self.metric is not None else f"is needed for {goal}"
            raise InvalidParameterError(f"AccuracyTarget: metric {words}")
        if self.metric is not None and not callable(self.metric):
            raise InvalidParameterError(f"AccuracyTarget: metric must be a function, not {self.metric!r}")
        if isinstance(self.data, (np.ndarray, np.generic)):
            raise InvalidParameterError("AccuracyTarget: data must be a list of inputs: put the array into a list")
        if callable(self.data):
            check_input_fn("AccuracyTarget: data", self.data)
        else:
            try:
                iterate_samples(self.data)
            except InputError as error:
                kind = type(self.data).__name__
                raise InvalidParameterError(
                    f"AccuracyTarget: data must be a list of inputs or a function that yields them, not a {kind}"
                ) from error

    def samples(self) -> list[Any]:
        """The inputs, all of them; an iterator that can be read only once is used up.

        Raises:
            InvalidParameterError: there are none, or the function returns nothing to iterate over.
        """
        try:
            samples = list(iterate_samples(self.data() if callable(self.data) else self.data))
        except InputError as error:
            raise InvalidParameterError(f"AccuracyTarget: data: {error}") from error
        if not samples:
            raise InvalidParameterError("AccuracyTarget: data holds no inputs (or was read already): give at least one")
        return samples

    @property
    def text(self) -> str:
        """The goal in words."""
        if self.max_rel_diff is not None:
            return f"outputs within a relative difference of {self.max_rel_diff:g}"
        if self.max_drop is not None:
            return f"the metric falls by at most {self.max_drop:g}"
        return f"the metric is at least {self.minimum:g}"

    def judge(self, native: Sequence[Outputs], lowered: Sequence[Outputs]) -> Judgement:
        """Holds the outputs of a lowered model against the target.

        Args:
            native: outputs of the native model, one dict an input.
            lowered: those of the lowered model, in the same order.

        Raises:
            InvalidParameterError: the metric fails, or gives no number for the native model.
        """
        if self.max_rel_diff is not None:
            return _judge_difference(native, lowered, float(self.max_rel_diff))
        score = self._score(lowered)
        if self.minimum is not None:
            value = -math.inf if math.isnan(score) else score
            limit = float(self.minimum)
            text = f"the metric is {value:.6g} (at least {limit:g} is wanted)"
            return Judgement(value >= limit, value, limit, limit - value, text)
        reference = self._reference(native)
        limit = float(self.max_drop or 0.0)
        drop = math.inf if math.isnan(score) else reference - score
        text = f"the metric goes from {reference:.6g} to {score:.6g} (a drop of {limit:g} is allowed)"
        return Judgement(drop <= limit, drop, limit, drop - limit, text)

    def check_native(self, native: Sequence[Outputs]) -> None:
        """Refuses a target that the native model itself does not meet.

        Raises:
            InvalidParameterError: the metric of the native model is below `minimum`, is no number, or fails.
        """
        if self.metric is None:
            return
        reference = self._reference(native)
        if self.minimum is not None and reference < self.minimum:
            raise InvalidParameterError(
                f"AccuracyTarget: the native model itself reaches {reference:.6g}, less than minimum={self.minimum:g}"
            )

    def _reference(self, native: Sequence[Outputs]) -> float:
        reference = self._score(native)
        if not math.isfinite(reference):
            raise InvalidParameterError(f"AccuracyTarget: the metric is {reference} for the native model")
        return reference

    def _score(self, outputs: Sequence[Outputs]) -> float:
        assert self.metric is not None  # noqa: S101 - narrows the type
        try:
            return float(self.metric(list(outputs)))
        except Exception as error:  # the user's own code may raise anything
            raise InvalidParameterError(
                f"AccuracyTarget: the metric failed on the outputs: {type(error).__name__}: {error}"
            ) from error


def _judge_difference(native: Sequence[Outputs], lowered: Sequence[Outputs], limit: float) -> Judgement:
    """The output that differs most decides."""
    if len(native) != len(lowered) or not native:
        raise ValueError(f"{len(lowered)} lowered outputs cannot be held against {len(native)} native ones")
    found = [difference(name, [o[name] for o in native], [o[name] for o in lowered]) for name in native[0]]
    worst = max(found, key=lambda d: d.max_rel, default=None)
    if worst is None:
        return Judgement(passed=True, value=0.0, limit=limit, excess=-limit, text="there are no outputs")
    words = worst.fault or f"differs by {worst.max_rel:.2g}, relative to its largest value"
    text = f"output {worst.output!r} {words} (limit {limit:g})"
    return Judgement(worst.max_rel <= limit, worst.max_rel, limit, worst.max_rel - limit, text)


def _number(value: object) -> float | None:
    """The value as a float, None for what is no finite number."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
