"""From sample inputs to the optimization profiles of every segment."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from passes.model import Model
from rewriter.backends.base import Profile
from rewriter.building.builder import Profiles
from rewriter.building.planning import Plan
from rewriter.errors import InvalidParameterError
from rewriter.runtime.inputs import iterate_samples
from rewriter.shapes.profiles import harvest, make_profiles, sample_feeds, static_profiles
from rewriter.shapes.sampling import MadeInputs
from rewriter.source import Signature


@dataclasses.dataclass(frozen=True)
class Observer:
    """Gives the segments of a plan their profiles.

    A segment with fixed shapes needs no observation. For the others the shapes at their inputs are kept, for which as
    much of the native model runs on every sample as leads there (see `rewriter.shapes.harvest`).

    Attributes:
        model: the cleaned model that plans cut.
        signature: what samples are bound to.
        input_fns: each takes nothing and yields inputs (array, tuple or dict); called again for every plan.
        strategy: one of `supported_profile_strategies()`.
    """

    model: Model
    signature: Signature
    input_fns: tuple[Callable[[], Iterable[Any]], ...]
    strategy: str

    def __call__(self, plan: Plan) -> Profiles:
        """The profiles of every segment, or the reason why it can have none.

        Raises:
            InputError: a sample does not fit the signature.
            InvalidParameterError: the functions yield nothing.
        """
        fixed = {s.segment.name: static_profiles(s) for s in plan.segments}
        optima: set[int] = set()
        feeds = self._feeds(optima)
        if None not in fixed.values():
            for _ in feeds:  # bad samples are told whether or not they are needed
                pass
            return {name: profiles for name, profiles in fixed.items() if profiles is not None}
        observations = harvest(self.model, plan.segmentation, feeds, optima)
        found: dict[str, tuple[Profile, ...] | str] = {}
        for segment in plan.segments:
            name = segment.segment.name
            found[name] = fixed[name] or make_profiles(segment, observations, self.strategy)
        return found

    def _feeds(self, optima: set[int]) -> Iterator[dict[str, np.ndarray]]:
        """The feeds of all samples; while they are given, `optima` gets the numbers of those to tune engines for."""
        feeds = sample_feeds(self.signature, self._samples(optima))
        first = next(feeds, None)
        if first is None:
            raise InvalidParameterError("input_fn yielded no inputs: build() needs at least one")
        return itertools.chain([first], feeds)

    def _samples(self, optima: set[int]) -> Iterator[Any]:
        number = 0
        for function in self.input_fns:
            wanted = function.optimum if isinstance(function, MadeInputs) else None
            for own, sample in enumerate(iterate_samples(function())):
                if own == wanted:
                    optima.add(number)
                yield sample
                number += 1
