"""A native island: nodes between engines, as an ONNX Runtime session whose tensors stay on the device."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from passes.model import Model
from rewriter.errors import SourceError
from rewriter.runtime.gpu.values import DeviceValue, HostValue, Value
from rewriter.runtime.native import import_onnxruntime, numpy_dtype, open_session, session_options
from rewriter.runtime.ort_values import from_ort_value, to_ort_value
from rewriter.runtime.other_errors import first_line
from rewriter.runtime.schedule import Binding

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda

_LOG = logging.getLogger(__name__)
#: Without it ONNX Runtime waits for the stream at the end of every run, and a run cannot be captured.
_NO_WAITING = "disable_synchronize_execution_providers"
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
#: Types of outputs that have no bytes to be shared: sequences and other things that are no tensor, and strings.
_NOT_BINARY = (TensorProto.UNDEFINED, TensorProto.STRING)


class Island:
    """One native piece of a schedule. The session is made at the first use.

    Not thread-safe: the executor runs one step at a time.

    Args:
        name: for messages.
        model: the stand-alone model; its weights must not change.
        inputs: its inputs and the values that they are in the schedule.
        outputs: likewise.
        cuda: where it runs.
        on_host: True passes every tensor through CPU memory (strings, or an ONNX Runtime without the CUDA provider).
        threads: of the session on the CPU, see `rewriter.runtime.native.session_options`.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        inputs: tuple[Binding, ...],
        outputs: tuple[Binding, ...],
        cuda: Cuda,
        *,
        on_host: bool = False,
        threads: int = 0,
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.on_host = on_host
        self._cuda = cuda
        self._threads = threads
        self._model: Model | None = model
        self._lock = threading.Lock()
        self._session: Any = None
        self._keep: object = None
        self._run_options: Any = None
        self._quick_options: Any = None
        self._dtypes = {info.name: info.type.tensor_type.elem_type for info in model.proto.graph.output}

    def run(self, values: Mapping[str, Value], wanted_on_host: Collection[str] = ()) -> dict[str, Value]:
        """Runs the island on inputs of any shape; ONNX Runtime allocates the outputs.

        Args:
            values: value name -> tensor, for every input.
            wanted_on_host: names of outputs that are needed in CPU memory; the host waits for them.

        Returns:
            Value name -> output; device memory is owned by the values.

        Raises:
            SourceError: ONNX Runtime refuses the island.
        """
        self.open()
        if self.on_host:
            return self._run_on_host(values)
        binding = self._session.io_binding()
        keep = [self._bind_input(binding, item.tensor, values[item.value]) for item in self.inputs]
        for item in self.outputs:
            binding.bind_output(item.tensor, "cpu" if item.value in wanted_on_host else self._cuda.device_type,
                                self._cuda.device if item.value not in wanted_on_host else 0)  # fmt: skip
        self._session.run_with_iobinding(binding, self._run_options)
        if any(item.value in wanted_on_host for item in self.outputs):
            binding.synchronize_outputs()
            self._cuda.synchronize()
        results = binding.get_outputs()
        del keep
        return {
            item.value: self._host_value(item, result)
            if item.value in wanted_on_host
            else self._device_value(item, result)
            for item, result in zip(self.outputs, results, strict=True)
        }

    def bind(
        self, inputs: Mapping[str, DeviceValue], outputs: Mapping[str, DeviceValue], *, waits: bool
    ) -> Callable[[], None]:
        """Binds the island to fixed memory; each call of the result enqueues one run.

        Args:
            inputs: value name -> memory that is read.
            outputs: value name -> memory that is written; its shape must be the one that comes out. Outputs that are
                not here are not asked for.
            waits: True lets ONNX Runtime wait for the stream at the end of every run, which it must where it frees
                CPU memory behind the device's work.
        """
        self.open()
        binding = self._session.io_binding()
        for item in self.inputs:
            self._bind_input(binding, item.tensor, inputs[item.value])
        for item in self.outputs:
            value = outputs.get(item.value)
            if value is None:
                continue
            binding.bind_output(
                item.tensor, self._cuda.device_type, self._cuda.device, value.dtype, list(value.shape), value.pointer
            )
        options = self._run_options if waits else self._quick_options
        # The public method looks at things of other providers first, which costs as much as a small kernel.
        session, bound = getattr(self._session, "_sess", None), getattr(binding, "_iobinding", None)
        if session is None or bound is None:
            session, bound = self._session, binding
        run = functools.partial(session.run_with_iobinding, bound, options)
        return functools.partial(self._cuda.enqueue, run)

    def host_nodes(self) -> tuple[str, ...] | None:
        """Names of the nodes that ONNX Runtime put on the CPU; None when this version does not tell.

        A node that it added itself, or made of others, may have a name of its own.
        """
        self.open()
        if self._cuda.device_type == "cpu":
            return ()
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return None
        parts = self._session.get_provider_graph_assignment_info()
        return tuple(n.name or n.op_type for part in parts if part.ep_name.startswith("CPU") for n in part.get_nodes())

    def open(self) -> None:
        """Makes the session, unless that is done.

        Raises:
            SourceError: ONNX Runtime refuses the island; the message names it.
        """
        with self._lock:
            if self._session is not None:
                return
            if self._model is None:
                raise SourceError(f"{self.name} is closed")
            ort = import_onnxruntime()
            options = session_options(self._threads)
            options.add_session_config_entry(_RECORD_PLACEMENT, "1")
            providers = ["CPUExecutionProvider"] if self.on_host else self._cuda.providers
            try:
                self._session, self._keep = open_session(self._model, options, providers)
            except Exception as error:
                raise SourceError(f"ONNX Runtime refuses {self.name}: {first_line(error)}") from error
            self._run_options, self._quick_options = ort.RunOptions(), ort.RunOptions()
            self._quick_options.add_run_config_entry(_NO_WAITING, "1")

    def close(self) -> None:
        """Drops session and model; harmless when repeated."""
        with self._lock:
            self._session = self._keep = self._model = None

    def _run_on_host(self, values: Mapping[str, Value]) -> dict[str, Value]:
        feeds = {item.tensor: to_host(values[item.value], self._cuda) for item in self.inputs}
        names = [item.tensor for item in self.outputs]
        plain = all(self._dtypes[name] not in _NOT_BINARY for name in names)
        if plain and all(isinstance(v, np.ndarray) and v.dtype.kind not in "OSU" for v in feeds.values()):
            given = {name: to_ort_value(array) for name, array in feeds.items()}
            results = [from_ort_value(value) for value in self._session.run_with_ort_values(names, given)]
        else:
            results = self._session.run(names, feeds)
        return {
            item.value: HostValue(result, self._dtypes[item.tensor])
            for item, result in zip(self.outputs, results, strict=True)
        }

    def _bind_input(self, binding: Any, tensor: str, value: Value) -> object:
        """Binds one input; returns what must live until the run is over."""
        if isinstance(value, DeviceValue):
            binding.bind_input(
                tensor, self._cuda.device_type, self._cuda.device, value.dtype, list(value.shape), value.pointer
            )
            return value
        held = to_ort_value(value.array)
        binding.bind_ortvalue_input(tensor, held)
        return held

    def _host_value(self, item: Binding, result: Any) -> HostValue:
        return HostValue(np.array(from_ort_value(result)), self._dtypes[item.tensor])

    def _device_value(self, item: Binding, result: Any) -> DeviceValue:
        shape = tuple(int(size) for size in result.shape())
        return DeviceValue(result.data_ptr(), shape, self._dtypes[item.tensor], result)


def to_host(value: Value, cuda: Cuda) -> Any:
    """The tensor (or sequence) in CPU memory; for one on the device the host waits until it is there."""
    if isinstance(value, HostValue):
        return value.array
    memory = cuda.pinned(value.nbytes)
    try:
        cuda.to_host(memory.pointer, value.pointer, value.nbytes)
        cuda.synchronize()
        return np.array(memory.array(numpy_dtype(value.dtype), value.shape))
    finally:
        memory.release()


def cuda_provider_problem(cuda: Cuda) -> str:
    """Why ONNX Runtime cannot run on the GPU, in a few words; "" when it can.

    Asked of a session: a provider that is installed may lack its CUDA libraries, and then ONNX Runtime takes the CPU
    without an error.
    """
    if cuda.device_type == "cpu":
        return ""
    ort = import_onnxruntime()
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA provider: pip install 'trt-rewriter[gpu]' and uninstall onnxruntime"
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    session, _ = open_session(_tiny_model(), session_options(), cuda.providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        return "ONNX Runtime's CUDA provider cannot be loaded: are its CUDA and cuDNN libraries installed?"
    return ""


def absorb_capture_error(cuda: Cuda) -> None:
    """Lets ONNX Runtime find the error of a failed capture now, where it harms nobody.

    It has a CUDA runtime of its own, which keeps that error until somebody asks: the next kernel that looks takes it
    for its own failure (seen with 1.31 on an H100), and all is well afterwards.
    """
    if cuda.device_type == "cpu":
        return
    session, _ = open_session(_tiny_model(), session_options(), cuda.providers)
    for _ in range(2):
        try:
            session.run(None, {"x": np.zeros(1, np.float32)})
        except Exception as error:  # noqa: BLE001 -- that is what it is run for
            _LOG.debug("the error of a failed capture is taken off: %s", first_line(error))


def _tiny_model() -> Model:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", value[:1], value[1:])
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
