"""`ConvertModel`: a conversion in memory for polygraphy's runs."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.building.jobs import check_jobs
from rewriter.errors import InvalidParameterError, SourceError
from rewriter.polygraphy_runners.execution import BUILD_RULES, resolve_execution
from rewriter.polygraphy_runners.keywords import check_parameters, converter_keywords
from rewriter.polygraphy_runners.metadata import tensor_metadata
from rewriter.polygraphy_runners.standin import NO_TENSORRT, TakesAll
from rewriter.polygraphy_runners.talk import warn
from rewriter.runtime.other_errors import first_line

if TYPE_CHECKING:
    from rewriter.backends.base import Backend
    from rewriter.polygraphy_runners.in_memory import InMemoryModel
    from rewriter.source import Signature

_HINT = (
    "so nothing says which nodes it takes: all of them are taken to be in engines; "
    "pip install 'trt-rewriter[rtx]' asks the real parser"
)


class ConvertModel:
    """Converts a model when it is called; give it to a `TrtRewriterRunner`.

    Where engines run, they are built for the shapes of the inputs that come: when the runner is activated for a model
    of fixed shapes (or for `shapes`), else before the first run with new shapes, outside the time of inference. On a
    machine without any TensorRT every node counts as taken, and the engines are emulated; a warning says so.

    Args:
        source: path of a SavedModel, a .keras, .h5, .pb or .onnx file; or what `Converter(model=)` takes, an ONNX
            ModelProto for example; or a function without arguments that returns such a one (polygraphy's loaders of
            ONNX models are).
        execution: "auto" (engines where there is a GPU, else emulation), "native" or "emulate".
        provider: "auto", "cpu" (no engine) or "cuda".
        strict: True raises where a segment gets no engine, or an engine is not used. With execution "native" or
            "emulate" it goes with `build="always"` only, for there it can only be about building.
        build: "auto" builds engines where they run; "always" on any machine with TensorRT, to see that they can be
            built; "never" leaves that to the calls, as `allow_build_at_runtime` says.
        shapes: input name -> the shapes that engines must cover; see `Converter.sample_input_fn`.
        calibration_inputs: INT8 and FP8: an .npz file ([samples, ...] for each input), or an iterable of dicts, one of
            polygraphy's data loaders for example, or a function that returns one.
        calibration_batch: samples in one calibration run, with an .npz file; default 8.
        jobs: engines that are built at the same time, at most; see `Converter.build`.
        backend: as for `Converter`; "none" asks no TensorRT, even where one is installed.
        parameters: arguments of `Converter` and fields of `ConversionParams` and `PrecisionOptions` by their names
            (`precision_mode="FP16"`, `minimum_segment_size=5`, `keep_ops=["Softmax"]` ...), and `tags`, `signature`.

    Raises:
        InvalidParameterError: an unknown name or word.
    """

    def __init__(
        self,
        source: Any,
        *,
        execution: str = "auto",
        provider: str = "auto",
        strict: bool | None = None,
        build: str = "auto",
        shapes: Mapping[str, Any] | None = None,
        calibration_inputs: str | Path | Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
        calibration_batch: int | None = None,
        jobs: int | None = None,
        backend: str | Backend = "auto",
        **parameters: Any,
    ) -> None:
        check_parameters(parameters)
        if build not in BUILD_RULES:
            raise InvalidParameterError(f"build must be one of {', '.join(BUILD_RULES)}, not {build!r}")
        if strict and execution != "auto" and build != "always":
            raise InvalidParameterError(f"execution={execution!r} uses no engines: leave strict out, or build='always'")
        self._source = source
        self._execution = execution
        self._provider = provider
        self._strict = strict
        self._build = build
        self._shapes = shapes
        self._calibration = calibration_inputs
        self._calibration_batch = calibration_batch
        self._jobs = check_jobs(jobs)
        self._backend = backend
        self._parameters = parameters

    @property
    def label(self) -> str:
        """What the runner's name says of it: the precision, and how it is run where that was said."""
        params = self._parameters.get("conversion_params")
        mode = self._parameters.get("precision_mode", params.precision_mode if params else "FP32")
        return str(mode).upper() + f"-{self._execution}" * (self._execution != "auto")

    def __call__(self) -> InMemoryModel:
        """Converts; engines may be built later.

        Raises:
            ConversionError: the model cannot be read, expressed, reproduced or calibrated; TensorRT cannot be asked.
            InvalidParameterError: a parameter has a value that is not allowed.
        """
        from rewriter.converter import Converter
        from rewriter.polygraphy_runners.in_memory import InMemoryModel

        backend, obstacle = self._open_backend()
        execution = resolve_execution(self._execution, self._provider, self._strict, obstacle)
        keywords = converter_keywords(self._parameters)
        converter = Converter(model=self._model(), backend=backend, **keywords)
        try:
            # Static shapes calibrate within convert(), when the converter's `signature` does not answer yet.
            converter.convert(
                self._calibration_input_fn(lambda: next(iter(converter._tracks.values())).conversion.source.signature),
                jobs=self._jobs,
            )
            building = self._build == "always" or (self._build == "auto" and execution == "auto")
            return InMemoryModel(
                converter,
                execution,
                build=building,
                strict=bool(self._strict),
                shapes=self._shapes or {},
                jobs=self._jobs,
            )
        except BaseException:
            converter.close()
            raise

    def _model(self) -> Any:
        """The source: a loader called, a path or a model as it is.

        Raises:
            InvalidParameterError: it is converted already.
        """
        from rewriter.artifact import is_artifact

        source = self._source
        if isinstance(source, (str, os.PathLike)) and Path(source).is_dir() and is_artifact(Path(source)):
            raise InvalidParameterError(f"{source} is an artifact, converted already: load it with LoadArtifact")
        return _typed(source()) if _is_loader(source) else source

    def _open_backend(self) -> tuple[Any, str]:
        """The backend for `Converter`, and why it builds nothing ("" for nothing in the way)."""
        from rewriter.backends import has_gpu, installed_backends

        name = self._backend
        if name == "none":
            return TakesAll(), "backend 'none' was asked for"
        installed = installed_backends()
        if name != "auto" or "tensorrt_rtx" in installed or ("tensorrt" in installed and has_gpu()):
            return name, ""
        why = "tensorrt works only where there is a GPU" if installed else NO_TENSORRT
        warn(f"{why}, {_HINT}")
        return TakesAll(), why

    def _calibration_input_fn(self, signature: Callable[[], Signature]) -> Callable[[], Iterator[Any]] | None:
        """What `Converter.convert` takes; `signature` is asked when the inputs are wanted."""
        from rewriter.commands.npz import batches, read_npz
        from rewriter.commands.precision_options import CALIBRATION_BATCH

        given, size = self._calibration, self._calibration_batch
        if size is not None and (size < 1 or not isinstance(given, (str, Path))):
            raise InvalidParameterError("calibration_batch must be at least 1, and goes with an .npz file")
        if given is None:
            return None
        if isinstance(given, (str, Path)):
            return batches(read_npz(str(given)), size or CALIBRATION_BATCH, str(given))
        loader = given

        def input_fn() -> Iterator[Any]:
            specs = signature().inputs
            data = loader() if callable(loader) else loader
            if getattr(data, "input_metadata", False) is None:  # polygraphy's own loader, which no runner has told yet
                data.input_metadata = tensor_metadata(specs)  # type: ignore[union-attr]
            names = [spec.name for spec in specs]
            for feed in data:
                known = {name: feed[name] for name in names if name in feed} if isinstance(feed, Mapping) else feed
                yield known

        return input_fn


def _is_loader(source: Any) -> bool:
    """True for a function without arguments that makes a model; models themselves can often be called, too."""
    plain = isinstance(source, (types.FunctionType, types.MethodType, functools.partial))
    return plain or hasattr(source, "call_impl")  # the latter is a loader of polygraphy


def _typed(model: Any) -> Any:
    """An ONNX model whose outputs have types; polygraphy marks outputs without any. Other models as they are."""
    from onnx import ModelProto, shape_inference

    if not isinstance(model, ModelProto) or all(value.HasField("type") for value in model.graph.output):
        return model
    try:
        inferred = shape_inference.infer_shapes(model)
    except (shape_inference.InferenceError, ValueError) as error:  # ValueError: beyond 2 GB
        raise SourceError(f"the types of the model's marked outputs cannot be inferred: {first_line(error)}") from error
    known = {value.name: value.type for value in inferred.graph.value_info if value.HasField("type")}
    for value in inferred.graph.output:
        if not value.HasField("type") and value.name in known:
            value.type.CopyFrom(known[value.name])
    return inferred
