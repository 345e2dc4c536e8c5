"""Two models of `rivals.py` that TensorFlow makes: a U-Net and a vision transformer of the size that people use."""

from __future__ import annotations

from typing import Any

import numpy as np
from _runtime_tf import Made, _export, plant


def unet(widths: tuple[int, ...], size: int) -> Made:
    """A U-Net with two convolutions a level: image [N, size, size, 3] -> mask [N, size, size, 2], in 0..1.

    Args:
        widths: channels of each level from the outside in; every level but the last one halves the size.
        size: pixels a side, a multiple of 2 to the power of the levels.
    """
    import keras
    from _zoo_keras import SEED, wake_up

    keras.utils.set_random_seed(SEED)
    layers = keras.layers

    def block(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    image = keras.Input((size, size, 3), name="image")
    x, skips = image, []
    for width in widths[:-1]:
        skips.append(block(x, width))
        x = layers.MaxPooling2D()(skips[-1])
    x = block(x, widths[-1])
    for width, skip in zip(reversed(widths[:-1]), reversed(skips), strict=True):
        x = layers.Concatenate()([layers.Conv2DTranspose(width, 2, strides=2)(x), skip])
        x = block(x, width)
    network = keras.Model(image, {"mask": layers.Conv2D(2, 1, activation="sigmoid")(x)})
    known = plant(network)
    rng = np.random.default_rng(SEED)
    wake_up(network, rng.standard_normal((2, size, size, 3), np.float32))
    return Made(_export(network), known)


def vit(blocks: int, width: int, heads: int, patch: int, size: int) -> Made:
    """A vision transformer with mean pooling: image [N, size, size, 3] in 0..255 -> logits [N, 1000].

    Args:
        blocks: encoder blocks, normalised before attention and before the dense layers.
        width: of the tokens; the hidden layer is four times as wide.
        heads: of the attention.
        patch: pixels a side of a patch.
        size: pixels a side of an image.
    """
    import keras
    from _zoo_keras import SEED, _add_positions, _shake

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    image = keras.Input((size, size, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(x)
    x = layers.Reshape(((size // patch) ** 2, width))(x)
    x = _add_positions(x, (size // patch) ** 2, width)
    for block in range(blocks):
        normed = layers.LayerNormalization(epsilon=1e-6, name=f"norm_a_{block}")(x)
        x = x + layers.MultiHeadAttention(heads, width // heads, name=f"attention_{block}")(normed, normed)
        normed = layers.LayerNormalization(epsilon=1e-6, name=f"norm_b_{block}")(x)
        hidden = layers.Dense(4 * width, activation="gelu", name=f"up_{block}")(normed)
        x = x + layers.Dense(width, name=f"down_{block}")(hidden)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6, name="norm_out")(x))
    network = keras.Model(image, {"logits": layers.Dense(1000, name="head")(x)})
    known = plant(network)
    _shake(network)
    return Made(_export(network), known)
