"""Fixtures for the tests of TensorRT's backends."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from passes import model as model_module


def build_model(nodes, inputs, outputs, initializers=(), opset=18, domains=(), infer=True):
    """A `Model` of literal parts: inputs and outputs are name -> (dtype, shape), initializers TensorProtos."""

    def infos(values):
        return [helper.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape) in values.items()]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), list(initializers))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return model_module.from_proto(onnx.shape_inference.infer_shapes(proto) if infer else proto)


@pytest.fixture(scope="session")
def make_model():
    return build_model


@pytest.fixture(scope="session")
def int64s():
    return lambda name, values, dims=None: helper.make_tensor(
        name, TensorProto.INT64, [len(values)] if dims is None else dims, values
    )
