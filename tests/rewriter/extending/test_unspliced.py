"""The native model of an artifact: same results, and names that the calibrated ranges fit."""

import numpy as np
import pytest

from passes.engine_node import engine_nodes, read_attributes
from passes.graph.walk import iter_nodes
from passes.precision.recipe import Recipe
from passes.splice import unsplice
from rewriter.artifact import load_artifact
from rewriter.precision.calibration import fetchable
from rewriter.precision.emulation import engine_segments
from rewriter.precision.lowering import find_needs
from rewriter.runtime.native import NativeSession

from . import small_models

pytestmark = pytest.mark.rtx


def test_the_whole_model_comes_back(rtx, tmp_path):
    path = small_models.convert(tmp_path / "out", rtx, precision_mode="INT8", engines=False)
    artifact = load_artifact(path)
    native = unsplice(artifact.model)
    assert not list(engine_nodes(native.proto))
    assert not native.proto.functions
    tensors = {name for node in iter_nodes(native.proto) for name in (*node.input, *node.output)}
    assert artifact.ranges is not None
    assert artifact.ranges.ranges.keys() <= tensors
    assert artifact.ranges.ranges.keys() <= set(fetchable(native))
    for image in small_models.images(1, 3)():
        feeds = {"image": image}
        whole, spliced = (NativeSession(model, optimize=False).run(feeds) for model in (native, artifact.model))
        for name, array in spliced.items():
            np.testing.assert_array_equal(whole[name], array)


def test_its_segments_are_those_that_were_cut(rtx, tmp_path):
    path = small_models.convert(tmp_path / "out", rtx, precision_mode="INT8", engines=False)
    artifact = load_artifact(path)
    segments = engine_segments(artifact.model, unsplice(artifact.model), every=True, hashed=True)
    said = {node.op_type: read_attributes(node).segment_hash for _, node in engine_nodes(artifact.model.proto)}
    assert {segment.segment.name: segment.content_hash for segment in segments} == said
    assert len(said) == 2
    needs = find_needs(segments, Recipe.from_json(artifact.params["recipe"]))
    assert set(needs.required) <= artifact.ranges.ranges.keys()
    assert needs.required


def test_fp32_nodes_are_left_out_unless_all_are_asked_for(rtx, tmp_path):
    artifact = load_artifact(small_models.convert(tmp_path / "out", rtx, engines=False))
    native = unsplice(artifact.model)
    assert engine_segments(artifact.model, native) == ()
    assert [s.content_hash for s in engine_segments(artifact.model, native, every=True)] == ["", ""]
