"""The smallest beginning of a list that fails, in about log2(n) tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

#: Lengths near the middle that are tried before giving up, where tests give no answer.
_NEAR = 5


@dataclasses.dataclass(frozen=True)
class Step:
    """Between which lengths it goes wrong.

    Attributes:
        good: a length that passes (0 needs no test).
        bad: a length that fails; the next one where every test near the middle gave an answer.
        tests: how many tests ran.
    """

    good: int
    bad: int
    tests: int


def shortest_failing(length: int, fails: Callable[[int], bool | None]) -> Step:
    """Halves the interval from 0, which passes, to `length`, which fails.

    Where longer beginnings can pass again, it finds one of the places where passing turns into failing.

    Args:
        length: at least 1.
        fails: tests a beginning of 1 to `length` - 1; None where that cannot be told.
    """
    good, bad, tests = 0, length, 0
    while bad - good > 1:
        middle = (good + bad) // 2
        near = sorted(range(good + 1, bad), key=lambda n: (abs(n - middle), n))[:_NEAR]
        for number in near:
            tests += 1
            answer = fails(number)
            if answer is not None:
                good, bad = (good, number) if answer else (number, bad)
                break
        else:
            break
    return Step(good, bad, tests)
