"""What the runtime is measured against: a bare TensorRT context, and ONNX Runtime alone, each at its best.

Everything runs on torch's current stream and on tensors that torch put on the device. These need a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper


class BareEngine:
    """One TensorRT-RTX context with fixed device buffers and kernels for exactly these shapes.

    Args:
        path: an engine file.
        feeds: the engine's inputs by name; they fix the shapes.
    """

    def __init__(self, path: Path, feeds: Mapping[str, np.ndarray]) -> None:
        import tensorrt_rtx as trt
        import torch

        self._torch = torch
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise RuntimeError(f"Error: this TensorRT or GPU refuses {path.name}")
        config = self._engine.create_runtime_config()
        # By default kernels for a shape are compiled in the background, and a graph would keep their stand-ins.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._context = self._engine.create_execution_context(config)
        self._choose_profile(feeds, torch.cuda.current_stream().cuda_stream)
        self._graph: Any = None
        self.tensors: dict[str, Any] = {}
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        outputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        for name in names:
            if name not in outputs:
                self.tensors[name] = torch.from_numpy(np.ascontiguousarray(feeds[name])).cuda()
                if not self._context.set_input_shape(name, tuple(feeds[name].shape)):
                    raise RuntimeError(f"Error: shape {feeds[name].shape} of {name} is outside the profile")
        for name in outputs:
            dtype = torch.from_numpy(np.empty(0, trt.nptype(self._engine.get_tensor_dtype(name)))).dtype
            self.tensors[name] = torch.zeros(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device="cuda")
        for name, tensor in self.tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()

    def _choose_profile(self, feeds: Mapping[str, np.ndarray], stream: int) -> None:
        """The profile for exactly these shapes; without one the first that holds them."""
        engine, fitting = self._engine, []
        for index in range(engine.num_optimization_profiles):
            ranges = [(engine.get_tensor_profile_shape(name, index), value.shape) for name, value in feeds.items()]
            if all(
                all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)) for (low, _, high), shape in ranges
            ):
                exact = all(tuple(low) == tuple(high) for (low, _, high), _ in ranges)
                fitting.append((not exact, index))
        if engine.num_optimization_profiles > 1:
            self._context.set_optimization_profile_async(min(fitting)[1], stream)

    def eager(self) -> None:
        """Enqueues one execution."""
        if not self._context.execute_async_v3(self._torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("Error: the engine could not be enqueued")

    def graph(self) -> None:
        """Enqueues one execution as a CUDA graph, which the first call captures."""
        if self._graph is None:
            torch = self._torch
            for _ in range(3):
                self.eager()
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                self.eager()
            torch.cuda.synchronize()
        self._graph.replay()


def onnxruntime_call(
    model: bytes, feeds: Mapping[str, np.ndarray], *, cuda_graph: bool
) -> tuple[Callable[[], None], dict[str, Any], dict[str, np.ndarray]]:
    """ONNX Runtime's CUDA provider: exhaustive search for convolutions, TF32 allowed, inputs and outputs on the device.

    Args:
        model: a self-contained ONNX model.
        feeds: fix the shapes.
        cuda_graph: with ONNX Runtime's own CUDA graph.

    Returns:
        What runs it once (ONNX Runtime waits for the end by itself), its outputs as device tensors, and the outputs
        of one run on the CPU.
    """
    import onnxruntime as ort
    import torch

    ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    cuda = {"device_id": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1"}
    if cuda_graph:
        cuda["enable_cuda_graph"] = "1"
    providers = [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    session = ort.InferenceSession(model, options, providers=providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("Error: ONNX Runtime has no CUDA provider here")
    plain = _cpu_outputs(model, feeds)
    binding = session.io_binding()
    inputs = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in feeds.items()}
    outputs = {name: torch.empty(a.shape, dtype=torch.from_numpy(a).dtype, device="cuda") for name, a in plain.items()}
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, tensor in tensors.items():
            kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
            bind(name, "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
    torch.cuda.synchronize()

    def call() -> None:
        session.run_with_iobinding(binding)

    call.keep = (session, binding, inputs)  # type: ignore[attr-defined] - ONNX Runtime keeps none of them alive
    return call, outputs, plain


def _cpu_outputs(model: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of one run on the CPU: for their shapes and dtypes."""
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names: Sequence[str] = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def as_float16(proto: ModelProto) -> ModelProto:
    """A float32 model computed in float16 throughout, with float32 inputs and outputs: casts at its ends only.

    For plain networks without control flow, whose float tensors are all float32.
    """
    model = ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    inputs = {v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    outputs = {v.name for v in graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in inputs or name in outputs:
                node.input[index] = f"{name}/half"
        for index, name in enumerate(node.output):
            if name in outputs:
                node.output[index] = f"{name}/half"
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
    first = [helper.make_node("Cast", [n], [f"{n}/half"], f"{n}/cast", to=TensorProto.FLOAT16) for n in sorted(inputs)]
    last = [helper.make_node("Cast", [f"{n}/half"], [n], f"{n}/cast", to=TensorProto.FLOAT) for n in sorted(outputs)]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return model
