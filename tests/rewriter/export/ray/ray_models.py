"""Small artifacts for the tests of Ray; needs neither pytest nor Ray."""

from pathlib import Path

from onnx import parser

from passes.model import Model
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
