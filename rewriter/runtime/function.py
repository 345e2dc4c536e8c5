"""`ConvertedFunction`: a converted model that is called like the TensorFlow signature it came from."""

from __future__ import annotations

import collections
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.engine_node import engine_nodes
from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from passes.segments import TensorSpec
from rewriter.artifact import Artifact, EngineEntry, load_artifact
from rewriter.errors import ArtifactError, ConversionError, ConverterStateError, InvalidParameterError
from rewriter.runtime import device
from rewriter.runtime.executor import EmulatedExecutor, Execution, Executor, NativeExecutor
from rewriter.runtime.inputs import bind, describe, is_tensorflow, to_feeds
from rewriter.runtime.other_errors import first_line
from rewriter.source import Signature

logger = logging.getLogger(__name__)

#: What `provider` may be.
PROVIDERS = ("auto", "cpu", "cuda")
#: What `execution` may be.
EXECUTIONS = ("auto", "native", "emulate")


class ConvertedFunction:
    """A spliced model as a function. Thread-safe, and a context manager.

    Call it with arrays in the order of the signature, with one dict, tuple or list of them, or with keywords. It
    takes numpy arrays, TensorFlow tensors, anything with `__array__` or DLPack in CPU memory, and Python numbers and
    lists. It returns the signature's outputs by name, in its order: numpy arrays, or TensorFlow tensors when one of
    the inputs was one.

    Args:
        model: the spliced model; its weights must not change while this object lives.
        signature: names, order, dtypes and shapes.
        engines: what is known of the engines of the model's engine nodes; None for a model that `convert()` has just
            made, whose engines (if any) go into the artifact only.
        provider: "auto", "cpu" (no engine is used) or "cuda" (an error where no GPU can be used).
        strict: True raises where an engine would not be used, instead of running its segment natively.
        lazy: True makes the session at the first call: until then the model costs no time and no memory.
        execution: "auto" (engines where they can be used), "native" (none: the model's own arithmetic), or "emulate":
            what the engines would compute, on the CPU and slower, to see what a precision costs without a GPU. Every
            engine node is emulated, built or not; FP32 nodes and engines compute as natively.
        recipe: "emulate" only: the arithmetic of the engines.
        ranges: "emulate" only: the calibrated ranges of INT8 and FP8.

    Attributes:
        signature: what it was made with.
        engines: likewise; () for None.
        provider: what it runs on: "cpu" or "cuda".
        execution: likewise what it was made with.
        structured_input_signature: ((), {input name: spec}): the structure that TensorFlow gives a signature, but the
            specs are `passes.segments.TensorSpec`, not `tf.TensorSpec`. Their `dtype` is a number of
            `onnx.TensorProto.DataType` (FLOAT is 1); their `shape` is None or a tuple whose unknown dimensions are
            None or a name ("batch").
        structured_outputs: {output name: spec}, likewise.

    Raises:
        InvalidParameterError: an unknown provider or execution, or one that does not go with the other options.
        ConversionError: "cuda" without a usable GPU; or `strict` although an engine cannot be used; or the engines
            cannot be emulated.
        SourceError: ONNX Runtime refuses the model (with `lazy`, the first call raises it).
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        model: Model,
        signature: Signature,
        engines: Sequence[EngineEntry] | None = None,
        *,
        provider: str = "auto",
        strict: bool = False,
        lazy: bool = False,
        execution: str = "auto",
        recipe: Recipe | None = None,
        ranges: RangeTable | None = None,
    ) -> None:
        self.signature = signature
        self.engines = tuple(engines or ())
        self.structured_input_signature: tuple[tuple[()], dict[str, TensorSpec]] = (
            (),
            {spec.name: spec for spec in signature.inputs},
        )
        self.structured_outputs: dict[str, TensorSpec] = {spec.name: spec for spec in signature.outputs}
        self._strict = strict
        self._engine_nodes = sum(1 for _ in engine_nodes(model.proto))
        self._lock = threading.Lock()
        self._calls = 0
        self._engine_calls = 0
        self._fallbacks: collections.Counter[str] = collections.Counter()
        self._said: set[str] = set()
        self.execution = execution
        check_execution(execution, provider, strict=strict)
        self._executor: Executor | None = (
            _make_emulator(model, signature, recipe, ranges, lazy=lazy)
            if execution == "emulate"
            else _make_executor(model, signature, engines, provider, strict=strict, lazy=lazy, execution=execution)
        )
        self.provider = self._executor.provider

    def __call__(self, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Computes the outputs.

        Returns:
            Public output name -> array (or tensor), in signature order; the caller owns them.

        Raises:
            InputError: the inputs do not fit the signature.
            ConverterStateError: the function is closed.
            ConversionError: the model failed on these inputs; or `strict`, and an engine was not used.
        """
        executor = self._executor
        if executor is None:
            raise ConverterStateError("this function is closed: load the artifact again")
        values = bind(self.signature, args, kwargs)
        execution = self._run(executor, to_feeds(self.signature, values))
        self._count(execution)
        outputs = {spec.name: execution.outputs[spec.tensor] for spec in self.signature.outputs}
        if any(is_tensorflow(value) for value in values.values()):
            convert = sys.modules["tensorflow"].convert_to_tensor
            outputs = {name: convert(array) for name, array in outputs.items()}
        return outputs

    def stats(self) -> dict[str, Any]:
        """Counters since the function was made.

        Returns:
            calls: finished calls.
            engine_calls: calls in which TensorRT computed at least one engine node.
            native_calls: the other ones.
            fallbacks: reason -> how often an engine node ran as its native segment for it.
            engine_nodes: number of engine nodes in the model.
            engines: number of engines for them.
            unusable_engines: engine node -> why its engine can never be used.
            provider: "cpu" or "cuda".
            execution: "auto", "native" or "emulate", as it was asked for.
        """
        with self._lock:
            return {
                "calls": self._calls,
                "engine_calls": self._engine_calls,
                "native_calls": self._calls - self._engine_calls,
                "fallbacks": dict(self._fallbacks),
                "engine_nodes": self._engine_nodes,
                "engines": len(self.engines),
                "unusable_engines": {entry.op: entry.problem for entry in self.engines if not entry.usable},
                "provider": self.provider,
                "execution": self.execution,
            }

    def close(self) -> None:
        """Frees sessions and engines; harmless when repeated."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.close()

    def __enter__(self) -> ConvertedFunction:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {describe(spec)}" for spec in self.signature.inputs)
        outputs = ", ".join(f"{spec.name}: {describe(spec)}" for spec in self.signature.outputs)
        state = "closed" if self._executor is None else self.provider
        state += ", emulated" * (self.execution == "emulate")
        return f"<ConvertedFunction ({inputs}) -> ({outputs}), {_counted(len(self.engines), 'engine')}, {state}>"

    def _run(self, executor: Executor, feeds: Mapping[str, Any]) -> Execution:
        try:
            return executor.run(feeds)
        except ConversionError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{spec.name} {list(feeds[spec.tensor].shape)}" for spec in self.signature.inputs)
            raise ConversionError(f"the model failed on the inputs {shapes}: {first_line(error)}") from error

    def _count(self, execution: Execution) -> None:
        """Counts one call; says each new reason for a fallback once."""
        with self._lock:
            self._calls += 1
            self._engine_calls += execution.engine_runs > 0
            self._fallbacks.update(execution.fallbacks)
            news = [reason for reason in execution.fallbacks if reason not in self._said]
            self._said.update(news)
        level = logging.INFO if self.execution == "native" else logging.WARNING  # what was asked for needs no warning
        for reason in news:
            count, verb = execution.fallbacks[reason], "runs" if execution.fallbacks[reason] == 1 else "run"
            logger.log(level, "%s %s natively: %s", _counted(count, "engine node"), verb, reason)
        if self._strict and execution.fallbacks:
            raise ConversionError(f"strict: an engine was not used: {next(iter(execution.fallbacks))}")


def load(
    path: str | Path, *, provider: str = "auto", strict: bool = False, execution: str = "auto"
) -> ConvertedFunction:
    """Loads an artifact, ready to be called.

    Args:
        path: the directory that `Converter.save` wrote.
        provider: "auto" (GPU where one can be used, else CPU), "cpu" or "cuda".
        strict: True raises where an engine would not be used, instead of running its segment natively.
        execution: "auto" (engines where they can be used), "native" (none) or "emulate": what the engines would
            compute, on the CPU; see `ConvertedFunction`.

    Raises:
        ArtifactError: not an artifact, or a damaged one.
        InvalidParameterError, ConversionError, MissingDependencyError: as `ConvertedFunction` raises them.
    """
    check_execution(execution, provider, strict=strict)
    artifact = load_artifact(path)
    return ConvertedFunction(
        artifact.model,
        artifact.signature,
        artifact.engines,
        provider=provider,
        strict=strict,
        execution=execution,
        recipe=_recipe_of(artifact) if execution == "emulate" else None,
        ranges=artifact.ranges if execution == "emulate" else None,
    )


def check_provider(provider: str) -> None:
    """Refuses an unknown provider.

    Raises:
        InvalidParameterError: it is unknown; the message lists the known ones.
    """
    if provider not in PROVIDERS:
        raise InvalidParameterError(f"provider must be one of {', '.join(PROVIDERS)}, not {provider!r}")


def check_execution(execution: str, provider: str, *, strict: bool) -> None:
    """Refuses an unknown provider or execution, and combinations of options that cannot be obeyed.

    Raises:
        InvalidParameterError: with what is known, or with what to leave out.
    """
    check_provider(provider)
    if execution not in EXECUTIONS:
        raise InvalidParameterError(f"execution must be one of {', '.join(EXECUTIONS)}, not {execution!r}")
    if execution != "auto" and (strict or provider == "cuda"):
        other = "strict=True" if strict else "provider='cuda'"
        raise InvalidParameterError(f"execution={execution!r} uses no engines: leave {other} out")


def _recipe_of(artifact: Artifact) -> Recipe:
    """The arithmetic of an artifact's engines.

    Raises:
        ArtifactError: it does not say, or not in words that this version knows.
    """
    data = artifact.params.get("recipe")
    try:
        if isinstance(data, Mapping):
            return Recipe.from_json(data)
    except ValueError as error:
        raise ArtifactError(f"{artifact.path} cannot be emulated: {error}: convert the model again") from error
    raise ArtifactError(f"{artifact.path} cannot be emulated: it does not hold its recipe: convert the model again")


def _make_emulator(
    model: Model, signature: Signature, recipe: Recipe | None, ranges: RangeTable | None, *, lazy: bool
) -> Executor:
    if recipe is None:
        raise InvalidParameterError("execution='emulate' needs the recipe of the engines: give recipe=")
    return EmulatedExecutor(model, [spec.tensor for spec in signature.outputs], recipe, ranges, lazy=lazy)


def _make_executor(
    model: Model,
    signature: Signature,
    engines: Sequence[EngineEntry] | None,
    provider: str,
    *,
    strict: bool,
    lazy: bool,
    execution: str = "auto",
) -> Executor:
    """Chooses what computes the model; each engine that will not be used has its reason."""
    blocked = "execution 'native' was asked for" if execution == "native" else _why_no_engines(provider)
    if provider == "cuda":
        raise ConversionError(f"provider 'cuda' cannot be used: {blocked}; use provider='auto' or 'cpu'")
    nodes = [node.op_type for _, node in engine_nodes(model.proto)]
    reasons = {op: _why_native(op, engines, blocked) for op in nodes}
    if strict and nodes:
        raise ConversionError(
            f"strict: {_counted(len(nodes), 'engine node')} would not run on TensorRT; {nodes[0]}: {reasons[nodes[0]]}"
        )
    fallbacks = collections.Counter(reasons[op] for op in nodes)
    return NativeExecutor(model, [spec.tensor for spec in signature.outputs], fallbacks, lazy=lazy)


def _why_native(op: str, engines: Sequence[EngineEntry] | None, blocked: str) -> str:
    """Why one engine node runs as its native segment: no engine here, none that is usable, or `blocked`."""
    if engines is None:
        return "this function came from convert(): save() and load() the artifact to use its engines"
    own = [entry for entry in engines if entry.op == op]
    if not own:
        return "the artifact holds no engine for it"
    return blocked if any(entry.usable for entry in own) else own[0].problem


def _why_no_engines(provider: str) -> str:
    """Why engines run natively here, in a few words."""
    if provider == "cpu":
        return "provider 'cpu' was asked for"
    return device.missing_gpu() or "this version of trt-rewriter has no GPU executor"


def _counted(count: int, thing: str) -> str:
    """`1 engine`, `2 engines`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
