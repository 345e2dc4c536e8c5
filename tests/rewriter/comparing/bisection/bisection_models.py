"""Artifacts with engine nodes wherever a test wants them; nothing is built."""

import numpy as np
from onnx import numpy_helper, parser

from passes import model as models
from passes.canonicalize import Canonicalize
from passes.extract import Extractor
from passes.infer_shapes import InferShapes
from passes.precision.recipe import Recipe
from passes.segments import Segmentation
from passes.splice import EngineAttributes, splice
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
from rewriter.frontend.onnx import signature_of


def parse(text, **weights):
    """A model out of ONNX's text form; every node is called n_<its first output>."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    name_nodes(proto.graph)
    return proto


def name_nodes(graph):
    for node in graph.node:
        node.name = node.name or f"n_{node.output[0]}"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                name_nodes(attribute.g)


def make_artifact(proto, folder, precision, *cuts, ranges=None, **recipe):
    """An artifact with one engine node for each of `cuts`: names of nodes, or (scope, names)."""
    return artifact_of(models.from_proto(proto), signature_of(proto), folder, precision, *cuts, ranges=ranges, **recipe)


def artifact_of(model, signature, folder, precision, *cuts, ranges=None, **recipe):
    """The same for a model and its signature."""
    model = InferShapes().run(Canonicalize().run(model).model).model
    extractor = Extractor(model)
    parts = []
    for number, cut in enumerate(cuts):
        scope, names = cut if isinstance(cut[0], tuple) else ((), cut)
        parts.append(extractor.extract_nodes(scope, names, f"TRTEngineOp_{number:03d}"))
    attributes = {
        part.segment.name: EngineAttributes(part.content_hash, len(part.segment.inputs), precision) for part in parts
    }
    segmentation = Segmentation(tuple(part.segment for part in parts), (), len(model.proto.graph.node))
    params = {"recipe": Recipe.of(precision, **recipe).to_json()}
    content = ArtifactPart(splice(model, segmentation, attributes), signature, params, {}, ranges=ranges)
    return load_artifact(save_artifact(folder, content))
