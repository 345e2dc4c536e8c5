"""Small artifacts for the tests of Ray; needs neither pytest nor Ray."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from passes.model import Model, from_proto
from passes.segments import TensorSpec
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.source import Signature

FLOAT, INT64 = 1, 7


def batched_signature(*shapes, outputs=(("batch", 3),)):
    """Inputs x0, x1 ... of the shapes and outputs y0, y1 ...; all float32."""
    return Signature(
        tuple(TensorSpec(f"x{i}", FLOAT, shape) for i, shape in enumerate(shapes)),
        tuple(TensorSpec(f"y{i}", FLOAT, shape) for i, shape in enumerate(outputs)),
    )


def save_rows(path: Path) -> Path:
    """y0 = 2 x0 + 1, row by row."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        agraph (float[batch, 3] x0) => (float[batch, 3] y0) {
            two = Constant<value = float {2.0}> ()
            one = Constant<value = float {1.0}> ()
            a = Mul(x0, two)
            y0 = Add(a, one) }""")
    return save_artifact(path, ArtifactPart(Model(proto), batched_signature(("batch", 3)), {}, {}))


def save_fragile(path: Path) -> Path:
    """y0 = (10, 20, 30)[x0]: fails on other numbers than 0, 1, 2."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        agraph (int64[batch] x0) => (float[batch] y0) {
            table = Constant<value = float[3] {10.0, 20.0, 30.0}> ()
            y0 = Gather(table, x0) }""")
    signature = Signature((TensorSpec("x0", INT64, ("batch",)),), (TensorSpec("y0", FLOAT, ("batch",)),))
    return save_artifact(path, ArtifactPart(Model(proto), signature, {}, {}))


def save_whole(path: Path) -> Path:
    """y0 = the sum of x0 over all its elements: no batch dimension."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        agraph (float[length] x0) => (float y0) { y0 = ReduceSum<keepdims = 0>(x0) }""")
    signature = batched_signature(("length",), outputs=((),))
    return save_artifact(path, ArtifactPart(Model(proto), signature, {}, {}))


def network():
    """Matrix products and a Relu, x [N, 16] -> y [N, 4], as ModelProto: x, r and k have to be calibrated."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        network (float[batch, 16] x) => (float[batch, 4] y) {
            h = MatMul(x, w1)
            r = Relu(h)
            k = MatMul(r, w2)
            y = MatMul(k, w3) }""")
    random = np.random.default_rng(1)
    for name, size in (("w1", (16, 64)), ("w2", (64, 8)), ("w3", (8, 4))):
        array = random.standard_normal(size, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def save_network(path: Path) -> Path:
    """`network` as an .onnx file."""
    onnx.save(network(), path)
    return path


def save_network_artifact(path: Path) -> Path:
    """`network` as an artifact without engines or ranges."""
    signature = Signature(
        (TensorSpec("x", FLOAT, ("batch", 16)),),
        (TensorSpec("y", FLOAT, ("batch", 4)),),
    )
    return save_artifact(path, ArtifactPart(from_proto(network()), signature, {}, {}))
