"""What an engine node tells of the conversion that made it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rewriter.params import (
    DEFAULT_TRT_CONVERSION_PARAMS,
    MAXIMUM_WORKSPACE_SIZE_BYTES,
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    ConversionParams,
    TrtPrecisionMode,
    supported_profile_strategies,
)
from rewriter.rescuing.spellings import text

Shape = tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class EngineRecord:
    """One engine node, as TF-TRT wrote it.

    Attributes:
        name: the node's name.
        place: the function that holds it; "" for the main graph.
        segment: the function that it runs now.
        nodes: nodes of the native segment.
        precision_mode: "FP32", "FP16" or "INT8".
        use_calibration: whether missing ranges were to be found by calibration.
        calibration_bytes: size of the calibration table on the node; 0 for none.
        max_workspace_size_bytes: the engine's workspace limit.
        max_batch_size: largest batch in implicit batch mode; 1 where nothing was recorded.
        maximum_cached_engines: engines kept in memory.
        static_engine: True for one that was built at conversion.
        engine_bytes: size of the serialized engine on the node; 0 for none.
        implicit_batch: True where the first dimension of every input was the batch, and no part of the profiles.
        allow_build_at_runtime: whether a request could build it.
        profile_strategy: what was recorded; "" for nothing.
        explicit_precision: True where the graph's own quantisation nodes gave the ranges.
        input_dtypes: TensorFlow's names, resources included.
        output_dtypes: TensorFlow's names.
        input_shapes: what was known at conversion; a None dimension is unknown, None alone an unknown rank.
        device: where it was placed.
    """

    name: str
    place: str
    segment: str
    nodes: int
    precision_mode: str = TrtPrecisionMode.FP32
    use_calibration: bool = True
    calibration_bytes: int = 0
    max_workspace_size_bytes: int = 0
    max_batch_size: int = 1
    maximum_cached_engines: int = 1
    static_engine: bool = True
    engine_bytes: int = 0
    implicit_batch: bool = True
    allow_build_at_runtime: bool = True
    profile_strategy: str = ""
    explicit_precision: bool = False
    input_dtypes: tuple[str, ...] = ()
    output_dtypes: tuple[str, ...] = ()
    input_shapes: tuple[Shape, ...] = ()
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def read_engine(node: Any, place: str, segment: str, nodes: int, serialized_is_graph: bool) -> EngineRecord:
    """The record of an engine node; what an older TF-TRT did not write has the default of the op.

    Args:
        node: the NodeDef.
        place: the function that holds it; "" for the main graph.
        segment: the function that replaces it.
        nodes: nodes of that function.
        serialized_is_graph: True where `serialized_segment` is the segment's GraphDef and no engine.
    """
    attributes = node.attr

    def flag(name: str, default: bool) -> bool:
        return bool(attributes[name].b) if name in attributes else default

    def number(name: str, default: int) -> int:
        return int(attributes[name].i) if name in attributes else default

    calibrating = node.op == "TRTCalibOp"
    strategy = text(attributes, "profile_strategy")
    return EngineRecord(
        name=node.name,
        place=place,
        segment=segment,
        nodes=nodes,
        precision_mode=TrtPrecisionMode.INT8 if calibrating else text(attributes, "precision_mode").upper() or "FP32",
        use_calibration=flag("use_calibration", True),
        calibration_bytes=len(attributes["calibration_data"].s) if "calibration_data" in attributes else 0,
        max_workspace_size_bytes=number("workspace_size_bytes", 0),
        max_batch_size=number("max_batch_size", max(_integers(node, "cached_engine_batches"), default=1)),
        maximum_cached_engines=number("max_cached_engines_count", 1),
        static_engine=flag("static_engine", True),
        engine_bytes=0 if serialized_is_graph else len(text_bytes(attributes, "serialized_segment")),
        implicit_batch=flag("_use_implicit_batch", not strategy),
        allow_build_at_runtime=flag("_allow_build_at_runtime", True),
        profile_strategy=strategy,
        explicit_precision=flag("use_explicit_precision", False),
        input_dtypes=dtype_names(attributes["InT"].list.type if "InT" in attributes else ()),
        output_dtypes=dtype_names(attributes["OutT"].list.type if "OutT" in attributes else ()),
        input_shapes=tuple(_shape(s) for s in attributes["input_shapes"].list.shape)
        if "input_shapes" in attributes
        else (),
        device=node.device,
    )


def text_bytes(attributes: Any, name: str) -> bytes:
    """A string attribute as bytes; empty where it is not there."""
    return bytes(attributes[name].s) if name in attributes else b""


def dtype_names(numbers: Sequence[int]) -> tuple[str, ...]:
    """TensorFlow's names of dtype numbers."""
    from tensorflow.core.framework import types_pb2

    return tuple(types_pb2.DataType.Name(number).removeprefix("DT_").lower() for number in numbers)


def recorded_params(engines: Sequence[EngineRecord]) -> tuple[ConversionParams, tuple[str, ...]]:
    """The parameters that the engines agree on, and a note for each on which they do not.

    Rules: the value that most engines have wins, of equal numbers the first one's; of cached engines and batch sizes
    the largest. Workspace limits that differ are summed, for TF-TRT before TensorFlow 2.2 shared the user's limit
    between the engines. What no engine records (minimum_segment_size, rewriter_config_template) keeps its default.
    """
    if not engines:
        return DEFAULT_TRT_CONVERSION_PARAMS, ()
    notes: list[str] = []

    def agreed(name: str, read: Callable[[EngineRecord], Any], choose: Callable[[list[Any]], Any]) -> Any:
        values = [read(engine) for engine in engines]
        value = choose(values)
        if len(set(values)) > 1:
            counted = ", ".join(f"{v!r} in {n}" for v, n in Counter(values).most_common())
            notes.append(f"the engines disagree on {name} ({counted}): {value!r} is taken")
        return value

    workspace = agreed("max_workspace_size_bytes", lambda e: e.max_workspace_size_bytes, _same_or_sum)
    if not 1 <= workspace <= MAXIMUM_WORKSPACE_SIZE_BYTES:
        workspace = DEFAULT_TRT_CONVERSION_PARAMS.max_workspace_size_bytes
    precision = agreed("precision_mode", lambda e: e.precision_mode, _most_frequent)
    if precision not in TrtPrecisionMode.supported_precision_modes():
        notes.append(f"the recorded precision_mode {precision!r} is none that TF-TRT had: FP32 is taken")
        precision = TrtPrecisionMode.FP32
    # Engines in other precisions say False whatever the user said, for it means nothing there.
    calibrated = True
    if precision == TrtPrecisionMode.INT8:
        calibrated = agreed("use_calibration", lambda e: e.use_calibration, _most_frequent)
    static = agreed("static_engine", lambda e: e.static_engine, _most_frequent)
    return ConversionParams(
        max_workspace_size_bytes=workspace,
        precision_mode=precision,
        is_dynamic_op=not static,
        maximum_cached_engines=max(1, agreed("maximum_cached_engines", lambda e: e.maximum_cached_engines, max)),
        use_calibration=calibrated,
        max_batch_size=max(1, agreed("max_batch_size", lambda e: e.max_batch_size, max)),
        allow_build_at_runtime=agreed("allow_build_at_runtime", lambda e: e.allow_build_at_runtime, _most_frequent),
    ), tuple(notes)


def recorded_strategy(engines: Sequence[EngineRecord]) -> tuple[str | None, tuple[str, ...]]:
    """The profile strategy that most engines had, in today's words, and notes.

    Engines in implicit batch mode had none: the batch was free up to max_batch_size, which is what
    "ImplicitBatchModeCompatible" means. TF-TRT took and wrote the words in any case. None where there are no engines,
    or where the word is unknown.
    """
    implicit = PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE
    known = {word.lower(): word for word in supported_profile_strategies()}
    given = [e.profile_strategy or (implicit if e.implicit_batch else "Range") for e in engines]
    values = [known.get(word.lower(), word) for word in given]
    if not values:
        return None, ()
    notes = []
    value = _most_frequent(values)
    if len(set(values)) > 1:
        notes.append(
            f"the engines disagree on the profile strategy ({', '.join(sorted(set(values)))}): {value} is taken"
        )
    if value not in known.values():
        return None, (*notes, f"the recorded profile strategy {value!r} is none that TF-TRT had: it is ignored")
    return value, tuple(notes)


def _same_or_sum(values: Sequence[int]) -> int:
    return min(values[0] if len(set(values)) == 1 else sum(values), MAXIMUM_WORKSPACE_SIZE_BYTES)


def _most_frequent(values: Sequence[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _integers(node: Any, name: str) -> list[int]:
    return [int(value) for value in node.attr[name].list.i] if name in node.attr else []


def _shape(shape: Any) -> Shape:
    if shape.unknown_rank:
        return None
    return tuple(None if dimension.size < 0 else int(dimension.size) for dimension in shape.dim)
