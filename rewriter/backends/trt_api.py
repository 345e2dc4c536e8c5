"""Parses and builds with a TensorRT module that is handed in: `tensorrt` and `tensorrt_rtx` share one API.

Runs inside the child process (`worker`), so it imports nothing but the standard library. TensorRT reports failures
as None, False or -1 and explains them in its log only, never by an exception: every result is checked here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter.backends import text
from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine, InputProfile, ParserError
from rewriter.backends.plan_file import PlanFile, stream_to

#: Called with (phase, steps done, steps in all); False cancels.
Step = Callable[[str, int, int], bool]
#: What every network is called.
NETWORK_NAME = "engine"
_NOT_TARGETS = {"NONE", "CURRENT"}


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where a stub's data lie in this process: the memory stays mapped until the call returns."""

    name: str
    address: int
    nbytes: int


class Session:
    """One TensorRT module with one logger and one builder, for any number of parses and builds.

    TensorRT keeps the first logger it is given for the whole process, so there is exactly one.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.

    Attributes:
        seconds: what the last parse or build spent in TensorRT; writing the engine's file is not in it.
    """

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._logger = _make_logger(trt)
        self._builder = trt.Builder(self._logger)
        self.seconds = 0.0

    @property
    def version(self) -> str:
        """The module's version."""
        return str(self._trt.__version__)

    def known_targets(self) -> tuple[str, ...]:
        """Compute capabilities that engines can be built for ahead of time; () when the module has no choice."""
        enum = getattr(self._trt, "ComputeCapability", None)
        names = getattr(enum, "__members__", {})
        return tuple(sorted((n for n in names if n not in _NOT_TARGETS), key=lambda n: int(n[2:])))

    def parse(self, proto: bytes, weights: Sequence[Weight]) -> tuple[ParserError, ...]:
        """All errors of parsing a serialised ONNX model whose stubs' data are `weights`."""
        start = time.perf_counter()
        errors = self._load(self._network(), proto, weights)[1]
        self.seconds = time.perf_counter() - start
        return errors

    def build(
        self,
        proto: bytes,
        weights: Sequence[Weight],
        profiles: Sequence[Mapping[str, InputProfile]],
        options: BuildOptions,
        output: Path,
        *,
        step: Step | None = None,
    ) -> BuiltEngine | BuildFailure:
        """Builds a serialised ONNX model and writes the engine to `output`, atomically.

        Raises:
            OSError: `output` cannot be written.
        """
        start = time.perf_counter()
        network = self._network()
        parser, errors = self._load(network, proto, weights)
        self.seconds = time.perf_counter() - start
        if errors:
            log = tuple(f"{e.name or e.input}: {e.message}" for e in errors)
            reason = "; ".join(filter(None, (text.clean(e.message) for e in errors))) or "not supported"
            return BuildFailure("unsupported", f"the parser refuses it: {reason}", log)
        self._logger.errors.clear()
        config = self._builder.create_builder_config()
        failure = self._configure(config, options) or self._add_profiles(config, network, profiles)
        if failure is not None:
            return failure
        if step is not None:
            config.progress_monitor = _make_monitor(self._trt, step)
        with PlanFile(output) as plan:
            built = self._serialize(network, config, plan)
            self.seconds = time.perf_counter() - start - plan.seconds
            del parser  # owns what the network was made from: it lives until here
            if plan.error is not None:
                raise plan.error
            if not built:
                return self._failure(options)
            plan.commit()
        return BuiltEngine(output, plan.size, plan.sha256, int(network.num_layers), time.perf_counter() - start)

    def _serialize(self, network: Any, config: Any, plan: PlanFile) -> bool:
        """Builds straight into the file where the version can: that saves a copy of the engine in memory."""
        if hasattr(self._builder, "build_serialized_network_to_stream"):
            writer = stream_to(self._trt, plan)
            return bool(self._builder.build_serialized_network_to_stream(network, config, writer))
        data = self._builder.build_serialized_network(network, config)
        if data is not None:
            plan.write(memoryview(data))
        return data is not None

    def _network(self) -> Any:
        flags = getattr(self._trt, "NetworkDefinitionCreationFlag", None)
        strong = getattr(flags, "STRONGLY_TYPED", None)
        # TensorRT 10 is weakly typed unless told; later ones keep the flag and know nothing else.
        network = self._builder.create_network(0 if strong is None else 1 << int(strong))
        # The name is kept in the engine; TensorRT's own counts the networks of this process, so that the bytes of an
        # engine would tell what was built before it.
        network.name = NETWORK_NAME
        return network

    def _load(self, network: Any, proto: bytes, weights: Sequence[Weight]) -> tuple[Any, tuple[ParserError, ...]]:
        """Parses into a fresh network: neither parser nor network can be used again after an error."""
        self._logger.errors.clear()
        parser = self._trt.OnnxParser(network, self._logger)
        loaded = parser.load_model_proto(proto)
        if loaded:
            loaded = all(parser.load_initializer(w.name, w.address, w.nbytes) for w in weights)
        if loaded and parser.parse_model_proto():
            return parser, ()
        errors = tuple(_parser_error(parser.get_error(i)) for i in range(parser.num_errors))
        if not errors:
            words = "; ".join(self._logger.errors) or "the parser gave no reason"
            errors = (ParserError(-1, "", "", "INVALID_GRAPH", words, "import"),)
        return parser, errors

    def _configure(self, config: Any, options: BuildOptions) -> BuildFailure | None:
        trt = self._trt
        if options.workspace_bytes <= 0:
            return BuildFailure("workspace", f"the workspace limit of {options.workspace_bytes:,} bytes is too small")
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:  # TensorRT sets it unasked, which would make FP32 mean TF32
            config.clear_flag(trt.BuilderFlag.TF32)
        if not options.targets:
            return None
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            capability = getattr(trt.ComputeCapability, target, None)
            if capability is None or not config.set_compute_capability(capability, index):
                known = ", ".join(self.known_targets())
                return BuildFailure("profile", f"this TensorRT cannot build for {target}; it knows {known}")
        return None

    def _add_profiles(
        self, config: Any, network: Any, profiles: Sequence[Mapping[str, InputProfile]]
    ) -> BuildFailure | None:
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        for number, wanted in enumerate(profiles or ({},)):
            profile = self._builder.create_optimization_profile()
            used = False
            for tensor in inputs:
                try:
                    used |= _set_range(profile, tensor, wanted.get(tensor.name))
                except _ProfileError as error:
                    return BuildFailure("profile", f"profile {number}: {error}", tuple(self._logger.errors))
            if used and config.add_optimization_profile(profile) < 0:
                log = tuple(self._logger.errors)
                return BuildFailure("profile", f"profile {number}: {text.summarise('profile', log, 0)}", log)
        return None

    def _failure(self, options: BuildOptions) -> BuildFailure:
        log = tuple(line for line in self._logger.errors if not text.is_noise(line))
        if not log and self._logger.errors:  # nothing but the missing GPU: some builds do ask for one
            return BuildFailure("gpu", text.NO_GPU, tuple(self._logger.errors))
        kind = text.classify(log)
        return BuildFailure(kind, text.summarise(kind, log, options.workspace_bytes), log)


class _ProfileError(ValueError):
    """A range that does not fit its input; the message names the input."""


def _set_range(profile: Any, tensor: Any, wanted: InputProfile | None) -> bool:
    """Gives one input its range; False when it needs none (static shape, and nothing was asked for)."""
    name, shape = tensor.name, tuple(tensor.shape)
    if tensor.is_shape_tensor:
        if wanted is None or not wanted.is_values:
            raise _ProfileError(f"the input {name!r} holds a shape: its range must be given as values")
        _set(profile.set_shape_input, name, wanted.minimum, wanted.optimum, wanted.maximum)
        return True
    if wanted is None:
        if -1 in shape:
            raise _ProfileError(f"the input {name!r} of shape {list(shape)} is dynamic and has no range")
        return False
    ranges = (wanted.minimum, wanted.optimum, wanted.maximum)
    if wanted.is_values:  # TensorRT does not take this tensor for a shape; the number of values is its length
        ranges = tuple((len(dims),) * len(shape) for dims in ranges)  # type: ignore[assignment]
    if any(len(dims) != len(shape) for dims in ranges):
        raise _ProfileError(f"the input {name!r} has rank {len(shape)}, its range {[list(r) for r in ranges]} has not")
    if any(size not in (-1, got) for dims in ranges for size, got in zip(shape, dims, strict=True)):
        raise _ProfileError(f"the input {name!r} of shape {list(shape)} cannot be {[list(r) for r in ranges]}")
    _set(profile.set_shape, name, *ranges)
    return True


def _set(setter: Any, name: str, *ranges: Sequence[int]) -> None:
    try:
        setter(name, *(list(r) for r in ranges))
    except (ValueError, TypeError, RuntimeError) as error:
        raise _ProfileError(f"the input {name!r} cannot have the range {[list(r) for r in ranges]}: {error}") from error


def _parser_error(error: Any) -> ParserError:
    function, file, node = str(error.func()), str(error.file()), int(error.node())
    # Static checks live in a source file of their own; all of them run before anything is imported.
    stage = "check" if "OpCheckers" in file or function.startswith("check") else "import"
    return ParserError(
        node=node,
        name=str(error.node_name()),
        operator=str(error.node_operator()),
        code=error.code().name,
        message=str(error.desc()),
        stage=stage,
        function=function,
        # For an input that cannot be imported the parser puts the input's name where the file belongs.
        input=file if function == "importInput" and node < 0 else "",
    )


def _make_logger(trt: Any) -> Any:
    """A logger that keeps error lines; made here, for its base class belongs to the module."""
    severity = trt.ILogger.Severity
    kept = (severity.ERROR, severity.INTERNAL_ERROR)

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 needs the explicit call
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                self.errors.append(msg)

    return Collector()


def _make_monitor(trt: Any, step: Step) -> Any:
    """A progress monitor that hands TensorRT's nested phases on, and cancels when told."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._sizes: dict[str, int] = {}
            self._running = True

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            self._sizes[phase_name] = num_steps
            self._running &= step(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step_index: int) -> bool:
            if self._running:
                self._running = step(phase_name, step_index + 1, self._sizes.get(phase_name, step_index + 1))
            return self._running

        def phase_finish(self, phase_name: str) -> None:
            size = self._sizes.pop(phase_name, 1)
            self._running &= step(phase_name, size, size)

    return Monitor()
