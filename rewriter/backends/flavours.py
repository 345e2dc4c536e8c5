"""What differs between the two TensorRT packages, as plain values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from rewriter.errors import InvalidParameterError

_TARGET = re.compile(r"(?:SM[_ ]?)?(\d+)[._]?(\d)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One TensorRT package.

    Attributes:
        name: how users call it.
        module: the Python module to import.
        extra: the extra of this distribution that installs it.
        lowest_default_target: architecture number from which on targets are built for by default, for example 80;
            None when the package builds only for the GPU of the machine it runs on.
    """

    name: str
    module: str
    extra: str
    lowest_default_target: int | None = None

    @property
    def ahead_of_time(self) -> bool:
        """True when engines can be built for GPUs that are not in this machine."""
        return self.lowest_default_target is not None

    def default_targets(self, known: Iterable[str]) -> tuple[str, ...]:
        """Of the targets that the installed version knows, those to build for when none are asked for."""
        lowest = self.lowest_default_target
        return () if lowest is None else tuple(t for t in known if int(t[2:]) >= lowest)

    def check_targets(self, targets: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
        """The targets in their one spelling ("SM89"), without repeats, in the order given.

        Raises:
            InvalidParameterError: not a compute capability, or none that the installed version knows.
        """
        wanted = tuple(dict.fromkeys(normalize_target(t) for t in targets))
        known = tuple(known)
        if wanted and not self.ahead_of_time:
            raise InvalidParameterError(
                f"targets={list(wanted)}: {self.name} builds only for the GPU of this machine; leave targets empty, "
                "or take backend='tensorrt_rtx'"
            )
        unknown = [t for t in wanted if t not in known]
        if unknown:
            raise InvalidParameterError(
                f"targets: the installed {self.name} cannot build for {', '.join(unknown)}; it knows {', '.join(known)}"
            )
        return wanted


def normalize_target(target: str) -> str:
    """The one spelling of a compute capability: "sm89", "SM_89" and "8.9" are "SM89".

    Raises:
        InvalidParameterError: not a compute capability.
    """
    match = _TARGET.fullmatch(target.strip()) if isinstance(target, str) else None
    if match is None:
        raise InvalidParameterError(f"target {target!r} is not a compute capability; write it as 'SM89' or '8.9'")
    return f"SM{match[1]}{match[2]}"
