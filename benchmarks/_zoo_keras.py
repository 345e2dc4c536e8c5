"""The Keras part of the zoo; builders take (job, *arguments) and return a `zoo.ZooModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from zoo import Feeds, Job, ZooModel, package_file

SEED = 7


def application(job: Job, application_name: str, size: int) -> ZooModel:
    """A `keras.applications` network with random weights, input [N, size, size, 3] in 0..255."""
    import keras

    keras.utils.set_random_seed(SEED)
    image = keras.Input((size, size, 3), name="image")
    network = getattr(keras.applications, application_name)(weights=None, input_tensor=image)
    images = _images(size)
    wake_up(network, images(8))
    return ZooModel(
        name=job.name,
        model=network,
        samples=({"image": images(1)}, {"image": images(2)}),
        checks=tuple({"image": images(n)} for n in (1, 1, 2, 3)),
        reference=_keras_reference(network),
        notes=f"{size}x{size}, random weights",
    )


def transformer(job: Job, causal: bool) -> ZooModel:
    """Two encoder blocks (Keras 3 MultiHeadAttention, exact GELU, LayerNorm) on token ids [N, S], S dynamic."""
    import keras

    keras.utils.set_random_seed(SEED)
    vocabulary, width, heads = 500, 64, 4
    inputs = {"tokens": keras.Input((None,), dtype="int32", name="tokens")}
    mask = None
    if not causal:
        inputs["mask"] = keras.Input((None,), dtype="bool", name="mask")
        mask = keras.layers.Reshape((1, -1))(inputs["mask"])
    x = keras.layers.Embedding(vocabulary, width, name="token_embedding")(inputs["tokens"])
    x = _add_positions(x, 128, width)
    for block in range(2):
        normal = keras.layers.LayerNormalization(epsilon=1e-6, name=f"norm_a_{block}")(x)
        attention = keras.layers.MultiHeadAttention(heads, width // heads, name=f"attention_{block}")
        x = x + attention(normal, normal, attention_mask=mask, use_causal_mask=causal)
        normal = keras.layers.LayerNormalization(epsilon=1e-6, name=f"norm_b_{block}")(x)
        hidden = keras.layers.Dense(4 * width, name=f"up_{block}")(normal)
        hidden = keras.layers.Lambda(lambda t: keras.activations.gelu(t, approximate=False), name=f"gelu_{block}")(
            hidden
        )
        x = x + keras.layers.Dense(width, name=f"down_{block}")(hidden)
    x = keras.layers.LayerNormalization(epsilon=1e-6, name="norm_out")(x)
    outputs = {"hidden": x, "logits": keras.layers.Dense(vocabulary, name="head")(x)}
    network = keras.Model(inputs, outputs)
    _shake(network)
    rng = np.random.default_rng(SEED)

    def feeds(batch: int, length: int) -> Feeds:
        made = {"tokens": rng.integers(0, vocabulary, (batch, length)).astype(np.int32)}
        if not causal:
            made["mask"] = np.arange(length)[None, :] < rng.integers(length // 2, length + 1, (batch, 1))
        return made

    return ZooModel(
        name=job.name,
        model=network,
        samples=(feeds(1, 16), feeds(4, 48)),
        checks=(feeds(2, 32), feeds(2, 32), feeds(1, 16), feeds(3, 77)),
        reference=_keras_reference(network),
        notes="2 blocks, dynamic batch and sequence" + (", causal" if causal else ", key mask"),
    )


def recurrent(job: Job, kind: str) -> ZooModel:
    """A recurrent layer over sequences [N, T, 8], T dynamic, with a dense head on the last step."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    layer = {
        "lstm": lambda: layers.LSTM(16, return_sequences=True),
        "gru": lambda: layers.GRU(16, return_sequences=True),
        "bilstm": lambda: layers.Bidirectional(layers.LSTM(16, return_sequences=True)),
    }[kind]()
    series = keras.Input((None, 8), name="series")
    x = layer(series)
    network = keras.Model(series, {"steps": x, "score": layers.Dense(4, activation="tanh")(x[:, -1])})
    _shake(network)
    rng = np.random.default_rng(SEED)

    def feeds(batch: int, length: int) -> Feeds:
        return {"series": rng.normal(size=(batch, length, 8)).astype(np.float32)}

    return ZooModel(
        name=job.name,
        model=network,
        samples=(feeds(1, 6), feeds(4, 20)),
        checks=(feeds(2, 12), feeds(2, 12), feeds(5, 33)),
        reference=_keras_reference(network),
        notes="16 units, dynamic batch and length",
    )


def unet(job: Job) -> ZooModel:
    """A U-Net of depth 2 with Conv2DTranspose, on images [N, H, W, 3], H and W dynamic multiples of 4."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers

    def block(x: Any, filters: int) -> Any:
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    image = keras.Input((None, None, 3), name="image")
    one = block(image, 8)
    two = block(layers.MaxPooling2D()(one), 16)
    x = block(layers.MaxPooling2D()(two), 32)
    x = layers.Concatenate()([layers.Conv2DTranspose(16, 3, strides=2, padding="same")(x), two])
    x = layers.Concatenate()([layers.Conv2DTranspose(8, 2, strides=2)(block(x, 16)), one])
    network = keras.Model(image, {"mask": layers.Conv2D(2, 1, activation="sigmoid")(block(x, 8))})
    rng = np.random.default_rng(SEED)

    def feeds(batch: int, height: int, width: int) -> Feeds:
        return {"image": rng.normal(size=(batch, height, width, 3)).astype(np.float32)}

    wake_up(network, feeds(4, 32, 32)["image"])
    return ZooModel(
        name=job.name,
        model=network,
        samples=(feeds(1, 32, 32), feeds(2, 64, 96)),
        checks=(feeds(1, 32, 48), feeds(1, 32, 48), feeds(3, 80, 64)),
        reference=_keras_reference(network),
        notes="dynamic batch, height and width",
    )


def uint8_preprocessing(job: Job) -> ZooModel:
    """uint8 images [N, 48, 40, 3] through Resizing, Rescaling and Normalization into a small CNN."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    image = keras.Input((48, 40, 3), dtype="uint8", name="image")
    x = layers.Resizing(32, 32)(image)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Normalization(mean=[0.1, -0.2, 0.05], variance=[0.8, 1.1, 0.9])(x)
    x = layers.Conv2D(16, 3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    network = keras.Model(image, {"scores": layers.Dense(10, activation="softmax")(x)})
    _shake(network)
    rng = np.random.default_rng(SEED)

    def feeds(batch: int) -> Feeds:
        return {"image": rng.integers(0, 256, (batch, 48, 40, 3)).astype(np.uint8)}

    return ZooModel(
        name=job.name,
        model=network,
        samples=(feeds(1), feeds(4)),
        checks=(feeds(2), feeds(2), feeds(7)),
        reference=_keras_reference(network),
        notes="uint8 in, Resizing/Rescaling/Normalization",
    )


def mixed_float16(job: Job) -> ZooModel:
    """A small residual CNN under the mixed_float16 policy, input [N, 32, 32, 3], float32 head."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    policy = {"dtype": "mixed_float16"}
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", **policy)(image)
    x = layers.ReLU(**policy)(layers.BatchNormalization(**policy)(x))
    y = layers.Conv2D(16, 3, padding="same", **policy)(x)
    x = layers.ReLU(**policy)(layers.Add(**policy)([x, layers.BatchNormalization(**policy)(y)]))
    x = layers.GlobalAveragePooling2D(**policy)(x)
    x = layers.Dense(32, activation="relu", **policy)(x)
    network = keras.Model(image, {"probabilities": layers.Dense(10, activation="softmax", dtype="float32")(x)})
    rng = np.random.default_rng(SEED)

    def feeds(batch: int) -> Feeds:
        return {"image": rng.normal(size=(batch, 32, 32, 3)).astype(np.float32)}

    wake_up(network, feeds(8)["image"])
    return ZooModel(
        name=job.name,
        model=network,
        samples=(feeds(1), feeds(4)),
        checks=(feeds(2), feeds(2), feeds(7)),
        reference=_keras_reference(network),
        tolerance=1e-3,
        notes="float16 inside",
    )


def packaged(job: Job, package: str, pattern: str, install: str) -> ZooModel:
    """A trained model file that a PyPI package ships, given to the converter as a path.

    Raises:
        UnavailableError: the package is not installed.
    """
    path = package_file(package, pattern, install)
    network = _load_keras_file(path)
    rng = np.random.default_rng(SEED)

    def feeds(batch: int) -> Feeds:
        made = {}
        for tensor in network.inputs:
            shape = (batch, *(d or 1 for d in tensor.shape[1:]))
            # Images are scaled to -1..1 before they come here; counts (atoms of a peptide) are small integers.
            values = rng.uniform(-1, 1, shape) if len(shape) == 4 else rng.integers(0, 6, shape)
            made[tensor.name.split(":")[0]] = values.astype(np.float32)
        return made

    return ZooModel(
        name=job.name,
        model=str(path),
        samples=(feeds(1), feeds(4)),
        checks=(feeds(2), feeds(2), feeds(7)),
        reference=_keras_reference(network),
        notes=f"trained weights, {path.suffix} of package {package}",
    )


def wake_up(network: Any, images: np.ndarray) -> None:
    """Makes a randomly initialised network answer differently to different inputs, without amplifying rounding.

    Scales and offsets are varied; one forward pass in training mode with momentum 0 then sets every BatchNorm's
    statistics to those of real activations. Deep networks of BatchNorm and ReLU amplify differences by about 1.2 a
    layer at initialisation (Yang et al., A Mean Field Theory of Batch Normalization, 2019), so that TensorFlow differs
    from itself by more than what is looked for; variances are therefore taken 1.2 times as large, which makes each
    layer contract about as much as it amplifies, as trained ones do.
    """
    _shake(network)
    norms = [layer for layer in _layers(network) if type(layer).__name__ == "BatchNormalization"]
    _calibrate(network, norms, images)
    for layer in norms:
        layer.moving_variance.assign(1.2 * np.asarray(layer.moving_variance))


def _calibrate(network: Any, norms: Sequence[Any], images: np.ndarray) -> None:
    """Sets the statistics of BatchNorm layers to those of one batch."""
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    network(_arranged(network, {network.inputs[0].name: images}), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _shake(network: Any) -> None:
    """Random biases, scales around 1 and offsets around 0 instead of the exact ones and zeros of initialisation."""
    rng = np.random.default_rng(SEED)
    for layer in _layers(network):
        for weight in layer.weights:
            leaf = weight.path.rsplit("/", 1)[-1]
            value = np.asarray(weight)
            if type(layer).__name__ == "LayerScale":
                weight.assign(rng.uniform(0.1, 0.3, value.shape))
            elif leaf == "gamma":
                weight.assign(rng.uniform(0.8, 1.2, value.shape))
            elif leaf in ("beta", "bias"):
                weight.assign(value + rng.normal(0, 0.05, value.shape))


def _layers(network: Any) -> Iterable[Any]:
    """All layers, nested ones included, each once."""
    return [layer for layer in network._flatten_layers(include_self=False) if not hasattr(layer, "layers")]


def _images(size: int) -> Callable[[int], np.ndarray]:
    """Seeded images [n, size, size, 3] in 0..255: smooth blobs plus noise, which differ more than pure noise does."""
    rng = np.random.default_rng(SEED)
    axis = np.linspace(0, np.pi, size, dtype=np.float32)

    def make(count: int) -> np.ndarray:
        waves = rng.uniform(1, 9, (count, 2, 3)).astype(np.float32)
        rows = np.sin(axis[None, :, None] * waves[:, None, 0])
        columns = np.sin(axis[None, :, None] * waves[:, None, 1])
        smooth = rows[:, :, None, :] * columns[:, None, :, :]
        noise = rng.normal(0, 0.2, smooth.shape).astype(np.float32)
        return np.clip(127.5 + 100 * (smooth + noise), 0, 255).astype(np.float32)

    return make


def _add_positions(x: Any, longest: int, width: int) -> Any:
    """Adds to x a learnt embedding of the positions, for any sequence length up to `longest`."""
    import keras

    class Positions(keras.layers.Layer):
        def build(self, shape: Sequence[int | None]) -> None:
            self.table = self.add_weight(shape=(longest, width), initializer="random_normal", name="table")
            super().build(shape)

        def call(self, x: Any) -> Any:
            return x + self.table[: keras.ops.shape(x)[1]]

    return Positions(name="positions")(x)


def _load_keras_file(path: Path) -> Any:
    """The model of a .keras/.h5 file: by Keras 3, else by tf-keras, which wrote the older files."""
    import keras
    import tf_keras

    if path.suffix == ".keras":
        return keras.models.load_model(path, compile=False)
    try:
        return tf_keras.models.load_model(path, compile=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"neither Keras reads {path.name}: {error}") from error


def _arranged(network: Any, feeds: Feeds) -> Any:
    """The feeds in the structure that the network was defined with: dict, list or one tensor."""
    if isinstance(network.input, dict):
        return dict(feeds)
    values = [feeds[tensor.name.split(":")[0]] for tensor in network.inputs]
    return values if isinstance(network.input, (list, tuple)) else values[0]


def _keras_reference(network: Any) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """The network in inference mode; one unnamed output gets the name "".

    Called as a graph, as in a SavedModel: eagerly, some layers compute something else (Resizing rounds to uint8).
    """
    import tensorflow as tf

    @tf.function(autograph=False)
    def graph(given: Any) -> Any:
        return network(given, training=False)

    def reference(feeds: Feeds) -> dict[str, np.ndarray]:
        outputs = graph(tf.nest.map_structure(tf.constant, _arranged(network, feeds)))
        named = outputs if isinstance(outputs, dict) else {"": outputs}
        return {name: np.asarray(value) for name, value in named.items()}

    return reference
