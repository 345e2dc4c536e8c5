"""For tests and benchmarks: random runnable ONNX models, inputs for them, and comparison by precision."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

#: Width of every [N, WIDTH] value of a random model.
WIDTH = 4
#: Inner width of the large MatMul pairs, chosen so that their weights are stubs.
_WIDE = 128

#: Largest allowed difference per precision, as a fraction of the largest expected magnitude. FP32 leaves room for
#: another order of summation; the others are about ten times what ResNet50 loses in that precision.
TOLERANCES: Mapping[str, float] = {
    "FP32": 1e-5,
    "TF32": 5e-3,
    "FP16": 5e-3,
    "BF16": 4e-2,
    "INT8": 1e-1,
    "FP8": 1e-1,
}


def assert_close(
    actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str = "FP32", floor: float = 1e-6
) -> None:
    """Compares outputs by name.

    Floating-point tensors may differ by `TOLERANCES[precision]` of the largest finite expected magnitude, or by
    `floor`; infinities and NaNs must stand in the same places. All others must be equal.

    Raises:
        AssertionError: names, dtypes, shapes or values differ; the message names the output and the difference.
        KeyError: unknown precision.
    """
    tolerance = TOLERANCES[precision]
    assert list(actual) == list(expected), f"outputs are {list(actual)}, expected {list(expected)}"  # noqa: S101
    for name, want in expected.items():
        got = actual[name]
        if got.dtype != want.dtype or got.shape != want.shape:
            raise AssertionError(f"{name}: {got.dtype}{got.shape}, expected {want.dtype}{want.shape}")
        if not _floating(want.dtype):
            np.testing.assert_array_equal(got, want, err_msg=name)
            continue
        left, right = got.astype(np.float64), want.astype(np.float64)
        finite = np.isfinite(right)
        np.testing.assert_array_equal(left[~finite], right[~finite], err_msg=f"{name}: not finite")
        allowed = max(tolerance * float(np.abs(right[finite]).max(initial=0)), floor)
        worst = float(np.abs(left[finite] - right[finite]).max(initial=0))
        if not worst <= allowed:
            raise AssertionError(f"{name}: largest difference {worst:.3g}, allowed {allowed:.3g} ({precision})")


def random_feeds(proto: ModelProto, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Inputs for every graph input that has no initializer.

    Args:
        proto: a model whose inputs have a type and a rank.
        seed: of the values: normal ones for floats, 0 to 3 for integers.
        sizes: of symbolic dimensions; others, and unknown ones, are 2.
    """
    rng = np.random.default_rng(seed)
    known = {t.name for t in proto.graph.initializer}
    feeds = {}
    for value in proto.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else (sizes or {}).get(d.dim_param, 2) for d in tensor.shape.dim
        ]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if _floating(dtype):
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = rng.integers(0, 2 if dtype == np.bool_ else 4, shape).astype(dtype)
    return feeds


def random_model(
    seed: int | random.Random,
    nodes: int = 20,
    *,
    unsupported: float = 0.2,
    control_flow: bool = True,
    functions: bool = True,
    opset: int = 18,
) -> ModelProto:
    """A random valid float model that ONNX Runtime runs, of the kind exporters write.

    Inputs "x" and "z" are float [N, 4], outputs "out_0" ... too. In it: no-op Identity, Cast and Dropout nodes,
    Constant nodes, constant arithmetic, shape arithmetic, large and small weights, dead nodes, nested If and Loop with
    captured values, names that sibling bodies share, nodes without a name, and model-local functions.

    Args:
        seed: an int, or a generator to draw from (hypothesis' `st.randoms()` among them).
        nodes: about as many nodes in the main graph.
        unsupported: fraction of steps that contain a node TensorRT does not take.
        control_flow: put If and Loop nodes in.
        functions: put calls of a model-local function in.
        opset: version of the default domain, 13 or later.
    """
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)  # noqa: S311 - test data
    builder = _Builder(rng, _Options(unsupported, control_flow, functions))
    values = ["x", "z"]
    while len(builder.nodes) < nodes:
        values.append(builder.step(values))
    outputs = []
    for i, name in enumerate(dict.fromkeys([builder.join(values), *rng.choices(values, k=2)])):
        outputs.append(f"out_{i}")
        builder.nodes.append(helper.make_node("Identity", [name], [f"out_{i}"]))
    graph = helper.make_graph(builder.nodes, "random", _typed(["x", "z"]), _typed(outputs), builder.initializers)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if builder.calls[0]:
        model.opset_import.append(helper.make_opsetid("random", 1))
        body = [
            helper.make_node("Add", ["a", "b"], ["t"]),
            helper.make_node("Tanh", ["t"], ["x"]),
            helper.make_node("Identity", ["x"], ["r"]),
        ]
        model.functions.append(helper.make_function("random", "Mix", ["a", "b"], ["r"], body, opsets))
    return model


@dataclasses.dataclass(frozen=True)
class _Options:
    unsupported: float
    control_flow: bool
    functions: bool


class _Builder:
    """Adds steps to one graph: a step reads [N, 4] values and returns the name of a new one."""

    def __init__(self, rng: random.Random, options: _Options, parent: _Builder | None = None) -> None:
        self.rng = rng
        self.options = options
        self.depth: int = parent.depth + 1 if parent else 0
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.calls: list[int] = parent.calls if parent else [0]
        # Bodies of one depth share their prefix, so siblings use the same names, as exporters' bodies do.
        self._prefix = "v" if parent is None else f"b{self.depth}_"
        self._count = 0

    def step(self, values: Sequence[str]) -> str:
        """Adds a few nodes; returns their result."""
        if self.rng.random() < self.options.unsupported:
            return self._unsupported(self._pick(values))
        makers: list[Callable[[Sequence[str]], str]] = [
            self._unary, self._unary, self._binary, self._binary, self._noop, self._matmul, self._wide,
            self._constant, self._constant_chain, self._reshape, self._statistics, self._dead,
        ]  # fmt: skip
        if self.options.control_flow and self.depth < 2:
            makers += [self._if, self._loop]
        if self.options.functions:
            makers.append(self._call)
        return self.rng.choice(makers)(values)

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """Adds one node; returns its first output."""
        names = [self.fresh() for _ in range(outputs)]
        # ONNX Runtime wants the names of a whole graph unique, so only the main graph's nodes have one, and not all.
        name = f"{op}_{names[0]}" if self.depth == 0 and self.rng.random() < 0.5 else ""
        self.nodes.append(helper.make_node(op, list(inputs), names, name, **attributes))
        return names[0]

    def fresh(self) -> str:
        """A value name of this graph."""
        self._count += 1
        return f"{self._prefix}{self._count}"

    def tensor(self, array: np.ndarray) -> str:
        """A constant as an initializer of this graph or, at times, as a Constant node."""
        if self.rng.random() < 0.5:
            return self.add("Constant", [], value=numpy_helper.from_array(array))
        name = self.fresh()
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int) -> np.ndarray:
        """Random float32 weights that keep magnitudes near one."""
        rng = np.random.default_rng(self.rng.randrange(2**32))
        return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), np.float32)

    def ints(self, *numbers: int) -> str:
        """A constant int64 vector."""
        return self.tensor(np.array(numbers, np.int64))

    def _pick(self, values: Sequence[str]) -> str:
        """One value, mostly a recent one, so that models are as deep as exported ones."""
        return self.rng.choice(values[-6:] if self.rng.random() < 0.8 else values)

    def join(self, values: Sequence[str]) -> str:
        """A value that all of `values` that nothing reads yet flow into, so that they are not dead."""
        read = {name for node in self.nodes for name in node.input}
        loose = [name for name in values if name not in read] or [values[-1]]
        return self.add("Tanh", [self.add("Sum", loose)])

    def _unary(self, values: Sequence[str]) -> str:
        op = self.rng.choice(["Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Softsign", "Softmax"])
        return self.add(op, [self._pick(values)])

    def _binary(self, values: Sequence[str]) -> str:
        op = self.rng.choice(["Add", "Sub", "Mul", "Max", "Min"])
        result = self.add(op, [self._pick(values), self._pick(values)])
        return self.add("Tanh", [result]) if op == "Mul" else result

    def _noop(self, values: Sequence[str]) -> str:
        value = self._pick(values)
        kind = self.rng.randrange(3)
        if kind == 0:
            return self.add("Identity", [value])
        if kind == 1:
            return self.add("Cast", [value], to=TensorProto.FLOAT)
        return self.add("Dropout", [value])

    def _matmul(self, values: Sequence[str]) -> str:
        return self.add("MatMul", [self._pick(values), self.tensor(self.weights(WIDTH, WIDTH))])

    def _wide(self, values: Sequence[str]) -> str:
        inner = self.add("MatMul", [self._pick(values), self.tensor(self.weights(WIDTH, _WIDE))])
        outer = self.add("Transpose", [self.tensor(self.weights(WIDTH, _WIDE) / 6)], perm=[1, 0])
        return self.add("MatMul", [self.add("Relu", [inner]), outer])

    def _constant(self, values: Sequence[str]) -> str:
        return self.add("Add", [self._pick(values), self.tensor(self.weights(1, WIDTH))])

    def _constant_chain(self, values: Sequence[str]) -> str:
        constant = self.add("Exp", [self.add("Neg", [self.tensor(self.weights(WIDTH))])])
        return self.add("Mul", [self.add("Tanh", [self._pick(values)]), constant])

    def _reshape(self, values: Sequence[str]) -> str:
        value = self._pick(values)
        shape = self.add("Shape", [value])
        batch = self.add("Slice", [shape, self.ints(0), self.ints(1), self.ints(0)])
        width = self.add("Gather", [shape, self.ints(1)], axis=0)
        flat = self.add("Reshape", [value, self.ints(-1)])
        return self.add("Reshape", [flat, self.add("Concat", [batch, width], axis=0)])

    def _statistics(self, values: Sequence[str]) -> str:
        value = self._pick(values)
        mean = self.add("ReduceMean", [value], keepdims=1)
        return self.add("Sub", [value, mean])

    def _dead(self, values: Sequence[str]) -> str:
        self.add("Shape", [self.add("Relu", [self._pick(values)])])
        return self._pick(values)

    def _unsupported(self, value: str) -> str:
        """Adds to the first row by ScatterND with a reduction, which TensorRT's parser does not know."""
        update = self.tensor(self.weights(1, WIDTH))
        return self.add("ScatterND", [value, self.tensor(np.zeros((1, 1), np.int64)), update], reduction="add")

    def _call(self, values: Sequence[str]) -> str:
        self.calls[0] += 1
        return self.add("Mix", [self._pick(values), self._pick(values)], domain="random")

    def _if(self, values: Sequence[str]) -> str:
        total = self.add("ReduceSum", [self._pick(values)], keepdims=0)
        condition = self.add("Greater", [total, self.tensor(np.array(0.1234, np.float32))])
        branches = {}
        for name in ("then_branch", "else_branch"):
            body = _Builder(self.rng, self.options, self)
            branches[name] = body.body(name, values, [], 3)
        return self.add("If", [condition], **branches)

    def _loop(self, values: Sequence[str]) -> str:
        body = _Builder(self.rng, self.options, self)
        inputs = [body.fresh() for _ in range(3)]
        going = body.add("Identity", [inputs[1]])
        graph = body.body(
            "body",
            [*values, inputs[2]],
            [
                helper.make_tensor_value_info(inputs[0], TensorProto.INT64, []),
                helper.make_tensor_value_info(inputs[1], TensorProto.BOOL, []),
                *_typed(inputs[2:]),
            ],
            2,
        )
        graph.output.insert(0, helper.make_tensor_value_info(going, TensorProto.BOOL, []))
        trips = self.tensor(np.array(2, np.int64))
        return self.add("Loop", [trips, "", self._pick(values)], body=graph)

    def body(self, name: str, values: Sequence[str], inputs: Sequence[Any], steps: int) -> GraphProto:
        """Closes this builder's graph as a body with one [N, 4] output."""
        own: list[str] = []
        for _ in range(steps):
            own.append(self.step([*values, *own]))
        result = self.add("Identity", [self.join(own)])
        return helper.make_graph(self.nodes, name, inputs, _typed([result]), self.initializers)


def _typed(names: Sequence[str]) -> list[Any]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in names]


def _floating(dtype: np.dtype[Any]) -> bool:
    """True for numpy's floats and for those of ml_dtypes."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))
