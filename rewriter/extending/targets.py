"""Which GPU architectures one engine is built for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rewriter import params as parameters
from rewriter.backends import tensorrt, tensorrt_rtx
from rewriter.backends.base import Backend
from rewriter.backends.flavours import normalize_target
from rewriter.precision.options import target_problem
from rewriter.runtime.runtime_builder import usable_targets

__all__ = ["Grouped", "asked_targets", "check_known", "group"]


@dataclasses.dataclass(frozen=True)
class Grouped:
    """What the engines of one TensorRT package are built for.

    Attributes:
        groups: the targets of each engine of a segment; (()) is one engine for the GPU of this machine.
        refused: target -> why no engine can be built for it.
    """

    groups: tuple[tuple[str, ...], ...]
    refused: dict[str, str] = dataclasses.field(default_factory=dict)


def asked_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """The targets in their one spelling, without repeats.

    Raises:
        InvalidParameterError: no list of compute capabilities.
    """
    names = parameters.check_names("targets", targets)
    return tuple(dict.fromkeys(normalize_target(name) for name in names))


def check_known(backend: Backend, targets: tuple[str, ...]) -> None:
    """Refuses targets that cannot be built for.

    Raises:
        InvalidParameterError: the package builds for this machine's GPU only, or the version that is installed does
            not know a target; the message lists those that it knows.
    """
    flavour = tensorrt.FLAVOUR if backend.flavour == tensorrt.FLAVOUR.name else tensorrt_rtx.FLAVOUR
    flavour.check_targets(targets, getattr(backend, "known_targets", targets))


def group(backend: Backend, mode: str, asked: Sequence[str], own: Iterable[str], *, together: bool) -> Grouped:
    """Shares targets out among engines.

    Rules:
        1. Targets that lack the arithmetic of the precision mode are refused; the others go on.
        2. Targets that were asked for have an engine each, or with `together` one for all of them.
        3. Where none were asked for there is one engine for those of the artifact that this TensorRT knows, as the
           conversion makes it; where it knows none of them, for all that it builds for by default.

    Args:
        backend: builds the engines.
        mode: precision mode of their recipe.
        asked: what `check_known` has checked; () for none.
        own: the artifact's targets.
        together: whether one engine serves all targets.
    """
    wanted = tuple(asked) or usable_targets(own, backend) or backend.default_targets
    refused = {target: problem for target in wanted if (problem := target_problem(mode, target))}
    fitting = tuple(target for target in wanted if target not in refused)
    if not asked:
        refused = {} if fitting else refused  # nobody asked for those that are left out
    if wanted and not fitting:
        return Grouped((), refused)
    if asked and not together:
        return Grouped(tuple((target,) for target in fitting), refused)
    return Grouped((fitting,), refused)
