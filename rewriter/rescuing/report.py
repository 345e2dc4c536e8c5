"""What a rescue did, and what it read off the engines."""

from __future__ import annotations

import dataclasses
from typing import Any

from rewriter.params import DEFAULT_TRT_CONVERSION_PARAMS, ConversionParams
from rewriter.rescuing.recorded import EngineRecord, recorded_params, recorded_strategy


@dataclasses.dataclass(frozen=True)
class Removed:
    """What had only to do with engines, by name.

    Attributes:
        nodes: of the main graph, and calls within functions ("function/node").
        functions: of the function library, with their concrete functions.
        objects: of the object graph, by their path from the root ("trt_engine_resources/TRTEngineOp_000_000").
        assets: files with serialized engines.
    """

    nodes: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()

    def __add__(self, other: Removed) -> Removed:
        """Both."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return Removed(*(a + b for a, b in pairs))


@dataclasses.dataclass(frozen=True)
class RescueReport:
    """What was found and what was done.

    Attributes:
        source: what was read.
        destination: the folder that was written; "" for a GraphDef.
        engines: the engine nodes, now calls of their native segments, in the order of the file.
        removed: what is gone.
        rebuilt: engines whose segment came out of `serialized_segment`, for its function was not in the file.
        tensorflow: version of TensorFlow that wrote the model; "" where it was not recorded.
    """

    source: str
    destination: str
    engines: tuple[EngineRecord, ...]
    removed: Removed = Removed()
    rebuilt: tuple[str, ...] = ()
    tensorflow: str = ""

    @property
    def params(self) -> ConversionParams:
        """What to pass as `conversion_params` to convert as TF-TRT did; see `recorded_params` for the rules."""
        return recorded_params(self.engines)[0]

    @property
    def profile_strategy(self) -> str | None:
        """What to pass as `dynamic_shape_profile_strategy`; None where nothing was recorded."""
        return recorded_strategy(self.engines)[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a line each."""
        if not self.engines and self.removed == Removed():
            return ()
        if not self.engines:
            return ("TF-TRT left no engine in it, only the resources of engines: they are removed",)
        notes = [self._kept(), *recorded_params(self.engines)[1], *recorded_strategy(self.engines)[1]]
        tables = [engine for engine in self.engines if engine.calibration_bytes]
        if tables:
            notes.append(
                f"{_listed([e.name for e in tables])} had a calibration table, which holds for TF-TRT's own engines "
                "only: calibrate again (convert(calibration_input_fn=...))"
            )
        elif self.params.precision_mode == "INT8" and self.params.use_calibration:
            notes.append("TF-TRT never calibrated it: no engine has a calibration table")
        if self.rebuilt:
            notes.append(
                f"the function with the native segment of {_listed(self.rebuilt)} is not in the file: it is "
                "rebuilt from the graph that the node itself holds"
            )
        return tuple(notes)

    def _kept(self) -> str:
        """The line that says what was recorded and how to keep it."""
        params, defaults = self.params._asdict(), DEFAULT_TRT_CONVERSION_PARAMS._asdict()
        single = {name: value for name, value in params.items() if value != defaults[name]}
        single.setdefault("precision_mode", self.params.precision_mode)
        shown = dict(sorted(single.items(), key=lambda item: item[0] != "precision_mode"))
        recorded = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        if self.profile_strategy:
            recorded += f", dynamic_shape_profile_strategy={self.profile_strategy!r}"
        number = len(self.engines)
        return (
            f"TF-TRT converted it, {number} engine{'s' * (number != 1)}, with {recorded}: pass the same to keep that "
            "(what is not named was at its default, or is not recorded)"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return {
            "source": self.source,
            "destination": self.destination,
            "tensorflow": self.tensorflow,
            "engines": [engine.to_json() for engine in self.engines],
            "removed": dataclasses.asdict(self.removed),
            "rebuilt": list(self.rebuilt),
            "params": self.params._asdict(),
            "profile_strategy": self.profile_strategy,
            "notes": list(self.notes),
        }


def _listed(names: tuple[str, ...] | list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
