"""source -> native for TensorFlow: the operator by the tensors whose names both have, and whether it may stay there."""

import dataclasses
import shlex
import warnings

import numpy as np
import pytest
from onnx import numpy_helper

from rewriter.comparing.bisection import bisect
from rewriter.comparing.bisection.exported import FrozenSide
from rewriter.comparing.bisection.report import OUTDATED
from rewriter.comparing.bisection.subject import Subject
from rewriter.frontend import load_source
from rewriter.frontend import tensorflow as frontend
from rewriter.frontend.reference import open_reference
from tests.rewriter.comparing.bisection.bisection_models import artifact_of

pytestmark = pytest.mark.tensorflow
IMAGES = np.random.default_rng(3).standard_normal((2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small network of convolutions, saved, and loaded as it is exported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = pytest.importorskip("tensorflow")
    random = np.random.default_rng(5)
    kernel = random.standard_normal((3, 3, 3, 4)).astype(np.float32)

    class Net(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")])
        def call(self, image):
            found = tf.nn.conv2d(image, tf.constant(kernel), 1, "SAME", name="conv")
            found = tf.nn.elu(found, name="elu")
            found = tf.nn.max_pool2d(found, 2, 2, "SAME", name="pool")
            found = tf.multiply(found, 0.25, name="scaled")
            most = tf.reduce_max(tf.sin(image, name="sine"), axis=[1, 2], name="most")
            return {"features": tf.tanh(tf.reduce_mean(found, axis=[1, 2]), name="last"), "most": most}

    net, folder = Net(), tmp_path_factory.mktemp("tf") / "net"
    tf.saved_model.save(net, str(folder), signatures=net.call)
    return str(folder)


@pytest.fixture(scope="module")
def exported(saved):
    return load_source(saved)


def search(artifact, saved, images=IMAGES, tolerance=1e-4):
    return bisect(artifact, [{"image": images}], tolerance, reference="source", result="native", source=saved)


def test_a_right_export_is_within_the_tolerance(saved, exported, tmp_path):
    artifact = artifact_of(exported.model, exported.signature, tmp_path / "out", "FP32")
    assert not search(artifact, open_reference(saved)).outputs


def scaled_otherwise(model):
    """The model as it would be after another training: the same names, another constant."""
    proto = model.copy_proto()
    node = next(node for node in proto.graph.node if node.op_type == "Mul")
    name = next(name for name in node.input if name in {t.name for t in proto.graph.initializer})
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(3), name))
    return model.with_proto(proto)


def test_an_artifact_of_another_training_is_told_without_a_node_or_an_option(saved, exported, tmp_path):
    artifact = artifact_of(scaled_otherwise(exported.model), exported.signature, tmp_path / "out", "FP32")
    found = search(artifact, saved)
    assert set(found.outputs) == {"features"}
    assert found.cause == OUTDATED
    assert (found.found, found.option, found.excluded) == (False, "", ())
    assert "convert it again" in found.text()
    assert "first node" not in found.text()


def test_the_operator_that_computes_something_else_is_found(saved, exported, tmp_path, monkeypatch):
    again = frontend.convert

    def wrong(callee, options, clock):
        source = again(callee, options, clock)
        return (
            source if options.keep_in_tensorflow else dataclasses.replace(source, model=scaled_otherwise(source.model))
        )

    monkeypatch.setattr(frontend, "convert", wrong)
    artifact = artifact_of(scaled_otherwise(exported.model), exported.signature, tmp_path / "out", "FP32")
    found = search(artifact, saved)
    assert (found.value.partition(":")[0], found.op_type) == ("scaled", "Mul")
    assert set(found.outputs) == {"features"}
    assert found.before < 1e-5
    assert found.option == "--keep-in-tensorflow Mul"
    assert found.passed
    assert "tensors have the same name" in found.text()


def test_tensors_are_compared_in_the_layout_of_the_export(saved, exported, tmp_path):
    artifact = artifact_of(exported.model, exported.signature, tmp_path / "out", "FP32")
    subject = Subject.of(artifact, [{"image": IMAGES}], 1e-4)
    side = FrozenSide.of(subject, open_reference(saved).callee)
    assert {"elu:0", "pool:0"} & set(side.tensors)
    names = [name for name in subject.values if name in side.tensors]
    found = side.open(names)({"image": IMAGES})
    assert all(isinstance(found[name], np.ndarray) for name in names)
    assert side.operator("most") == "Max"


def test_the_option_makes_the_next_export_pass(saved, exported, tmp_path):
    # What TensorFlow and ONNX Runtime make of NaN differs (README: limits).
    images = IMAGES.copy()
    images[0, 2, 2, 1] = np.nan
    artifact = artifact_of(exported.model, exported.signature, tmp_path / "out", "FP32")
    found = search(artifact, saved, images, {"most": 1e-4})
    assert set(found.outputs) == {"most"}
    assert found.passed
    option, operators = shlex.split(found.option)
    assert option == "--keep-in-tensorflow"
    assert operators == "Max"
    again = load_source(saved, keep_in_tensorflow=operators.split(","))
    kept = artifact_of(again.model, again.signature, tmp_path / "again", "FP32")
    assert not search(kept, saved, images, {"most": 1e-4}).outputs


def test_rounding_of_many_operators_ends_after_some_exports(saved, exported, tmp_path):
    artifact = artifact_of(exported.model, exported.signature, tmp_path / "out", "FP32")
    found = search(artifact, saved, tolerance=0.0)
    assert found.option.startswith("--keep-in-tensorflow ")
    assert found.verified is not None
    assert found.node
