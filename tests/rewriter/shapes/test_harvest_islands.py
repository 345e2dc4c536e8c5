"""Shapes and values behind islands: from the sectioned run of the native model."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from passes.canonicalize import Canonicalize
from passes.graph_index import iter_scopes
from passes.infer_shapes import InferShapes
from passes.island_node import ISLAND_DOMAIN
from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.support import SupportMap, Verdict
from rewriter.errors import ConversionError
from rewriter.precision.probe import Probe, fetchable
from rewriter.shapes.harvest import harvest

pytestmark = pytest.mark.tensorflow


def island_models():
    """The helper beside the tests of the runtime."""
    name = "island_models_of_runtime"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "runtime" / "island_models.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    import tensorflow as tf

    root = tmp_path_factory.mktemp("islands")

    def tokens(s):
        found = tf.strings.split(s, " ").to_tensor()
        return tf.cast(tf.strings.length(found), tf.float32), tf.cast(tf.shape(found), tf.int64)

    island_models().save_island(root / "tokens", tokens, tf.TensorSpec([None], tf.string))
    return root


def loop_model(folders):
    im = island_models()
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]> g (string[N] s, float[N] x) => (float[N,M] y, float[N,M] z)
        <float[1] half = {0.5}, int64[1] one = {1}, int64 trips = {2}> {
            a = Mul(t, half)
            column = Unsqueeze(x, one)
            b = Add(a, column)
            y = Reshape(b, shape)
            z = Loop(trips, , y) <body = body (int64 i, bool c, float[N,M] v) => (bool k, float[N,M] w) {
                k = Identity(c)
                u = Add(v, t)
                w = Relu(u)
            }>
        }"""
    )
    node = im.island(0, ["s"], ["t", "shape"], folders / "tokens")
    proto.graph.node.insert(0, node)
    proto.opset_import.add(domain=ISLAND_DOMAIN, version=1)
    proto.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", "M"]))
    proto.graph.value_info.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    return InferShapes().run(Canonicalize().run(from_proto(proto)).model).model


def segments_of(model, native=("Loop", "If")):
    verdicts = SupportMap.of(
        Verdict(n.name, n.op_type, n.op_type not in native and n.domain != ISLAND_DOMAIN, reason="no")
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )
    return propose(model, verdicts, PartitionOptions(1))


SAMPLES = [
    {"s": np.array(["a bc", "d"], object), "x": np.float32([1, 2])},
    {"s": np.array(["a b c d"], object), "x": np.float32([3])},
]


def test_shapes_and_values_behind_an_island(folders):
    model = loop_model(folders)
    segmentation = segments_of(model)
    found = harvest(model, segmentation, SAMPLES)
    assert found.samples == 2
    front = next(s for s in segmentation.segments if not s.scope)
    sets = found.segments[front.name].sets
    assert [one["t"].shape for one in sets] == [(2, 2), (1, 4)]
    assert [one["shape"].values for one in sets] == [(2, 2), (1, 4)]
    inner = next(s for s in segmentation.segments if s.scope)
    seen = found.segments[inner.name]
    assert seen.counts == (2, 2)  # a loop of two rounds, in each of two samples
    assert [one["t"].shape for one in seen.sets] == [(2, 2), (1, 4)]
    assert [one["v"].shape for one in seen.sets] == [(2, 2), (1, 4)]


def test_what_an_island_gives_the_caller_is_watched_as_well(folders):
    im = island_models()
    model = im.model(
        "g (string[N] s) => (float[N,M] t, float[N,M] y, int64[2] shape) { y = Relu(t) }",
        [im.island(0, ["s"], ["t", "shape"], folders / "tokens")],
    )
    model = InferShapes().run(Canonicalize().run(model).model).model
    segmentation = segments_of(model)
    [seen] = harvest(model, segmentation, [{"s": SAMPLES[0]["s"]}]).segments.values()
    assert [one["t"].shape for one in seen.sets] == [(2, 2)]


def test_a_failing_island_names_the_sample(folders):
    model = loop_model(folders)
    with pytest.raises(ConversionError, match=r"sample 1: the native model fails on the inputs s \[1\].*"):
        harvest(model, segments_of(model), [SAMPLES[0], {"s": SAMPLES[1]["s"], "x": np.float32([1, 2, 3])}])


def test_calibration_reads_values_on_both_sides_of_an_island(folders):
    model = loop_model(folders)
    names = sorted(fetchable(model))
    assert {"t", "a", "b", "x", "y"} <= set(names)
    probe = Probe(model, names)
    values = dict(probe.run(0, SAMPLES[0]))
    np.testing.assert_array_equal(values["t"], [1, 2, 1, 0])
    np.testing.assert_array_equal(values["a"], [0.5, 1, 0.5, 0])
    np.testing.assert_array_equal(values["b"], [1.5, 2, 2.5, 2])
