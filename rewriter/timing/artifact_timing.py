"""Times an artifact as its user runs it: load, first call, warm-up, single calls, calls in a row, several threads."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.errors import CudaError, InvalidParameterError, MissingDependencyError
from rewriter.runtime.stats import grown
from rewriter.timing.feeding import Sample, items_of
from rewriter.timing.latencies import TRIM, Latencies, Throughput
from rewriter.timing.measuring import measure_in_a_row, measure_parts, measure_threads

if TYPE_CHECKING:
    from rewriter.runtime.function import ConvertedFunction
    from rewriter.timing.on_gpu import GpuStream

_LOG = logging.getLogger(__name__)
#: Calls that are enqueued before their end is waited for.
MOST_ENQUEUED = 100
#: Counters of `stats()` whose growth tells how the timed calls were computed.
COUNTERS = ("calls", "engine_calls", "native_calls", "graph_launches", "discoveries", "memory_retries")


@dataclasses.dataclass(frozen=True)
class TimingOptions:
    """How much is timed, and where inputs and outputs are.

    Attributes:
        iterations: least number of timed calls of each kind.
        duration: least number of seconds for each kind; both must be reached.
        warmup_iterations: calls that are not timed, after the warm-up has made plans, graphs and engines ready.
        threads: callers at a time for one more measurement; 1 leaves it out.
        device_inputs: True passes inputs that lie on the GPU already.
        device_outputs: True leaves the outputs there.
        trim: share of the fastest and slowest calls that the trimmed mean leaves out.

    Raises:
        InvalidParameterError: a value is not allowed.
    """

    iterations: int = 10
    duration: float = 3.0
    warmup_iterations: int = 10
    threads: int = 1
    device_inputs: bool = False
    device_outputs: bool = False
    trim: float = TRIM

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("warmup_iterations", 0), ("threads", 1), ("duration", 0)):
            if not getattr(self, name) >= least:
                raise InvalidParameterError(f"{name} must be at least {least}, not {getattr(self, name)!r}")
        if math.isinf(self.duration):
            raise InvalidParameterError(f"duration must be at least 0 and finite, not {self.duration!r}")
        if not 0 <= self.trim < 0.5:
            raise InvalidParameterError(f"trim_mean_percentage must be at least 0 and below 0.5, not {self.trim!r}")


@dataclasses.dataclass(frozen=True)
class SampleTiming:
    """What was measured on one set of inputs.

    Attributes:
        shapes: input name -> shape.
        items: items of one call, see `items_of`.
        first_call: seconds of the first call of these shapes in the process, engines that it only asks for not built.
        warmup: what `function.warmup` said.
        warmup_seconds: how long it took, builds included.
        latency: single calls, each waited for until its outputs can be read.
        enqueue: of these, until the call came back; None where a call waits by itself (outputs on the host).
        in_a_row: calls that don't wait for the one before; the same calls as in `latency` where each waits by itself.
        device: the GPU's own time of a call with inputs and outputs in its memory; None on the CPU.
        threaded: latencies and throughput of several threads; None for one.
        counters: by how much the counters of the function grew during all of it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    items: int
    first_call: float
    warmup: Mapping[str, Any]
    warmup_seconds: float
    latency: Latencies
    enqueue: Latencies | None
    in_a_row: Throughput
    device: Latencies | None
    threaded: tuple[Latencies, Throughput] | None
    counters: Mapping[str, int]

    def to_dict(self, trim: float = TRIM) -> dict[str, Any]:
        """As plain values; times in milliseconds where the name says so, else in seconds."""
        threaded = None
        if self.threaded is not None:
            latency, throughput = self.threaded
            threaded = {"latency": latency.to_dict(trim), "throughput": throughput.to_dict(self.items)}
        return {
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "items": self.items,
            "first_call_ms": 1e3 * self.first_call,
            "warmup_s": self.warmup_seconds,
            "warmup": dict(self.warmup),
            "latency": self.latency.to_dict(trim),
            "enqueue": self.enqueue and self.enqueue.to_dict(trim),
            "throughput": self.in_a_row.to_dict(self.items),
            "device": self.device and self.device.to_dict(trim),
            "threads": threaded,
            "counters": dict(self.counters),
        }


@dataclasses.dataclass(frozen=True)
class ArtifactTiming:
    """What was measured on an artifact.

    Attributes:
        provider: "cpu" or "cuda": where it ran.
        execution: "auto", "native" or "emulate", as asked for.
        device_start: seconds that CUDA took to start in this process; None where no GPU was opened.
        load: seconds of `load`, packages included that it imports.
        timings: of each set of inputs, in order.
        stats: the function's counters at the end.
        gpu: name and compute capability; None on the CPU.
        notes: what must be known to read the figures.
        trim: share that trimmed means leave out.
    """

    provider: str
    execution: str
    device_start: float | None
    load: float
    timings: tuple[SampleTiming, ...]
    stats: Mapping[str, Any]
    gpu: Mapping[str, Any] | None
    notes: tuple[str, ...]
    trim: float = TRIM

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "provider": self.provider,
            "execution": self.execution,
            "cuda_start_s": self.device_start,
            "load_s": self.load,
            "trim_mean_percentage": self.trim,
            "timings": [timing.to_dict(self.trim) for timing in self.timings],
            "notes": list(self.notes),
            "stats": dict(self.stats),
        }


def time_artifact(
    path: str | Path,
    samples: Callable[[ConvertedFunction], Sequence[Sample]],
    options: TimingOptions | None = None,
    **load_options: Any,
) -> ArtifactTiming:
    """Loads an artifact and times it.

    For each set of inputs: its first call, `function.warmup` with it (which waits for engines that are being built),
    some calls more, then single calls, calls in a row, the GPU's own time, and several threads.

    Args:
        path: the artifact.
        samples: makes the sets of inputs for the loaded function, by public name.
        options: how much is timed; default: `TimingOptions()`.
        **load_options: for `rewriter.load`; "stream" is given here.

    Raises:
        InvalidParameterError: device inputs or outputs where the model does not run on a GPU.
        ConversionError: as `load`, `warmup` and calls raise it.
    """
    from rewriter.runtime.loading import load

    options = options or TimingOptions()
    with contextlib.ExitStack() as stack:
        started = time.perf_counter()
        gpu = _open_gpu(load_options)
        opened = time.perf_counter()
        if gpu is not None:
            stack.enter_context(gpu)
            load_options["stream"] = gpu.handle
        function = stack.enter_context(load(path, **load_options))
        loaded = time.perf_counter() - opened
        used = gpu if function.provider == "cuda" else None
        if used is None and (options.device_inputs or options.device_outputs):
            raise InvalidParameterError(
                "inputs and outputs in device memory need a model that runs on a GPU, but this one runs on the CPU "
                f"({_why_cpu(function)}): leave --device-inputs and --device-outputs out"
            )
        timings = tuple(_time_sample(function, sample, options, used) for sample in samples(function))
        stats = function.stats()
        return ArtifactTiming(
            provider=function.provider,
            execution=function.execution,
            device_start=None if gpu is None else opened - started,
            load=loaded,
            timings=timings,
            stats=stats,
            gpu=None if used is None else used.gpu,
            notes=tuple(notes_of(stats, timings)),
            trim=options.trim,
        )


def _open_gpu(load_options: Mapping[str, Any]) -> GpuStream | None:
    """A stream where the model may run on a GPU; None where it cannot, which `load` explains."""
    from rewriter.runtime.device import missing_gpu

    asked = load_options.get("provider", "auto"), load_options.get("execution", "auto")
    if asked[0] == "cpu" or asked[1] != "auto" or missing_gpu():
        return None
    from rewriter.timing.on_gpu import GpuStream

    try:
        return GpuStream.open(load_options.get("device", 0))
    except (MissingDependencyError, CudaError) as error:
        _LOG.debug("no stream on the GPU: %s", error)
        return None


def _time_sample(
    function: ConvertedFunction, sample: Sample, options: TimingOptions, gpu: GpuStream | None
) -> SampleTiming:
    """All that is measured on one set of inputs."""
    on_device = gpu.put(sample) if gpu is not None else sample
    inputs = on_device if options.device_inputs else sample
    finish = gpu.finish if gpu is not None and options.device_outputs else None

    def call() -> dict[str, Any]:
        return function.run(inputs, device_outputs=options.device_outputs)

    before = function.stats()
    first = measure_parts(call, finish=finish, iterations=1)[0].mean
    started = time.perf_counter()
    warmup = function.warmup(samples=[sample])
    warmed = time.perf_counter() - started
    much: dict[str, Any] = {"iterations": options.iterations, "duration": options.duration}
    latency, enqueue = measure_parts(call, finish=finish, warmup=options.warmup_iterations, **much)
    in_a_row = Throughput(latency.calls, latency.total)
    device = None
    if finish is not None:
        # A few waits in the time that was asked for, whatever a call takes; and bounds for what is enqueued at once.
        chunk = min(MOST_ENQUEUED, int(options.duration / 4 / max(latency.median, 1e-6))) or 1
        in_a_row = measure_in_a_row(call, finish=finish, chunk=chunk if options.duration else MOST_ENQUEUED, **much)
    if gpu is not None:
        gpu.measure(lambda: function.run(on_device, device_outputs=True), max(options.warmup_iterations, 1))
        device = gpu.measure(lambda: function.run(on_device, device_outputs=True), latency.calls)
    threaded = measure_threads([call] * options.threads, finish=finish, **much) if options.threads > 1 else None
    gone = grown(before, function.stats())
    return SampleTiming(
        shapes={name: tuple(value.shape) for name, value in sample.items()},
        items=items_of(function.signature, sample),
        first_call=first,
        warmup=warmup,
        warmup_seconds=warmed,
        latency=latency,
        enqueue=None if finish is None else enqueue,
        in_a_row=in_a_row,
        device=device,
        threaded=threaded,
        counters={name: gone[name] for name in COUNTERS if name in gone},
    )


def _why_cpu(function: ConvertedFunction) -> str:
    """Why a function does not run on the GPU, in a few words."""
    from rewriter.runtime.device import missing_gpu

    if function.execution != "auto":
        return f"execution '{function.execution}' was asked for"
    if function.options.provider == "cpu":
        return "provider 'cpu' was asked for"
    return missing_gpu() or "trt-rewriter doctor says what is missing"


def notes_of(stats: Mapping[str, Any], timings: Sequence[SampleTiming]) -> Iterator[str]:
    """What a reader must know about the figures: whether TensorRT computed anything, and what ran otherwise."""
    nodes = stats["engine_nodes"]
    fallbacks = dict(stats["fallbacks"])
    if stats["execution"] == "emulate":
        yield "emulated on the CPU: this shows what the engines would compute, and nothing of how fast"
    elif not nodes:
        yield "the model has no engine node: all of it runs natively"
    elif not stats["engine_calls"]:
        why = "; ".join(fallbacks) or "no call was made"
        where = stats["provider"].upper()
        yield f"TensorRT computed nothing ({why}): these are the times of ONNX Runtime on the {where}"
    elif fallbacks:
        for reason, count in fallbacks.items():
            yield f"{count} run(s) of engine nodes in {stats['calls']} calls were native: {reason}"
    for what in ("no_plan", "no_graph"):
        for reason, count in dict(stats.get(what, {})).items():
            yield f"without a {what.removeprefix('no_')} of its own, {count} time(s): {reason}"
    for op, reason in dict(stats["unusable_engines"]).items():
        yield f"{op} has an engine that cannot be used: {reason}"
    few = min((timing.latency.calls for timing in timings), default=0)
    if 0 < few < 100:
        yield f"p99 of {few} calls is little more than their maximum: more --iterations make it mean something"
