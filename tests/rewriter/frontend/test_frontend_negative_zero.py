"""Keras's argmax of floats looks at the sign bit of zeros, which ONNX has no word for."""

import numpy as np
import pytest

from rewriter.frontend import load_source
from rewriter.runtime.native import open_native

pytestmark = pytest.mark.tensorflow

ROWS = np.array(
    [
        [-0.0, 0.0, -1.0],
        [0.0, -0.0, 0.0],
        [-0.0, -0.0, -0.0],
        [-1.0, -2.0, -0.5],
        [1.0, 3.0, 3.0],
        [-1e-38, -0.0, -1.0],
    ],
    np.float32,
)


def run(source, x):
    return open_native(source.model).run({source.signature.inputs[0].tensor: x})[source.signature.outputs[0].tensor]


def ops(source):
    return {node.op_type for node in source.model.proto.graph.node}


def test_argmax_needs_no_tensorflow():
    import keras
    import tensorflow as tf

    function = tf.function(lambda x: keras.ops.argmax(x, axis=-1), input_signature=[tf.TensorSpec([None, 3])])
    source = load_source(function, samples=[ROWS, np.float32([[-np.inf, 1, 2], [np.inf, -np.inf, 0]])])
    assert not any(name.startswith("TFIsland") for name in ops(source))
    np.testing.assert_array_equal(run(source, ROWS), function(ROWS).numpy())


def test_a_sign_bit_that_is_asked_for_alone_stays_exact():
    import keras
    import tensorflow as tf

    function = tf.function(lambda x: keras.ops.signbit(x * 1.0), input_signature=[tf.TensorSpec([None, 3])])
    x = np.float32([[-0.0, 0.0, -1.0], [np.copysign(np.nan, -1), np.nan, np.inf]])
    source = load_source(
        tf.function(lambda x: {"y": function(x), "z": tf.nn.relu(x)}, input_signature=[tf.TensorSpec([None, 3])])
    )
    outputs = {s.name: s.tensor for s in source.signature.outputs}
    found = open_native(source.model).run({source.signature.inputs[0].tensor: x})[outputs["y"]]
    np.testing.assert_array_equal(found, function(x).numpy())
    assert "TFIsland_000" in ops(source)
