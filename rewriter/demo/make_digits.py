"""Trains the demonstration model and writes it beside this file: `python -m rewriter.demo.make_digits`.

Needs the [tf] extra and scikit-learn, which no extra brings (pip install scikit-learn): its copy of the "Optical
Recognition of Handwritten Digits" data set is read, nothing is downloaded. Takes about a minute on a CPU.

The network joins the image with its *local binary pattern*, a classic of texture recognition (T. Ojala, M.
Pietikäinen, T. Mäenpää, "Multiresolution gray-scale and rotation invariant texture classification with local
binary patterns", IEEE PAMI 24(7), 2002): every pixel gets one bit for each of its eight neighbours, set where the
neighbour is at least as bright. The code, XORed with itself rotated by one bit, marks the places around the pixel at
which bright changes to dark: the measure of "uniformity" of that article. An embedding turns the 256 possible marks
into features for a small residual network.

The bits are computed on whole numbers, exactly, so two correct runtimes never disagree about one. BitwiseXor is the
operator that TensorRT does not take: the graph falls in two parts around it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np

TEST_IMAGES = 360
SEED = 7
#: Row and column steps to the eight neighbours of a pixel, around the circle.
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))


def main() -> None:
    """Trains, checks, exports."""
    parser = argparse.ArgumentParser(description="train the digits model and export it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()
    train_images, train_labels, test_images, test_labels = _data()
    model = _train(train_images, train_labels, arguments.epochs)
    accuracy = float(np.mean(np.argmax(model.predict(test_images, verbose=0), axis=1) == test_labels))
    print(f"accuracy on {len(test_labels)} test images: {accuracy:.2%}")
    if accuracy < 0.97:
        raise SystemExit("the model has not learnt enough: nothing was written")
    folder = arguments.output / "digits"
    _export(model, folder)
    _strip(folder)
    np.savez_compressed(
        arguments.output / "digits_test.npz", images=test_images.astype(np.uint8), labels=test_labels.astype(np.uint8)
    )


def _data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images [n, 8, 8] (float32, 0..16) and labels for training and test, from scikit-learn's bundled set."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise SystemExit("the training data come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    order = np.random.default_rng(SEED).permutation(len(bunch.target))
    images = bunch.images.astype(np.float32)[order]
    labels = bunch.target.astype(np.int64)[order]
    return images[TEST_IMAGES:], labels[TEST_IMAGES:], images[:TEST_IMAGES], labels[:TEST_IMAGES]


def _pattern(image: Any) -> Any:
    """The transitions of the local binary pattern of an image: [batch, 8, 8, 1] -> int32 [batch, 8, 8]."""
    import tensorflow as tf

    kernel = np.zeros((3, 3, 1, 8), np.float32)
    for bit, (row, column) in enumerate(_NEIGHBOURS):
        kernel[row, column, 0, bit] = 1.0
    kernel[1, 1, 0, :] = -1.0
    bits = tf.cast(tf.nn.conv2d(image, kernel, strides=1, padding="SAME") >= 0.0, tf.float32)
    weights = 2.0 ** np.arange(8, dtype=np.float32)
    code = tf.cast(tf.reduce_sum(bits * weights, axis=-1), tf.int32)
    rotated = tf.cast(tf.reduce_sum(bits * np.roll(weights, 1), axis=-1), tf.int32)
    return tf.bitwise.bitwise_xor(code, rotated)


def _network() -> Any:
    """The Keras model: image [batch, 8, 8] -> probabilities [batch, 10]."""
    import keras
    import tensorflow as tf
    from keras import layers

    class PatternEmbedding(layers.Layer):  # type: ignore[misc,unused-ignore]
        """One learnt vector of 4 for each of the 256 patterns: [batch, 8, 8, 1] -> [batch, 8, 8, 4]."""

        def build(self, shape: Any) -> None:  # noqa: ARG002 - Keras' interface
            self.table = self.add_weight((256, 4), "uniform", name="table")

        def call(self, value: Any) -> Any:
            return tf.gather(self.table.value, _pattern(value))

    def convolution(value: Any, filters: int) -> Any:
        return layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(value))

    image = keras.Input((8, 8), name="image", dtype="float32")
    pixels = layers.Reshape((8, 8, 1))(image)
    marks = PatternEmbedding()(pixels)
    value = layers.Concatenate()([layers.Rescaling(1 / 16)(pixels), marks])
    value = layers.ReLU()(convolution(value, 32))
    branch = layers.ReLU()(convolution(value, 32))
    value = layers.ReLU()(layers.Add()([value, convolution(branch, 32)]))
    value = layers.MaxPooling2D()(value)
    value = layers.ReLU()(convolution(value, 64))
    value = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(value))
    return keras.Model(image, layers.Dense(10, activation="softmax", name="probabilities")(value), name="digits")


def _train(images: np.ndarray, labels: np.ndarray, epochs: int) -> Any:
    import keras

    keras.utils.set_random_seed(SEED)
    model = _network()
    steps = epochs * -(-len(labels) // 32)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=32, epochs=epochs, verbose=2)
    return model


def _export(model: Any, folder: Path) -> None:
    """Writes a plain SavedModel with one signature; plain `tf.saved_model.load` reads it."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.float32, name="image")])  # type: ignore[untyped-decorator,unused-ignore]
    def serving_default(image: Any) -> dict[str, Any]:
        probabilities = model(image, training=False)
        return {"probabilities": probabilities, "digit": tf.argmax(probabilities, axis=-1, output_type=tf.int64)}

    module.serving_default = serving_default
    shutil.rmtree(folder, ignore_errors=True)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serving_default})


def _strip(folder: Path) -> None:
    """Takes out what depends on the machine that exported: source positions and fingerprints."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    path = folder / "saved_model.pb"
    saved.ParseFromString(path.read_bytes())
    for graph in saved.meta_graphs:
        nodes = list(graph.graph_def.node)
        for function in graph.graph_def.library.function:
            nodes += function.node_def
        for node in nodes:
            node.ClearField("experimental_debug_info")
    path.write_bytes(saved.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    for name in ("debug", "assets"):
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
