"""Small ONNX models and artifacts of them, built with the real TensorRT-RTX."""

import contextlib
import dataclasses

import numpy as np
from onnx import numpy_helper, parser

from rewriter import ConversionParams, Converter
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact

#: Shapes of its input.
IMAGE = {"image": [(1, 3, 8, 8), (2, 3, 8, 8), (6, 3, 8, 8)]}
#: TensorRT takes all but the Unique, so that there are two engines.
TWO_ENGINES = """
<ir_version: 10, opset_import: ["": 20]>
two (float[batch, 3, 8, 8] image) => (float[batch, 5] scores, int64[many] labels)
{
    a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
    b = Relu(a)
    c = GlobalAveragePool(b)
    d = Flatten(c)
    e = MatMul(d, w2)
    scores = Softmax(e)
    found = ArgMax <keepdims = 0> (scores)
    unique = Unique(found)
    one = Cast <to = 1> (unique)
    two = Mul(one, one)
    three = Sigmoid(two)
    four = Add(three, two)
    labels = Cast <to = 7> (four)
}
"""
#: All shapes fixed.
FIXED = """
<ir_version: 10, opset_import: ["": 20]>
fixed (float[2, 3, 8, 8] image) => (float[2, 5] scores)
{
    a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
    b = Relu(a)
    c = GlobalAveragePool(b)
    d = Flatten(c)
    scores = MatMul(d, w2)
}
"""


def model(text=TWO_ENGINES):
    """The ONNX model, with random weights."""
    random = np.random.default_rng(7)
    weights = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 5)}
    proto = parser.parse_model(text)
    for name, shape in weights.items():
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def images(*batches):
    """An `input_fn` of images."""

    def samples():
        random = np.random.default_rng(3)
        for batch in batches:
            yield random.standard_normal((batch, 3, 8, 8)).astype(np.float32)

    return samples


def convert(path, backend, text=TWO_ENGINES, *, batches=(1, 4), engines=True, static=0, **options):
    """Saves an artifact of a model.

    Args:
        path: its folder.
        backend: open; None takes the package by its name, so that `options` may have targets.
        text: the model.
        batches: what the engines are built for.
        engines: False leaves them out.
        static: above 0 makes static engines for batches up to this.
        options: of `Converter`.
    """
    calibrates = options.get("precision_mode") in ("INT8", "FP8")
    if static:
        options["conversion_params"] = ConversionParams(is_dynamic_op=False, max_batch_size=static)
    with contextlib.closing(Converter(model=model(text), backend=backend or "tensorrt_rtx", **options)) as converter:
        converter.convert(images(*batches) if calibrates else None)
        if engines and converter.params.is_dynamic_op:
            converter.build(images(*batches))
        elif calibrates:
            converter.calibrate()
        return converter.save(path, save_gpu_specific_engines=engines)


def part_of(path, name=None):
    """The only signature of an artifact as one that is to be written, under another name."""
    artifact = load_artifact(path)
    signature = dataclasses.replace(artifact.signature, name=name or artifact.signature.name)
    return ArtifactPart(
        artifact.model,
        signature,
        artifact.params,
        artifact.report,
        [(entry, artifact.engine_path(entry)) for entry in artifact.engines],
        artifact.ranges,
    )


def together(path, **artifacts):
    """Saves one artifact of several: name of the signature -> artifact with one."""
    return save_artifact(path, *(part_of(source, name) for name, source in artifacts.items()))


def files_of(folder):
    """Name -> bytes of every file of an artifact."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
