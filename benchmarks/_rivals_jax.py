"""JAX's part of `rivals.py`: a program as a function that XLA compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from _rivals_graph import HALF_MAX, Program

_PLACES = ("NCHW", "OIHW", "NCHW")


def function_of(program: Program, precision: str) -> tuple[Callable[..., tuple[Any, ...]], list[np.ndarray]]:
    """The program as (weights, inputs) -> tuple of float32 outputs, for `jax.jit`, and its weights.

    Args:
        program: for one shape of its inputs.
        precision: "TF32" (float32; what matrix products use is up to `jax_default_matmul_precision`), "FP16", "BF16".

    Returns:
        The function, which takes the weights as a list in the order of the second value.
    """
    import jax.numpy as jnp

    kind = {"TF32": jnp.float32, "FP16": jnp.float16, "BF16": jnp.bfloat16}[precision]
    table = operations(kind)

    def run(weights: Sequence[Any], inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        values = dict(zip(program.weights, weights, strict=True))
        values |= {name: _as(inputs[name], kind) for name in program.inputs}
        for step in program.steps:
            operands = [values[name] if name else None for name in step.inputs]
            values[step.output] = table[step.op](*operands, **step.arguments)
        return tuple(_as(values[name], jnp.float32) for name in program.outputs)

    return run, [_weight(array, kind) for array in program.weights.values()]


def _as(value: Any, kind: Any) -> Any:
    """A floating-point value in `kind`; others as they are."""
    import jax.numpy as jnp

    return value.astype(kind) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _weight(array: np.ndarray, kind: Any) -> np.ndarray:
    import jax.numpy as jnp

    if array.dtype != np.float32:
        # Without 64-bit types JAX would warn of each one and take 32 bits.
        return array.astype(np.int32) if array.dtype == np.int64 else array
    return (np.clip(array, -HALF_MAX, HALF_MAX) if kind == jnp.float16 else array).astype(kind)


def operations(kind: Any) -> dict[str, Callable[..., Any]]:
    """What each word of a step does; `kind` is what floats are computed in."""
    import jax
    import jax.numpy as jnp

    lax = jax.lax
    types = {"float32": kind, "int64": jnp.int32}
    table: dict[str, Callable[..., Any]] = {
        "Add": jnp.add, "Sub": jnp.subtract, "Mul": jnp.multiply, "Div": jnp.divide, "And": jnp.logical_and,
        "Less": jnp.less, "Where": jnp.where, "MatMul": jnp.matmul, "Relu": jax.nn.relu, "Sigmoid": jax.nn.sigmoid,
        "Tanh": jnp.tanh, "Erf": lax.erf, "Sqrt": jnp.sqrt, "Reciprocal": jnp.reciprocal, "Neg": jnp.negative,
        "Max": lambda *operands: functools.reduce(jnp.maximum, operands),
        "Reshape": lambda x, shape: x.reshape(shape),
        "Expand": jnp.broadcast_to,
        "Transpose": lambda x, perm: x.transpose(perm),
        "Concat": lambda *operands, axis: jnp.concatenate(operands, axis),
        "Slice": lambda x, cuts: x[cuts],
        "Gather": lambda x, at, axis: jnp.take(x, at, axis=axis),
        "Cast": lambda x, to: x.astype(types.get(to, to)),
        "Clip": lambda x, low, high: jnp.clip(x, min=low, max=high),
        "Softmax": lambda x, axis: jax.nn.softmax(x, axis=axis),
        "ReduceMean": lambda x, axes, keepdims: jnp.mean(x, axis=axes, keepdims=keepdims),
        "Pad": lambda x, pads, value: jnp.pad(x, pads, constant_values=value),
    }  # fmt: skip

    def gemm(a: Any, b: Any, c: Any = None, *, alpha: float, beta: float, transA: int, transB: int) -> Any:  # noqa: N803 - ONNX's names
        product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
        return product if c is None else product + beta * c

    def conv(x: Any, w: Any, b: Any = None, *, strides: Any, dilations: Any, pads: Any, group: int) -> Any:
        y = lax.conv_general_dilated(
            x, w, strides, pads, rhs_dilation=dilations, dimension_numbers=_PLACES, feature_group_count=group
        )
        return y if b is None else y + b[:, None, None]

    def conv_transpose(x: Any, w: Any, b: Any = None, *, strides: Any) -> Any:
        # ONNX's kernel is [in, out, ...]: the gradient of a convolution, which flips it.
        numbers = ("NCHW", "IOHW", "NCHW")
        pads = tuple((n - 1, n - 1) for n in w.shape[2:])
        y = lax.conv_general_dilated(
            x, jnp.flip(w, (2, 3)), (1, 1), pads, lhs_dilation=strides, dimension_numbers=numbers
        )
        return y if b is None else y + b[:, None, None]

    def max_pool(x: Any, kernel: Any, strides: Any, pads: Any) -> Any:
        edges = ((0, 0), (0, 0), *pads)
        return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, 1, *kernel), (1, 1, *strides), edges)

    return {**table, "Gemm": gemm, "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool}
