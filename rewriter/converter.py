"""`Converter`: TF-TRT's verbs, in order: convert, build, save."""

from __future__ import annotations

import dataclasses
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.precision.ranges import RangeTable
from rewriter import params as parameters
from rewriter.accuracy.target import AccuracyTarget
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.backends import as_backend
from rewriter.backends.base import Backend
from rewriter.backends.oracle import ParserOracle
from rewriter.building.builder import EngineBuilder, SegmentBuild
from rewriter.building.cache import open_cache
from rewriter.building.entries import engine_entries
from rewriter.conversion import Conversion, start_conversion
from rewriter.errors import ConverterStateError, InvalidParameterError
from rewriter.frontend import load_source
from rewriter.params import ConversionParams
from rewriter.precision.options import PrecisionOptions
from rewriter.precision.plan import make_precision_plan
from rewriter.progress import ProgressCallback, ProgressEvent, Stages, resolve
from rewriter.report import Report
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.loading import Runnable, make_function
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.slots import StoredEngine
from rewriter.settings import Settings
from rewriter.shapes.observer import Observer
from rewriter.shapes.sampling import InputFn, batch_input_fn, profile_input_fn, shaped_input_fn, unknown_dimensions
from rewriter.source import Signature
from rewriter.summary import MINIMUM_LINE_LENGTH, print_with, render_summary


class Converter:
    """Turns a model into one with TensorRT engines spliced in.

    Call `convert()`, then `build()` with sample inputs, then `save()`. Nothing heavy happens before `convert()`.
    A converter holds a temporary folder and a child process: use it as a context manager, or `close()` it, to free
    them early; otherwise they go with the object.

    Args:
        input_saved_model_dir: a TensorFlow SavedModel directory (or give `model`).
        input_saved_model_tags: tags of its graph; default ("serve",).
        input_saved_model_signature_key: signature to convert; default "serving_default".
        use_dynamic_shape: None or True: engines cover ranges of shapes. False: profiles as TF-TRT's implicit batch
            mode made them ("ImplicitBatchModeCompatible").
        dynamic_shape_profile_strategy: one of `supported_profile_strategies()`; default "Range".
        max_workspace_size_bytes: limit of the builder's workspace for each engine, bytes.
        precision_mode: arithmetic of the engines: "FP32", "TF32", "FP16", "BF16", "INT8" or "FP8".
        minimum_segment_size: effective nodes a segment must have; -1 leaves the main graph native.
        maximum_cached_engines: engines in memory for each engine node at run time.
        use_calibration: INT8 and FP8 only; see `ConversionParams`.
        allow_build_at_runtime: whether requests may build engines at run time; saved in the artifact.
        conversion_params: all of these (and three more) as one value; then none of them may be given beside it.
        model: instead of a directory: a path (SavedModel, .keras, .h5, .onnx), a Keras model, a ConcreteFunction, a
            tf.function or an ONNX ModelProto.
        inputs: not available yet (frozen GraphDef).
        outputs: not available yet (frozen GraphDef).
        backend: "auto", "tensorrt_rtx", "tensorrt", or an open `Backend`, which the caller closes.
        targets: GPU architectures to build for, for example ["sm80", "sm89"]; default: all that the backend names.
        op_denylist: operator types that stay native.
        node_denylist: regular expressions; nodes whose name one of them finds stay native.
        cache_full: what a full engine cache does at run time: "native" or "evict".
        engine_cache_dir: folder in which built engines are kept for later conversions, also of other processes; made
            when needed. None: nothing is kept.
        engine_cache_max_bytes: what the engines in that folder may take together; above it the least recently used go
            first. Default 8 GiB.
        precision: details of the engines' arithmetic; see `PrecisionOptions`.
        calibration: ranges of an earlier calibration (INT8 and FP8): a `calibration.json`, an artifact that holds one,
            or a `RangeTable`. Then no `calibration_input_fn` is needed.
        accuracy: what must not get lost in lower precision; nodes that break it are found in emulation, before
            anything is built, and keep a higher precision. See `AccuracyTarget`.
        progress: None: a bar when stderr is a terminal; True, False; or a callable that takes `ProgressEvent`.
        samples: sample inputs (dicts by signature name, arrays or tuples) for checking the export against
            TensorFlow; default: random ones.
        allow_double: let TensorRT take float64 nodes, which it computes in float32.
        verify: False skips the comparison with TensorFlow after the export.
        tolerance: largest max|difference| / max|reference| that this comparison lets pass for floating-point outputs;
            default 1e-4, or 1e-2 for graphs that compute in float16 or bfloat16 somewhere.

    Raises:
        InvalidParameterError: a parameter has a value that is not allowed.
        MissingDependencyError: no TensorRT package is installed.
    """

    def __init__(
        self,
        input_saved_model_dir: str | Path | None = None,
        input_saved_model_tags: Iterable[str] | None = None,
        input_saved_model_signature_key: str | None = None,
        use_dynamic_shape: bool | None = None,
        dynamic_shape_profile_strategy: str | None = None,
        max_workspace_size_bytes: int = parameters.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = parameters.TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
        allow_build_at_runtime: bool = True,
        conversion_params: ConversionParams | None = None,
        *,
        model: Any = None,
        inputs: Iterable[str] | None = None,
        outputs: Iterable[str] | None = None,
        backend: str | Backend = "auto",
        targets: Iterable[str] | None = None,
        op_denylist: Iterable[str] = (),
        node_denylist: Iterable[str] = (),
        cache_full: str = "native",
        engine_cache_dir: str | Path | None = None,
        engine_cache_max_bytes: int | None = None,
        precision: PrecisionOptions | None = None,
        calibration: RangeTable | str | Path | None = None,
        accuracy: AccuracyTarget | None = None,
        progress: ProgressCallback | bool | None = None,
        samples: Iterable[Any] | None = None,
        allow_double: bool = False,
        verify: bool = True,
        tolerance: float | None = None,
    ) -> None:
        single = ConversionParams(
            max_workspace_size_bytes=max_workspace_size_bytes,
            precision_mode=precision_mode,
            minimum_segment_size=minimum_segment_size,
            maximum_cached_engines=maximum_cached_engines,
            use_calibration=use_calibration,
            allow_build_at_runtime=allow_build_at_runtime,
        )
        self.params = parameters.merge_params(conversion_params, single)
        self._settings = Settings(
            params=self.params,
            strategy=parameters.check_profile_strategy(use_dynamic_shape, dynamic_shape_profile_strategy),
            origin=parameters.one_source(input_saved_model_dir, model),
            tags=parameters.check_optional_names("input_saved_model_tags", input_saved_model_tags),
            signature_key=input_saved_model_signature_key,
            op_denylist=parameters.check_names("op_denylist", op_denylist),
            node_denylist=parameters.check_patterns("node_denylist", node_denylist),
            cache_full=parameters.check_choice("cache_full", cache_full, parameters.CACHE_FULL_RULES),
            samples=parameters.check_samples(samples),
            allow_double=parameters.check_switch("allow_double", allow_double),
            verify=parameters.check_switch("verify", verify),
            tolerance=parameters.check_tolerance(tolerance),
        )
        for name, value in (("inputs", inputs), ("outputs", outputs)):
            parameters.refuse(name, value)
        asked = make_precision_plan(self.params, precision, calibration, accuracy)
        cache = open_cache(engine_cache_dir, engine_cache_max_bytes)
        self._stages = Stages(resolve(progress))
        self._backend = as_backend(backend, parameters.check_optional_names("targets", targets) or ())
        self._precision, self._faults = asked.on(self._backend)
        self._scratch = tempfile.TemporaryDirectory(prefix="trt-rewriter-")
        own = self._backend if isinstance(backend, str) else None
        self._finalizer = weakref.finalize(self, _release, self._scratch, own)
        # One oracle and one builder for the whole conversion: they remember verdicts and engines.
        self._oracle = ParserOracle(
            self._backend, self._settings.op_denylist, self._settings.node_denylist, self._settings.allow_double
        )
        self._builder = EngineBuilder(
            self._backend,
            self._oracle,
            self._settings.build_options(self._backend),
            self._settings.partition,
            Path(self._scratch.name),
            cache,
        )
        self._conversion: Conversion | None = None
        self._input_fns: tuple[Callable[[], Iterable[Any]], ...] = ()

    def convert(
        self,
        calibration_input_fn: Callable[[], Iterable[Any]] | None = None,
        *,
        check: Callable[[Signature], object] | None = None,
    ) -> ConvertedFunction:
        """Exports, cleans, partitions and splices; no engine is built yet unless `is_dynamic_op` is False.

        Args:
            calibration_input_fn: INT8 and FP8 only: takes nothing and yields typical inputs, as `build()` takes them.
                Needed when tensors that are quantised have no range yet. With dynamic shapes the calibration itself
                runs in `build()`, as in TF-TRT; with `is_dynamic_op` or `use_dynamic_shape` False it runs here.
            check: called with names and shapes of the inputs as soon as the model is read, before any long work; what
                it raises ends the conversion. Dtypes, outputs and names of dimensions may not be known then.

        Returns:
            The spliced model as a function. It has no engines yet (with static shapes it has): where there is a GPU
            they may be built at run time; after `build()`, `function()` gives a function that uses what was built.

        Raises:
            ConverterStateError: called twice.
            SourceError, ExportError, VerificationError: the model cannot be read, expressed or reproduced.
            InvalidParameterError: `is_dynamic_op` is False, but a dimension other than the batch is not fixed;
                calibration inputs are missing, or given without need.
        """
        if self._conversion is not None:
            raise ConverterStateError("convert() has run already: make a new Converter for another conversion")
        if not self._finalizer.alive:
            raise ConverterStateError("this converter is closed: make a new one")
        precision = self._precision.with_inputs(calibration_input_fn)
        settings = self._settings
        source = load_source(
            settings.origin,
            tags=settings.tags,
            signature_key=settings.signature_key,
            samples=settings.samples,
            verify=settings.verify,
            tolerance=settings.tolerance,
            check=check,
        )
        for stage, seconds in source.timings.items():
            self._stages.add(stage, seconds)
        static = None
        if not self.params.is_dynamic_op:  # a dimension that is not fixed is told before any more work
            static = batch_input_fn(source.signature, self.params.max_batch_size, source.samples)
        self._conversion = start_conversion(
            source, settings, precision, self._oracle, self._stages, Path(self._scratch.name)
        )
        if settings.calibrates_early or not precision.waits:
            self._conversion = self._conversion.settled(self._stages)
        if static is not None:
            self._build(static)
        return self.function()

    def calibrate(self) -> None:
        """Finds the ranges, and asks the accuracy guard, now rather than in `build()`.

        For those who save an artifact without engines; `build()` and static shapes need no such call. Harmless when
        it is repeated, and for precision modes without ranges.

        Raises:
            ConverterStateError: `convert()` has not run.
            InputError, ConversionError: calibration inputs do not fit, or the model fails on one.
        """
        self._conversion = self._converted("calibrate").settled(self._stages)

    def build(self, input_fn: Callable[[], Iterable[Any]] | None = None) -> None:
        """Builds the engines for the shapes of sample inputs.

        Args:
            input_fn: takes nothing and yields inputs: an array, a tuple in signature order, or a dict by name. It
                may be called more than once. None is enough for a model whose input shapes are all fixed. Calling
                `build` again adds to the shapes seen before.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: no input_fn although a dimension is unknown; the message names it.
            InputError: an input does not fit the signature.
        """
        source = self._converted("build").source
        if input_fn is None:
            unknown = unknown_dimensions(source.signature)
            if unknown:
                raise InvalidParameterError(
                    f"build() needs an input_fn that yields sample inputs, for {unknown[0]} is not fixed"
                )
            input_fn = shaped_input_fn(source.signature, {}, source.samples)
        elif not callable(input_fn):
            raise InvalidParameterError(
                f"input_fn must be a function that yields inputs, not {type(input_fn).__name__}"
            )
        self._build(input_fn)

    def function(self, execution: str = "auto") -> ConvertedFunction:
        """The conversion so far as a function, without the way over an artifact.

        On a GPU it uses the engines that `build()` has built by now, as a loaded artifact does; engines that are
        missing are built at run time where `allow_build_at_runtime` says so. It may outlive this converter.

        Args:
            execution: "auto": engines where they can be used. "native": the source's own arithmetic. "emulate": that
                of the engines, on the CPU; for INT8 and FP8 it needs the ranges, so `build()` must have run (or
                `convert()`, with static shapes).

        Raises:
            ConverterStateError: `convert()` has not run, or the ranges are not known yet.
            InvalidParameterError: an unknown execution.
        """
        done = self._converted("function")
        if execution == "emulate" and done.pending is not None:
            raise ConverterStateError("what the engines compute is known when build() has run: call it first")
        builds = done.result.builds
        runnable = Runnable(
            model=done.spliced(builds, self._builder),
            signature=done.source.signature,
            engines=tuple(
                StoredEngine(entry, path)
                for entry, path in engine_entries(done.result, builds, self._builder, done.recipe.label)
            ),
            params=self._params_json(),
            recipe=done.result.lowering.recipe if done.pending is None else None,
            ranges=done.result.lowering.ranges,
        )
        return make_function(runnable, RuntimeOptions(execution=execution), lazy=True, keep_engines=True)

    def sample_input_fn(self, shapes: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> InputFn:
        """An `input_fn` for `build()` that makes inputs up.

        Args:
            shapes: input name -> the shapes that engines must cover. Three are the minimum, optimum and maximum, in
                this order: {"image": [(1, 224, 224, 3), (8, 224, 224, 3), (32, 224, 224, 3)]}; of any other number
                "Range" profiles are tuned for the largest. The i-th shapes of all inputs go together; an input with
                one shape keeps it. Default: batches 1 and 8, other unknown dimensions as in the check against
                TensorFlow.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: an unknown input, a shape that does not fit, three shapes in another order, inputs
                with different numbers of shapes, or a dimension that stays unknown; the message names it.
        """
        done = self._converted("sample_input_fn")
        return profile_input_fn(done.source.signature, shapes or {}, done.source.samples)

    def save(
        self,
        output_saved_model_dir: str | Path,
        save_gpu_specific_engines: bool = True,
        options: Any = None,
        *,
        overwrite: bool = False,
    ) -> Path:
        """Writes the artifact: `rewriter.load()` reads it back.

        Args:
            output_saved_model_dir: folder to make; it must not exist, or be empty.
            save_gpu_specific_engines: False leaves the engines out.
            options: TF-TRT's SaveOptions have no meaning here; anything but None is refused.
            overwrite: replace an existing artifact (refused when its folder holds anything else).

        Returns:
            The folder.

        Raises:
            ConverterStateError: `convert()` has not run.
            ArtifactError: the folder exists or cannot be written.
        """
        done = self._converted("save")
        if options is not None:
            raise InvalidParameterError("options must be None: TensorFlow's SaveOptions mean nothing to an artifact")
        builds: Mapping[str, SegmentBuild] = done.result.builds if save_gpu_specific_engines else {}
        with self._stages.stage("save"):
            part = ArtifactPart(
                model=done.spliced(builds, self._builder),
                signature=done.source.signature,
                params=self._params_json(),
                engines=engine_entries(done.result, builds, self._builder, done.recipe.label),
                report=self.report.to_dict(),
                ranges=done.result.lowering.ranges if done.result.lowering.ranges.ranges else None,
            )
            return save_artifact(output_saved_model_dir, part, overwrite=overwrite)

    def summary(
        self, line_length: int = 160, detailed: bool = True, print_fn: Callable[[str], object] | None = None
    ) -> None:
        """Prints engines, native nodes with reasons, and coverage.

        Args:
            line_length: characters a line, at least 80.
            detailed: with op counts and shapes.
            print_fn: called with each line; default `print`.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: line_length is too small.
        """
        self._converted("summary")
        if not isinstance(line_length, int) or line_length < MINIMUM_LINE_LENGTH:
            raise InvalidParameterError(f"line_length must be at least {MINIMUM_LINE_LENGTH}, not {line_length!r}")
        print_with(print_fn or print, render_summary(self.report, line_length, detailed))

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes of the model's inputs and outputs.

        Raises:
            ConverterStateError: `convert()` has not run.
        """
        return self._converted("signature").source.signature

    @property
    def report(self) -> Report:
        """What the conversion did so far.

        Raises:
            ConverterStateError: `convert()` has not run.
        """
        done = self._converted("report")
        return done.report(self._builder, self._stages.timings, self._params_json(), self._faults)

    def close(self) -> None:
        """Ends TensorRT's child process and removes the temporary folder; harmless when repeated."""
        self._finalizer()

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _converted(self, verb: str) -> Conversion:
        if self._conversion is None:
            raise ConverterStateError(f"{verb} needs a converted model: call convert() first")
        if not self._finalizer.alive:
            raise ConverterStateError(f"{verb} came too late: this converter is closed")
        return self._conversion

    def _params_json(self) -> dict[str, Any]:
        recipe = self._conversion.recipe if self._conversion else self._precision.recipe
        return self._settings.to_json(self._builder.targets, recipe)

    def _build(self, input_fn: Callable[[], Iterable[Any]]) -> None:
        done = self._conversion = self._converted("build").settled(self._stages)
        input_fns = (*self._input_fns, input_fn)
        observer = Observer(done.model, done.source.signature, input_fns, self._settings.build_strategy)
        with self._stages.stage("build"):
            result = self._builder.build(
                done.model, done.result.plan, observer, self._build_progress, done.result.lowering
            )
        self._conversion, self._input_fns = dataclasses.replace(done, result=result), input_fns

    def _build_progress(self, name: str, index: int, total: int, phase: str, done: int, steps: int) -> bool:
        return self._stages.emit(ProgressEvent("build", done, max(steps, 1), f"{name} ({index + 1}/{total}): {phase}"))


def _release(scratch: tempfile.TemporaryDirectory[str], backend: Backend | None) -> None:
    if backend is not None:
        backend.close()
    scratch.cleanup()
