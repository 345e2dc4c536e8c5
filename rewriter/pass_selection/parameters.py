"""What the parameter_map of a custom optimizer says: TF-TRT's own, or the options of one of our passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from passes.base import Pass
from passes.pipeline import OPTIONAL_PASSES
from rewriter.errors import InvalidParameterError
from rewriter.params import check_profile_strategy, supported_profile_strategies
from rewriter.pass_selection.config import NAME, CustomOptimizer
from rewriter.pass_selection.table import TENSORRT

#: Parameters of TF-TRT's optimizer that are ConversionParams of the same name, with their kind.
_PARAMS: Mapping[str, type] = {
    "minimum_segment_size": int,
    "max_batch_size": int,
    "is_dynamic_op": bool,
    "max_workspace_size_bytes": int,
    "maximum_cached_engines": int,
    "precision_mode": str,
    "use_calibration": bool,
    "allow_build_at_runtime": bool,
}
#: Those that choose the profile strategy, which is an argument of the converter.
_STRATEGY: Mapping[str, type] = {"use_implicit_batch": bool, "profile_strategy": str}
#: Fields of a pass that are no options.
_NO_OPTIONS = ("name", "evaluate")


def tensorrt_overrides(entry: CustomOptimizer) -> dict[str, Any]:
    """ConversionParams fields that a "TensorRTOptimizer" entry sets, in plain Python.

    Raises:
        InvalidParameterError: unknown parameter, or a value of another kind.
    """
    known = {**_PARAMS, **_STRATEGY}
    for key, value in entry.parameter_map.items():
        if key not in known:
            raise InvalidParameterError(f"{NAME}: {TENSORRT} has no parameter {key!r}; it has {', '.join(known)}")
        _check_kind(TENSORRT, key, value, known[key])
    found = {key: value for key, value in entry.parameter_map.items() if key in _PARAMS}
    if "precision_mode" in found:
        found["precision_mode"] = found["precision_mode"].upper()
    return found


def tensorrt_strategy(entry: CustomOptimizer) -> str | None:
    """The profile strategy that a checked "TensorRTOptimizer" entry asks for; None where it says nothing.

    Raises:
        InvalidParameterError: unknown strategy, or one that does not go with use_implicit_batch.
    """
    implicit = entry.parameter_map.get("use_implicit_batch")
    strategy = entry.parameter_map.get("profile_strategy")
    if implicit is None and strategy is None:
        return None
    if strategy is not None:
        # TF-TRT writes the strategy in lower case.
        words = {word.lower(): word for word in supported_profile_strategies()}
        strategy = words.get(strategy.lower(), strategy)
    return check_profile_strategy(None if implicit is None else not implicit, strategy)


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """An optional pass with options.

    Raises:
        InvalidParameterError: unknown option, or a value of another kind.
    """
    kind = OPTIONAL_PASSES[name]
    fields = {
        field.name: field
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in _NO_OPTIONS
    }
    for key, value in options.items():
        if key not in fields:
            raise InvalidParameterError(f"{NAME}: pass {name!r} has no option {key!r}; it has {', '.join(fields)}")
        _check_kind(name, key, value, type(fields[key].default))
        if isinstance(value, int) and value < 0:
            raise InvalidParameterError(f"{NAME}: option {key!r} of pass {name!r} must not be negative, not {value!r}")
    return kind(**options)


def _check_kind(owner: str, key: str, value: Any, kind: type) -> None:
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        words = {int: "an integer", bool: "True or False", str: "a string"}
        raise InvalidParameterError(f"{NAME}: {key!r} of {owner!r} must be {words[kind]}, not {value!r}")
