"""What the signatures of one conversion share, and the work on each of them."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rewriter.artifact import ArtifactPart
from rewriter.backends import as_backend
from rewriter.backends.base import Backend
from rewriter.backends.client import ProcessBackend
from rewriter.backends.oracle import ParserOracle
from rewriter.backends.pool import PoolBackend
from rewriter.building.builder import EngineBuilder, SegmentBuild
from rewriter.building.cache import EngineCache
from rewriter.building.entries import engine_entries
from rewriter.building.jobs import jobs_note
from rewriter.conversion import Conversion, start_conversion
from rewriter.errors import ConverterStateError
from rewriter.precision.plan import PrecisionPlan
from rewriter.progress import ProgressCallback, Stages
from rewriter.reports.report import Report
from rewriter.runtime.loading import Runnable
from rewriter.runtime.slots import StoredEngine
from rewriter.settings import Settings
from rewriter.shapes.kept_inputs import KeptInputs
from rewriter.shapes.observer import Observer
from rewriter.shapes.sampling import InputFn, MadeInputs, batch_input_fn
from rewriter.source import Signature, SourceModel
from rewriter.temporary import TemporaryFolder, finalize_here

logger = logging.getLogger(__name__)

#: Called with names and shapes of the inputs as soon as a model is read.
SignatureCheck = Callable[[Signature], object]


@dataclasses.dataclass(frozen=True)
class Track:
    """One signature on its way.

    Attributes:
        conversion: what has been made of it.
        stages: times its stages.
        input_fns: what `build()` was given for it so far.
    """

    conversion: Conversion
    stages: Stages
    input_fns: tuple[Callable[[], Iterable[Any]], ...] = ()


class Workshop:
    """TensorRT, the temporary folder and the settings of a conversion; what it is told is checked already.

    One oracle and one builder serve all signatures: they remember verdicts and engines.

    Args:
        settings: what the converter was told.
        asked: how the engines' arithmetic is to be found.
        backend: a name ("auto" ...), or an open `Backend`, which the caller closes.
        targets: GPU architectures to build for; () for all that the backend names.
        cache: engines of earlier conversions on disk; None for none.
        progress: told of every step.

    Raises:
        MissingDependencyError: no TensorRT package is installed.
        InvalidParameterError: an unknown backend or target.
    """

    def __init__(
        self,
        settings: Settings,
        asked: PrecisionPlan,
        backend: str | Backend,
        targets: tuple[str, ...],
        cache: EngineCache | None,
        progress: ProgressCallback | None,
    ) -> None:
        self.settings = settings
        self._progress = progress
        self._backend = as_backend(backend, targets, jobs=None)
        self.precision, self._faults = asked.on(self._backend)
        self._scratch = TemporaryFolder("trt-rewriter-")
        own = self._backend if isinstance(backend, str) else None
        self._pool = own if isinstance(own, PoolBackend) else None
        self.close = finalize_here(self, _release, self._scratch, own)
        self._oracle = ParserOracle(
            self._backend,
            settings.op_denylist,
            settings.node_denylist,
            settings.allow_double,
            op_fakelist=settings.op_fakelist,
        )
        self.builder = EngineBuilder(
            self._backend,
            self._oracle,
            settings.build_options(self._backend),
            settings.partition,
            self._scratch.path,
            cache,
            abort_builds=settings.abort_builds,
        )

    @property
    def open(self) -> bool:
        """False once it is closed."""
        return self.close.alive

    def prepare(self, key: str | None, check: SignatureCheck | None) -> Track:
        """Reads a signature, cleans and cuts it; nothing is calibrated or built.

        Raises:
            SourceError, ExportError, VerificationError: as `load_source` raises them.
            BackendError, MissingDependencyError: TensorRT cannot be asked.
        """
        settings, stages = self.settings, Stages(self._progress)
        if isinstance(self._backend, (ProcessBackend, PoolBackend)):
            self._backend.start()  # while TensorFlow reads the model
        folder = Path(tempfile.mkdtemp(prefix="signature-", dir=self._scratch.path))
        source = settings.source.read(key, check, settings.selection.grappler, folder)
        for stage, seconds in source.timings.items():
            stages.add(stage, seconds)
        self._static_inputs(source)  # a dimension that is not fixed is told before any more work
        return Track(start_conversion(source, settings, self.precision, self._oracle, stages, folder), stages)

    def begin(self, track: Track, precision: PrecisionPlan, jobs: int | None = None) -> Track:
        """Has the ranges that are missing looked for, and static engines built, where that is done in `convert()`.

        Args:
            track: the signature.
            precision: how its arithmetic is to be found.
            jobs: static engines at the same time, at most; None for the default.

        Raises:
            InvalidParameterError: ranges are missing; or `is_dynamic_op` is False, and a dimension is not fixed.
        """
        done = track.conversion
        static = self._static_inputs(done.source)
        precision.check(done.model, done.result.plan.runnable.segments)
        source = dataclasses.replace(done.source, notes=(*done.source.notes, *precision.notes))
        track = dataclasses.replace(track, conversion=dataclasses.replace(done, source=source, pending=precision))
        if self.settings.calibrates_early or not precision.waits:
            track = self.settle(track)
        return track if static is None else self.build(track, static, jobs)

    def settle(self, track: Track) -> Track:
        """With the engines' arithmetic found: calibrated, and the accuracy guard asked."""
        return dataclasses.replace(track, conversion=track.conversion.settled(track.stages))

    def build(self, track: Track, input_fn: Callable[[], Iterable[Any]], jobs: int | None = None) -> Track:
        """Builds the engines for the shapes of these inputs and those of earlier builds.

        Args:
            track: the signature.
            input_fn: yields the inputs.
            jobs: engines at the same time, at most; None for the default.
        """
        track = self.settle(track)
        done = track.conversion
        if not isinstance(input_fn, MadeInputs):
            input_fn = KeptInputs(input_fn, done.source.signature, self._scratch.path)
        input_fns = (*track.input_fns, input_fn)
        observer = Observer(done.model, done.source.signature, input_fns, self.settings.build_strategy)
        try:
            with track.stages.stage("build"):
                result = self.builder.build(
                    done.model, done.result.plan, observer, track.stages.emit, done.result.lowering, jobs
                )
        finally:
            if self._pool is not None:
                self._pool.trim()  # the next build may be far away
        conversion = dataclasses.replace(done, result=result)
        return dataclasses.replace(track, conversion=conversion, input_fns=input_fns)

    def runnable(self, track: Track) -> Runnable:
        """What a function of the conversion so far needs."""
        done = track.conversion
        builds = done.result.builds
        entries = engine_entries(done.result, builds, self.builder, done.recipe.label)
        return Runnable(
            model=done.spliced(builds, self.builder),
            signature=done.source.signature,
            engines=tuple(StoredEngine(entry, path) for entry, path in entries),
            params=self._params_json(done),
            recipe=done.result.lowering.recipe if done.pending is None else None,
            ranges=done.result.lowering.ranges,
        )

    def part(self, track: Track, *, engines: bool) -> ArtifactPart:
        """What is saved of a signature.

        Args:
            track: the signature.
            engines: False leaves its engines out.
        """
        done = track.conversion
        builds: Mapping[str, SegmentBuild] = done.result.builds if engines else {}
        ranges = done.result.lowering.ranges
        return ArtifactPart(
            model=done.spliced(builds, self.builder),
            signature=done.source.signature,
            params=self._params_json(done),
            engines=engine_entries(done.result, builds, self.builder, done.recipe.label),
            report=self.report(track).to_dict(),
            ranges=ranges if ranges.ranges else None,
        )

    def report(self, track: Track) -> Report:
        """What was done so far."""
        done = track.conversion
        return done.report(
            self.builder, track.stages.timings, self._params_json(done), (*self.settings.notes(), *self._faults)
        )

    def _static_inputs(self, source: SourceModel) -> InputFn | None:
        """The inputs that static engines are built for; None where they are not static.

        Raises:
            InvalidParameterError: a dimension other than the batch is not fixed.
        """
        params = self.settings.params
        if params.is_dynamic_op:
            return None
        return batch_input_fn(source.signature, params.max_batch_size, source.samples)

    def tell_jobs(self, jobs: int | None) -> None:
        """Says in the log what the backend makes of `jobs`, where that is not what was asked for."""
        note = jobs_note(self._backend, jobs)
        if note:
            logger.warning("%s", note)

    def require_open(self, verb: str) -> None:
        """Raises when the temporary folder is gone.

        Raises:
            ConverterStateError: it is; the message begins with `verb`.
        """
        if not self.open:
            raise ConverterStateError(f"{verb} came too late: this converter is closed")

    def _params_json(self, done: Conversion) -> dict[str, Any]:
        return self.settings.to_json(self.builder.targets, done.recipe)


def _release(scratch: TemporaryFolder, backend: Backend | None) -> None:
    if backend is not None:
        backend.close()
    scratch.remove()
