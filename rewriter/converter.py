"""`Converter`: TF-TRT's verbs, in order: convert, build, save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter import params as parameters
from rewriter.accuracy.target import AccuracyTarget
from rewriter.artifact import save_artifact
from rewriter.backends.base import Backend
from rewriter.building.cache import open_cache
from rewriter.building.jobs import check_jobs
from rewriter.by_signature import InputFns, by_signature, check_keys, naming
from rewriter.errors import ConverterStateError, InvalidParameterError
from rewriter.frontend.specialize import check_specialize
from rewriter.params import ConversionParams
from rewriter.pass_selection import parse_rewriter_config
from rewriter.precision.given import GivenCalibration
from rewriter.precision.options import PrecisionOptions
from rewriter.precision.plan import make_precision_plan
from rewriter.precision.work import CalibrationInputs
from rewriter.progress import ProgressCallback, resolve
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.loading import make_function, natively_forbidden
from rewriter.runtime.options import RuntimeOptions
from rewriter.settings import Settings, SourceSettings
from rewriter.shapes.sampling import InputFn, profile_input_fn, shaped_input_fn, unknown_dimensions
from rewriter.source import Signature
from rewriter.switches import Switches
from rewriter.views import ConversionViews, check_writable
from rewriter.workshop import Workshop


class Converter(ConversionViews):
    """Turns a model into one with TensorRT engines spliced in.

    Call `convert()`, then `build()` with sample inputs, then `save()`. Nothing heavy happens before `convert()`.
    TF-TRT's environment variables (`rewriter.switches`) add to what the arguments say.
    A converter holds a temporary folder and child processes: use it as a context manager, or `close()` it, to free
    them early; otherwise they go with the object. One thread at a time; its functions are thread-safe.

    Args:
        input_saved_model_dir: a TensorFlow SavedModel directory (or give `model`).
        input_saved_model_tags: tags of its graph; default ("serve",).
        input_saved_model_signature_key: signature to convert; default "serving_default". A list of keys, or "*" for
            all of them, converts several signatures into one artifact.
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
        model: instead of a directory: a path (SavedModel, .keras, .h5, .pb, .onnx), a Keras model, a
            ConcreteFunction, a tf.function, a frozen GraphDef or an ONNX ModelProto.
        inputs: frozen GraphDef only: names of its input tensors, in the order of the signature; default: found out.
        outputs: frozen GraphDef only: the same of its outputs.
        specialize: sizes for open dimensions, by the names that the signature shows or as "input:axis", for example
            {"batch": 8, "image:1": 224}: fixed before the export, which then needs no shape arithmetic for them.
        tensorflow_islands: True leaves what ONNX has no word for (strings, lookup tables, FFT ...) in TensorFlow, as
            TF-TRT did; such an artifact needs TensorFlow to run. False refuses it.
        keep_in_tensorflow: TensorFlow operators that stay there in any case.
        backend: "auto", "tensorrt_rtx", "tensorrt", or an open `Backend`, which the caller closes.
        targets: GPU architectures to build for, for example ["sm80", "sm89"]; default: all that the backend names.
        op_denylist: operator types that stay native.
        node_denylist: regular expressions; nodes whose name one of them finds stay native.
        op_fakelist: operator types that are cut as if TensorRT took them: what would the segments be? Segments that
            rest on it get no engine and run natively.
        max_engines: the largest so many segments get engines, the others stay native; None: all of them do.
        abort_builds: True makes every build fail, to see what a deployment does then.
        cache_full: what a full engine cache does at run time: "native" or "evict".
        engine_cache_dir: folder in which built engines are kept for later conversions, also of other processes; made
            when needed. None: nothing is kept.
        engine_cache_max_bytes: what the engines in that folder may take together; above it the least recently used go
            first. Default 8 GiB.
        precision: details of the engines' arithmetic; see `PrecisionOptions`.
        calibration: ranges of an earlier calibration (INT8 and FP8), and then no `calibration_input_fn` is needed: an
            artifact, which gives each signature the ranges of its name; a `calibration.json` or a `RangeTable`, which
            serve every signature; or a dict with one of these for each, by its key.
        accuracy: what must not get lost in lower precision; nodes that break it are found in emulation, before
            anything is built, and keep a higher precision. See `AccuracyTarget`.
        progress: None: a bar when stderr is a terminal; True, False; or a callable that takes `ProgressEvent`.
        samples: sample inputs (dicts by signature name, arrays or tuples) for checking the export against
            TensorFlow; default: random ones. Of several signatures a dict of such lists by their keys.
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
        input_saved_model_signature_key: str | Sequence[str] | None = None,
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
        specialize: Mapping[str, int] | str | None = None,
        tensorflow_islands: bool = True,
        keep_in_tensorflow: Iterable[str] = (),
        backend: str | Backend = "auto",
        targets: Iterable[str] | None = None,
        op_denylist: Iterable[str] = (),
        node_denylist: Iterable[str] = (),
        op_fakelist: Iterable[str] = (),
        max_engines: int | None = None,
        abort_builds: bool = False,
        cache_full: str = "native",
        engine_cache_dir: str | Path | None = None,
        engine_cache_max_bytes: int | None = None,
        precision: PrecisionOptions | None = None,
        calibration: GivenCalibration = None,
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
        given = parameters.merge_params(conversion_params, single)
        selection = parse_rewriter_config(given.rewriter_config_template)
        self.params = parameters.check_params(selection.apply(given))
        switches = Switches.from_environment()
        source = SourceSettings(
            origin=parameters.one_source(input_saved_model_dir, model),
            tags=parameters.check_optional_names("input_saved_model_tags", input_saved_model_tags),
            signature_keys=check_keys(input_saved_model_signature_key),
            inputs=parameters.check_optional_names("inputs", inputs),
            outputs=parameters.check_optional_names("outputs", outputs),
            specialize=check_specialize(specialize) or None,
            tensorflow_islands=parameters.check_switch("tensorflow_islands", tensorflow_islands),
            keep_in_tensorflow=parameters.check_names("keep_in_tensorflow", keep_in_tensorflow),
            samples=parameters.check_samples(samples),
            verify=parameters.check_switch("verify", verify),
            tolerance=parameters.check_tolerance(tolerance),
        )
        settings = Settings(
            params=self.params,
            strategy=selection.strategy(use_dynamic_shape, dynamic_shape_profile_strategy),
            selection=selection,
            source=source,
            op_denylist=(*parameters.check_names("op_denylist", op_denylist), *switches.op_denylist),
            node_denylist=parameters.check_patterns("node_denylist", node_denylist),
            op_fakelist=(*parameters.check_names("op_fakelist", op_fakelist), *switches.op_fakelist),
            max_engines=parameters.check_count("max_engines", max_engines) or switches.max_engines,
            cache_full=parameters.check_choice("cache_full", cache_full, parameters.CACHE_FULL_RULES),
            allow_double=parameters.check_switch("allow_double", allow_double),
            abort_builds=parameters.check_switch("abort_builds", abort_builds) or switches.abort_builds,
            switches=switches,
        )
        asked = make_precision_plan(self.params, precision, calibration, accuracy)
        cache = open_cache(engine_cache_dir, engine_cache_max_bytes)
        wanted = parameters.check_optional_names("targets", targets) or ()
        super().__init__(Workshop(settings, asked, backend, wanted, cache, resolve(progress)))

    def convert(
        self,
        calibration_input_fn: CalibrationInputs = None,
        *,
        check: Callable[[Signature], object] | None = None,
        jobs: int | None = None,
    ) -> ConvertedFunction:
        """Exports, cleans, partitions and splices; no engine is built yet unless `is_dynamic_op` is False.

        Args:
            calibration_input_fn: INT8 and FP8 only: takes nothing and yields typical inputs, as `build()` takes them;
                of several signatures a dict with one such function for each. Needed when tensors that are quantised
                have no range yet. A `rewriter.export.ray.CalibrationDataset` in the place of a function calibrates on a
                cluster, with the same result. With dynamic shapes the calibration itself runs in `build()`, as in
                TF-TRT; with `is_dynamic_op` or `use_dynamic_shape` False it runs here.
            check: called with names and shapes of the inputs as soon as a signature is read, before any long work;
                what it raises ends the conversion. Dtypes, outputs and names of dimensions may not be known then.
            jobs: as for `build()`; for `is_dynamic_op` False, whose engines are built here.

        Returns:
            The (first) signature as a function. It has no engines yet (with static shapes it has): where there is a
            GPU they may be built at run time; after `build()`, `function()` gives a function that uses what was built.

        Raises:
            ConverterStateError: called twice.
            SourceError, ExportError, VerificationError: the model cannot be read, expressed or reproduced.
            InvalidParameterError: `is_dynamic_op` is False, but a dimension other than the batch is not fixed;
                calibration inputs are missing, or given without need; `jobs` is no integer of at least 1.
        """
        if self._done:
            raise ConverterStateError("convert() has run already: make a new Converter for another conversion")
        if not self._shop.open:
            raise ConverterStateError("this converter is closed: make a new one")
        parameters.check_callable("check", check)
        self._shop.tell_jobs(check_jobs(jobs))
        self._shop.precision.check_inputs(calibration_input_fn)  # what is wrong with them is told before any work
        if check is not None:
            for track in self._tracks.values():  # of an earlier dry run
                check(track.conversion.source.signature)
        check_writable(self._shop.settings.switches)
        self._prepare(check)
        plans = self._shop.precision.by_signature(tuple(self._tracks), calibration_input_fn)
        for name, track in self._tracks.items():
            with naming(name, self._tracks):
                self._tracks[name] = self._shop.begin(track, plans[name], jobs)
        self._done = True
        self._write_requested()
        return self.function()

    def calibrate(self) -> None:
        """Finds the ranges, and asks the accuracy guard, now rather than in `build()`.

        For those who save an artifact without engines; `build()` and static shapes need no such call. Harmless when
        it is repeated, and for precision modes without ranges.

        Raises:
            ConverterStateError: `convert()` has not run.
            InputError, ConversionError: calibration inputs do not fit, or the model fails on one.
        """
        self._need("calibrate")
        for name, track in self._tracks.items():
            with naming(name, self._tracks):
                self._tracks[name] = self._shop.settle(track)

    def build(self, input_fn: InputFns = None, *, jobs: int | None = None) -> None:
        """Builds the engines for the shapes of sample inputs.

        Args:
            input_fn: takes nothing and yields inputs: an array, a tuple in signature order, or a dict by name. It
                may be called more than once. None is enough for a model whose input shapes are all fixed. Calling
                `build` again adds to the shapes seen before. Of several signatures a dict with one such function for
                each that is to get engines; one function alone serves all of them.
            jobs: engines of a signature that are built at the same time, at most, each in a child process. What
                comes of it does not depend on it. Default: with TensorRT-RTX as many as there are cores, and memory
                for, up to 8; with TensorRT one, for it times kernels on the GPU while it builds. An open `Backend`
                builds one at a time, unless it is opened with `jobs` of its own.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: no input_fn although a dimension is unknown; the message names it; or `jobs` is no
                integer of at least 1.
            InputError: an input does not fit the signature.
        """
        self._need("build")
        self._shop.tell_jobs(check_jobs(jobs))
        given = by_signature("input_fn", input_fn, tuple(self._tracks))
        if input_fn is not None and not given:
            raise InvalidParameterError("input_fn is an empty mapping: name at least one signature")
        for function in given.values():
            if function is not None:
                parameters.check_input_fn("input_fn", function)
        for name in given if isinstance(input_fn, Mapping) else tuple(self._tracks):
            track = self._tracks[name]
            source, function = track.conversion.source, given.get(name)
            if function is None:
                unknown = unknown_dimensions(source.signature)
                if unknown:
                    raise InvalidParameterError(
                        f"build() needs an input_fn that yields sample inputs, for {unknown[0]} is not fixed"
                    )
                function = shaped_input_fn(source.signature, {}, source.samples)
            with naming(name, self._tracks):
                self._tracks[name] = self._shop.build(track, function, jobs)

    def function(self, execution: str = "auto", *, signature_key: str | None = None) -> ConvertedFunction:
        """The conversion so far as a function, without the way over an artifact.

        On a GPU it uses the engines that `build()` has built by now, as a loaded artifact does; engines that are
        missing are built at run time where `allow_build_at_runtime` says so. It may outlive this converter.

        Args:
            execution: "auto": engines where they can be used. "native": the source's own arithmetic. "emulate": that
                of the engines, on the CPU; for INT8 and FP8 it needs the ranges, so `build()` must have run (or
                `convert()`, with static shapes).
            signature_key: which of several signatures; default: the first.

        Raises:
            ConverterStateError: `convert()` has not run, or the ranges are not known yet.
            InvalidParameterError: an unknown execution, or no such signature.
        """
        track = self._track("function", signature_key)
        if execution == "emulate" and track.conversion.pending is not None:
            raise ConverterStateError("what the engines compute is known when build() has run: call it first")
        functions: dict[str, ConvertedFunction] = {}
        siblings = tuple(self._tracks), functions.__getitem__
        for name, other in self._tracks.items():  # all of them now, for they may outlive this converter
            functions[name] = make_function(
                self._shop.runnable(other),
                RuntimeOptions(execution=execution, strict=natively_forbidden(execution)),
                lazy=True,
                keep_engines=True,
                siblings=siblings,
            )
        return functions[track.conversion.source.signature.name]

    def sample_input_fn(self, shapes: Mapping[str, Any] | None = None, *, signature_key: str | None = None) -> InputFn:
        """An `input_fn` for `build()` that makes inputs up.

        Args:
            shapes: input name -> the shapes that engines must cover, one or some. Three are the minimum, optimum and
                maximum, in this order: {"image": [(1, 224, 224, 3), (8, 224, 224, 3), (32, 224, 224, 3)]}; of any
                other number "Range" profiles are tuned for the largest. The i-th shapes of all inputs go together; an
                input with one shape keeps it. Default: batches 1 and 8, other unknown dimensions as in the check
                against TensorFlow.
            signature_key: which of several signatures; default: the first.

        Raises:
            ConverterStateError: `convert()` has not run.
            InvalidParameterError: an unknown input, a shape that does not fit, three shapes in another order, inputs
                with different numbers of shapes, or a dimension that stays unknown; the message names it.
        """
        done = self._track("sample_input_fn", signature_key).conversion
        return profile_input_fn(done.source.signature, {} if shapes is None else shapes, done.source.samples)

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
            ConverterStateError: `convert()` has not run, or calibration has still to.
            ArtifactError: the folder exists or cannot be written.
        """
        self._need("save")
        parameters.check_switch("save_gpu_specific_engines", save_gpu_specific_engines)
        parameters.check_switch("overwrite", overwrite)
        if options is not None:
            raise InvalidParameterError("options must be None: TensorFlow's SaveOptions mean nothing to an artifact")
        for name, track in self._tracks.items():
            pending = track.conversion.pending
            if pending is not None and pending.input_fn is not None:
                raise ConverterStateError(
                    f"save needs the ranges of {pending.recipe.mode}: call build(), or calibrate(), first"
                )
            self._tracks[name] = self._shop.settle(track)
        first = next(iter(self._tracks.values()))
        with first.stages.stage("save"):
            parts = [self._shop.part(track, engines=save_gpu_specific_engines) for track in self._tracks.values()]
            return save_artifact(output_saved_model_dir, *parts, overwrite=overwrite)

    def close(self) -> None:
        """Ends TensorRT's child processes and removes the temporary folder; harmless when repeated."""
        self._shop.close()

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
