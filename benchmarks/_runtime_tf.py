"""The models of the runtime benchmarks that TensorFlow makes; builders take (name, *arguments) and return `Made`.

Large weights are seeded arrays from the start, so that the statistics of batch norms belong to them and the model can
travel as a skeleton (`_skeleton.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _skeleton import MINIMUM, seeded
from onnx import ModelProto


class Made(NamedTuple):
    """A model as ONNX, and the seed and shape of each array that its large weights were made from."""

    proto: ModelProto
    known: Mapping[int, tuple[int, ...]]


def application(name: str, size: int, damping: float) -> Made:
    """A `keras.applications` network that answers with logits: image [N, size, size, 3] in 0..255 -> [N, 1000].

    Variances of batch norms are those of `wake_up` times `damping`: above 1 a random network forgets differences
    (those of its inputs and of rounding alike) layer by layer, below 1 it amplifies them.
    """
    import keras
    from _zoo_keras import SEED, _images, _layers, wake_up

    keras.utils.set_random_seed(SEED)
    image = keras.Input((size, size, 3), name="image")
    network = getattr(keras.applications, name)(weights=None, input_tensor=image, classifier_activation=None)
    known = plant(network)
    wake_up(network, _images(size)(8))
    for layer in _layers(network):
        if type(layer).__name__ == "BatchNormalization":
            layer.moving_variance.assign(damping * np.asarray(layer.moving_variance))
    return Made(_export(network), known)


def zoo(name: str) -> Made:
    """A model of the zoo as it is: small enough to travel whole."""
    from zoo import load

    with tempfile.TemporaryDirectory() as folder:
        return Made(_export(load(name, Path(folder)).model), {})


def encoder(blocks: int, width: int, heads: int, vocabulary: int, longest: int) -> Made:
    """A BERT-like encoder: tokens and key mask [N, S], both dynamic -> hidden [N, S, width], pooled [N, width]."""
    import keras
    from _zoo_keras import SEED, _add_positions, _shake

    layers = keras.layers
    keras.utils.set_random_seed(SEED)
    inputs = {
        "tokens": keras.Input((None,), dtype="int32", name="tokens"),
        "mask": keras.Input((None,), dtype="bool", name="mask"),
    }
    mask = layers.Reshape((1, -1))(inputs["mask"])
    x = layers.Embedding(vocabulary, width, name="token_embedding")(inputs["tokens"])
    x = layers.LayerNormalization(epsilon=1e-6, name="norm_in")(_add_positions(x, longest, width))
    for block in range(blocks):
        attention = layers.MultiHeadAttention(heads, width // heads, name=f"attention_{block}")
        x = x + attention(x, x, attention_mask=mask)
        x = layers.LayerNormalization(epsilon=1e-6, name=f"norm_a_{block}")(x)
        hidden = layers.Dense(4 * width, activation="gelu", name=f"up_{block}")(x)
        x = x + layers.Dense(width, name=f"down_{block}")(hidden)
        x = layers.LayerNormalization(epsilon=1e-6, name=f"norm_b_{block}")(x)
    pooled = layers.Dense(width, activation="tanh", name="pooler")(x[:, 0])
    network = keras.Model(inputs, {"hidden": x, "pooled": pooled})
    known = plant(network)
    _shake(network)
    return Made(_export(network), known)


def detector() -> Made:
    """Two stages around a NonMaxSuppression: [N, 64, 64, 3] -> boxes, scores, classes, and a mask of each box.

    The convolutions before the NMS and the dense layers behind it are for TensorRT; the NMS, whose number of boxes
    only the data decide, is not.
    """
    import tensorflow as tf
    from _zoo_tf import _anchors, _he

    rng = np.random.default_rng(17)
    anchors = _anchors(16)
    kernels = [tf.constant(_he(rng, shape)) for shape in ((3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 32))]
    to_box = tf.constant(_he(rng, (1, 1, 32, 4)) * 0.3)
    to_score = tf.constant(_he(rng, (1, 1, 32, 3)) * 0.7)
    stages = [tf.constant(_he(rng, shape)) for shape in ((36, 64), (64, 64), (64, 16))]

    @tf.function(input_signature=[tf.TensorSpec((None, 64, 64, 3), tf.float32, name="image")])
    def detect(image: Any) -> dict[str, Any]:
        x = image
        for kernel, stride in zip(kernels, (2, 2, 1), strict=True):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, stride, "SAME"))
        offsets = tf.reshape(tf.nn.conv2d(x, to_box, 1, "SAME"), (-1, 256, 4))
        scores = tf.nn.sigmoid(tf.reshape(tf.nn.conv2d(x, to_score, 1, "SAME"), (-1, 256, 3)))
        centre = anchors[:, :2] + 0.1 * tf.tanh(offsets[..., :2])
        size = anchors[:, 2:] * tf.exp(0.2 * tf.tanh(offsets[..., 2:]))
        boxes = tf.concat([centre - size / 2, centre + size / 2], axis=-1)
        found = tf.image.combined_non_max_suppression(
            boxes[:, :, None, :], scores, max_output_size_per_class=20, max_total_size=40, iou_threshold=0.5,
            score_threshold=0.75,
        )  # fmt: skip
        pooled = tf.reduce_mean(x, axis=[1, 2])[:, None, :] + tf.zeros_like(found.nmsed_boxes[:, :, :1])
        regions = tf.concat([found.nmsed_boxes, pooled], axis=-1)
        for matrix in stages[:-1]:
            regions = tf.nn.relu(tf.matmul(regions, matrix))
        return {
            "detection_boxes": found.nmsed_boxes,
            "detection_scores": found.nmsed_scores,
            "detection_classes": found.nmsed_classes,
            "detection_masks": tf.matmul(regions, stages[-1]),
            "num_detections": found.valid_detections,
        }

    return Made(_export(detect), {})


def plant(network: Any) -> dict[int, tuple[int, ...]]:
    """Sets the large weights of a Keras model to seeded values of the same spread; returns seed -> shape."""
    known = {}
    for weight in network.weights:
        value = np.asarray(weight)
        if value.ndim > 1 and value.size >= MINIMUM and value.dtype == np.float32:
            seed = 1000 + len(known)
            known[seed] = tuple(value.shape)
            weight.assign(seeded(seed, value.shape) * np.float32(value.std()))
    return known


def _export(model: Any) -> ModelProto:
    """The project's own export, weights inside; it compares with TensorFlow on samples."""
    from passes.model import to_proto
    from rewriter.frontend import load_source

    return to_proto(load_source(model).model)
