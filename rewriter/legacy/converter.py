"""TF-TRT's interface for TensorFlow 1: `TrtGraphConverter` and `create_inference_graph`.

Names, defaults and the order of calls are TF-TRT's. Where that returned a GraphDef with `TRTEngineOp` nodes, a
`ConvertedFunction` comes back here: no TensorFlow knows these nodes any more. Both work in eager mode, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter import params as parameters
from rewriter.converter import Converter
from rewriter.errors import ConverterStateError, InvalidParameterError
from rewriter.legacy.checks import batch_limit, check_options, one_sample
from rewriter.legacy.names import NodeNames, graph_of, node_pattern, saved_model_tensors
from rewriter.params import ConversionParams
from rewriter.reports.report import Report
from rewriter.runtime.function import ConvertedFunction

logger = logging.getLogger(__name__)

#: Takes nothing and returns input name -> value.
FeedDictFn = Callable[[], Mapping[str, Any]]

#: Precision modes that quantise.
_CALIBRATED = ("INT8", "FP8")


class TrtGraphConverter:
    """Converts a frozen GraphDef or a SavedModel, as TF-TRT did for TensorFlow 1.

    Call `convert()`; for INT8 and FP8 with calibration then `calibrate()`; then `save()`. Engines: with
    `is_dynamic_op` False `convert()` builds them for batches 1 to `max_batch_size`; else `build()` does, which TF-TRT
    did not have here, or the run time when a request comes.

    Args:
        input_saved_model_dir: a SavedModel directory; or give `input_graph_def`.
        input_saved_model_tags: tags of its graph; default ("serve",).
        input_saved_model_signature_key: signature to convert; default "serving_default".
        input_graph_def: a frozen GraphDef, or the path of a .pb or .pbtxt file.
        nodes_denylist: names of TensorFlow nodes or tensors, or these themselves: the ONNX nodes that bear their names
            stay native. An entry that no node answers to is told in the report (TensorFlow nodes that were merged into
            others have none). Of a GraphDef, or a file with one, they are its outputs as well, if one of them is a
            result that no other node reads: that is how outputs were named in TF-TRT; all of them must be there then.
            `outputs=` says it plainly.
        max_batch_size: largest batch of static engines; None or 1 with `is_dynamic_op`, which does not use it.
        max_workspace_size_bytes: limit of the builder's workspace for each engine, bytes.
        precision_mode: "FP32", "FP16", "INT8" and ours, in either case.
        minimum_segment_size: effective nodes a segment must have; -1 leaves the main graph native.
        is_dynamic_op: False: static engines at `convert()`. Calibration makes it True, as in TF-TRT.
        maximum_cached_engines: engines in memory for each engine node at run time.
        use_calibration: INT8 and FP8 only. True: `calibrate()` finds missing ranges. False: all are in the model.
        **options: everything else that `Converter` takes (`inputs`, `outputs`, `backend`, `node_denylist` ...).

    Raises:
        InvalidParameterError: a value is not allowed; none or both of the sources are given; an argument twice or
            unknown; `nodes_denylist` names the outputs, and one is no node of the graph.
        SourceError: `nodes_denylist` is given, and the file of `input_graph_def` holds no GraphDef.
        MissingDependencyError: no TensorRT package is installed.
    """

    def __init__(
        self,
        input_saved_model_dir: str | Path | None = None,
        input_saved_model_tags: Iterable[str] | None = None,
        input_saved_model_signature_key: str | None = None,
        input_graph_def: Any = None,
        nodes_denylist: Sequence[Any] | None = None,
        max_batch_size: int | None = 1,
        max_workspace_size_bytes: int = parameters.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = parameters.TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        is_dynamic_op: bool = False,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
        **options: Any,
    ) -> None:
        if (input_graph_def is None) == (input_saved_model_dir is None):
            raise InvalidParameterError("give exactly one of input_graph_def and input_saved_model_dir")
        check_options(options)
        mode = parameters.check_precision_mode(precision_mode)
        use_calibration = parameters.check_switch("use_calibration", use_calibration)
        self._needs_calibration = mode in _CALIBRATED and use_calibration and options.get("calibration") is None
        dynamic = parameters.check_switch("is_dynamic_op", is_dynamic_op)
        if self._needs_calibration and not dynamic:
            logger.warning("is_dynamic_op=False is not used: %s with calibration needs dynamic engines", mode)
            dynamic = True
        params = ConversionParams(
            max_workspace_size_bytes=max_workspace_size_bytes,
            precision_mode=precision_mode,
            minimum_segment_size=minimum_segment_size,
            is_dynamic_op=dynamic,
            maximum_cached_engines=maximum_cached_engines,
            use_calibration=use_calibration,
            max_batch_size=batch_limit(max_batch_size, dynamic),
            allow_build_at_runtime=options.pop("allow_build_at_runtime", True),
        )
        denied = NodeNames.of(nodes_denylist, "nodes_denylist")
        patterns = parameters.check_patterns("node_denylist", options.pop("node_denylist", ()))
        if denied.nodes and options.get("outputs") is None:
            options["outputs"] = denied.outputs_of(graph_of(input_graph_def))
        self._directory = (
            None
            if input_saved_model_dir is None
            else parameters.check_path("input_saved_model_dir", input_saved_model_dir)
        )
        self._tags = parameters.check_optional_names("input_saved_model_tags", input_saved_model_tags)
        self._converter = Converter(
            self._directory,
            self._tags,
            input_saved_model_signature_key,
            conversion_params=params,
            model=input_graph_def,
            node_denylist=(*patterns, *map(node_pattern, denied.nodes)),
            **options,
        )
        self._feed: tuple[FeedDictFn, int] | None = None
        self._converted = self._calibrated = False

    def convert(self) -> ConvertedFunction:
        """Exports, cuts and splices; static engines are built.

        Returns:
            The converted model as a function. Until `calibrate()` has run, an INT8 or FP8 one computes natively.

        Raises:
            ConverterStateError: called twice.
            SourceError, ExportError, VerificationError, InvalidParameterError: as `Converter.convert` raises them.
        """
        function = self._converter.convert(self._calibration_inputs if self._needs_calibration else None)
        self._converted = True
        return function

    def calibrate(
        self,
        fetch_names: Sequence[str],
        num_runs: int,
        feed_dict_fn: FeedDictFn | None = None,
        input_map_fn: Callable[[], Any] | None = None,
    ) -> ConvertedFunction:
        """Finds the ranges of an INT8 or FP8 conversion from typical inputs.

        Args:
            fetch_names: output tensors. The whole model is run in any case; names that are no outputs are logged.
            num_runs: how often `feed_dict_fn` is called, at least 1.
            feed_dict_fn: returns input name -> value, names as in TensorFlow ("image:0") or in the signature.
            input_map_fn: refused; see the message.

        Returns:
            The converted model as a function with calibrated engines.

        Raises:
            ConverterStateError: `convert()` has not run, no calibration is needed, or it is done.
            InvalidParameterError: not exactly one of the two functions, an `input_map_fn`, or a wrong `num_runs`.
            InputError: a fed name is no input, or a value does not fit.
        """
        self._check_order()
        if (feed_dict_fn is None) == (input_map_fn is None):
            raise InvalidParameterError("give exactly one of feed_dict_fn and input_map_fn")
        if input_map_fn is not None:
            raise InvalidParameterError(
                "input_map_fn puts tensors of a TensorFlow graph in the place of inputs, and there is no such graph "
                "here: give feed_dict_fn, which returns arrays, for example out of dataset.as_numpy_iterator()"
            )
        if not callable(feed_dict_fn):
            raise InvalidParameterError(f"feed_dict_fn must be a function, not {type(feed_dict_fn).__name__}")
        runs = parameters.check_count("num_runs", num_runs)
        if runs is None:
            raise InvalidParameterError("num_runs must be an integer of at least 1, not None")
        self._tell_fetches(parameters.check_names("fetch_names", fetch_names))
        self._feed = (feed_dict_fn, runs)
        self._converter.calibrate()
        self._calibrated = True
        return self._converter.function()

    def build(self, input_fn: Callable[[], Iterable[Any]] | None = None) -> None:
        """Builds engines for the shapes of sample inputs; see `Converter.build`. TF-TRT built them at run time.

        Raises:
            ConverterStateError: `convert()` has not run, or `calibrate()` has still to.
        """
        self._check_calibrated("build")
        self._converter.build(input_fn)

    def save(
        self,
        output_saved_model_dir: str | Path,
        save_gpu_specific_engines: bool = True,
        options: Any = None,
        *,
        overwrite: bool = False,
    ) -> Path:
        """Writes the artifact that `rewriter.load()` reads, of a GraphDef as well as of a SavedModel.

        Args:
            output_saved_model_dir: folder to make.
            save_gpu_specific_engines: False leaves the engines out.
            options: must be None, as in `Converter.save`.
            overwrite: replace an existing artifact.

        Raises:
            ConverterStateError: `convert()` has not run, or `calibrate()` has still to.
            ArtifactError: the folder exists or cannot be written.
        """
        self._check_calibrated("save")
        return self._converter.save(output_saved_model_dir, save_gpu_specific_engines, options, overwrite=overwrite)

    def summary(
        self, line_length: int = 160, detailed: bool = True, print_fn: Callable[[str], object] | None = None
    ) -> None:
        """Prints engines, native nodes with reasons, and coverage; see `Converter.summary`."""
        self._converter.summary(line_length, detailed, print_fn)

    @property
    def report(self) -> Report:
        """What the conversion did so far.

        Raises:
            ConverterStateError: `convert()` has not run.
        """
        return self._converter.report

    def close(self) -> None:
        """Ends TensorRT's child process and removes the temporary folder; harmless when repeated."""
        self._converter.close()

    def __enter__(self) -> TrtGraphConverter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_order(self) -> None:
        if not self._converted:
            raise ConverterStateError("calibrate needs a converted model: call convert() first")
        if not self._needs_calibration:
            raise ConverterStateError(
                "calibrate has nothing to do: it belongs to precision_mode 'INT8' and 'FP8' with use_calibration=True "
                "and without calibration="
            )
        if self._calibrated:
            raise ConverterStateError("calibrate() has run already: make a new TrtGraphConverter to calibrate again")

    def _check_calibrated(self, verb: str) -> None:
        if not self._converted:
            raise ConverterStateError(f"{verb} needs a converted model: call convert() first")
        if self._needs_calibration and not self._calibrated:
            mode = self._converter.params.precision_mode
            raise ConverterStateError(f"{verb} needs the ranges of {mode}: call calibrate() first")

    def _tell_fetches(self, names: tuple[str, ...]) -> None:
        known = {spec.name for spec in self._converter.signature.outputs}
        if self._directory is not None:
            known |= set(saved_model_tensors(self._directory, self._tags, self._converter.signature.name)[1])
        for name in names:
            if name not in known and name.removesuffix(":0") not in known:
                logger.info("fetch_names: %r is no output; the whole model is run for calibration", name)

    def _calibration_inputs(self) -> Iterator[dict[str, Any]]:
        """What `feed_dict_fn` returns, `num_runs` times, by signature name.

        Raises:
            ConverterStateError: the ranges were asked for before `calibrate()` was called.
            InputError: a name is no input.
        """
        if self._feed is None:
            mode = self._converter.params.precision_mode
            raise ConverterStateError(f"the ranges of {mode} are not known: call calibrate() first")
        signature = self._converter.signature
        specs = {spec.name: spec for spec in signature.inputs}
        names = {f"{name}:0": name for name in specs} | {name: name for name in specs}
        if self._directory is not None:
            tensors = saved_model_tensors(self._directory, self._tags, signature.name)[0]
            names = {**tensors, **{tensor.removesuffix(":0"): key for tensor, key in tensors.items()}, **names}
        feed_dict_fn, runs = self._feed
        for _ in range(runs):
            yield one_sample(feed_dict_fn(), names, specs)


def create_inference_graph(
    input_graph_def: Any,
    outputs: Sequence[Any] | None,
    max_batch_size: int | None = 1,
    max_workspace_size_bytes: int = parameters.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    precision_mode: str = parameters.TrtPrecisionMode.FP32,
    minimum_segment_size: int = 3,
    is_dynamic_op: bool = False,
    maximum_cached_engines: int = 1,
    input_saved_model_dir: str | Path | None = None,
    input_saved_model_tags: Iterable[str] | None = None,
    input_saved_model_signature_key: str | None = None,
    output_saved_model_dir: str | Path | None = None,
    **options: Any,
) -> ConvertedFunction:
    """Converts in one call, without calibration (INT8 takes trained ranges, as in TF-TRT; FP8 likewise).

    Args:
        input_graph_def: a frozen GraphDef, or the path of a .pb or .pbtxt file; None with `input_saved_model_dir`.
        outputs: names of the GraphDef's output nodes or tensors, or these themselves. They may lie in engines, which
            keep their names; TF-TRT had to leave them out. Not used for a SavedModel, whose signature names them.
        max_batch_size: largest batch of static engines; not used with `is_dynamic_op`.
        max_workspace_size_bytes: limit of the builder's workspace for each engine, bytes.
        precision_mode: "FP32", "FP16", "INT8" and ours, in either case.
        minimum_segment_size: effective nodes a segment must have.
        is_dynamic_op: False: static engines for batches 1 to `max_batch_size`.
        maximum_cached_engines: engines in memory for each engine node at run time.
        input_saved_model_dir: a SavedModel directory, where `input_graph_def` is None.
        input_saved_model_tags: tags of its graph; default ("serve",).
        input_saved_model_signature_key: signature to convert; default "serving_default".
        output_saved_model_dir: folder to write an artifact to; also for a GraphDef.
        **options: everything else that `TrtGraphConverter` takes, but for `use_calibration`, which is False.

    Returns:
        The converted model as a function, where TF-TRT returned a GraphDef.

    Raises:
        InvalidParameterError, SourceError, ExportError, VerificationError, ArtifactError: as the methods of
            `TrtGraphConverter` raise them.
    """
    if parameters.check_switch("use_calibration", options.pop("use_calibration", False)):
        raise InvalidParameterError("create_inference_graph does not calibrate: use TrtGraphConverter and calibrate()")
    named = NodeNames.of(outputs, "outputs")
    if input_graph_def is not None:
        options["outputs"] = list(named.tensors) or None
    elif outputs:
        logger.info("outputs is not used: the signature of the SavedModel names them")
    converter = TrtGraphConverter(
        input_saved_model_dir=input_saved_model_dir,
        input_saved_model_tags=input_saved_model_tags,
        input_saved_model_signature_key=input_saved_model_signature_key,
        input_graph_def=input_graph_def,
        max_batch_size=max_batch_size,
        max_workspace_size_bytes=max_workspace_size_bytes,
        precision_mode=precision_mode,
        minimum_segment_size=minimum_segment_size,
        is_dynamic_op=is_dynamic_op,
        maximum_cached_engines=maximum_cached_engines,
        use_calibration=False,
        **options,
    )
    with converter:
        function = converter.convert()
        if output_saved_model_dir is not None:
            converter.save(output_saved_model_dir)
    return function
