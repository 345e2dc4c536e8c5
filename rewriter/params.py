"""The parameters of a conversion: TF-TRT's names and defaults, validated in one place."""

from __future__ import annotations

import inspect
import numbers
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rewriter.errors import InvalidParameterError

#: Default limit of the builder's workspace for each engine, in bytes (1 GiB).
DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES = 1 << 30

PROFILE_STRATEGY_RANGE = "Range"
PROFILE_STRATEGY_OPTIMAL = "Optimal"
PROFILE_STRATEGY_RANGE_OPTIMAL = "Range+Optimal"
PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE = "ImplicitBatchModeCompatible"

_Kind = TypeVar("_Kind")

CACHE_FULL_RULES = ("native", "evict")
#: TensorRT counts memory in signed 64-bit integers; TF-TRT's own largest default was this.
MAXIMUM_WORKSPACE_SIZE_BYTES = (1 << 63) - 512


class TrtPrecisionMode:
    """The words that `precision_mode` takes, in upper or lower case."""

    FP32 = "FP32"
    FP16 = "FP16"
    INT8 = "INT8"
    #: Not in TF-TRT: FP32 with permission to use TF32 tensor cores, bfloat16, and FP8 (E4M3).
    TF32 = "TF32"
    BF16 = "BF16"
    FP8 = "FP8"

    @staticmethod
    def supported_precision_modes() -> list[str]:
        """All accepted spellings: TF-TRT's three and ours, then the same in lower case."""
        modes = ["FP32", "FP16", "INT8", "TF32", "BF16", "FP8"]
        return modes + [mode.lower() for mode in modes]


class ConversionParams(NamedTuple):
    """Parameters of a conversion; immutable, `_replace(...)` gives a changed copy.

    Attributes:
        rewriter_config_template: which graph passes run: TensorFlow's RewriterConfig proto, `RewriterConfig` or a
            mapping of its fields; None for the default ones.
        max_workspace_size_bytes: the builder's WORKSPACE pool limit for every engine, in bytes.
        precision_mode: arithmetic of the engines, in either case: "FP32", "FP16", "INT8" as in TF-TRT, and "TF32",
            "BF16", "FP8". `PrecisionOptions` says more.
        minimum_segment_size: effective nodes that a segment must have (Identity and other no-ops don't count);
            -1 leaves the main graph native and converts only bodies of control flow.
        is_dynamic_op: True: engines for the shapes that `build()` sees. False: engines at `convert()`, for static
            shapes and batches 1..max_batch_size.
        maximum_cached_engines: engines kept in memory for each engine node at run time.
        use_calibration: INT8 and FP8 only. True: `calibration_input_fn` gives inputs from which missing ranges are
            found. False: every tensor that is quantised must have a range in the model already (fake quantisation or
            Q/DQ); a missing one is an error that names it.
        max_batch_size: largest batch of engines built with `is_dynamic_op=False`.
        allow_build_at_runtime: whether a request may build an engine at run time; saved in the artifact.
    """

    rewriter_config_template: Any = None
    max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES
    precision_mode: str = TrtPrecisionMode.FP32
    minimum_segment_size: int = 3
    is_dynamic_op: bool = True
    maximum_cached_engines: int = 1
    use_calibration: bool = True
    max_batch_size: int = 1
    allow_build_at_runtime: bool = True


DEFAULT_TRT_CONVERSION_PARAMS = ConversionParams()


def supported_profile_strategies() -> list[str]:
    """The names that `dynamic_shape_profile_strategy` takes."""
    return [
        PROFILE_STRATEGY_RANGE,
        PROFILE_STRATEGY_OPTIMAL,
        PROFILE_STRATEGY_RANGE_OPTIMAL,
        PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    ]


def check_params(params: ConversionParams) -> ConversionParams:
    """The same parameters with the precision mode in upper case.

    Raises:
        InvalidParameterError: a value is not allowed; the message names the parameter and what is.
    """
    if not isinstance(params, ConversionParams):
        raise InvalidParameterError(f"conversion_params must be a ConversionParams, not {type(params).__name__}")
    integers: dict[str, Any] = {
        name: _check_integer(name, getattr(params, name))
        for name in ("max_workspace_size_bytes", "maximum_cached_engines", "max_batch_size")
    }
    if integers["max_workspace_size_bytes"] > MAXIMUM_WORKSPACE_SIZE_BYTES:
        raise InvalidParameterError(
            f"max_workspace_size_bytes must be at most {MAXIMUM_WORKSPACE_SIZE_BYTES}, "
            f"not {params.max_workspace_size_bytes!r}"
        )
    size = _as_integer(params.minimum_segment_size)
    if size is None or (size < 1 and size != -1):
        raise InvalidParameterError(
            "minimum_segment_size must be a positive integer, or -1 to leave the main graph native, "
            f"not {params.minimum_segment_size!r}"
        )
    switches: dict[str, Any] = {
        name: check_switch(name, getattr(params, name))
        for name in ("is_dynamic_op", "use_calibration", "allow_build_at_runtime")
    }
    mode = check_precision_mode(params.precision_mode)
    return params._replace(precision_mode=mode, minimum_segment_size=size, **integers, **switches)


def merge_params(whole: ConversionParams | None, single: ConversionParams) -> ConversionParams:
    """`conversion_params` when given, else what the single arguments say; checked.

    Raises:
        InvalidParameterError: a value is not allowed; or both are given and a single argument is not at its default.
    """
    if whole is None:
        return check_params(single)
    for name, value in single._asdict().items():
        if value != getattr(DEFAULT_TRT_CONVERSION_PARAMS, name):
            raise InvalidParameterError(f"{name} and conversion_params are both given: set {name} in conversion_params")
    return check_params(whole)


def check_switch(name: str, value: object) -> bool:
    """The value when it is True or False (numpy's count); anything else that counts as true is refused.

    Raises:
        InvalidParameterError: it is neither.
    """
    numpy = sys.modules.get("numpy")  # whoever has a value of numpy has imported it; here it would only cost time
    if not isinstance(value, bool) and not (numpy is not None and isinstance(value, numpy.bool_)):
        raise InvalidParameterError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_callable(name: str, value: object) -> Callable[..., Any] | None:
    """The value when it can be called; None for none given.

    Raises:
        InvalidParameterError: it cannot.
    """
    if value is not None and not callable(value):
        raise InvalidParameterError(f"{name} must be a function, not {type(value).__name__}")
    return value


def check_input_fn(name: str, value: object) -> Callable[[], Iterable[Any]]:
    """The value when it can be called without arguments, as far as Python tells; it is not called here.

    Raises:
        InvalidParameterError: it is no function, or needs arguments; the message names them.
    """
    if not callable(value):
        raise InvalidParameterError(f"{name} must be a function that yields inputs, not {type(value).__name__}")
    try:
        # A wrapper may give what it wraps its arguments, so only the outermost function is asked.
        signature = inspect.signature(value, follow_wrapped=False)
    except (TypeError, ValueError):  # not every function of C tells what it takes
        return value
    try:
        signature.bind()
    except TypeError as error:
        raise InvalidParameterError(
            f"{name} must take no arguments and yield inputs, but this function takes {signature}: {error}"
        ) from error
    return value


def check_path(name: str, value: object) -> Path:
    """The value as a path.

    Raises:
        InvalidParameterError: it is no path, or an empty one.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InvalidParameterError(f"{name} must be a path (a str or a pathlib.Path), not {type(value).__name__}")
    if not text:
        raise InvalidParameterError(f"{name} is empty: name a file")
    return Path(text)


def check_tolerance(value: object) -> float | None:
    """The value as a float; None for none given.

    Raises:
        InvalidParameterError: it is no positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value) > 0:
        raise InvalidParameterError(f"tolerance must be a positive number, not {value!r}")
    return float(value)


def check_samples(value: object) -> list[Any] | Mapping[str, list[Any]] | None:
    """Sample inputs as a list, or signature key -> such a list; None for none given.

    Raises:
        InvalidParameterError: it cannot be iterated over.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and isinstance(item, (list, tuple)) for key, item in value.items()):
            raise InvalidParameterError(
                "samples must be a list of inputs, or a dict of such lists by signature key; one dict of inputs goes "
                "into a list"
            )
        return {key: list(item) for key, item in value.items()}
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidParameterError(f"samples must be a list of inputs, not {value!r}")
    return list(value)


def check_choice(name: str, value: object, known: Sequence[str]) -> str:
    """The value when it is one of the known words.

    Raises:
        InvalidParameterError: it is not.
    """
    if not isinstance(value, str) or value not in known:
        raise InvalidParameterError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def check_precision_mode(mode: object) -> str:
    """The mode in upper case.

    Raises:
        InvalidParameterError: unknown.
    """
    known = TrtPrecisionMode.supported_precision_modes()
    if not isinstance(mode, str) or mode not in known:
        words = ", ".join(word for word in known if word.isupper())
        raise InvalidParameterError(f"precision_mode must be one of {words}, in either case, not {mode!r}")
    return mode.upper()


def check_profile_strategy(use_dynamic_shape: bool | None, strategy: str | None) -> str:
    """The profile strategy that a pair of TF-TRT arguments means ("Range" when nothing was said).

    Raises:
        InvalidParameterError: unknown strategy; or one given although use_dynamic_shape is False.
    """
    if use_dynamic_shape is not None:
        use_dynamic_shape = check_switch("use_dynamic_shape", use_dynamic_shape)
    if strategy is not None:
        # TF-TRT took the words in any case.
        words = {word.lower(): word for word in supported_profile_strategies()}
        strategy = words.get(strategy.lower(), strategy) if isinstance(strategy, str) else strategy
        check_choice("dynamic_shape_profile_strategy", strategy, supported_profile_strategies())
    if use_dynamic_shape is False:
        if strategy not in (None, PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE):
            raise InvalidParameterError(
                f"dynamic_shape_profile_strategy={strategy!r} needs use_dynamic_shape=True (it is False)"
            )
        return PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE
    return strategy or PROFILE_STRATEGY_RANGE


def check_kind(name: str, value: object, kind: type[_Kind]) -> _Kind | None:
    """The value when it is of that class; None for none given.

    Raises:
        InvalidParameterError: it is something else.
    """
    if value is not None and not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InvalidParameterError(f"{name} must be {article} {kind.__name__}, not {type(value).__name__}")
    return value


def check_names(name: str, value: object) -> tuple[str, ...]:
    """Strings as a tuple, in their order; those of a set, which has none, are sorted.

    One string alone is refused, for it would be read letter by letter; a mapping is, for its values would get lost.

    Raises:
        InvalidParameterError: it is nothing that yields strings.
    """
    if not isinstance(value, Iterable) or isinstance(value, (str, Mapping)):
        raise InvalidParameterError(f"{name} must be a list of strings, not {value!r}")
    names = list(value)
    if not all(isinstance(item, str) for item in names):
        raise InvalidParameterError(f"{name} must be a list of strings, not {names!r}")
    return tuple(sorted(names)) if isinstance(value, (set, frozenset)) else tuple(names)


def check_optional_names(name: str, value: object) -> tuple[str, ...] | None:
    """As `check_names`; None for none given.

    Raises:
        InvalidParameterError: it is nothing that yields strings.
    """
    return None if value is None else check_names(name, value)


def check_patterns(name: str, value: object) -> tuple[str, ...]:
    """As `check_names`, and each must be a regular expression.

    Raises:
        InvalidParameterError: it is no list of strings, or one is no regular expression.
    """
    patterns = check_names(name, value)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidParameterError(f"{name}: {pattern!r} is not a regular expression: {error}") from error
    return patterns


def one_source(directory: object, model: Any) -> Any:
    """The source out of its two spellings, `input_saved_model_dir` and `model`.

    Raises:
        InvalidParameterError: none or both are given.
    """
    if (directory is None) == (model is None):
        raise InvalidParameterError("give exactly one of input_saved_model_dir and model")
    return directory if model is None else model


def check_count(name: str, value: object) -> int | None:
    """The value as an integer of at least 1; None for none given.

    Raises:
        InvalidParameterError: it is something else.
    """
    return None if value is None else _check_integer(name, value)


def _check_integer(name: str, value: object) -> int:
    number = _as_integer(value)
    if number is None or number < 1:
        raise InvalidParameterError(f"{name} must be an integer of at least 1, not {value!r}")
    return number


def _as_integer(value: object) -> int | None:
    """The value as an int (numpy's integers count); None for anything else, True and False included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
