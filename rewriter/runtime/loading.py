"""From an artifact, or from a conversion, to a function: which executor runs it, and why no other."""

from __future__ import annotations

import collections
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.engine_node import engine_nodes
from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from rewriter.artifact import Artifact, load_artifact
from rewriter.artifact_paths import RUNTIME_CACHE_DIR
from rewriter.errors import ArtifactError, ConversionError, InvalidParameterError
from rewriter.runtime import device
from rewriter.runtime.executor import EmulatedExecutor, Executor, NativeExecutor
from rewriter.runtime.function import ConvertedFunction, counted
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.slots import StoredEngine
from rewriter.source import Signature
from rewriter.switches import Switches

#: The keys of all signatures of a model, and what makes the function of one.
Siblings = tuple[Sequence[str], Callable[[str], ConvertedFunction]]


@dataclasses.dataclass(frozen=True)
class Runnable:
    """A converted model and what is needed to run it.

    Attributes:
        model: the spliced model; its weights must not change while a function of it lives.
        signature: names, order, dtypes and shapes.
        engines: the engines of its engine nodes; unusable ones have the reason in `entry.problem`.
        params: the conversion's parameters, as an artifact keeps them.
        recipe: the arithmetic of the engines; None where it is not known: then nothing can be emulated or built.
        ranges: calibrated ranges of INT8 and FP8.
        artifact: the directory that all this was read from; None for a model straight from a converter.
    """

    model: Model
    signature: Signature
    engines: tuple[StoredEngine, ...] = ()
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None
    ranges: RangeTable | None = None
    artifact: Path | None = None

    @property
    def outputs(self) -> list[str]:
        """The ONNX names of the signature's outputs."""
        return [spec.tensor for spec in self.signature.outputs]


def load(
    path: str | Path,
    *,
    signature: str | None = None,
    provider: str = "auto",
    strict: bool | None = None,
    execution: str = "auto",
    cuda_graph: bool = True,
    stream: Any = None,
    device: int = 0,
    wait_for_builds: bool = False,
    engine_cache_dir: str | Path | None = None,
    engine_cache_max_bytes: int | None = None,
    allow_build_at_runtime: bool | None = None,
    maximum_cached_engines: int | None = None,
    cache_full: str | None = None,
) -> ConvertedFunction:
    """Loads an artifact, ready to be called.

    Args:
        path: the directory that `Converter.save` wrote.
        signature: which of several; default: the first. The others are in the function's `signatures`.
        provider: "auto" (GPU where one can be used, else CPU), "cpu" (no engine is used) or "cuda".
        strict: True raises where an engine is not used, instead of running its segment natively. Default: False, unless
            TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION forbids native runs.
        execution: "auto" (engines where they can be used), "native" (none: the model's own arithmetic) or "emulate":
            what the engines would compute, on the CPU and slower, to see what a precision costs without a GPU. Every
            engine node is emulated, built or not; FP32 nodes and engines compute as natively.
        cuda_graph: False runs no call as a CUDA graph: every step is enqueued by itself. (Native islands are still
            recorded once, and thrown away, to learn whether they need the CPU.)
        stream: the CUDA stream to work on: a handle, or an object of PyTorch, CuPy or cuda-core; it must outlive the
            function. Default: a stream of its own.
        device: number of the GPU, as CUDA counts them.
        wait_for_builds: True: a call that finds no fitting engine waits until one is built. False: it runs natively
            meanwhile.
        engine_cache_dir: folder in which engines built at run time are kept for other processes.
        engine_cache_max_bytes: what the engines in that folder may take together; above it the least recently used
            go first. Default 8 GiB.
        allow_build_at_runtime: whether calls may have engines built; default: as the artifact says.
        maximum_cached_engines: engines in memory for each engine node; default: as the artifact says.
        cache_full: what a full cache does, "native" or "evict"; default: as the artifact says.

    Raises:
        ArtifactError: not an artifact, or a damaged one.
        InvalidParameterError: no such signature; an option has a value that is not allowed, or does not go with the
            others.
        ConversionError: "cuda" without a usable GPU; or `strict` although an engine cannot be used; or the engines
            cannot be emulated.
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    options = RuntimeOptions(
        provider=provider,
        strict=natively_forbidden(execution) if strict is None else strict,
        execution=execution,
        cuda_graph=cuda_graph,
        stream=stream,
        device=device,
        wait_for_builds=wait_for_builds,
        engine_cache_dir=engine_cache_dir,
        engine_cache_max_bytes=engine_cache_max_bytes,
        allow_build_at_runtime=allow_build_at_runtime,
        maximum_cached_engines=maximum_cached_engines,
        cache_full=cache_full,
    )
    return _load(path, signature, options)


def _load(path: str | Path, signature: str | None, options: RuntimeOptions) -> ConvertedFunction:
    artifact = load_artifact(path, signature=signature)
    runnable = Runnable(
        model=artifact.model,
        signature=artifact.signature,
        engines=tuple(StoredEngine(entry, artifact.engine_path(entry)) for entry in artifact.engines),
        params=artifact.params,
        recipe=_recipe_of(artifact, needed=options.execution == "emulate"),
        ranges=artifact.ranges,
        artifact=artifact.path,
    )
    siblings = artifact.signatures, lambda key: _load(path, key, options)
    return make_function(runnable, options, siblings=siblings)


def natively_forbidden(execution: str) -> bool:
    """Whether the environment makes a native run of an engine node an error, where engines are to run at all."""
    return execution == "auto" and not Switches.from_environment().allow_native


def make_function(
    runnable: Runnable,
    options: RuntimeOptions | None = None,
    *,
    lazy: bool = False,
    keep_engines: bool = False,
    siblings: Siblings | None = None,
) -> ConvertedFunction:
    """A function of a converted model.

    Args:
        runnable: the model.
        options: how to run it.
        lazy: True makes sessions and loads engines at the first call: until then the model costs no time and no
            memory.
        keep_engines: True gives the function its own links to the engine files, for those whose folder may go
            before it does.
        siblings: the keys of all signatures, and what makes the functions of the others.

    Raises:
        InvalidParameterError: "emulate" without a recipe.
        ConversionError, SourceError, MissingDependencyError: as `load` raises them; with `lazy` the first call may
            raise them.
    """
    options = (options or RuntimeOptions()).filled(runnable.params)
    blocked = _why_no_gpu(options)
    folder = None
    if keep_engines and runnable.engines and not blocked:
        folder, kept = _linked(runnable.engines)
        runnable = dataclasses.replace(runnable, engines=kept)
    # Without a GPU it is known what runs the model, and why; only the session is left for later. What is an error then
    # is one of the first call, as on a GPU.
    put_off = lazy and (not blocked or options.strict)
    return ConvertedFunction(
        (lambda: _make_executor(runnable, options)) if put_off else _make_executor(runnable, options, blocked, lazy),
        runnable.signature,
        [engine.entry for engine in runnable.engines],
        options,
        engine_nodes=sum(1 for _ in engine_nodes(runnable.model.proto)),
        artifact=runnable.artifact,
        on_close=folder.cleanup if folder else None,
        siblings=siblings,
    )


def _why_no_gpu(options: RuntimeOptions) -> str:
    """Why engines run natively here, in a few words; "" when a GPU may run them."""
    if options.execution != "auto":
        return f"execution '{options.execution}' was asked for"
    if options.provider == "cpu":
        return "provider 'cpu' was asked for"
    return device.missing_gpu()


def _make_executor(runnable: Runnable, options: RuntimeOptions, blocked: str = "", lazy: bool = False) -> Executor:
    """What computes the model.

    Args:
        runnable: the model.
        options: how to run it.
        blocked: why the GPU is out of the question; "" tries it.
        lazy: see `make_function`; for executors on the CPU.
    """
    if options.execution == "emulate":
        if runnable.recipe is None:
            raise InvalidParameterError("execution='emulate' needs the recipe of the engines: give recipe=")
        return EmulatedExecutor(runnable.model, runnable.outputs, runnable.recipe, runnable.ranges, lazy=lazy)
    if not blocked:
        opened = _open_gpu(runnable, options)
        if not isinstance(opened, str):
            return opened
        blocked = opened
    if options.provider == "cuda":
        raise ConversionError(f"provider 'cuda' cannot be used: {blocked}; use provider='auto' or 'cpu'")
    nodes = [node.op_type for _, node in engine_nodes(runnable.model.proto)]
    reasons = {op: _why_native(op, runnable, blocked) for op in nodes}
    if options.strict and nodes:
        raise ConversionError(
            f"strict: {counted(len(nodes), 'engine node')} would not run on TensorRT; {nodes[0]}: {reasons[nodes[0]]}"
        )
    fallbacks = collections.Counter(reasons[op] for op in nodes)
    return NativeExecutor(runnable.model, runnable.outputs, fallbacks, lazy=lazy)


def _open_gpu(runnable: Runnable, options: RuntimeOptions) -> Executor | str:
    """The executor on the GPU, or why there is none."""
    from rewriter.runtime.gpu.opening import open_gpu_executor

    return open_gpu_executor(
        runnable.model,
        runnable.outputs,
        runnable.engines,
        options,
        runnable.params,
        runnable.recipe,
        runnable.ranges,
        runnable.artifact / RUNTIME_CACHE_DIR if runnable.artifact else None,
    )


def _why_native(op: str, runnable: Runnable, blocked: str) -> str:
    """Why one engine node runs as its native segment: no engine here, none that is usable, or `blocked`."""
    own = [engine.entry for engine in runnable.engines if engine.entry.op == op]
    if not own and runnable.artifact is None:
        return "no engine has been built for it"
    if not own:
        return "the artifact holds no engine for it"
    return blocked if any(entry.usable for entry in own) else own[0].problem


def _linked(
    engines: Sequence[StoredEngine],
) -> tuple[tempfile.TemporaryDirectory[str], tuple[StoredEngine, ...]]:
    """The same engines in a folder of their own, which goes with the object that is returned for it."""
    folder = tempfile.TemporaryDirectory(prefix="trt-rewriter-engines-")
    kept = []
    for number, engine in enumerate(engines):
        path = Path(folder.name) / f"{number}.engine"
        try:
            os.link(engine.path, path)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(engine.path, path)
        kept.append(dataclasses.replace(engine, path=path))
    return folder, tuple(kept)


def _recipe_of(artifact: Artifact, *, needed: bool) -> Recipe | None:
    """The arithmetic of an artifact's engines; None where it is not told and not needed.

    Raises:
        ArtifactError: it is needed, but the artifact does not say, or not in words that this version knows.
    """
    data = artifact.params.get("recipe")
    problem = "it does not hold its recipe"
    try:
        if isinstance(data, Mapping):
            return Recipe.from_json(data)
    except ValueError as error:
        problem = str(error)
    if needed:
        raise ArtifactError(f"{artifact.path} cannot be emulated: {problem}: convert the model again")
    return None
