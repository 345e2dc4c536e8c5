"""Everything that can compute a converted model's outputs, side by side: the source, native, emulated, TensorRT."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rewriter.comparing.values import Runner
from rewriter.errors import ConversionError, InvalidParameterError

if TYPE_CHECKING:
    from rewriter.artifact import Artifact
    from rewriter.frontend.reference import Reference
    from rewriter.runtime.function import ConvertedFunction

#: In the order that they are shown in.
RUNNERS = ("source", "native", "emulated", "tensorrt")


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """Runners that are ready to run.

    Attributes:
        runners: name -> what maps inputs to outputs, in the order of `RUNNERS`.
        words: name -> what it is, in words.
        notes: why others do not run.
        late_notes: what is known only after the runs: engine calls that ran natively.
    """

    runners: Mapping[str, Runner]
    words: Mapping[str, str]
    notes: tuple[str, ...]
    late_notes: Callable[[], list[str]]


@dataclasses.dataclass(frozen=True)
class RunnerOptions:
    """What runs, and where.

    Attributes:
        wanted: names out of `RUNNERS`; None: all that can run here.
        strict: an engine that would not be used is an error; so is a machine without a GPU.
        device: number of the GPU.
    """

    wanted: tuple[str, ...] | None = None
    strict: bool = False
    device: int = 0

    def __post_init__(self) -> None:
        wanted = self.wanted
        if wanted is None:
            return
        unknown = [name for name in wanted if name not in RUNNERS]
        if unknown or len(set(wanted)) < 2:
            told = f"unknown {', '.join(unknown)}" if unknown else "at least two are needed"
            raise InvalidParameterError(f"--runners: {told}; choose from {', '.join(RUNNERS)}")
        if self.strict and "tensorrt" not in wanted:
            raise InvalidParameterError("--strict says how tensorrt runs, and --runners leaves that out: name it there")

    def asks_for(self, name: str) -> bool:
        """True for a runner that the user named."""
        return self.wanted is not None and name in self.wanted

    def allows(self, name: str) -> bool:
        """True for a runner that the user did not leave out."""
        return self.wanted is None or name in self.wanted


def engine_precisions(artifact: Artifact) -> tuple[str, ...]:
    """Labels of what the engines compute in, as "INT8+FP16", without FP32 and TF32; sorted."""
    from passes.engine_node import engine_nodes, read_attributes

    labels = {read_attributes(node).precision for _, node in engine_nodes(artifact.model.proto)}
    return tuple(sorted(labels - {"FP32", "TF32"}))


@contextlib.contextmanager
def open_runners(
    artifact: Artifact, reference: Reference, options: RunnerOptions | None = None
) -> Iterator[SideBySide]:
    """Opens all runners that are wanted and can run; they are closed with the context.

    1. "source" and "native" always run.
    2. "emulated" runs where an engine computes in another precision than the source.
    3. "tensorrt" runs where there is a GPU and the model has engine nodes; engines that are missing for the shapes are
       built first, if the artifact allows it.

    Args:
        artifact: what was converted.
        reference: what it was converted from.
        options: what the user says.

    Raises:
        InvalidParameterError: a runner that was asked for cannot run, and why.
        ConversionError: as `rewriter.load` raises it; or `strict`, and there is no GPU.
    """
    options = options or RunnerOptions()
    runners: dict[str, Runner] = {}
    words: dict[str, str] = {}
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        if options.allows("source"):
            runners["source"], words["source"] = reference.run, reference.origin
        if options.allows("native"):
            runners["native"] = _runner(stack.enter_context(_open(artifact, execution="native")))
            words["native"] = f"{artifact.path}, every node in ONNX Runtime"
        if options.allows("emulated"):
            precisions = engine_precisions(artifact)
            if precisions:
                runners["emulated"] = _runner(stack.enter_context(_open(artifact, execution="emulate")))
                words["emulated"] = f"{artifact.path}, engines ({', '.join(precisions)}) emulated on the CPU"
            else:
                why = "no engine computes in another precision than the source, so there is nothing to emulate"
                notes.append(_left_out("emulated", why, options))
        on_gpu = None
        if options.allows("tensorrt"):
            on_gpu, why = _open_tensorrt(artifact, options)
            if on_gpu is None:
                notes.append(_left_out("tensorrt", why, options))
            else:
                stack.enter_context(on_gpu)
                runners["tensorrt"] = _runner(on_gpu)
                words["tensorrt"] = f"{artifact.path}, engines in TensorRT on GPU {options.device}"
        yield SideBySide(runners, words, tuple(notes), lambda: _fallbacks(on_gpu))


def _open(artifact: Artifact, **options: object) -> ConvertedFunction:
    from rewriter.runtime.loading import load

    return load(artifact.path, signature=artifact.signature.name, **options)  # type: ignore[arg-type]


def _open_tensorrt(artifact: Artifact, options: RunnerOptions) -> tuple[ConvertedFunction | None, str]:
    """The function on the GPU; or None, and why not."""
    from passes.engine_node import engine_nodes
    from rewriter.runtime import device
    from rewriter.runtime.function import counted

    ops = [node.op_type for _, node in engine_nodes(artifact.model.proto)]
    if not ops:
        return None, "the model has no engine"
    missing = device.missing_gpu()
    if missing and options.strict:
        raise ConversionError(
            f"strict: {counted(len(ops), 'engine node')} would not run on TensorRT; {ops[0]}: {missing}"
        )
    if missing:
        return None, missing
    try:
        # Engines that are still being built would compare the native run with itself.
        gpu = {"provider": "cuda", "device": options.device, "wait_for_builds": True}
        return _open(artifact, strict=options.strict or None, **gpu), ""  # None: the environment decides
    except ConversionError as error:
        if options.strict:
            raise
        return None, str(error)


def _left_out(name: str, why: str, options: RunnerOptions) -> str:
    """The note about a runner that does not run.

    Raises:
        InvalidParameterError: the user asked for it.
    """
    if options.asks_for(name):
        raise InvalidParameterError(f"--runners asks for {name}, which cannot run here: {why}")
    return f"{name} is left out: {why}"


def _runner(function: ConvertedFunction) -> Runner:
    return lambda inputs: function.run(dict(inputs))


def _fallbacks(function: ConvertedFunction | None) -> list[str]:
    """What TensorRT did not compute although it was to."""
    if function is None:
        return []
    counts: Mapping[str, int] = function.stats()["fallbacks"]
    return [f"tensorrt: {count} engine call(s) ran natively: {reason}" for reason, count in counts.items()]


def input_notes(precisions: Sequence[str], *, made_up: bool) -> list[str]:
    """What must be known about the inputs to read the figures.

    Args:
        precisions: what the engines compute in.
        made_up: whether the inputs are none of the user's.
    """
    from passes.precision.recipe import QUANTIZED_MODES

    quantised = any(mode in QUANTIZED_MODES for label in precisions for mode in label.split("+"))
    words = "made-up inputs say little about calibrated ranges (INT8, FP8): give --inputs with typical data"
    return [words] if quantised and made_up else []
