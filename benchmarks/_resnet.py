"""ResNet50 as an ONNX model with random weights, made without any framework."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

#: (blocks, channels inside a block, stride of the first block) of the four stages.
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))


class _Graph:
    """Nodes and weights in the making; values are called after their nodes."""

    def __init__(self, seed: int) -> None:
        self.nodes: list = []
        self.weights: list = []
        self._rng = np.random.default_rng(seed)

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int) -> str:
        """Weights with He scaling, so that activations keep their size."""
        fan_in = int(np.prod(shape[1:])) or 1
        array = self._rng.standard_normal(shape, np.float32) * np.float32((2.0 / fan_in) ** 0.5)
        return self.constant(f"weight_{len(self.weights)}", array)

    def conv(self, value: str, channels: tuple[int, int], kernel: int, stride: int = 1, pad: int | None = None) -> str:
        pad = kernel // 2 if pad is None else pad
        weight, bias = self.random(channels[1], channels[0], kernel, kernel), self.random(channels[1])
        return self.node("Conv", [value, weight, bias], strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2)


def resnet50(seed: int = 0) -> ModelProto:
    """ResNet50 v1.5 with batch norms folded: image, float32 [batch, 3, 224, 224] -> probabilities [batch, 1000]."""
    graph = _Graph(seed)
    pads = graph.constant("pads", np.array([0, 0, 3, 3, 0, 0, 3, 3], np.int64))
    value = graph.node("Pad", ["image", pads])
    value = graph.node("Relu", [graph.conv(value, (3, 64), 7, 2, 0)])
    value = graph.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 64
    for blocks, inner, first_stride in STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            branch = graph.node("Relu", [graph.conv(value, (width, inner), 1)])
            branch = graph.node("Relu", [graph.conv(branch, (inner, inner), 3, stride)])
            branch = graph.conv(branch, (inner, 4 * inner), 1)
            shortcut = graph.conv(value, (width, 4 * inner), 1, stride) if block == 0 else value
            value = graph.node("Relu", [graph.node("Add", [branch, shortcut])])
            width = 4 * inner
    value = graph.node("Flatten", [graph.node("GlobalAveragePool", [value])])
    value = graph.node("Gemm", [value, graph.random(1000, width), graph.random(1000)], transB=1)
    graph.nodes.append(helper.make_node("Softmax", [value], ["probabilities"], name="softmax", axis=-1))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 1000])
    made = helper.make_graph(graph.nodes, "resnet50", [image], [result], graph.weights)
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
