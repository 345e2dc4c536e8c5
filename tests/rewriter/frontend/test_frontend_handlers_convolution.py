"""Transposed convolutions: every size that TensorFlow gives, with kernels below, at and above the stride."""

import itertools

import numpy as np
import pytest

from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(7)


def same(tf, run, body, *values):
    """Converts `body`, which makes a dict of tensors, and checks every one against TensorFlow."""
    specs = [tf.TensorSpec([None, *value.shape[1:]], tf.float32) for value in values]
    source = load_source(tf.function(body, input_signature=specs), samples=[tuple(values)])
    found = run(source, **{spec.name: value for spec, value in zip(source.signature.inputs, values, strict=True)})
    for name, tensor in body(*map(tf.constant, values)).items():
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=0, atol=1e-5, err_msg=name)
    return source


def sizes_of(size, kernel, stride, padding):
    """Every output size whose convolution has `size` positions: each is a transposed convolution of its own."""
    largest = size * stride if padding == "SAME" else (size - 1) * stride + kernel + stride - 1
    return range(largest - stride + 1, largest + 1)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", [4, 5])
def test_two_dimensions(tf, run, padding, size):
    """Kernels below, at and above the stride; all sizes that the stride leaves open."""
    x = RNG.normal(size=(2, size, size, 2)).astype(np.float32)
    cases = [
        (kernel, stride, wanted)
        for kernel, stride in itertools.product((1, 2, 3, 4), (1, 2, 3))
        for wanted in sizes_of(size, kernel, stride, padding)
    ]
    filters = {kernel: RNG.normal(size=(kernel, kernel, 3, 2)).astype(np.float32) for kernel in (1, 2, 3, 4)}

    def body(x):
        return {
            f"kernel {k} stride {s} to {wanted}": tf.nn.conv2d_transpose(
                x, filters[k], [tf.shape(x)[0], wanted, wanted, 3], [s, s], padding
            )
            for k, s, wanted in cases
        }

    same(tf, run, body, x)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_sides_of_their_own(tf, run, padding):
    """One and three dimensions, and a different kernel and stride for each side."""
    line = RNG.normal(size=(2, 5, 2)).astype(np.float32)
    image = RNG.normal(size=(2, 3, 4, 2)).astype(np.float32)
    block = RNG.normal(size=(1, 2, 3, 4, 2)).astype(np.float32)
    filters = [RNG.normal(size=(*kernel, 3, 2)).astype(np.float32) for kernel in ((2,), (2, 4), (1, 2, 3))]
    strides = [(3,), (5, 2), (2, 2, 2)]

    def body(line, image, block):
        found = {}
        functions = tf.nn.conv1d_transpose, tf.nn.conv2d_transpose, tf.nn.conv3d_transpose
        for function, x, weights, steps in zip(functions, (line, image, block), filters, strides, strict=True):
            sides = zip(x.shape[1:-1], weights.shape, steps, strict=False)
            sizes = [max(sizes_of(size, k, s, padding)) for size, k, s in sides]
            found[function.__name__] = function(
                x, weights, [tf.shape(x)[0], *sizes, 3], steps[0] if len(steps) == 1 else steps, padding
            )
        return found

    same(tf, run, body, line, image, block)


def test_explicit_padding(tf, run):
    x = RNG.normal(size=(2, 3, 4, 2)).astype(np.float32)
    weights = RNG.normal(size=(3, 2, 3, 2)).astype(np.float32)

    def body(x):
        pads = [[0, 0], [1, 0], [0, 1], [0, 0]]
        return {
            # Full sizes 9 and 11, less the padding; 1 and 2 rows more that the stride leaves open.
            f"{h} {w}": tf.nn.conv2d_transpose(x, weights, [tf.shape(x)[0], h, w, 3], [3, 3], pads)
            for h, w in ((8, 10), (9, 11), (10, 12))
        }

    same(tf, run, body, x)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_layers_of_keras(tf, run, padding):
    inputs = tf.keras.Input((5, 4, 3))
    outputs = [
        tf.keras.layers.Conv2DTranspose(2, kernel, strides=stride, padding=padding)(inputs)
        for kernel, stride in ((4, 8), (1, 2), (2, 3), (2, 2), (3, 2))
    ]
    dilated = tf.keras.layers.Conv2DTranspose(2, 3, dilation_rate=2, padding=padding)(inputs)
    model = tf.keras.Model(inputs, [*outputs, dilated])
    x = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)
    source = load_source(model, samples=[(x,)])
    found = run(source, **{source.signature.inputs[0].name: x})
    for spec, expected in zip(source.signature.outputs, model(x), strict=True):
        np.testing.assert_allclose(found[spec.name], expected.numpy(), rtol=0, atol=1e-5)
