"""What a conversion did, as frozen values that print and serialise."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from onnx import TensorProto

from passes.segments import TensorSpec
from passes.support import Verdict

REPORT_SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class EngineReport:
    """One segment and its engine.

    Attributes:
        name: `TRTEngineOp_000` ...
        scope: where its nodes lie; () for the main graph.
        nodes: number of nodes.
        op_counts: op_type -> number of nodes.
        inputs, outputs: boundary tensors.
        precision: arithmetic of the engine.
        built: whether there is an engine.
        reason: why there is none; "" when built.
        size: bytes of the serialised engine, 0 when not built.
        seconds: build time, 0.0 when not built.
        layers: layers of TensorRT's network, 0 when not built.
        profiles: per profile: input name -> {"min", "opt", "max"} dims (values for shape tensors).
        arithmetic: what its nodes really compute in -> number of nodes ("INT8", "FP16", "FP32" ..., "other" for
            integers and booleans); empty when not built.
        lowering: rule -> how often lowering applied it ("quantize", "keep-range" ...); empty when not built.
        decisions: (rule, node, reason) of everything that lowering left alone or changed beside its type.
        flops: estimated operations of one call (`passes.graph.flops`); None in older reports.
    """

    name: str
    scope: tuple[str, ...]
    nodes: int
    op_counts: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    built: bool
    reason: str = ""
    size: int = 0
    seconds: float = 0.0
    layers: int = 0
    profiles: tuple[Mapping[str, Mapping[str, list[int]]], ...] = ()
    arithmetic: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lowering: Mapping[str, int] = dataclasses.field(default_factory=dict)
    decisions: tuple[tuple[str, str, str], ...] = ()
    flops: int | None = None


@dataclasses.dataclass(frozen=True)
class PrecisionReport:
    """The arithmetic of the engines.

    Attributes:
        label: "FP32", "INT8+FP16" ...
        recipe: mode and options (`Recipe.to_json`).
        kept: node -> why it does not get the arithmetic that was asked for: the accuracy guard, a failed build, or a
            range that nobody knows.
        notes: what a user should know, one sentence each: trained ranges that were widened and by how much a value can
            change, what TF32 does here.
        calibration: {"method", "samples", "tensors"}; empty where nothing was calibrated.
        accuracy: what the accuracy guard measured; empty without one.
    """

    label: str = "FP32"
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    accuracy: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CacheStats:
    """What the engine cache on disk (`engine_cache_dir`) was asked and did, in one conversion.

    Attributes:
        hits: engines that were not built again.
        misses: engines looked for and not found; damaged entries included.
        known_failures: builds that are known to fail, and were not tried again.
        stored: engines added.
        removed: engines taken away to make room.
        seconds_saved: what the engines that were hit once took to build.
        damaged: reason -> entries that could not be trusted.
        refused: reason -> how often the folder could not be used ("cannot store: No space left on device").
    """

    hits: int = 0
    misses: int = 0
    known_failures: int = 0
    stored: int = 0
    removed: int = 0
    seconds_saved: float = 0.0
    damaged: Mapping[str, int] = dataclasses.field(default_factory=dict)
    refused: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Something that did not work and was survived: a denied build, an engine that stayed native."""

    stage: str
    target: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class PassSummary:
    """One pass in the report: what it was, how long it took and how often each of its rules changed something."""

    name: str
    options: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole conversion.

    Attributes:
        source: one line about where the model came from.
        engines: one entry a segment.
        native: one verdict for every node outside segments, each with its reason.
        coverage: fraction of effective nodes that lie in segments, built or not.
        built_coverage: fraction that lies in segments with an engine.
        total_nodes: nodes of the cleaned model, bodies included.
        verification: largest relative difference from the source framework by output; empty for ONNX sources.
        failures: what was survived, in order.
        timings: stage -> seconds.
        passes: what the pass pipeline did.
        versions: package -> version; "backend" names TensorRT's flavour and targets.
        params: the parameters in force.
        precision: the arithmetic of the engines, and what was kept out of it.
        cache: what the engine cache on disk did; None without one.
        flops: estimated operations of one call of the whole model; None in older reports.
    """

    source: str
    engines: tuple[EngineReport, ...]
    native: tuple[Verdict, ...]
    coverage: float
    built_coverage: float
    total_nodes: int
    verification: Mapping[str, float]
    failures: tuple[Failure, ...]
    timings: Mapping[str, float]
    passes: tuple[PassSummary, ...]
    versions: Mapping[str, str]
    params: Mapping[str, Any]
    precision: PrecisionReport = dataclasses.field(default_factory=PrecisionReport)
    cache: CacheStats | None = None
    flops: int | None = None

    @property
    def flops_coverage(self) -> float | None:
        """Fraction of the operations that lies in segments, built or not; None when nothing was counted."""
        return sum(engine.flops or 0 for engine in self.engines) / self.flops if self.flops else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return {"schema_version": REPORT_SCHEMA_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The report as indented JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, default=str)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Reads back what `to_dict` wrote.

        Raises:
            ValueError: the schema version is not this program's, or a field is missing.
        """
        if data.get("schema_version") != REPORT_SCHEMA_VERSION:
            raise ValueError(f"report schema {data.get('schema_version')!r} is not {REPORT_SCHEMA_VERSION}")
        try:
            later = ("precision", "cache", "flops")  # fields that older reports lack
            values = {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name not in later}
            cache = data.get("cache")
            values["cache"] = None if cache is None else CacheStats(**cache)
            values["flops"] = data.get("flops")
            precision = dict(data.get("precision", {}))
            values["precision"] = PrecisionReport(**{**precision, "notes": tuple(precision.get("notes", ()))})
            values["engines"] = tuple(_engine(engine) for engine in values["engines"])
            values["native"] = tuple(Verdict(**verdict) for verdict in values["native"])
            values["failures"] = tuple(Failure(**failure) for failure in values["failures"])
            values["passes"] = tuple(PassSummary(**step) for step in values["passes"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the report lacks or misspells a field: {error}") from error
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class NativeGroup:
    """Native nodes that share a rule and a reason.

    Attributes:
        ops: op_type -> number of nodes, most frequent first.
        nodes: their names, in graph order.
    """

    rule: str
    reason: str
    ops: Mapping[str, int]
    nodes: tuple[str, ...]


def group_by_reason(verdicts: tuple[Verdict, ...]) -> list[NativeGroup]:
    """Native nodes grouped for people, most nodes first.

    Reasons that differ only in a node's own name are one group; the name is replaced by "*". A denylist names the
    user's own words, so its reasons stay as they are.
    """
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        own = verdict.rule == "denylist"
        reason = verdict.reason if own else verdict.reason.replace(f"'{verdict.node}'", "'*'")
        groups.setdefault((verdict.rule, reason), []).append(verdict)
    found = [
        NativeGroup(rule, reason, dict(Counter(v.op_type for v in group).most_common()), tuple(v.node for v in group))
        for (rule, reason), group in groups.items()
    ]
    return sorted(found, key=lambda group: (-len(group.nodes), group.rule, group.reason))


def dtype_name(dtype: int) -> str:
    """The numpy-like name ("float32") of an onnx.TensorProto data type."""
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    name: str = TensorProto.DataType.Name(dtype)
    return names.get(name, name.lower())


def flops_text(flops: int) -> str:
    """Operations with a unit, for example 7.73 GFLOP (decimal units)."""
    value = float(flops)
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.2f} {unit}FLOP" if unit else f"{value:.0f} FLOP"
        value /= 1000
    return f"{value:.2f} TFLOP"


def shape_text(spec: TensorSpec) -> str:
    """Dims in brackets, as "[batch, 224, 3]"; "?" for an unknown one, "of any rank" for unknown rank."""
    if spec.shape is None:
        return "of any rank"
    return f"[{', '.join('?' if d is None else str(d) for d in spec.shape)}]"


def _engine(data: Mapping[str, Any]) -> EngineReport:
    specs = {
        side: tuple(
            TensorSpec(s["name"], s["dtype"], None if s["shape"] is None else tuple(s["shape"]), s["tensor"])
            for s in data[side]
        )
        for side in ("inputs", "outputs")
    }
    rest = {
        "scope": tuple(data["scope"]),
        "profiles": tuple(data["profiles"]),
        "decisions": tuple(tuple(decision) for decision in data.get("decisions", ())),
    }
    return EngineReport(**{**data, **specs, **rest})
