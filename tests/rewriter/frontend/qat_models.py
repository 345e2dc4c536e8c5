"""Models with fake quantisation, as quantisation-aware training leaves them; built by hand, for tests to share."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class QatSettings:
    """How a model of `conv_net` is quantised.

    Attributes:
        op: "fake_quant" or "round_trip" (quantize_and_dequantize_v2).
        per_channel: weights have a range per output channel (fake_quant alone).
        activations: range of the activations behind ReLU6.
        narrow: weights use -127..127.
        bits: width of the activations.
    """

    op: str = "fake_quant"
    per_channel: bool = True
    activations: tuple[float, float] = (0.0, 6.0)
    narrow: bool = True
    bits: int = 8


def quantised(tf: Any, x: Any, settings: QatSettings, low: float | None = None, high: float | None = None) -> Any:
    """An activation on its grid."""
    low = settings.activations[0] if low is None else low
    high = settings.activations[1] if high is None else high
    if settings.op == "round_trip":
        return tf.quantization.quantize_and_dequantize_v2(
            x, low, high, range_given=True, signed_input=low < 0, num_bits=settings.bits
        )
    return tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=settings.bits)


def conv_net(tf: Any, settings: QatSettings | None = None, *, size: int = 16, width: int = 8, seed: int = 0) -> Any:
    """Two conv-bn-relu6 blocks, a depthwise one, a residual Add and a dense head: a tf.function.

    Weights, inputs and activations are fake-quantised. It takes float [N, size, size, 3] and returns [N, 10].
    Batch normalisation is frozen and stands behind its convolution, as in QAT before it is folded.
    """
    settings = settings or QatSettings()
    rng = np.random.default_rng(seed)

    def variable(*shape: int) -> Any:
        return tf.Variable((rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32))

    class Net(tf.Module):  # type: ignore[misc]
        """Holds the variables and the ranges, which freezing turns into constants."""

        def __init__(self) -> None:
            super().__init__()
            self.kernels = [variable(3, 3, 3, width), variable(3, 3, width, width), variable(3, 3, width, 1)]
            self.dense = variable(width, 10)
            self.scale = [tf.Variable(rng.uniform(0.8, 1.2, width).astype(np.float32)) for _ in range(3)]
            self.offset = [variable(width) for _ in range(3)]
            with tf.init_scope():
                self.fixed = [self._fixed(w) for w in (*self.kernels, self.dense)]

        def _fixed(self, weights: Any) -> tuple[Any, Any]:
            array = weights.numpy()
            axes = tuple(range(array.ndim - 1)) if settings.per_channel else None
            amax = np.abs(array).max(axis=axes).astype(np.float32)
            return tf.Variable(-amax), tf.Variable(amax)

        def weights(self, index: int) -> Any:
            value = (*self.kernels, self.dense)[index]
            low, high = self.fixed[index]
            if settings.op == "round_trip":
                return tf.quantization.quantize_and_dequantize_v2(
                    value, tf.reduce_min(low), tf.reduce_max(high), range_given=True, narrow_range=settings.narrow
                )
            kind = "fake_quant_with_min_max_vars" + ("_per_channel" if settings.per_channel else "")
            return getattr(tf.quantization, kind)(value, low, high, narrow_range=settings.narrow)

        def block(self, x: Any, index: int) -> Any:
            convolve = tf.nn.depthwise_conv2d if index == 2 else tf.nn.conv2d
            y = convolve(x, self.weights(index), [1, 1, 1, 1], "SAME")
            y = tf.nn.relu6(y * self.scale[index] + self.offset[index])
            return quantised(tf, y, settings)

        @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32, name="image")])
        def __call__(self, image: Any) -> dict[str, Any]:
            x = quantised(tf, image, settings, -1.0, 1.0)
            x = self.block(x, 0)
            x = quantised(tf, x + self.block(x, 1), settings)
            x = self.block(x, 2)
            # Another range than that of what is averaged: else many means lie exactly between two levels.
            x = quantised(tf, tf.reduce_mean(x, [1, 2]), settings, settings.activations[0], 4.7)
            return {"logits": tf.matmul(x, self.weights(3))}

    net = Net()
    function = net.__call__
    function.keep = net  # the function holds its variables weakly
    return function
