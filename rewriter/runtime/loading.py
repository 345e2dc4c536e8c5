"""From an artifact, or from a conversion, to a function: which executor runs it, and why no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from passes.engine_node import engine_nodes
from passes.island_node import island_nodes
from passes.precision.recipe import Recipe
from rewriter.artifact import Artifact, load_artifact
from rewriter.artifact.islands import keep_islands, link_or_copy
from rewriter.errors import ArtifactError
from rewriter.runtime import device
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.opening import Runnable, make_executor
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.slots import StoredEngine
from rewriter.switches import Switches
from rewriter.temporary import TemporaryFolder

__all__ = ["Runnable", "Siblings", "load", "make_function", "natively_forbidden"]

#: The keys of all signatures of a model, and what makes the function of one.
Siblings = tuple[Sequence[str], Callable[[str], ConvertedFunction]]


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
    threads: int | None = None,
    wait_for_builds: bool = False,
    engine_cache_dir: str | Path | None = None,
    engine_cache_max_bytes: int | None = None,
    allow_build_at_runtime: bool | None = None,
    maximum_cached_engines: int | None = None,
    cache_full: str | None = None,
) -> ConvertedFunction:
    """Loads an artifact, ready to be called.

    Of several engines of a node the best for this GPU is opened first, the next best where that is damaged or refused,
    and others when calls need their shapes: see `rewriter.runtime.choosing.order`. What was chosen, and why nothing
    else, is logged (INFO) and stands in `stats()["engines_chosen"]`.

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
        threads: with how many threads ONNX Runtime computes native parts on the CPU, without spinning: for several
            processes on one machine. Default: as many as there are cores. (TensorFlow's are its own.)
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
        SourceError: ONNX Runtime refuses the model, or TensorFlow a part that stays there.
        MissingDependencyError: ONNX Runtime is not installed; or TensorFlow, and a part of the model stays there.
    """
    options = RuntimeOptions(
        provider=provider,
        strict=natively_forbidden(execution) if strict is None else strict,
        execution=execution,
        cuda_graph=cuda_graph,
        stream=stream,
        device=device,
        threads=threads,
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
        keep_engines: True gives the function its own links to the files of engines and of parts that stay in
            TensorFlow, for those whose folder may go before it does.
        siblings: the keys of all signatures, and what makes the functions of the others.

    Raises:
        InvalidParameterError: "emulate" without a recipe.
        ConversionError, SourceError, MissingDependencyError: as `load` raises them; with `lazy` the first call may
            raise them.
    """
    options = (options or RuntimeOptions()).filled(runnable.params)
    blocked = _why_no_gpu(options)
    folder = None
    if keep_engines:
        folder, runnable = _kept(runnable, with_engines=not blocked)
    # Without a GPU it is known what runs the model, and why; only the session is left for later. What is an error then
    # is one of the first call, as on a GPU.
    put_off = lazy and (not blocked or options.strict)
    return ConvertedFunction(
        (lambda: make_executor(runnable, options)) if put_off else make_executor(runnable, options, blocked, lazy=lazy),
        runnable.signature,
        [engine.entry for engine in runnable.engines],
        options,
        engine_nodes=sum(1 for _ in engine_nodes(runnable.model.proto)),
        artifact=runnable.artifact,
        on_close=folder.remove if folder else None,
        siblings=siblings,
    )


def _why_no_gpu(options: RuntimeOptions) -> str:
    """Why engines run natively here, in a few words; "" when a GPU may run them."""
    if options.execution != "auto":
        return f"execution '{options.execution}' was asked for"
    if options.provider == "cpu":
        return "provider 'cpu' was asked for"
    return device.missing_gpu()


def _kept(runnable: Runnable, *, with_engines: bool) -> tuple[TemporaryFolder | None, Runnable]:
    """The same with files in a folder of its own, which goes with the object that is returned for it, if any."""
    engines = runnable.engines if with_engines else ()
    islands = any(True for _ in island_nodes(runnable.model.proto))
    if not engines and not islands:
        return None, runnable
    folder = TemporaryFolder("trt-rewriter-kept-")
    root = folder.path
    kept = []
    for number, engine in enumerate(engines):
        path = root / f"{number}.engine"
        link_or_copy(engine.path, path)
        kept.append(dataclasses.replace(engine, path=path))
    if islands:
        runnable = dataclasses.replace(runnable, model=keep_islands(runnable.model, root))
    return folder, dataclasses.replace(runnable, engines=tuple(kept)) if engines else runnable


def _recipe_of(artifact: Artifact, *, needed: bool) -> Recipe | None:
    """The arithmetic of an artifact's engines; None where it is not told and not needed.

    Raises:
        ArtifactError: it is needed, but the artifact does not say, or not in words that this version knows.
    """
    try:
        return artifact.recipe("emulated")
    except ArtifactError:
        if needed:
            raise
        return None
