"""The sections of RESULTS.md in their order: which script makes each, how it is called, and what it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results"
IMAGES = BENCHMARKS / "images"


@dataclasses.dataclass(frozen=True)
class Section:
    """One question.

    Attributes:
        name: of results/NAME.md and results/NAME.json.
        part: heading under which the table of contents lists it.
        script: module of benchmarks/ that measures and renders it; "" for what no script makes.
        arguments: of the script, besides where the JSON goes. "{bundle}" stands for the folder given by --bundle.
        needs: what a run takes: "cpu" (minutes), "long" (a run on the CPU only when asked for), "gpu", or "record"
            (no script of its own).
        record: when the figures in the prose were measured, for a section whose JSON was not kept.
        minutes: what a run takes on 2 shared cores, roughly.
    """

    name: str
    part: str
    script: str = ""
    arguments: tuple[str, ...] = ()
    needs: str = "cpu"
    record: str = ""
    minutes: float = 1

    @property
    def prose(self) -> Path:
        return RESULTS / f"{self.name}.md"

    @property
    def json(self) -> Path:
        return RESULTS / f"{self.name}.json"

    def command(self, places: Mapping[str, str] | None = None) -> str:
        """How a user would call the script, "{bundle}" and the like as they are unless `places` fills them in."""
        words = " ".join(self.arguments).format_map(_Shown(places or {}))
        return f"python benchmarks/{self.script}.py {words}".strip()


class _Shown(dict[str, str]):
    """Placeholders that are not given are shown in capitals."""

    def __missing__(self, key: str) -> str:
        return key.upper()


MODELS, PASSES, RUNTIME, PRECISION, GPU, MANY = (
    "Conversion", "Partition and passes", "Running without a GPU", "Precision", "On a GPU",
    "Many engines, many machines",
)  # fmt: skip


def _speed(name: str, *experiments: str) -> Section:
    """Experiments of runtime_speed.py as a section of their own."""
    arguments = ("{bundle}/runtime", "--only", *experiments)
    return Section(name, GPU, "runtime_speed", arguments, needs="gpu", record="2026-11-22", minutes=3)


SECTIONS: tuple[Section, ...] = (
    Section("convert_zoo", MODELS, "convert_zoo", minutes=6),
    Section("conversion_time", MODELS, "conversion_time", minutes=4),
    Section("onnx_node_tests", MODELS, "onnx_node_tests", minutes=4),
    Section("export_speed", MODELS, "export_speed", ("--runs", "3"), minutes=4),
    Section("engine_cache", MODELS, "engine_cache", minutes=5),
    Section("big_model", MODELS, "big_model", needs="long", record="2026-11-22", minutes=2),
    Section("big_tf_model", MODELS, "big_tf_model", needs="long", record="2026-11-23", minutes=4),
    Section("partition_scaling", PASSES, "partition_scaling", minutes=2),
    Section("specialize", PASSES, needs="record", record="2026-11-23"),
    Section("graph_passes", PASSES, needs="record", record="2026-11-23"),
    Section("native_latency", RUNTIME, "native_latency", minutes=4),
    Section("load_time", RUNTIME, "load_time", minutes=3),
    Section("spliced_latency", RUNTIME, "spliced_latency", minutes=1),
    Section("tensorflow_islands", RUNTIME, "tensorflow_islands", minutes=1),
    Section("precision_table", PRECISION, "precision_table", needs="long", record="2026-11-22", minutes=30),
    Section("lowering_node_tests", PRECISION, "lowering_node_tests", needs="long", minutes=7),
    Section("calibration_memory", PRECISION, "calibration_memory", needs="long", minutes=9),
    Section("rivals", GPU, "rivals", ("{bundle}/rivals",), needs="gpu", minutes=10),
    Section("gpu_runs", GPU, needs="record", record="2026-11-22 and 2026-11-23"),
    Section("engine_run", GPU, "engine_run", ("{bundle}/engines",), needs="gpu", record="2026-11-22", minutes=2),
    Section("runtime_gpu", GPU, "runtime_gpu", ("{bundle}/runtime",), needs="gpu", record="2026-11-23", minutes=9),
    Section("runtime_artifact", GPU, "runtime_artifact", ("{bundle}/artifacts",), needs="gpu", record="2026-11-22"),
    _speed("runtime_resnet", "resnet"),
    Section("runtime_profiles", GPU, needs="record", record="2026-11-22"),
    _speed("runtime_chain", "chain"),
    _speed("runtime_load", "load"),
    _speed("runtime_memory", "memory", "threads"),
    Section(
        "precision_gpu", GPU, "precision_gpu", ("{bundle}/precision",), needs="gpu", record="2026-11-22", minutes=4
    ),
    Section("parallel_builds", MANY, "parallel_builds", minutes=5),
    Section("fat_artifacts", MANY, "fat_artifacts", ("{bundle}/fat",), needs="gpu", record="2026-11-23", minutes=5),
    Section("serving", MANY, "serving", needs="long", minutes=9),
)


def find(name: str) -> Section:
    """The section of that name.

    Raises:
        KeyError: there is none; the text lists all.
    """
    for section in SECTIONS:
        if section.name == name:
            return section
    raise KeyError(f"no section {name!r}; there are: {', '.join(section.name for section in SECTIONS)}")
