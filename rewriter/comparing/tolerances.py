"""How far off an output may be: what the user says, and what precisions usually cost where nothing is said."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence

from rewriter.comparing.values import Pair
from rewriter.errors import InvalidParameterError

#: Largest relative difference between the source and its native run that passes unless the user says otherwise.
NATIVE_TOLERANCE = 1e-4
#: Which runners are held against each other where both run, in the order that they are shown in.
PAIRS = (
    ("source", "native"),
    ("native", "emulated"),
    ("native", "tensorrt"),
    ("emulated", "tensorrt"),
    ("source", "emulated"),
    ("source", "tensorrt"),
)


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """What the user says.

    Attributes:
        overall: largest relative difference of any output; None: what is usual (see `make_pairs`).
        outputs: output -> largest relative difference of this one.
        absolute: absolute difference up to which an output passes in any case; None: there is none.
    """

    overall: float | None = None
    outputs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    absolute: float | None = None

    @classmethod
    def parse(cls, texts: Sequence[str], absolute: float | None = None) -> Tolerances:
        """Reads "1e-3" (of all outputs) and "probabilities:1e-2" (of one).

        Raises:
            InvalidParameterError: it is written otherwise, no positive number, or said twice.
        """
        found: dict[str, float] = {}
        for text in texts:
            name, colon, number = text.rpartition(":")
            if colon and not name:
                raise InvalidParameterError(f"--tolerance {text!r}: the name of an output must stand before the colon")
            if name in found:
                whose = f"of output {name!r}" if name else "of all outputs"
                raise InvalidParameterError(f"--tolerance {text!r}: the tolerance {whose} is given twice")
            found[name] = _positive(f"--tolerance {text!r}: tolerance", number)
        if absolute is not None:
            _positive("--absolute-tolerance", absolute)
        return cls(found.pop("", None), found, absolute)

    def check_outputs(self, names: Sequence[str]) -> None:
        """Refuses a tolerance of an output that there is not.

        Raises:
            InvalidParameterError: it names the output, and those that there are.
        """
        for name in self.outputs:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise InvalidParameterError(
                    f"--tolerance names the output {name!r}{hint}: the model has {', '.join(names)}"
                )


def make_pairs(
    precisions: Sequence[str], tolerances: Tolerances, runners: Sequence[str] = ("source", "native", "emulated")
) -> tuple[Pair, ...]:
    """Who is held against whom, and how far off may be.

    1. What the user says of an output, or of all, counts for every pair; but how far TensorRT is from its emulation is
       only reported, unless these two are all that runs.
    2. Else the native run may differ from the source by `NATIVE_TOLERANCE`, and the engines by what the lowest of
       their precisions usually costs (FP32 engines on a GPU compute in TF32).

    Args:
        precisions: labels of what the engines compute in ("INT8+FP16"), without FP32 and TF32.
        tolerances: what the user says.
        runners: names of those that run; without a lower precision "emulated" is none.
    """
    from passes.testing import TOLERANCES

    modes = [part for label in precisions for part in label.split("+")]
    lowered = max((TOLERANCES.get(mode, TOLERANCES["INT8"]) for mode in modes), default=TOLERANCES["TF32"])
    usual = {"native": NATIVE_TOLERANCE, "emulated": lowered, "tensorrt": max(lowered, TOLERANCES["TF32"])}
    found = []
    for reference, result in PAIRS:
        if not {reference, result} <= set(runners):
            continue
        if reference == "emulated" and len(runners) > 2:
            found.append(Pair(reference, result))
            continue
        limit = usual[result] if tolerances.overall is None else tolerances.overall
        found.append(Pair(reference, result, limit, dict(tolerances.outputs), tolerances.absolute))
    return tuple(found)


def _positive(what: str, value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidParameterError(f"{what} must be a positive number, not {value!r}")
    return number
