"""The part of the zoo that is plain TensorFlow; builders take (job, *arguments), return a `zoo.ZooModel`.

Most are written as SavedModels with names and an order of their own: the way that models come from TF-TRT's users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from zoo import Feeds, Job, ZooModel

SEED = 11


def detector(job: Job) -> ZooModel:
    """A small SSD-like head on images [N, 64, 64, 3] that ends in combined_non_max_suppression; N is dynamic."""
    import tensorflow as tf

    rng = np.random.default_rng(SEED)
    anchors = _anchors(16)
    kernel = tf.constant(_he(rng, (3, 3, 3, 16)))
    deeper = tf.constant(_he(rng, (3, 3, 16, 32)))
    to_box = tf.constant(_he(rng, (1, 1, 32, 4)) * 0.3)
    to_score = tf.constant(_he(rng, (1, 1, 32, 3)))

    @tf.function(input_signature=[tf.TensorSpec((None, 64, 64, 3), tf.float32, name="image")])
    def detect(image: Any) -> dict[str, Any]:
        x = tf.nn.relu(tf.nn.conv2d(image, kernel, 2, "SAME"))
        x = tf.nn.relu(tf.nn.conv2d(x, deeper, 2, "SAME"))
        offsets = tf.reshape(tf.nn.conv2d(x, to_box, 1, "SAME"), (-1, 256, 4))
        scores = tf.nn.sigmoid(tf.reshape(tf.nn.conv2d(x, to_score, 1, "SAME"), (-1, 256, 3)))
        centre = anchors[:, :2] + 0.1 * tf.tanh(offsets[..., :2])
        size = anchors[:, 2:] * tf.exp(0.2 * tf.tanh(offsets[..., 2:]))
        boxes = tf.concat([centre - size / 2, centre + size / 2], axis=-1)
        found = tf.image.combined_non_max_suppression(
            boxes[:, :, None, :], scores, max_output_size_per_class=10, max_total_size=20, iou_threshold=0.5,
            score_threshold=0.3,
        )  # fmt: skip
        return {
            "detection_boxes": found.nmsed_boxes,
            "detection_scores": found.nmsed_scores,
            "detection_classes": found.nmsed_classes,
            "num_detections": found.valid_detections,
        }

    def feeds(batch: int) -> Feeds:
        return {"image": rng.normal(size=(batch, 64, 64, 3)).astype(np.float32)}

    return _saved(
        job, detect,
        samples=(feeds(1), feeds(2)),
        checks=(feeds(1), feeds(1), feeds(2), feeds(3)),
        notes="SavedModel, combined NMS, dynamic batch",
    )  # fmt: skip


def while_loop(job: Job) -> ZooModel:
    """tf.while_loop whose trip count is an input; the body multiplies a state [N, 8] by a matrix."""
    import tensorflow as tf

    rng = np.random.default_rng(SEED)
    matrix = tf.constant(_he(rng, (8, 8)))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 8), tf.float32, name="state"),
            tf.TensorSpec((), tf.int32, name="steps"),
        ]
    )
    def run(state: Any, steps: Any) -> dict[str, Any]:
        start = (tf.constant(0), tf.tanh(state), tf.zeros_like(state))

        def body(step: Any, value: Any, total: Any) -> tuple[Any, Any, Any]:
            value = tf.tanh(tf.matmul(value, matrix) + tf.cast(step, tf.float32) * 0.1)
            return step + 1, value, total + value

        _, last, total = tf.while_loop(lambda step, *_: step < steps, body, start)
        return {"total": total, "last": last}

    def feeds(batch: int, steps: int) -> Feeds:
        return {"state": rng.normal(size=(batch, 8)).astype(np.float32), "steps": np.array(steps, np.int32)}

    return _function(
        job, run,
        samples=(feeds(1, 3), feeds(4, 5)),
        checks=(feeds(2, 4), feeds(2, 4), feeds(5, 9), feeds(2, 0)),
        notes="tf.function, trip count is an input",
    )  # fmt: skip


def cond(job: Job) -> ZooModel:
    """tf.cond on the mean of its input, with a convolution in each branch; [N, 16, 16, 3]."""
    import tensorflow as tf

    rng = np.random.default_rng(SEED)
    one, two, final = (tf.constant(_he(rng, shape)) for shape in ((3, 3, 3, 8), (5, 5, 3, 8), (8, 4)))

    @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image")])
    def run(image: Any) -> dict[str, Any]:
        x = tf.cond(
            tf.reduce_mean(image) > 0,
            lambda: tf.nn.relu(tf.nn.conv2d(image, one, 1, "SAME")) + 1.0,
            lambda: tf.sigmoid(tf.nn.conv2d(image * 0.5, two, 1, "SAME")),
        )
        return {"features": tf.matmul(tf.reduce_mean(x, axis=[1, 2]), final)}

    def feeds(batch: int, shift: float) -> Feeds:
        return {"image": (rng.normal(size=(batch, 16, 16, 3)) + shift).astype(np.float32)}

    return _function(
        job, run,
        samples=(feeds(1, 1), feeds(4, -1)),
        checks=(feeds(2, 1), feeds(2, -1), feeds(5, 1), feeds(5, -1)),
        notes="tf.function, both branches taken",
    )  # fmt: skip


def multi_io(job: Job) -> ZooModel:
    """A SavedModel with three inputs and four outputs whose order is not the alphabetical one."""
    import tensorflow as tf

    rng = np.random.default_rng(SEED)
    user_table = tf.constant(_he(rng, (50, 12)))
    dense = tf.constant(_he(rng, (5, 12)))
    head = tf.constant(_he(rng, (24, 3)))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.int64, name="user"),
            tf.TensorSpec((None, 5), tf.float32, name="features"),
            tf.TensorSpec((None, 1), tf.float32, name="boost"),
        ]
    )
    def rank(user: Any, features: Any, boost: Any) -> dict[str, Any]:
        joined = tf.concat([tf.gather(user_table, user), tf.nn.elu(tf.matmul(features, dense))], axis=1)
        logits = tf.matmul(joined, head) * (1.0 + boost)
        return {
            "scores": tf.nn.softmax(logits),
            "best": tf.argmax(logits, axis=1),
            "embedding": tf.nn.l2_normalize(joined, axis=1),
            "boosted": boost > 0.5,
        }

    def feeds(batch: int) -> Feeds:
        return {
            "user": rng.integers(0, 50, (batch,)),
            "features": rng.normal(size=(batch, 5)).astype(np.float32),
            "boost": rng.uniform(size=(batch, 1)).astype(np.float32),
        }

    return _saved(
        job, rank,
        samples=(feeds(1), feeds(8)),
        checks=(feeds(4), feeds(4), feeds(13)),
        notes="SavedModel, 3 inputs, 4 outputs (int64, bool)",
    )  # fmt: skip


def gather_mix(job: Job) -> ZooModel:
    """top_k, gather_nd, boolean_mask, scatter and cumulative ops around a matrix product; rows [N, 20]."""
    import tensorflow as tf

    rng = np.random.default_rng(SEED)
    weights = tf.constant(_he(rng, (20, 20)))

    @tf.function(input_signature=[tf.TensorSpec((None, 20), tf.float32, name="rows")])
    def run(rows: Any) -> dict[str, Any]:
        mixed = tf.nn.relu(tf.matmul(rows, weights) + 0.1)
        values, indices = tf.math.top_k(mixed, k=4)
        number = tf.range(tf.shape(rows)[0])
        picked = tf.gather_nd(rows, tf.stack([number, indices[:, 0]], axis=1))
        kept = tf.boolean_mask(mixed, tf.reduce_sum(rows, axis=1) > 0)
        marks = tf.tensor_scatter_nd_update(mixed, tf.stack([number, indices[:, 1]], axis=1), picked)
        return {
            "top": values,
            "where": indices,
            "picked": picked,
            "kept_total": tf.reduce_sum(tf.cumsum(kept, axis=0), axis=0),
            "kept": kept,
            "marks": tf.sigmoid(tf.matmul(marks, weights, transpose_b=True)),
        }

    def feeds(batch: int) -> Feeds:
        rows = rng.normal(size=(batch, 20)).astype(np.float32)
        # The sign of every row's sum decides what is kept: keep it away from the rounding of the sum.
        rows[:, 0] += np.where(rows.sum(axis=1) > 0, 1, -1)
        return {"rows": rows}

    return _saved(
        job, run,
        samples=(feeds(3), feeds(8)),
        checks=(feeds(5), feeds(5), feeds(1), feeds(17)),
        notes="SavedModel, NonZero has no TensorRT-RTX kernel",
    )  # fmt: skip


def _saved(job: Job, function: Any, *, samples: tuple[Feeds, ...], checks: tuple[Feeds, ...], notes: str) -> ZooModel:
    """Writes `function` as the serving signature of a SavedModel in `folder`; the model is its path."""
    import tensorflow as tf

    module = tf.Module()
    module.serve = function
    path = job.folder / f"{job.name}.savedmodel"
    tf.saved_model.save(module, str(path), signatures={"serving_default": function})
    return ZooModel(job.name, str(path), samples, checks, _function_reference(function), notes=notes)


def _function(
    job: Job, function: Any, *, samples: tuple[Feeds, ...], checks: tuple[Feeds, ...], notes: str
) -> ZooModel:
    """Gives the tf.function itself to the converter."""
    return ZooModel(job.name, function, samples, checks, _function_reference(function), notes=notes)


def _function_reference(function: Any) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """Calls the tf.function by keyword."""
    import tensorflow as tf

    def reference(feeds: Feeds) -> dict[str, np.ndarray]:
        outputs = function(**{name: tf.constant(value) for name, value in feeds.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return reference


def _he(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal weights that keep the scale of activations: variance 2 / fan-in."""
    fan_in = int(np.prod(shape[:-1]))
    return rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def _anchors(cells: int) -> np.ndarray:
    """One anchor a cell, [cells * cells, 4] as (y, x, height, width) in 0..1."""
    centres = (np.arange(cells) + 0.5) / cells
    y, x = np.meshgrid(centres, centres, indexing="ij")
    sizes = np.full_like(y, 0.15)
    return np.stack([y, x, sizes, sizes], axis=-1).reshape(-1, 4).astype(np.float32)
