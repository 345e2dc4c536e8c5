"""PyTorch's part of `rivals.py`: a program as a `torch.fx` module, straight code without an interpreter's loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from _rivals_graph import HALF_MAX, Program


def module_of(program: Program, precision: str, device: str, *, channels_last: bool) -> Any:
    """The program as a module: float32 inputs in order -> tuple of float32 outputs.

    Args:
        program: for one shape of its inputs.
        precision: "TF32" (float32, matrix products and convolutions may use TF32), "FP16" or "BF16": weights and
            everything computed are of it.
        device: "cuda" or "cpu".
        channels_last: four-dimensional weights in that format; convolutions then compute in it.
    """
    import torch

    kind = {"TF32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}[precision]
    root, graph = torch.nn.Module(), torch.fx.Graph()
    tracer = torch.fx.proxy.GraphAppendingTracer(graph)
    values: dict[str, Any] = {}
    for name in program.inputs:
        values[name] = torch.fx.Proxy(graph.placeholder(f"in_{_plain(name)}"), tracer)
    for number, array in enumerate(program.weights.values()):
        root.register_buffer(f"w{number}", _tensor(array, kind, device, channels_last=channels_last))
    for name in program.inputs:
        values[name] = _cast_float(values[name], kind)
    for number, name in enumerate(program.weights):
        values[name] = torch.fx.Proxy(graph.get_attr(f"w{number}"), tracer)
    table = operations(kind)
    for step in program.steps:
        operands = [values[name] if name else None for name in step.inputs]
        values[step.output] = table[step.op](*operands, **step.arguments)
    graph.output(tuple(_to_float32(values[name], kind).node for name in program.outputs))
    return torch.fx.GraphModule(root, graph).eval()


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _tensor(array: np.ndarray, kind: Any, device: str, *, channels_last: bool) -> Any:
    import torch

    tensor = torch.from_numpy(np.array(array))
    if tensor.dtype == torch.float32:
        tensor = tensor.clamp(-HALF_MAX, HALF_MAX) if kind == torch.float16 else tensor
        tensor = tensor.to(kind)
    if channels_last and tensor.ndim == 4:
        tensor = tensor.to(memory_format=torch.channels_last)
    return tensor.to(device)


def _cast_float(value: Any, kind: Any) -> Any:
    """An input of the network in the precision that it computes in; integers and booleans stay."""
    import torch

    return value if kind == torch.float32 else _only_floats(value, kind)


def _only_floats(value: Any, kind: Any) -> Any:
    import torch

    return torch.fx.Proxy(value.tracer.graph.call_function(to_kind, (value.node, kind)), value.tracer)


def to_kind(tensor: Any, kind: Any) -> Any:
    """The tensor in another floating-point type; one of integers or booleans as it is."""
    return tensor.to(kind) if tensor.is_floating_point() else tensor


def _to_float32(value: Any, kind: Any) -> Any:
    import torch

    return value if kind == torch.float32 else _only_floats(value, torch.float32)


def operations(kind: Any) -> dict[str, Callable[..., Any]]:
    """What each word of a step does; `kind` is what floats are computed in."""
    import torch
    from torch.nn import functional

    table: dict[str, Callable[..., Any]] = {
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "And": torch.logical_and,
        "Less": torch.lt, "Where": torch.where, "MatMul": torch.matmul, "Relu": torch.relu, "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh, "Erf": torch.erf, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Neg": torch.neg,
        "Max": lambda *operands: functools.reduce(torch.maximum, operands),
        "Reshape": lambda x, shape: x.reshape(shape),
        "Expand": lambda x, shape: x.expand(shape),
        "Transpose": lambda x, perm: x.permute(perm),
        "Concat": lambda *operands, axis: torch.cat(operands, axis),
        "Slice": lambda x, cuts: x[cuts],
        "Gather": lambda x, at, axis: x[(slice(None),) * axis + (at,)],
        "Cast": lambda x, to: x.to(kind if to == "float32" else getattr(torch, to)),
        "Clip": lambda x, low, high: torch.clamp(x, min=low, max=high),
        "Softmax": lambda x, axis: torch.softmax(x, dim=axis),
        "ReduceMean": lambda x, axes, keepdims: torch.mean(x, axes, keepdim=keepdims),
        "ConvTranspose": lambda x, w, b=None, *, strides: functional.conv_transpose2d(x, w, b, strides),
    }  # fmt: skip

    def gemm(a: Any, b: Any, c: Any = None, *, alpha: float, beta: float, transA: int, transB: int) -> Any:  # noqa: N803 - ONNX's names
        left, right = (a.t() if transA else a), (b.t() if transB else b)
        return alpha * (left @ right) if c is None else torch.addmm(c, left, right, beta=beta, alpha=alpha)

    def pad(x: Any, pads: Any, value: float) -> Any:
        return functional.pad(x, [n for pair in reversed(pads) for n in pair], value=value)

    def conv(x: Any, w: Any, b: Any = None, *, strides: Any, dilations: Any, pads: Any, group: int) -> Any:
        even = all(before == after for before, after in pads)
        x = x if even else pad(x, pads, 0.0)
        padding = [before for before, _ in pads] if even else 0
        return functional.conv2d(x, w, b, strides, padding, dilations, group)

    def max_pool(x: Any, kernel: Any, strides: Any, pads: Any) -> Any:
        even = all(before == after for before, after in pads)
        x = x if even else pad(x, pads, -float("inf"))
        return functional.max_pool2d(x, kernel, strides, [before for before, _ in pads] if even else 0)

    return {**table, "Gemm": gemm, "Pad": pad, "Conv": conv, "MaxPool": max_pool}
