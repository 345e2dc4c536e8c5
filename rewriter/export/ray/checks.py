"""What users say, checked before processes are started that would all fail of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.artifact.paths import checked_path
from rewriter.errors import InvalidParameterError


def shared_path(artifact: object) -> Path:
    """The artifact's absolute path as it is: a link may lead elsewhere on another node, so none is followed.

    Raises:
        ArtifactError: no path, or one that the system refuses.
    """
    return checked_path(artifact).absolute()


def check_amount(name: str, value: object, *, above: bool = False) -> None:
    """Refuses what is no finite number of at least 0.

    Args:
        name: the argument, for the message.
        value: seconds, or a quantity of a resource.
        above: True refuses 0, too.

    Raises:
        InvalidParameterError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value < math.inf) or (above and not value):  # type: ignore[operator]
        raise InvalidParameterError(f"{name} must be a number {'above' if above else 'of at least'} 0, not {value!r}")


def check_count(name: str, value: object) -> None:
    """Refuses what is no whole number of at least 1.

    Raises:
        InvalidParameterError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidParameterError(f"{name} must be a whole number of at least 1, not {value!r}")


def checked_range(name: str, value: object) -> tuple[int, int]:
    """(least, most), both at least 1; a number is both.

    Raises:
        InvalidParameterError: it is neither.
    """
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    whole = len(pair) == 2 and all(isinstance(each, int) and not isinstance(each, bool) for each in pair)
    if not whole or not 1 <= pair[0] <= pair[1]:
        raise InvalidParameterError(f"{name} must be at least 1, or (least, most), not {value!r}")
    return pair[0], pair[1]


def checked_mapping(name: str, value: object, known: Any = None) -> dict[str, Any]:
    """A user's mapping as a dict of its own; {} for None.

    Args:
        name: the argument, for the message.
        value: what the user gave.
        known: a function whose arguments the keys are; None allows any.

    Raises:
        InvalidParameterError: no mapping, or one with a key that is no argument.
    """
    if value is not None and not isinstance(value, Mapping):
        raise InvalidParameterError(f"{name} must be a mapping, not {value!r}")
    given = dict(value or {})
    names = given.keys() if known is None else [n for n in inspect.signature(known).parameters if n[0] != "_"]
    unknown = [key for key in given if key not in names]
    if unknown:
        raise InvalidParameterError(f"{name} has an unknown {unknown[0]!r}; there are: {', '.join(sorted(names))}")
    return given
