"""`ConvertedFunction`: a converted model that is called like the TensorFlow signature it came from."""

from __future__ import annotations

import collections
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import ConversionError, ConverterStateError, InputError, InvalidParameterError
from rewriter.runtime.executor import Execution, Executor
from rewriter.runtime.inputs import bind, describe, disagreement, is_tensorflow, to_device_feeds, to_feeds
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.other_errors import first_line
from rewriter.runtime.siblings import Signatures
from rewriter.runtime.stats import CallCounters, build_totals, grown, unusable
from rewriter.runtime.strings import to_bytes
from rewriter.source import Signature

logger = logging.getLogger(__name__)

#: Runs of a warm-up on a GPU: one asks for the engines that are missing; of those after the builds the first finds the
#: shapes, the second fixes addresses, the third captures a graph, and the fourth launches it.
_WARM_ROUNDS = 5


class ConvertedFunction:
    """A spliced model as a function. Thread-safe, and a context manager.

    Call it with arrays in the order of the signature, with one dict, tuple or list of them, or with keywords. It
    takes numpy arrays, TensorFlow tensors, anything with `__array__` or DLPack in CPU memory, and Python numbers and
    lists; on a GPU also tensors in its memory (DLPack or `__cuda_array_interface__`), which are not copied over the
    host. It returns the signature's outputs by name, in its order: numpy arrays, or TensorFlow tensors when one of
    the inputs was one. `run` can leave them on the GPU.

    `rewriter.load` and `Converter.function` make these.

    Args:
        executor: computes the model, and is closed with this object; or a function that makes it at the first use.
        signature: names, order, dtypes and shapes.
        engines: what is known of the engines of the model's engine nodes.
        options: how it is run.
        engine_nodes: how many engine nodes the model has.
        artifact: the directory that it was loaded from; None for a model straight from a converter.
        on_close: called when this object is closed, after the executor.
        siblings: the keys of all signatures of the model, and what makes the functions of the others; None where this
            is the only one.

    Attributes:
        signature: what it was made with.
        engines: likewise.
        options: likewise.
        structured_input_signature: ((), {input name: spec}): the structure that TensorFlow gives a signature, but the
            specs are `passes.segments.TensorSpec`, not `tf.TensorSpec`. Their `dtype` is a number of
            `onnx.TensorProto.DataType` (FLOAT is 1); their `shape` is None or a tuple whose unknown dimensions are
            None or a name ("batch").
        structured_outputs: {output name: spec}, likewise.
        signatures: all signatures of the artifact by their keys, this one included, as TensorFlow's loaded SavedModels
            have them; the others are loaded with the first look, and closed with this one.
    """

    def __init__(
        self,
        executor: Executor | Callable[[], Executor],
        signature: Signature,
        engines: Sequence[EngineEntry] = (),
        options: RuntimeOptions | None = None,
        *,
        engine_nodes: int = 0,
        artifact: Path | None = None,
        on_close: Callable[[], object] | None = None,
        siblings: tuple[Sequence[str], Callable[[str], ConvertedFunction]] | None = None,
    ) -> None:
        self.signature = signature
        self.engines = tuple(engines)
        self.options = options or RuntimeOptions()
        self.structured_input_signature: tuple[tuple[()], dict[str, TensorSpec]] = (
            (),
            {spec.name: spec for spec in signature.inputs},
        )
        self.structured_outputs: dict[str, TensorSpec] = {spec.name: spec for spec in signature.outputs}
        self.signatures = Signatures(self, *(siblings or ()))
        self._engine_nodes = engine_nodes
        self._artifact = artifact
        self._on_close = on_close
        self._counters = CallCounters()
        self._lock = threading.Lock()
        self._closed = False
        self._open: Callable[[], Executor] | None = None
        self._executor: Executor | None = None
        if callable(executor):
            self._open = executor
        else:
            self._executor = executor
        #: What is known of the executor without it: before it is made, and after it is closed.
        self._provider = self.options.provider if self._executor is None else self._executor.provider
        self._last_stats: dict[str, Any] = {}

    @property
    def provider(self) -> str:
        """What it runs on, "cpu" or "cuda". A function that is made at its first use is made for this question.

        Raises:
            ConversionError: it cannot be made.
        """
        return self._provider if self._closed else self._ready().provider

    @property
    def execution(self) -> str:
        """The `execution` that it was asked for: "auto", "native" or "emulate"."""
        return self.options.execution

    def __call__(self, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Computes the outputs.

        Returns:
            Public output name -> array (or tensor), in signature order; the caller owns them.

        Raises:
            InputError: the inputs do not fit the signature; or the model failed, and a dimension that the signature
                names has two sizes in them.
            ConverterStateError: the function is closed.
            ConversionError: the model failed on these inputs; or `strict`, and an engine was not used.
        """
        return self._call(bind(self.signature, args, kwargs))

    def run(self, inputs: Any = (), *, device_outputs: bool = False) -> dict[str, Any]:
        """As a call with one argument that holds all inputs, and the outputs may stay on the GPU.

        Args:
            inputs: a dict by name, a tuple or list in the order of the signature, or the only input itself.
            device_outputs: True returns tensors on the GPU (`rewriter.runtime.gpu.tensors.DeviceTensor`), which other
                libraries read by DLPack or `__cuda_array_interface__` without a copy; nothing waits for the GPU then.
                Outputs of strings are numpy arrays all the same, and so are those that TensorFlow makes (see `stats`).

        Raises:
            InvalidParameterError: `device_outputs` where the function runs on the CPU.
            InputError, ConverterStateError, ConversionError: as a call raises them.
        """
        return self._call(bind(self.signature, (inputs,), {}), device_outputs=device_outputs)

    def warmup(
        self, shapes: Mapping[str, Any] | None = None, *, samples: Iterable[Any] | None = None
    ) -> dict[str, Any]:
        """Makes everything ready for some shapes: sessions, engines (built where that is allowed), CUDA graphs.

        Runs made-up inputs, waits for the engines that are being built for them, and runs them again. These runs are
        no calls in `stats()`.

        Args:
            shapes: input name -> a shape or a list of shapes, for example {"image": [(1, 224, 224, 3),
                (8, 224, 224, 3)]}; the i-th run takes the i-th shape of every input. None: the optimum of the profiles
                of engines that run here; enough where input shapes are fixed.
            samples: inputs to run instead of made-up ones, each as `run` takes them: for a model that decodes images.

        Returns:
            shapes: number of different sets of inputs. runs: how often the model was run for them. fallbacks: what
            runs natively even now, reason -> engine nodes (of the last run of each set). builds: engines built for
            them. And by how much the numbers of the executor in `stats()` grew (on a GPU: plans, graphs ...).

        Raises:
            InvalidParameterError: an unknown input, a shape that does not fit, or a dimension that nothing fixes; or
                both `shapes` and `samples`.
            InputError: a sample does not fit the signature.
            ConverterStateError: the function is closed.
            ConversionError: the model failed; or `strict`, and an engine is not used even after the builds.
        """
        from rewriter.runtime.warmup import warmup_feeds

        executor = self._ready()
        before = executor.stats()
        feeds = warmup_feeds(self.signature, self.engines, shapes, samples, before.get("engines_chosen", {}))
        building = before.get("sections", 1)  # with `strict` a section's builds begin when those before it are there
        rounds = _WARM_ROUNDS + building - 1 if executor.provider == "cuda" else 1
        left: collections.Counter[str] = collections.Counter()
        for number in range(rounds):
            if 1 <= number <= building:
                executor.wait_for_builds()
            for arrays in feeds:
                left.update(self._warm(executor, arrays, final=number == rounds - 1))
        after = executor.stats()
        built = grown(*(build_totals(stats.get("slots", {}).values()) for stats in (before, after)))
        ready = {"shapes": len(feeds), "runs": rounds * len(feeds), "fallbacks": dict(left), "builds": built}
        return {**grown(before, after), **ready}

    def as_tf_function(self) -> Any:
        """This function as a `tf.function`, for use in `tf.data.Dataset.map` or in another `tf.function`.

        It takes tensors in the order of the signature, by name (characters that Python does not allow in a name are
        "_" there), or all in one dict, tuple or list; a dataset of (image, label) needs a lambda that passes on the
        image. It checks them as TensorFlow does, and returns the dict of outputs. Dimensions that are not fixed are
        None.

        It runs in the Python process that made it, while this function is open: TensorFlow writes a SavedModel of it
        without complaint, but in another process that one fails when it is called. Its outputs are tensors on the
        host. It has no gradient: asking for one is an error.

        Raises:
            MissingDependencyError: TensorFlow is not installed.
            InvalidParameterError: TensorFlow lacks a dtype of the signature.
        """
        from rewriter.runtime.tf_function import as_tf_function

        return as_tf_function(self)

    def save_engines(self, path: str | Path | None = None) -> int:
        """Writes the engines that were built at run time into an artifact, where the next `load` finds them.

        Waits for the builds that are running.

        Args:
            path: the artifact; default: the one that this function was loaded from. Another one must be of the same
                model.

        Returns:
            The number of engines that were added; 0 when the artifact has all of them already.

        Raises:
            ConverterStateError: the function is closed, or came from a converter and no path is given.
            ArtifactError: the artifact cannot be read or written, or is one of another model.
        """
        target = self._artifact if path is None else path
        if target is None:
            raise ConverterStateError(
                "this function came from a converter and belongs to no artifact: save() first, then save_engines(path)"
            )
        from rewriter.artifact.engines import save_engines

        executor = self._ready()
        name = self.signature.name
        save_engines(target, (), name)  # a wrong path is told before builds are waited for
        executor.wait_for_builds()
        return len(save_engines(target, executor.built_engines(), name))

    def stats(self) -> dict[str, Any]:
        """Counters since the function was made.

        Returns:
            calls: finished calls.
            engine_calls: calls in which TensorRT computed at least one engine node.
            native_calls: the other ones.
            warmup_calls: runs of `warmup`; they count in none of the former, nor do their fallbacks.
            fallbacks: reason -> how often an engine node ran as its native segment for it.
            engine_nodes: number of engine nodes in the model.
            engines: number of engines that were there for them from the start.
            unusable_engines: engine node -> why its engine can never be used.
            builds: engines built at run time: `engines` built in `seconds`, `running` builds, and `failed` ones
                (reason -> number).
            provider: "cpu" or "cuda"; as asked for until a function that is made at its first use is made.
            execution: "auto", "native" or "emulate", as it was asked for.

            Where parts of the model stay in TensorFlow (what follows is then the sum of all sections):
            tensorflow: part -> its `ops`, the `reasons` why it stays there, `calls`, `seconds`; they are no fallbacks.
            sections: number of parts between and around these.

            On a GPU also what its executor counts:
            steps, islands: engines and native islands of a call, and how many of them are islands.
            discoveries: calls that ran step by step, for shapes that were new or depend on the data.
            plans, graphs: input shapes that are bound and ready, and those with a CUDA graph; graph_launches: its runs.
            memory_retries: calls that gave up all plans because memory ran out.
            no_plan, no_graph: why calls, and plans, do without: reason -> number.
            device_bytes: memory of the GPU that values and engines share, in bytes.
            slots: engine node -> what its engines did (loads, hits, misses, evictions, refused, builds ...).
            engines_chosen: engine node -> its `engines` in memory, and why not the `others`, by key.
        """
        with self._lock:
            executor, extra, provider = self._executor, self._last_stats, self._provider
        if executor is not None:
            extra, provider = executor.stats(), executor.provider
        return {
            **({"engines_chosen": {}} | extra),
            **self._counters.to_dict(),
            "engine_nodes": self._engine_nodes,
            "engines": len(self.engines),
            "unusable_engines": unusable(self.engines),
            "builds": build_totals(extra.get("slots", {}).values()),
            "provider": provider,
            "execution": self.execution,
        }

    def close(self) -> None:
        """Frees sessions and engines; harmless when repeated. `stats()` keeps its last values."""
        with self._lock:
            executor, self._executor = self._executor, None
            done, self._on_close = self._on_close, None
            self._closed = True
            if executor is not None:
                self._provider, self._last_stats = executor.provider, executor.stats()
        try:
            if executor is not None:
                executor.close()
        finally:
            self.signatures.close()
            if done is not None:
                done()

    def __enter__(self) -> ConvertedFunction:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {describe(spec)}" for spec in self.signature.inputs)
        outputs = ", ".join(f"{spec.name}: {describe(spec)}" for spec in self.signature.outputs)
        executor = self._executor
        state = "closed" if self._closed else "not opened yet" if executor is None else executor.provider
        state += ", emulated" * (self.execution == "emulate")
        return f"<ConvertedFunction ({inputs}) -> ({outputs}), {counted(len(self.engines), 'engine')}, {state}>"

    def _ready(self) -> Executor:
        """The executor, made now if it is not there yet."""
        executor = self._executor
        if executor is not None:
            return executor  # without the lock, which every call of every thread would take
        with self._lock:
            if self._executor is None and self._open is not None and not self._closed:
                self._executor = self._open()
            if self._executor is None:
                raise ConverterStateError("this function is closed: load the artifact again")
            return self._executor

    def _call(self, values: Mapping[str, Any], *, device_outputs: bool = False) -> dict[str, Any]:
        executor = self._ready()
        on_gpu = executor.provider == "cuda"
        if device_outputs and not on_gpu:
            raise InvalidParameterError(
                "device_outputs=True needs a GPU, but this function runs on the CPU: leave it out"
            )
        feeds = to_device_feeds(self.signature, values) if on_gpu else to_feeds(self.signature, values)
        execution = self._execute(executor, feeds, on_device=device_outputs)
        self._count(execution)
        outputs = {spec.name: execution.outputs[spec.tensor] for spec in self.signature.outputs}
        tensorflow = None if device_outputs else sys.modules.get("tensorflow")
        if tensorflow is not None and any(is_tensorflow(value) for value in values.values()):
            convert = tensorflow.convert_to_tensor
            outputs = {
                name: convert(to_bytes(array) if array.dtype.kind == "O" else array) for name, array in outputs.items()
            }
        return outputs

    def _warm(self, executor: Executor, feeds: Mapping[str, Any], *, final: bool) -> Mapping[str, int]:
        """One run of `warmup`; its fallbacks, if it is the last one for these inputs."""
        try:
            execution = self._execute(executor, feeds)
        except ConversionError:
            if final or not self.options.strict:
                raise
            return {}  # an engine is not there yet; what is not passing comes back in the last run
        self._count(execution, warmup=True, final=final)
        return execution.fallbacks if final else {}

    def _execute(self, executor: Executor, feeds: Mapping[str, Any], *, on_device: bool = False) -> Execution:
        try:
            return executor.run(feeds, on_device=on_device)
        except Exception as error:
            known = isinstance(error, ConversionError)
            if known and (type(error) is not ConversionError or isinstance(error.__cause__, ConversionError)):
                raise  # it has a cause of its own: a closed function, the GPU's memory ...
            shapes = {spec.name: _shape_of(feeds[spec.tensor]) for spec in self.signature.inputs}
            sizes = disagreement(self.signature, shapes)
            if known and not sizes:
                raise
            said = ", ".join(f"{name} {'on the GPU' if shape is None else shape}" for name, shape in shapes.items())
            text = f"the model failed on the inputs {said}: {first_line(error)}"
            raise (InputError(f"{sizes}; {text}") if sizes else ConversionError(text)) from error

    def _count(self, execution: Execution, *, warmup: bool = False, final: bool = True) -> None:
        """Counts one run; says each new reason for a fallback once.

        Args:
            execution: what it gave.
            warmup: True for a run of `warmup`.
            final: False for one that is only to get things going: its fallbacks are of no interest.
        """
        news = self._counters.add(execution, warmup=warmup, final=final)
        if not execution.fallbacks:
            return
        level = logging.INFO if self.execution == "native" else logging.WARNING  # what was asked for needs no warning
        for reason in news:
            count, verb = execution.fallbacks[reason], "runs" if execution.fallbacks[reason] == 1 else "run"
            logger.log(level, "%s %s natively: %s", counted(count, "engine node"), verb, reason)
        if self.options.strict and execution.fallbacks and final:
            raise ConversionError(f"strict: an engine was not used: {next(iter(execution.fallbacks))}")


def counted(count: int, thing: str) -> str:
    """`1 engine`, `2 engines`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _shape_of(value: Any) -> list[int] | None:
    """The shape of an array, or of a device tensor that says it."""
    shape = getattr(value, "shape", None)
    return None if shape is None else [int(size) for size in shape]
