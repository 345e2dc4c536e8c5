"""Engines on this machine's GPU, whole and in part."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from passes.engine_node import EngineAttributes, engine_nodes, read_attributes
from passes.extract import Extractor
from passes.graph.value_types import value_types
from passes.model import Model
from passes.precision.recipe import Recipe
from passes.segments import Segmentation, SegmentModel, TensorSpec
from passes.splice import splice
from rewriter.backends.base import BuildFailure
from rewriter.comparing.bisection.sides import Feeds, Run, Side, with_outputs
from rewriter.comparing.bisection.subject import Subject
from rewriter.errors import ArtifactError, ConversionError
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.loading import make_function
from rewriter.runtime.opening import Runnable
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.runtime_builder import RuntimeBuilder
from rewriter.runtime.slots import StoredEngine
from rewriter.shapes.harvest import InputSet
from rewriter.source import Signature

#: Eager, for hardly any call comes twice. An error where there is no GPU; what falls back natively there is told.
WHOLE = RuntimeOptions(provider="cuda", cuda_graph=False, allow_build_at_runtime=False)
#: For engines by themselves: a native run would look like an engine that computes everything right.
ALONE = dataclasses.replace(WHOLE, strict=True)


@contextlib.contextmanager
def open_gpu_runner(
    subject: Subject, whole: RuntimeOptions = WHOLE, alone: RuntimeOptions = ALONE
) -> Iterator[GpuRunner]:
    """A runner for an artifact; its functions and its builder are closed at the end of the block.

    Args:
        subject: what is bisected.
        whole: how the model is run.
        alone: how engines are run by themselves.

    Raises:
        ArtifactError: the artifact does not hold the recipe of its engines.
    """
    data = subject.artifact.params.get("recipe")
    try:
        recipe = Recipe.from_json(data if isinstance(data, Mapping) else {})
    except ValueError as error:
        raise ArtifactError(f"{subject.artifact.path} cannot be bisected: {error}: convert the model again") from error
    backend = next((entry.backend for entry in subject.artifact.engines if entry.backend), "auto")
    with contextlib.ExitStack() as stack:
        builder = RuntimeBuilder(
            recipe=recipe, ranges=subject.artifact.ranges, params=subject.artifact.params, backend=backend
        )
        stack.callback(builder.close)
        yield GpuRunner(subject, recipe, builder, (whole, alone), stack)


class GpuRunner:
    """See `EngineRunner`. Make it with `open_gpu_runner`.

    Args:
        subject: what is bisected.
        recipe: the arithmetic of its engines.
        builder: builds engines of parts.
        options: how the model is run, and engines by themselves.
        stack: closes what is opened.
    """

    def __init__(
        self,
        subject: Subject,
        recipe: Recipe,
        builder: RuntimeBuilder,
        options: tuple[RuntimeOptions, RuntimeOptions],
        stack: contextlib.ExitStack,
    ) -> None:
        artifact = subject.artifact
        self._subject, self._builder, self._options, self._stack = subject, builder, options, stack
        self._functions: list[ConvertedFunction] = []
        engines = tuple(StoredEngine(entry, artifact.engine_path(entry)) for entry in artifact.engines)
        self._base = Runnable(
            artifact.model, artifact.signature, engines, artifact.params, recipe, artifact.ranges, artifact.path
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """The engines of the model that ran natively, by reason."""
        reasons = dict.fromkeys(reason for function in self._functions for reason in function.stats()["fallbacks"])
        return tuple(f"some engine node ran natively, so its engine was not looked at: {reason}" for reason in reasons)

    @property
    def values(self) -> Side:
        """The artifact with its engines."""
        return self._side(self._base)

    def engine(self, op: str) -> Run:
        """The artifact's engine of one node, by itself.

        Raises:
            ConversionError: it cannot be used.
        """
        segment = Extractor(self._subject.native).extract_nodes((), self._subject.segments[op], op, hashed=False)
        return self._run_part(segment, [engine for engine in self._base.engines if engine.entry.op == op])

    def build(self, part: SegmentModel, sets: Sequence[InputSet]) -> Run:
        """An engine of some nodes.

        Raises:
            ConversionError: it cannot be built or run.
        """
        return self._run_part(part, [self._built(part, sets)])

    def split(self, op: str, parts: Sequence[tuple[SegmentModel, Sequence[InputSet]]]) -> Side:
        """The artifact with engines of `parts` in the place of one.

        Raises:
            ConversionError: a part cannot be built.
        """
        artifact, extractor = self._subject.artifact, Extractor(self._subject.native)
        cuts, attributes = [], {}
        for scope, node in engine_nodes(artifact.model.proto):
            if node.op_type != op and not scope:
                names = self._subject.segments[node.op_type]
                cuts.append(extractor.extract_nodes((), names, node.op_type, hashed=False))
                attributes[node.op_type] = read_attributes(node)
        engines = [engine for engine in self._base.engines if engine.entry.op != op]
        for part, sets in parts:
            cuts.append(part)
            engines.append(self._built(part, sets))
            attributes[part.segment.name] = _attributes(part)
        segmentation = Segmentation(tuple(cut.segment for cut in cuts), (), 0)
        model = splice(self._subject.native, segmentation, attributes)
        return self._side(dataclasses.replace(self._base, model=model, engines=tuple(engines), artifact=None))

    def _side(self, runnable: Runnable) -> Side:
        return _FunctionSide(self, runnable, value_types(self._subject.native))

    def _built(self, part: SegmentModel, sets: Sequence[InputSet]) -> StoredEngine:
        made = self._builder.build(part, sets)
        if isinstance(made, BuildFailure):
            raise ConversionError(f"no engine of {len(part.segment.nodes)} node(s): {made.reason}")
        return made

    def _run_part(self, part: SegmentModel, engines: Sequence[StoredEngine]) -> Run:
        """A function of some nodes with their engines."""
        model = splice(
            part.model,
            Segmentation((dataclasses.replace(part.segment, scope=()),), (), 0),
            {part.segment.name: _attributes(part)},
        )
        signature = Signature(part.inputs, part.outputs)
        whole = dataclasses.replace(self._base, model=model, signature=signature, engines=tuple(engines))
        # Without the folder: kernels of parts have no place in the cache of the artifact.
        return self.open(dataclasses.replace(whole, artifact=None), alone=True)

    def open(self, runnable: Runnable, *, alone: bool = False) -> Run:
        """A function that is closed with the runner; it takes and gives ONNX names.

        Args:
            runnable: what it runs.
            alone: it is one engine by itself.

        Raises:
            ConversionError: it cannot be run on the GPU.
        """
        function = make_function(runnable, self._options[alone])
        self._stack.callback(function.close)
        if not alone:
            self._functions.append(function)

        def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
            found: Mapping[str, Any] = function({spec.name: feeds[spec.tensor] for spec in runnable.signature.inputs})
            return {spec.tensor: np.asarray(found[spec.name]) for spec in runnable.signature.outputs}

        return run


class _FunctionSide:
    """A converted model on the GPU, whose boundary values are outputs.

    Args:
        runner: opens it.
        runnable: the model.
        types: dtype and shape of its values.
    """

    def __init__(self, runner: GpuRunner, runnable: Runnable, types: Mapping[str, TensorSpec]) -> None:
        self._runner, self._runnable, self._types = runner, runnable, types

    def open(self, names: Sequence[str]) -> Run:
        """See `Side`."""
        specs = [TensorSpec(n, self._types[n].dtype, self._types[n].shape) for n in dict.fromkeys(names)]
        signature = dataclasses.replace(self._runnable.signature, outputs=tuple(specs))
        model: Model = with_outputs(self._runnable.model, [spec.name for spec in specs])
        return self._runner.open(dataclasses.replace(self._runnable, model=model, signature=signature))


def _attributes(part: SegmentModel) -> EngineAttributes:
    return EngineAttributes(part.content_hash or "part", len(part.segment.inputs))
