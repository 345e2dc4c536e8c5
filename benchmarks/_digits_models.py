"""The networks that `precision_models.py` trains on digits: a CNN, a transformer, and the CNN after QAT.

The CNN holds what 8-bit arithmetic meets in real ones: strided, pointwise and depthwise convolutions, BatchNorm,
residual additions, ReLU and ReLU6, global pooling and dense layers. The transformer holds LayerNorm, attention and
exact GELU. The QAT network is the trained CNN with its norms folded in, trained on with fake quantisation of weights
(per channel; depthwise: per tensor) and activations (ranges that do not start at minus their end; 0..6 after ReLU6).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from _digits_data import CHANNELS, CLASSES, SEED, SIDE, Digits, as_input

BATCH = 128
#: Epochs over the training images.
EPOCHS = {"cnn": 3, "transformer": 8, "cnn_qat": 1}
LEARNING_RATE = {"cnn": 3e-3, "transformer": 1.5e-3, "cnn_qat": 2e-4}
#: How much of an activation's range the newest batch decides while fake quantisation trains.
RANGE_UPDATE = 0.1


def train_cnn(digits: Digits) -> Any:
    """The CNN, trained."""
    import keras

    keras.utils.set_random_seed(SEED)
    return _fit(_cnn(_plain_conv, _plain_dense, lambda x, _: x), digits, "cnn")


def train_transformer(digits: Digits) -> Any:
    """The transformer, trained."""
    import keras

    keras.utils.set_random_seed(SEED)
    return _fit(_transformer(), digits, "transformer")


def train_qat(cnn: Any, digits: Digits) -> Any:
    """The trained CNN with fake quantisation, trained on."""
    import keras

    keras.utils.set_random_seed(SEED)
    network = _cnn(_quantised_conv, _quantised_dense, _range)
    folded = _folded_weights(cnn)
    for layer in network.layers:
        if layer.name in folded:
            layer.take(*folded[layer.name])
    # One pass sets all ranges before the first gradient.
    network(as_input(digits.calibration_images[:256]), training=True)
    return _fit(network, digits, "cnn_qat")


def _cnn(conv: Callable[..., Any], dense: Callable[..., Any], mark: Callable[[Any, str], Any]) -> Any:
    """The architecture, over layers that are plain or quantised.

    Args:
        conv: (x, name, filters, kernel, stride, activation, depthwise) -> value, normalisation included.
        dense: (x, name, units, activation) -> value.
        mark: (x, name) -> value with its range recorded.
    """
    import keras

    layers = keras.layers
    image = keras.Input((SIDE, SIDE, CHANNELS), name="image")
    x = conv(mark(image, "image_range"), "stem", 16, 3, 2, "relu")
    for stage, (width, stride) in enumerate(((32, 2), (48, 1))):
        y = conv(x, f"residual_{stage}a", x.shape[-1], 3, 1, "relu")
        y = conv(y, f"residual_{stage}b", x.shape[-1], 3, 1, None)
        x = mark(layers.ReLU(name=f"relu_{stage}")(layers.Add(name=f"add_{stage}")([x, y])), f"relu_{stage}_range")
        y = conv(x, f"expand_{stage}", 4 * x.shape[-1], 1, 1, "relu6")
        y = conv(y, f"depthwise_{stage}", y.shape[-1], 3, stride, "relu6", depthwise=True)
        y = conv(y, f"project_{stage}", width, 1, 1, None)
        x = y
    x = conv(x, "head", 96, 1, 1, "relu")
    x = mark(layers.GlobalAveragePooling2D(name="pool")(x), "pool_range")
    x = dense(x, "hidden", 64, "relu")
    logits = dense(x, "logits", CLASSES, None)
    return keras.Model(image, {"logits": logits, "probabilities": layers.Softmax(name="probabilities")(logits)})


def _plain_conv(
    x: Any, name: str, filters: int, kernel: int, stride: int, activation: str | None, depthwise: bool = False
) -> Any:
    from keras import layers

    options = {"strides": stride, "padding": "same", "use_bias": False, "name": name}
    layer = layers.DepthwiseConv2D(kernel, **options) if depthwise else layers.Conv2D(filters, kernel, **options)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(layer(x))
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def _plain_dense(x: Any, name: str, units: int, activation: str | None) -> Any:
    from keras import layers

    return layers.Dense(units, activation=activation, name=name)(x)


def _transformer() -> Any:
    """Two pre-norm encoder blocks over 16 tokens of width 64, 4 heads; strided convolutions make the tokens.

    Bare patches would need many more images: in minutes, such a network learns little of noisy pictures.
    """
    import keras

    layers = keras.layers
    width, heads, tokens = 64, 4, (SIDE // 8) ** 2
    image = keras.Input((SIDE, SIDE, CHANNELS), name="image")
    x = _plain_conv(image, "stem", 24, 3, 2, "relu")
    x = _plain_conv(x, "patches", 48, 3, 2, "relu")
    x = _plain_conv(x, "tokens", width, 3, 2, None)
    x = layers.Reshape((tokens, width), name="sequence")(x)
    x = x + layers.Embedding(tokens, width, name="positions")(np.arange(tokens)[None, :])
    for block in range(2):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm_a_{block}")(x)
        x = x + layers.MultiHeadAttention(heads, width // heads, name=f"attention_{block}")(y, y)
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm_b_{block}")(x)
        gelu = functools.partial(keras.activations.gelu, approximate=False)
        y = layers.Dense(4 * width, activation=gelu, name=f"up_{block}")(y)
        x = x + layers.Dense(width, name=f"down_{block}")(y)
    x = layers.LayerNormalization(epsilon=1e-6, name="norm_out")(x)
    logits = layers.Dense(CLASSES, name="logits")(layers.GlobalAveragePooling1D(name="pool")(x))
    return keras.Model(image, {"logits": logits, "probabilities": layers.Softmax(name="probabilities")(logits)})


def _fit(network: Any, digits: Digits, name: str) -> Any:
    """Trains in place with Adam and a cosine schedule."""
    import keras
    import tensorflow as tf

    steps = len(digits.train_images) // BATCH * EPOCHS[name]
    data = tf.data.Dataset.from_tensor_slices((digits.train_images, digits.train_labels))
    data = data.shuffle(len(digits.train_images), seed=SEED).batch(BATCH, drop_remainder=True)
    data = data.map(lambda images, labels: (tf.cast(images, tf.float32) / 255.0, {"logits": labels}))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE[name], steps)),
        loss={"logits": loss},
    )
    network.fit(data, epochs=EPOCHS[name], verbose=0)
    return network


def _folded_weights(cnn: Any) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Layer name -> (kernel, bias) with BatchNorm multiplied in: what a deployed network is, and what QAT trains."""
    layers = {layer.name: layer for layer in cnn.layers}
    folded = {}
    for name, layer in layers.items():
        kind = type(layer).__name__
        if kind == "Dense":
            folded[name] = tuple(np.asarray(weight) for weight in layer.weights)
        if kind not in ("Conv2D", "DepthwiseConv2D"):
            continue
        norm = layers[f"{name}_norm"]
        gamma, beta, mean, variance = (np.asarray(weight) for weight in norm.weights)
        factor = gamma / np.sqrt(variance + norm.epsilon)
        kernel = np.asarray(layer.weights[0])
        # Kernels are [h, w, in, out], depthwise ones [h, w, channels, 1].
        kernel = kernel * (factor[:, None] if kind == "DepthwiseConv2D" else factor)
        folded[name] = (kernel, beta - mean * factor)
    return folded


def _quantised_conv(
    x: Any, name: str, filters: int, kernel: int, stride: int, activation: str | None, depthwise: bool = False
) -> Any:
    import tensorflow as tf

    channels = x.shape[-1]
    if depthwise:
        strides = [1, stride, stride, 1]
        apply = functools.partial(_depthwise, tf.nn.depthwise_conv2d, strides)
        layer = _weighted_class()(name, (kernel, kernel, channels, 1), channels, apply, per_tensor=True)
    else:
        apply = functools.partial(tf.nn.conv2d, strides=stride, padding="SAME")
        layer = _weighted_class()(name, (kernel, kernel, channels, filters), filters, apply)
    return _activated(layer(x), name, activation)


def _quantised_dense(x: Any, name: str, units: int, activation: str | None) -> Any:
    import tensorflow as tf

    layer = _weighted_class()(name, (x.shape[-1], units), units, tf.matmul)
    # What the last layer gives goes to no other layer that is quantised.
    return _activated(layer(x), name, activation) if activation else layer(x)


def _activated(x: Any, name: str, activation: str | None) -> Any:
    """The activation and the range of its result; that of ReLU6 is known."""
    from keras import layers

    if activation:
        x = layers.Activation(activation, name=f"{name}_{activation}")(x)
    if activation == "relu6":
        return layers.Lambda(_zero_to_six, name=f"{name}_range")(x)
    return _range(x, f"{name}_range")


def _range(x: Any, name: str) -> Any:
    return _range_class()(name=name)(x)


def _zero_to_six(x: Any) -> Any:
    import tensorflow as tf

    return tf.quantization.fake_quant_with_min_max_args(x, min=0.0, max=6.0)


def _depthwise(convolve: Callable[..., Any], strides: list[int], x: Any, kernel: Any) -> Any:
    return convolve(x, kernel, strides=strides, padding="SAME")


@functools.cache
def _range_class() -> Any:
    """The layer that quantises activations; made when called, for Keras is imported late."""
    import keras
    import tensorflow as tf

    class Range(keras.layers.Layer):
        """Fake quantisation of an activation over a range that training follows."""

        def build(self, _: Any) -> None:
            self.low = self.add_weight(shape=(), initializer="zeros", trainable=False, name="low")
            self.high = self.add_weight(shape=(), initializer="zeros", trainable=False, name="high")

        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                fresh = tf.equal(tf.convert_to_tensor(self.high), 0.0)
                newest = tf.minimum(tf.reduce_min(x), 0.0), tf.maximum(tf.reduce_max(x), 1e-3)
                for variable, new in zip((self.low, self.high), newest, strict=True):
                    old = tf.convert_to_tensor(variable)
                    variable.assign(tf.where(fresh, new, old + RANGE_UPDATE * (new - old)))
            low, high = tf.convert_to_tensor(self.low), tf.convert_to_tensor(self.high)
            return tf.quantization.fake_quant_with_min_max_vars(x, low, high)

    return Range


@functools.cache
def _weighted_class() -> Any:
    """The layer that quantises its kernel; made when called, for Keras is imported late."""
    import keras
    import tensorflow as tf

    class Weighted(keras.layers.Layer):
        """A kernel under symmetric fake quantisation, a bias, and what is computed with them.

        Args:
            name: of the layer.
            shape: of the kernel; outputs come last, and each has its own range unless `per_tensor`.
            biases: number of outputs.
            apply: (x, kernel) -> value.
            per_tensor: one range for the whole kernel.
        """

        def __init__(
            self, name: str, shape: tuple[int, ...], biases: int, apply: Callable[..., Any], per_tensor: bool = False
        ) -> None:
            super().__init__(name=name)
            ranges = () if per_tensor else (biases,)
            self._apply, self._per_tensor = apply, per_tensor
            self.kernel = self.add_weight(shape=shape, name="kernel")
            self.bias = self.add_weight(shape=(biases,), initializer="zeros", name="bias")
            self.low = self.add_weight(shape=ranges, initializer="zeros", trainable=False, name="low")
            self.high = self.add_weight(shape=ranges, initializer="zeros", trainable=False, name="high")

        def take(self, kernel: np.ndarray, bias: np.ndarray) -> None:
            """Sets the weights."""
            self.kernel.assign(kernel)
            self.bias.assign(bias)

        def call(self, x: Any, training: bool = False) -> Any:
            kernel = tf.convert_to_tensor(self.kernel)
            if training:
                axes = None if self._per_tensor else list(range(len(kernel.shape) - 1))
                amax = tf.maximum(tf.reduce_max(tf.abs(kernel), axis=axes), 1e-6)
                self.high.assign(amax)
                self.low.assign(-amax)
            low, high = tf.convert_to_tensor(self.low), tf.convert_to_tensor(self.high)
            quantise = tf.quantization.fake_quant_with_min_max_vars_per_channel
            if self._per_tensor:
                quantise = tf.quantization.fake_quant_with_min_max_vars
            kernel = quantise(kernel, low, high, num_bits=8, narrow_range=True)
            return self._apply(x, kernel) + tf.convert_to_tensor(self.bias)

    return Weighted
