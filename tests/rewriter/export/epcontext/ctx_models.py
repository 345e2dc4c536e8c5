"""Small spliced models with engines that are only bytes, and what the tests of exports ask of a file."""

import dataclasses
import hashlib

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from passes import model as models
from passes.segments import TensorSpec
from passes.splice import unsplice
from rewriter.artifact import ArtifactPart, EngineEntry, save_artifact
from rewriter.backends.base import InputProfile
from rewriter.source import Signature

FIRST, SECOND = "TRTEngineOp_000", "TRTEngineOp_001"
HASH = "5" * 64
#: Enough to be a weight outside of the model (`DETACH_MIN_BYTES`).
SIZE = 32

TEXT = """
    <ir_version: 10, opset_import: ["": 20, "trt_rewriter": 1, "ai.onnx.ml": 3]>
    g (float[batch, 32] x) => (float[batch, 32] y)
    <float[32, 32] baked, float[32, 32] kept, float[32, 32] shared>
    {
        a = trt_rewriter.TRTEngineOp_000 <ATTRIBUTES> (x, baked, shared)
        b = ai.onnx.ml.Scaler <offset: floats = [0.5], scale: floats = [2.0]> (a)
        c = MatMul (b, kept)
        d = MatMul (c, shared)
        y = trt_rewriter.TRTEngineOp_001 <ATTRIBUTES> (d, a)
    }
    <domain: "trt_rewriter", opset_import: ["": 20]>
    TRTEngineOp_000 (x, baked, shared) => (a)
    {
        m = MatMul(x, baked)
        n = MatMul(m, shared)
        a = Relu(n)
    }
    <domain: "trt_rewriter", opset_import: ["": 20]>
    TRTEngineOp_001 (d, a) => (y)
    {
        s = Sub(d, a)
        y = Tanh(s)
    }
"""


def spliced():
    """Two segments with native nodes between them; the second segment reads no weights."""
    attributes = (
        f'segment_hash: string = "{HASH}", data_inputs: int = COUNT, precision: string = "FP32", '
        'profiles: string = "[]", backend: string = "", backend_version: string = ""'
    )
    text = TEXT.replace("ATTRIBUTES", attributes.replace("COUNT", "1"), 1)
    proto = onnx.parser.parse_model(text.replace("ATTRIBUTES", attributes.replace("COUNT", "2")))
    rng = np.random.default_rng(0)
    names = ("baked", "kept", "shared")
    arrays = {name: rng.standard_normal((SIZE, SIZE)).astype(np.float32) / 4 for name in names}
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    kept = [value for value in proto.graph.value_info if value.name not in arrays]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    # As `splice` writes it: the function knows the types of what it computes.
    first = next(f for f in proto.functions if f.name == FIRST)
    first.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", SIZE]))
    return models.from_proto(proto)


def engine(folder, op, key, *, backend="tensorrt_rtx", version="1.7.1.0", targets=("SM89",), profiles=1):
    """An entry and its file: bytes that no TensorRT has made."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{op}-{key}"
    path.write_bytes(b"vtrt" + hashlib.sha512(f"{op} {key}".encode()).digest() * 4)
    content = path.read_bytes()
    profile = {"x": InputProfile((1, SIZE), (2, SIZE), (8, SIZE))}
    entry = EngineEntry(
        op, key, len(content), hashlib.sha256(content).hexdigest(), backend, version, targets, (profile,) * profiles,
        "FP32", HASH,
    )  # fmt: skip
    return entry, path


def part(engines, model=None, name="serving_default"):
    spec = TensorSpec("x", 1, ("batch", SIZE))
    return ArtifactPart(
        model=model or spliced(),
        signature=Signature((spec,), (dataclasses.replace(spec, name="y", tensor="y"),), name),
        params={"precision_mode": "FP32"},
        engines=engines,
        report={},
    )


def make_artifact(folder, *engines, model=None):
    """An artifact with these engines; by default one for each of the two nodes."""
    scratch = folder / "scratch"
    built = [engine(scratch, **e) for e in engines] or [engine(scratch, FIRST, "k0"), engine(scratch, SECOND, "k1")]
    return save_artifact(folder / "artifact", part(built, model))


def attributes_of(node):
    """Attribute name -> (type, value) of a node."""
    return {
        a.name: (
            AttributeProto.AttributeType.Name(a.type),
            a.s.decode() if a.type == AttributeProto.STRING else helper.get_attribute_value(a),
        )
        for a in node.attribute
    }


def native_again(exported, artifact):
    """The exported model with the nodes of the artifact's functions in the place of its EPContext nodes.

    What it computes is what the native nodes and the wiring of the export compute: all else comes from the artifact.
    Weights of the functions are the artifact's.
    """
    model = models.load(exported.model)
    proto = model.copy_proto()
    engines = {f"{op}_{entry.key}": op for op, entry in exported.engines.items()}
    originals = {node.op_type: node for node in artifact.model.proto.graph.node if node.op_type in exported.engines}
    for node in proto.graph.node:
        if node.op_type != "EPContext":
            continue
        op = engines[node.name.removeprefix(f"{exported.provider}_")]
        weights = originals[op].input[len(node.input) :]
        inputs, outputs = [*node.input, *weights], [*node.output]
        node.CopyFrom(originals[op])
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    present = {t.name for t in proto.graph.initializer}
    missing = [t for t in artifact.model.proto.graph.initializer if t.name not in present]
    proto.graph.initializer.extend(missing)
    proto.functions.extend(artifact.model.proto.functions)
    proto.opset_import.add(domain="trt_rewriter", version=1)
    weights = {**artifact.model.weights, **model.weights}
    return unsplice(models.Model(proto, weights))
