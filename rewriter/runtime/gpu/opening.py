"""From an artifact's parts to the executor on the GPU: what can run, and why the rest cannot."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.base import PassError
from passes.engine_node import engine_nodes, what_if_nodes
from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from rewriter.errors import ConversionError, CudaError, DeviceMemoryError, EngineRefusedError, MissingDependencyError
from rewriter.runtime.choosing import Ranked, chosen, order, version_problem
from rewriter.runtime.executor import NativeExecutor
from rewriter.runtime.gpu.cuda import Cuda
from rewriter.runtime.gpu.engine import LoadedEngine, TrtRuntime, import_runtime
from rewriter.runtime.gpu.executor import HybridExecutor
from rewriter.runtime.gpu.island import cuda_provider_problem
from rewriter.runtime.gpu.pieces import Pieces
from rewriter.runtime.gpu.runtime_cache import RuntimeCacheFile
from rewriter.runtime.schedule import EngineStep, Schedule, make_schedule
from rewriter.runtime.slots import EngineSlot, Found, Miss
from rewriter.switches import Switches

if TYPE_CHECKING:
    from rewriter.runtime.builds import BackgroundBuilds
    from rewriter.runtime.options import RuntimeOptions
    from rewriter.runtime.runtime_builder import RuntimeBuilder
    from rewriter.runtime.slots import StoredEngine

_LOG = logging.getLogger(__name__)
#: Handles that CUDA gives its default streams; nothing can be captured on them.
_DEFAULT_STREAMS = (0, 1, 2)


def open_gpu_executor(
    model: Model,
    outputs: Sequence[str],
    engines: Sequence[StoredEngine],
    options: RuntimeOptions,
    params: Mapping[str, Any],
    recipe: Recipe | None,
    ranges: RangeTable | None,
    runtime_cache_folder: Path | None,
) -> HybridExecutor | str:
    """Loads the engines and makes the executor.

    1. Every engine is loaded and prepared now, so that a refused one is known before the first call. Engine nodes
       for which there is none, and for which none may be built, become a part of the native islands.
    2. Where ONNX Runtime has no CUDA provider, the native steps run in CPU memory; when no engine runs either, there
       is nothing for the GPU to do.

    Args:
        model: the spliced model.
        outputs: ONNX output names to compute.
        engines: of all engine nodes; the usable ones of each in order of preference.
        options: filled (see `RuntimeOptions.filled`).
        params: the conversion's parameters as the artifact keeps them.
        recipe: the arithmetic of the engines; None where it is not known, and nothing can be built.
        ranges: calibrated ranges.
        runtime_cache_folder: where TensorRT-RTX's compiled kernels are kept; None keeps none.

    Returns:
        The executor, or why the model runs on the CPU, in a few words.

    Raises:
        ConversionError: `strict`, and an engine node would run natively with every call.
    """
    try:
        cuda = Cuda(stream=options.stream, device=options.device)
    except (MissingDependencyError, CudaError) as error:
        return str(error)
    opener = Opener(cuda, runtime_cache_folder)
    with contextlib.ExitStack() as undo:
        undo.callback(cuda.close)
        try:
            made = assemble(model, outputs, engines, options, params, recipe, ranges, opener)
        except PassError as error:
            raise ConversionError(f"the model cannot be cut into engines and native parts: {error}") from error
        if not isinstance(made, str):
            undo.pop_all()
        return made


class Opener:
    """Loads engine files on one device.

    Args:
        cuda: the device.
        runtime_cache_folder: see `open_gpu_executor`.
        modules: flavour -> TensorRT's module; default: it is imported.
    """

    def __init__(
        self, cuda: Cuda, runtime_cache_folder: Path | None, modules: Callable[[str], Any] = import_runtime
    ) -> None:
        self.cuda = cuda
        self._folder = runtime_cache_folder
        self._modules = modules
        self._runtime = functools.cache(lambda flavour: TrtRuntime(modules(flavour), cuda))

    def installed(self, flavour: str) -> str:
        """The version of a TensorRT package.

        Raises:
            MissingDependencyError, InvalidParameterError: as `import_runtime`.
        """
        return str(self._modules(flavour).__version__)

    def __call__(self, stored: StoredEngine) -> LoadedEngine:
        """An engine with its first context, so that nothing is compiled in a call for it.

        Raises:
            EngineRefusedError: it will never run here; the message says why.
            DeviceMemoryError: no memory for it now.
        """
        entry = stored.entry
        with self.cuda.current():
            try:
                runtime = self._runtime(entry.backend)
            except MissingDependencyError as error:
                raise EngineRefusedError(version_problem(entry, error)) from error
            if problem := version_problem(entry, runtime.version):
                raise EngineRefusedError(problem)
            cache = None
            if self._folder is not None:
                major, minor = self.cuda.compute_capability
                cache = RuntimeCacheFile(
                    self._folder, entry.key, f"{self.cuda.gpu_name}, {major}.{minor}", runtime.version
                )
            engine = runtime.load(stored.path, cache)
            try:
                engine.context(0)
            except (EngineRefusedError, DeviceMemoryError):
                engine.close()
                raise
            return engine


def assemble(
    model: Model,
    outputs: Sequence[str],
    engines: Sequence[StoredEngine],
    options: RuntimeOptions,
    params: Mapping[str, Any],
    recipe: Recipe | None,
    ranges: RangeTable | None,
    opener: Opener,
) -> HybridExecutor | str:
    """`open_gpu_executor` on a device that is there."""
    nodes = {node.op_type: scope for scope, node in engine_nodes(model.proto)}
    ranked = {op: _ranked([item for item in engines if item.entry.op == op], opener) for op in nodes}
    own = {op: [item.stored for item in found] for op, found in ranked.items()}
    blocked: dict[str, str] = {}
    with contextlib.ExitStack() as undo:
        builder, builds = _builds(_usable_first(own), options, params, recipe, ranges, undo)
        blocked.update(what_if_nodes(model.proto))
        for op, stored in own.items():
            if op not in blocked and not nodes[op] and builds is None and not any(item.entry.usable for item in stored):
                blocked[op] = stored[0].entry.problem if stored else "it has no engine"
        wanted = [op for op, scope in nodes.items() if not scope and op not in blocked]
        schedule = make_schedule(model, outputs, wanted, hashed=False)
        slots = _slots(schedule, own, options, builds, opener)
        undo.callback(_close_all, slots)
        fates = dict(slots)
        refused = _preload(slots) if builds is None else _preload_all(slots)
        if refused and builds is None:
            blocked.update(refused)
            for op in refused:
                slots.pop(op).close()
            schedule = make_schedule(model, outputs, sorted(slots), hashed=False)
            slots = {step.op: slots[step.op] for step in schedule.steps if isinstance(step, EngineStep)}
        blocked.update((op, reason) for op, reason in schedule.inner.items() if op not in blocked)
        _tell(blocked, options)
        problem = cuda_provider_problem(opener.cuda)
        if problem and not slots:
            # What is wrong with the engines says more than that ONNX Runtime cannot use the GPU either.
            return "; ".join(dict.fromkeys([*(blocked[op] for op in own if op in blocked and own[op]), problem]))
        if problem and any(not isinstance(step, EngineStep) for step in schedule.steps):
            _LOG.warning("native nodes run on the CPU, with copies at every engine: %s", problem)
        pieces = Pieces(
            schedule,
            slots,
            opener.cuda,
            host_islands=bool(problem),
            no_graphs=_why_no_graphs(options, opener.cuda),
            can_capture=opener.cuda.stream not in _DEFAULT_STREAMS,
            threads=options.threads or 0,
        )
        executor = HybridExecutor(
            pieces,
            lambda: NativeExecutor(model, outputs, {}, threads=options.threads or 0),
            blocked=collections.Counter(blocked.values()),
            strict=options.strict,
            builds=builds,
            builder=builder,
            waits=options.wait_for_builds,
            chosen=lambda: _chosen(ranked, fates, blocked),
        )
        undo.pop_all()
        return executor


def _ranked(engines: Sequence[StoredEngine], opener: Opener) -> tuple[Ranked, ...]:
    """The engines of one node in the order in which this machine prefers them."""
    return order(engines, opener.cuda.compute_capability, opener.installed)


def _usable_first(own: Mapping[str, Sequence[StoredEngine]]) -> list[StoredEngine]:
    """The engines of all nodes; the first says with which package engines are built at run time."""
    return sorted(itertools.chain(*own.values()), key=lambda stored: not stored.entry.usable)


def _chosen(
    ranked: Mapping[str, Sequence[Ranked]], slots: Mapping[str, EngineSlot], blocked: Mapping[str, str]
) -> dict[str, Any]:
    """Engine operator -> which of its engines are used, and why not the others; only where there are some."""
    told = {}
    for op, found in ranked.items():
        opened, refused, waiting = slots[op].fates() if op in slots else ({}, {}, {})
        told[op] = chosen(found, opened, refused, blocked.get(op, ""), waiting)
    return {op: facts for op, facts in told.items() if any(facts.values())}


def _builds(
    engines: Sequence[StoredEngine],
    options: RuntimeOptions,
    params: Mapping[str, Any],
    recipe: Recipe | None,
    ranges: RangeTable | None,
    undo: contextlib.ExitStack,
) -> tuple[RuntimeBuilder | None, BackgroundBuilds | None]:
    """What builds engines at run time; None where that is not allowed (TF-TRT: only for dynamic operators)."""
    if not options.allow_build_at_runtime or recipe is None or params.get("is_dynamic_op") is False:
        return None, None
    from rewriter.runtime.builds import BackgroundBuilds
    from rewriter.runtime.runtime_builder import RuntimeBuilder

    builder = RuntimeBuilder(
        recipe=recipe,
        ranges=ranges,
        params=params,
        backend=next((stored.entry.backend for stored in engines), "auto"),
        engine_cache_dir=options.engine_cache_dir,
        engine_cache_max_bytes=options.engine_cache_max_bytes,
        abort_builds=Switches.from_environment().abort_builds,
    )
    undo.callback(builder.close)
    builds = BackgroundBuilds(builder)  # the executor waits for them where that is asked for
    undo.callback(builds.close)
    return builder, builds


def _slots(
    schedule: Schedule,
    own: Mapping[str, Sequence[StoredEngine]],
    options: RuntimeOptions,
    builds: BackgroundBuilds | None,
    opener: Opener,
) -> dict[str, EngineSlot]:
    return {
        step.op: EngineSlot(
            step.op,
            own[step.op],
            opener,
            maximum=options.maximum_cached_engines or 1,
            cache_full=options.cache_full or "native",
            builds=builds,
            segment=step.native,
        )
        for step in schedule.steps
        if isinstance(step, EngineStep)
    }


def _preload(slots: Mapping[str, EngineSlot]) -> dict[str, str]:
    """Loads the first engine of every node; operator -> why it has none that can be used."""
    refused = {}
    for op, slot in slots.items():
        reasons: list[str] = []
        for stored in slot.stored:
            answer = _ask(slot, stored) if stored.entry.usable else Miss(stored.entry.problem)
            if isinstance(answer, Found):
                break
            reasons.append(answer.reason)
        else:
            refused[op] = reasons[0] if reasons else "it has no engine"
    return refused


def _preload_all(slots: Mapping[str, EngineSlot]) -> dict[str, str]:
    """Loads engines where there are some; where there are none, a build may bring them."""
    return _preload({op: slot for op, slot in slots.items() if any(s.entry.usable for s in slot.stored)})


def _ask(slot: EngineSlot, stored: StoredEngine) -> Found | Miss:
    """Looks up the shapes that the first profile of an engine is tuned for."""
    profile = stored.entry.profiles[0] if stored.entry.profiles else {}
    shapes = {name: (len(p.optimum),) if p.is_values else tuple(p.optimum) for name, p in profile.items()}
    values = {name: tuple(p.optimum) for name, p in profile.items() if p.is_values}
    return slot.lookup(shapes, values)


def _tell(blocked: Mapping[str, str], options: RuntimeOptions) -> None:
    """Refuses to go on natively where `strict` was asked for."""
    if options.strict and blocked:
        op, reason = next(iter(sorted(blocked.items())))
        count = f"{len(blocked)} engine node{'' if len(blocked) == 1 else 's'}"
        raise ConversionError(f"strict: {count} would not run on TensorRT; {op}: {reason}")


def _why_no_graphs(options: RuntimeOptions, cuda: Cuda) -> str:
    if not options.cuda_graph:
        return "cuda_graph=False was asked for"
    if cuda.stream in _DEFAULT_STREAMS:
        return "nothing can be captured on CUDA's default stream"
    return ""


def _close_all(slots: Mapping[str, EngineSlot]) -> None:
    for slot in slots.values():
        slot.close()
