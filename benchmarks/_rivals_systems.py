"""What this project is compared with in `rivals.py`: ONNX Runtime, PyTorch and JAX; each function returns a `Measure`.

All run on device-resident inputs and leave their outputs there; all get the same model for the same fixed shapes. A
device of "cpu" is for trying the scripts.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from _rivals_workers import Measure, Row, fixed_file, gpu_turn, inputs_of, judged, timed, timing_of, told_of

#: Models whose time goes into convolutions.
CONVOLUTIONS = ("ResNet50", "MobileNetV3Small", "unet")


def fixed_files(told: Mapping[str, Any]) -> Measure:
    """Writes what the systems read: the model for each batch size, and the answers that they are compared with."""
    from pathlib import Path

    from _rivals_models import expected

    def measure(case: Mapping[str, Any]) -> list[Row]:
        started = time.perf_counter()
        fixed_file(told, case["batch"])
        expected(told["model"], case["batch"], Path(told["folder"]))
        return [{"seconds": time.perf_counter() - started}]

    return measure


def _program(told: Mapping[str, Any], batch: int) -> Any:
    import onnx
    from _rivals_graph import program_of

    return program_of(onnx.load(str(fixed_file(told, batch))))


def _torch_ready(told: Mapping[str, Any]) -> tuple[Callable[[], None], Any]:
    """(waits for the device, the torch module) with TF32 allowed and cuDNN's search on."""
    import torch

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return (torch.cuda.synchronize if told["device"] == "cuda" else lambda: None), torch


def _torch_network(told: Mapping[str, Any], case: Mapping[str, Any]) -> tuple[Any, list[Any], Any]:
    """(network, its inputs on the device, program)."""
    import torch
    from _rivals_torch import module_of

    program = _program(told, case["batch"])
    network = module_of(program, case["precision"], told["device"], channels_last=told["model"] in CONVOLUTIONS)
    feeds = inputs_of(told, case["batch"])
    return network, [torch.from_numpy(feeds[name]).to(told["device"]) for name in program.inputs], program


def torch_eager(told: Mapping[str, Any]) -> Measure:
    """PyTorch without its compiler: as it is, and captured into one CUDA graph."""
    finish, torch = _torch_ready(told)

    def measure(case: Mapping[str, Any]) -> list[Row]:
        with torch.inference_mode():
            started = time.perf_counter()
            network, inputs, program = _torch_network(told, case)
            finish()
            prepared = time.perf_counter()
            outputs = network(*inputs)
            finish()
            first = {"prepare s": prepared - started, "first call s": time.perf_counter() - prepared}
            rows = [{"system": "torch eager", **first, **_judged_torch(outputs, program, told, case)}]
            rows[0] |= timed(lambda: network(*inputs), finish, timing_of(told))
            if told["device"] == "cuda":
                rows.append({"system": "torch eager, graph", **_captured(network, inputs, program, told, case)})
        return rows

    def _captured(network: Any, inputs: Any, program: Any, told: Mapping[str, Any], case: Mapping[str, Any]) -> Row:
        try:
            started = time.perf_counter()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    network(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = network(*inputs)
            graph.replay()
            finish()
            row = {"prepare s": time.perf_counter() - started}
            return {
                **row,
                **timed(graph.replay, finish, timing_of(told)),
                **_judged_torch(outputs, program, told, case),
            }
        except Exception as error:  # noqa: BLE001 - costs this row alone
            return {"failed": told_of(error)}

    return measure


def torch_compile(told: Mapping[str, Any]) -> Measure:
    """PyTorch's compiler in the mode of the case; it keeps what it compiled in the folder."""
    finish, torch = _torch_ready(told)

    def measure(case: Mapping[str, Any]) -> list[Row]:
        with torch.no_grad():
            network, inputs, program = _torch_network(told, case)
            mode = {"mode": case["mode"]} if told["device"] == "cuda" else {}
            compiled = torch.compile(network, dynamic=False, fullgraph=True, **mode)
            finish()

            def call() -> Any:
                torch.compiler.cudagraph_mark_step_begin()
                return compiled(*inputs)

            started = time.perf_counter()
            call()
            finish()
            row: Row = {"first call s": time.perf_counter() - started}
            for _ in range(3):  # the first calls record the CUDA graphs
                call()
            row |= _judged_torch(call(), program, told, case)
            with gpu_turn(told):
                return [{**row, **timed(call, finish, timing_of(told))}]

    return measure


def _judged_torch(outputs: Any, program: Any, told: Mapping[str, Any], case: Mapping[str, Any]) -> Row:
    arrays = {name: value.float().cpu().numpy() for name, value in zip(program.outputs, outputs, strict=True)}
    return judged(arrays, told, case["batch"])


def jax(told: Mapping[str, Any]) -> Measure:
    """XLA by `jax.jit`, weights and inputs on the device; it keeps what it compiled in the folder."""
    import jax as library
    from _rivals_jax import function_of

    def measure(case: Mapping[str, Any]) -> list[Row]:
        library.config.update("jax_default_matmul_precision", "tensorfloat32" if case["precision"] == "TF32" else None)
        program = _program(told, case["batch"])
        function, arrays = function_of(program, case["precision"])
        weights = library.device_put(arrays)
        inputs = library.device_put(inputs_of(told, case["batch"]))
        run = library.jit(function)
        last: list[Any] = [library.block_until_ready((weights, inputs))]

        def call() -> None:
            last[0] = run(weights, inputs)

        started = time.perf_counter()
        call()
        library.block_until_ready(last[0])
        row: Row = {"first call s": time.perf_counter() - started}
        found = {name: np.asarray(value) for name, value in zip(program.outputs, last[0], strict=True)}
        row |= judged(found, told, case["batch"])
        with gpu_turn(told):
            return [{**row, **timed(call, lambda: library.block_until_ready(last[0]), timing_of(told))}]

    return measure


def onnxruntime(told: Mapping[str, Any]) -> Measure:
    """ONNX Runtime's CUDA provider: eagerly and by its own CUDA graph, in one session for each case."""
    import onnx
    import onnxruntime as ort

    if told["device"] == "cuda":
        ort.preload_dlls()

    def measure(case: Mapping[str, Any]) -> list[Row]:
        from _rivals_graph import as_half

        proto = onnx.load(str(fixed_file(told, case["batch"])))
        model = (as_half(proto) if case["precision"] == "FP16" else proto).SerializeToString()
        started = time.perf_counter()
        session, ungraphed = _session(ort, model, told["device"], nhwc=case["nhwc"])
        prepared = time.perf_counter() - started
        rows = []
        with gpu_turn(told):
            run, arrays = _bound(ort, session, told, case)
            for word, graph in (("", False), (", graph", True))[: 2 if told["device"] == "cuda" else 1]:
                system = f"{case['system']}{word}"
                try:
                    if graph and ungraphed:
                        raise RuntimeError(ungraphed)
                    row = {"system": system, "prepare s": prepared}
                    rows.append(row | _called(functools.partial(run, graph), arrays, told, case))
                except Exception as error:  # noqa: BLE001 - costs this row alone
                    rows.append({"system": system, "failed": told_of(error)})
        return rows

    return measure


def _called(
    call: Callable[[], None],
    arrays: Callable[[], dict[str, np.ndarray]],
    told: Mapping[str, Any],
    case: Mapping[str, Any],
) -> Row:
    """First call, times, difference; ONNX Runtime waits for the end of each call by itself."""
    started = time.perf_counter()
    call()
    row = {"first call s": time.perf_counter() - started}
    return {**row, **timed(call, lambda: None, timing_of(told)), **judged(arrays(), told, case["batch"])}


def _session(ort: Any, model: bytes, device: str, *, nhwc: bool) -> tuple[Any, str]:
    """(session, why it can have no CUDA graph or "")."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if device == "cpu":
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), ""
    cuda = {"device_id": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1"}
    if nhwc:
        cuda["prefer_nhwc"] = "1"

    def start(**more: str) -> Any:
        providers = [("CUDAExecutionProvider", {**cuda, **more}), "CPUExecutionProvider"]
        session = ort.InferenceSession(model, options, providers=providers)
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeError("ONNX Runtime has no CUDA provider here")
        return session

    try:
        return start(enable_cuda_graph="1"), ""
    except Exception as error:  # noqa: BLE001 - of several kinds: nodes that must run on the CPU
        return start(), told_of(error)


def _bound(
    ort: Any, session: Any, told: Mapping[str, Any], case: Mapping[str, Any]
) -> tuple[Callable[[bool], None], Callable[[], dict[str, np.ndarray]]]:
    """(runs the session once with or without its graph, reads the outputs); everything lies on the device."""
    feeds = inputs_of(told, case["batch"])
    names = [output.name for output in session.get_outputs()]
    if told["device"] == "cpu":
        found: dict[str, np.ndarray] = {}
        return lambda _: found.update(zip(names, session.run(names, feeds), strict=True)), lambda: found
    import torch

    inputs = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
    shapes = {output.name: output.shape for output in session.get_outputs()}
    outputs = {name: torch.zeros(shapes[name], dtype=torch.float32, device="cuda") for name in names}
    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, tensor in tensors.items():
            kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
            bind(name, "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
    torch.cuda.synchronize()
    eager = ort.RunOptions()
    # -1: this run neither captures nor replays the graph of the session.
    eager.add_run_config_entry("gpu_graph_id", "-1")

    def run(graph: bool) -> None:
        session.run_with_iobinding(binding, None if graph else eager)

    run.keep = inputs  # type: ignore[attr-defined] - ONNX Runtime does not keep them alive
    return run, lambda: {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
