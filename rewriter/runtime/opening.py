"""What computes a converted model: which executor, section by section where parts of it stay in TensorFlow."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.base import PassError
from passes.engine_node import engine_nodes, what_if_nodes
from passes.island_node import island_nodes
from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from rewriter.artifact.manifest import EngineEntry
from rewriter.artifact.paths import RUNTIME_CACHE_DIR
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.runtime.choosing import choice_lines, none_chosen
from rewriter.runtime.executor import EmulatedExecutor, Executor, NativeExecutor
from rewriter.runtime.function import counted
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.sections import Route, Section
from rewriter.runtime.slots import StoredEngine
from rewriter.runtime.staged import StagedExecutor
from rewriter.source import Signature

_LOG = logging.getLogger(__name__)


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
    def outputs(self) -> tuple[str, ...]:
        """The ONNX names of the signature's outputs."""
        return tuple(spec.tensor for spec in self.signature.outputs)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A model without island nodes: all of a runnable, or one section of it.

    Attributes:
        whole: what it is a part of.
        model: its graph.
        outputs: ONNX names of what it computes.
        engines: the engines of its engine nodes.
    """

    whole: Runnable
    model: Model
    outputs: tuple[str, ...]
    engines: tuple[StoredEngine, ...]

    @functools.cached_property
    def ops(self) -> tuple[str, ...]:
        """The operators of its engine nodes."""
        return tuple(node.op_type for _, node in engine_nodes(self.model.proto))

    @property
    def entries(self) -> list[EngineEntry]:
        """What is known of these engines; only of those that a node has."""
        return [engine.entry for engine in self.engines if engine.entry.op in self.ops]


def make_executor(runnable: Runnable, options: RuntimeOptions, blocked: str = "", *, lazy: bool = False) -> Executor:
    """What computes the model.

    1. A model without island nodes has one executor: emulated where that was asked for, else on the GPU, else on the
       CPU.
    2. Of a model with island nodes every section has one, chosen in the same way; TensorFlow computes the islands.
    3. Which engines are used, and why no others, is logged (INFO).

    Args:
        runnable: the model.
        options: how to run it.
        blocked: why the GPU is out of the question; "" tries it.
        lazy: see `rewriter.runtime.loading.make_function`; for executors on the CPU.

    Raises:
        InvalidParameterError, ConversionError, SourceError, MissingDependencyError: as `load` raises them.
    """
    if options.execution == "emulate" and runnable.recipe is None:
        raise InvalidParameterError("execution='emulate' needs the recipe of the engines: give recipe=")
    if any(True for _ in island_nodes(runnable.model.proto)):
        executor: Executor = _make_staged(runnable, options, blocked, lazy=lazy)
    else:
        part = _Part(runnable, runnable.model, runnable.outputs, runnable.engines)
        executor = _make_part(part, options, blocked, lazy=lazy, everywhere=options.provider == "cuda")
    if _LOG.isEnabledFor(logging.INFO):
        for line in choice_lines(executor.stats().get("engines_chosen", {})):
            _LOG.info("%s: %s", runnable.artifact or "converted model", line)
    return executor


def _make_staged(runnable: Runnable, options: RuntimeOptions, blocked: str, *, lazy: bool) -> StagedExecutor:
    """The executor of a model with island nodes."""
    try:
        route = Route.of(runnable.model, runnable.outputs)
    except PassError as error:
        raise ConversionError(f"the model cannot be cut at the parts that stay in TensorFlow: {error}") from error

    def open_section(section: Section) -> Executor:
        ops = {node.op_type for _, node in engine_nodes(section.model.proto)}
        own = tuple(engine for engine in runnable.engines if engine.entry.op in ops)
        part = _Part(runnable, section.model, section.outputs, own)
        # Where nothing is to be built, no builder is needed; without engines the CPU may be all that is left.
        chosen = options if ops else dataclasses.replace(options, allow_build_at_runtime=False)
        return _make_part(part, chosen, blocked, lazy=lazy, everywhere=options.provider == "cuda" and bool(ops))

    executor = StagedExecutor(route, open_section, lazy=lazy)
    if options.provider == "cuda" and executor.provider != "cuda":
        executor.close()
        why = blocked or "none of its sections can run there"
        raise ConversionError(f"provider 'cuda' cannot be used: {why}; use provider='auto' or 'cpu'")
    return executor


def _make_part(part: _Part, options: RuntimeOptions, blocked: str, *, lazy: bool, everywhere: bool) -> Executor:
    """What computes one model without island nodes.

    Args:
        part: the model.
        options: how to run it.
        blocked: why the GPU is out of the question; "" tries it.
        lazy: for executors on the CPU.
        everywhere: True makes it an error when this part cannot run on the GPU.
    """
    whole = part.whole
    if options.execution == "emulate" and whole.recipe is not None:
        return EmulatedExecutor(
            part.model,
            part.outputs,
            whole.recipe,
            whole.ranges,
            lazy=lazy,
            threads=options.threads or 0,
            chosen=none_chosen(part.entries, lambda _: f"execution {options.execution!r} was asked for"),
        )
    if not blocked:
        opened = _open_gpu(part, options)
        if not isinstance(opened, str):
            return opened
        blocked = opened
    if everywhere:
        raise ConversionError(f"provider 'cuda' cannot be used: {blocked}; use provider='auto' or 'cpu'")
    reasons = {op: _why_native(op, part, blocked) for op in part.ops} | what_if_nodes(part.model.proto)
    if options.strict and reasons:
        first = part.ops[0]
        raise ConversionError(
            f"strict: {counted(len(reasons), 'engine node')} would not run on TensorRT; {first}: {reasons[first]}"
        )
    fallbacks = collections.Counter(reasons[op] for op in part.ops)
    told = none_chosen(part.entries, reasons.__getitem__)
    return NativeExecutor(part.model, part.outputs, fallbacks, lazy=lazy, threads=options.threads or 0, chosen=told)


def _open_gpu(part: _Part, options: RuntimeOptions) -> Executor | str:
    """The executor on the GPU, or why there is none."""
    from rewriter.runtime.gpu.opening import open_gpu_executor

    whole = part.whole
    return open_gpu_executor(
        part.model,
        part.outputs,
        part.engines,
        options,
        whole.params,
        whole.recipe,
        whole.ranges,
        whole.artifact / RUNTIME_CACHE_DIR if whole.artifact else None,
    )


def _why_native(op: str, part: _Part, blocked: str) -> str:
    """Why one engine node runs as its native segment: no engine here, none that is usable, or `blocked`."""
    own = [engine.entry for engine in part.engines if engine.entry.op == op]
    if not own and part.whole.artifact is None:
        return "no engine has been built for it"
    if not own:
        return "the artifact holds no engine for it"
    return blocked if any(entry.usable for entry in own) else own[0].problem
