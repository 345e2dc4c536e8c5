"""QAT models: the export computes what TensorFlow computes, and weights keep their int8 levels and scales."""

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto

from passes.pipeline import default_pipeline
from passes.precision.fake_quant import CollapseFakeQuant, fake_quant_ranges
from passes.precision.fake_quant_chains import find_chains
from passes.precision.recipe import Recipe
from passes.steps.quantized_constants import Constants
from rewriter.backends.base import BuildOptions, BuiltEngine, InputProfile
from rewriter.errors import ExportError
from rewriter.frontend import load_source
from rewriter.runtime.native import NativeSession
from tests.rewriter.frontend.qat_models import QatSettings, conv_net

pytestmark = pytest.mark.tensorflow


def cleaned(tf, body, x, **options):
    """(TensorFlow's result, the cleaned model, its result, notes) of a function of one tensor."""
    spec = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
    function = tf.function(body, input_signature=[spec])
    source = load_source(function, samples=[x], **options)
    model, _ = default_pipeline().run(source.model)
    [name] = [value.name for value in model.proto.graph.input]
    [result] = NativeSession(model).run({name: x}).values()
    return function(x).numpy(), model, result, source.notes


def values(low, high, shape, seed=5):
    """Values inside, outside and next to the middle between two levels of the range."""
    random = np.random.default_rng(seed)
    middle = np.linspace(low, high, 511, dtype=np.float32)
    beside = [np.nextafter(middle, np.float32(side)) for side in (-99, 99)]
    picked = np.concatenate([middle, *beside, random.uniform(low * 1.2 - 1, high * 1.2 + 1, 999).astype(np.float32)])
    return np.resize(picked, shape)


def dequantized(model):
    """int8 constants behind DequantizeLinear: node name -> (levels, scale, axis); all are symmetric."""
    constants = Constants.of(model.proto, dict(model.weights))
    found = {}
    for node in model.proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            assert constants.dtype(node.input[0]) == TensorProto.INT8
            assert not constants.array(node.input[2]).any()
            axis = next((a.i for a in node.attribute if a.name == "axis"), None)
            found[node.name] = constants.array(node.input[0]), constants.array(node.input[1]), axis
    return found


def ops(model):
    return Counter(node.op_type for node in model.proto.graph.node)


@pytest.mark.parametrize("op", ["args", "vars", "per_channel"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 1.0), (-1.3, 2.7)])
@pytest.mark.parametrize("narrow", [False, True])
def test_fake_quant_of_activations_is_bit_equal_at_the_ties(tf, op, low, high, narrow):
    def body(x):
        if op == "args":
            return tf.quantization.fake_quant_with_min_max_args(x, low, high, narrow_range=narrow)
        if op == "vars":
            return tf.quantization.fake_quant_with_min_max_vars(x, low, high, narrow_range=narrow)
        channels = [low, low / 2, low / 4], [high, high / 2, high / 4]
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(x, *channels, narrow_range=narrow)

    expected, model, found, notes = cleaned(tf, body, values(low, high, (7, 900, 3)))
    np.testing.assert_array_equal(found, expected)
    assert notes == ()
    [[chain]] = find_chains(model)
    assert chain.levels == (255 if narrow else 256)
    assert chain.step.size == (3 if op == "per_channel" else 1)


@pytest.mark.parametrize("version", ["V2", "V3", "V4"])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.5, 2.0)])
def test_quantize_and_dequantize_is_bit_equal(tf, version, given, signed, low, high):
    def body(x):
        options = {"num_bits": 8} if version == "V3" else {"round_mode": "HALF_UP" if signed else "HALF_TO_EVEN"}
        return getattr(tf.raw_ops, f"QuantizeAndDequantize{version}")(
            input=x,
            input_min=low,
            input_max=high,
            signed_input=signed,
            range_given=given,
            narrow_range=given,
            **options,
        )

    expected, model, found, notes = cleaned(tf, body, values(low, high, (4, 640)))
    np.testing.assert_array_equal(found, expected)
    assert len(find_chains(model)[0]) == given
    assert bool(notes) != given
    assert given or "from the data of each run" in notes[0]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(model))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("given", [True, False])
def test_quantize_and_dequantize_along_an_axis(tf, axis, given):
    x = values(-1, 2, (4, 6, 5))
    bounds = np.linspace(0.2, 2, x.shape[axis], dtype=np.float32)
    bounds = -bounds, bounds * 2

    def body(x):
        return tf.raw_ops.QuantizeAndDequantizeV3(
            input=x, input_min=bounds[0], input_max=bounds[1], num_bits=8, range_given=given, axis=axis
        )

    expected, model, found, _ = cleaned(tf, body, x)
    np.testing.assert_array_equal(found, expected)
    assert len(find_chains(model)[0]) == given


def test_a_round_trip_in_double_and_with_a_range_from_the_data(tf):
    def body(x):
        return tf.quantization.quantize_and_dequantize_v2(x, tf.reduce_min(x), tf.reduce_max(x), range_given=True)

    expected, model, found, notes = cleaned(tf, body, values(-1, 2, (4, 64)).astype("float64"))
    np.testing.assert_array_equal(found, expected)
    assert len(notes) == 1
    assert find_chains(model) == [[]]


def test_fake_quant_with_a_range_from_the_data_is_an_error(tf):
    def body(x):
        return tf.quantization.fake_quant_with_min_max_vars(x, tf.reduce_min(x), tf.reduce_max(x))

    with pytest.raises(ExportError, match="FakeQuantWithMinMaxVars"):
        cleaned(tf, body, values(-1, 1, (2, 8)))


def weights(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LAYERS = {
    "conv": ((3, 3, 4, 6), lambda tf, x, w: tf.nn.conv2d(x, w, 1, "SAME"), 0),
    "depthwise": ((3, 3, 4, 2), lambda tf, x, w: tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "SAME"), 0),
    "transposed": (
        (3, 3, 6, 4),
        lambda tf, x, w: tf.nn.conv2d_transpose(x, w, tf.stack([tf.shape(x)[0], 16, 16, 6]), 2),
        0,
    ),
    "dense": ((4, 6), lambda tf, x, w: tf.matmul(tf.reduce_mean(x, [1, 2]), w), 1),
    "dense transposed": ((6, 4), lambda tf, x, w: tf.matmul(tf.reduce_mean(x, [1, 2]), w, transpose_b=True), 0),
    "tensordot": ((4, 6), lambda tf, x, w: tf.tensordot(x, w, 1), 1),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["vars", "per channel", "round trip", "round trip of the data"])
def test_weights_keep_their_levels_and_scales(tf, layer, kind):
    shape, apply, _ = LAYERS[layer]
    array = weights(shape)
    variable = tf.Variable(array)
    high = float(np.abs(array).max()) if kind != "per channel" else np.abs(array).max(tuple(range(len(shape) - 1)))

    def quantised():
        if kind == "vars":
            return tf.quantization.fake_quant_with_min_max_vars(variable, -high, high, narrow_range=True)
        if kind == "per channel":
            return tf.quantization.fake_quant_with_min_max_vars_per_channel(variable, -high, high, narrow_range=True)
        return tf.quantization.quantize_and_dequantize_v2(
            variable, -high, high, range_given=kind == "round trip", narrow_range=True
        )

    x = weights((2, 8, 8, 4), seed=1)
    expected, model, found, notes = cleaned(tf, lambda x: apply(tf, x, quantised()), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert notes == ()
    [(levels, scale, axis)] = dequantized(model).values()
    per_channel = kind == "per channel"
    assert scale.shape == ((levels.shape[axis],) if per_channel else ())
    spread = scale.reshape([-1, *[1] * (levels.ndim - axis - 1)]) if per_channel else scale
    np.testing.assert_array_equal(np.sort((levels * spread).ravel()), np.sort(quantised().numpy().ravel()))
    reader = next(n for n in model.proto.graph.node if set(n.input) & set(node_outputs(model, dequantized(model))))
    assert reader.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")


def node_outputs(model, names):
    return [node.output[0] for node in model.proto.graph.node if node.name in names]


def test_other_widths_of_weights_are_exact_where_int8_holds_them(tf):
    variable = tf.Variable(weights((4, 6)))

    def body(x):
        return tf.matmul(x, tf.quantization.fake_quant_with_min_max_vars(variable, -2.0, 2.0, num_bits=4))

    expected, model, found, notes = cleaned(tf, body, weights((3, 4), seed=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert notes == ()
    [(levels, _, _)] = dequantized(model).values()
    assert levels.min() >= -8
    assert levels.max() <= 8


@pytest.mark.parametrize("channels", [1, 6])
def test_asymmetric_weights_stay_numbers_and_are_told(tf, channels):
    variable = tf.Variable(np.abs(weights((3, 3, 4, 6))))

    def body(x):
        if channels == 1:
            w = tf.quantization.fake_quant_with_min_max_vars(variable, 0.0, 3.0)
        else:
            w = tf.quantization.fake_quant_with_min_max_vars_per_channel(variable, [0.0] * 6, np.linspace(1, 3, 6))
        return tf.nn.conv2d(x, w, 1, "SAME")

    expected, model, found, notes = cleaned(tf, body, weights((2, 8, 8, 4), seed=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    [note] = notes
    assert "FakeQuant" in note
    assert "8 bits" in note
    assert dequantized(model) == {}
    assert "Conv" in ops(model)


def test_an_empty_channel_of_weights(tf):
    variable = tf.Variable(weights((4, 3)))
    high = np.array([1, 0, 2], np.float32)

    def body(x):
        w = tf.quantization.fake_quant_with_min_max_vars_per_channel(variable, -high, high, narrow_range=True)
        return tf.matmul(x, w)

    expected, model, found, _ = cleaned(tf, body, weights((3, 4), seed=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    [(_, scale, _)] = dequantized(model).values()
    assert (scale > 0).all()


def test_weights_that_are_an_output_too_keep_their_shape(tf):
    variable = tf.Variable(weights((3, 3, 4, 6)))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 4], tf.float32)])
    def function(x):
        w = tf.quantization.fake_quant_with_min_max_vars(variable, -3.0, 3.0, narrow_range=True)
        return {"y": tf.nn.conv2d(x, w, 1, "SAME"), "w": tf.identity(w)}

    source = load_source(function)
    assert source.verification.worst <= 1e-5


def test_biases_stay_numbers(tf):
    variable = tf.Variable(weights((6,)))

    def body(x):
        return x + tf.quantization.fake_quant_with_min_max_vars(variable, -3.0, 3.0, narrow_range=True)

    expected, model, found, notes = cleaned(tf, body, weights((3, 6), seed=1))
    np.testing.assert_array_equal(found, expected)
    assert (notes, dequantized(model)) == ((), {})


def test_the_stock_converter_stays_as_it_was(tf):
    from tf2onnx import tfonnx
    from tf2onnx.optimizer.const_dequantize_optimizer import ConstDequantizeOptimizer

    before = tfonnx.compute_const_folding_using_tf, ConstDequantizeOptimizer._fold_node
    cleaned(tf, tf.quantization.fake_quant_with_min_max_args, values(-6, 6, (2, 8)))
    assert before == (tfonnx.compute_const_folding_using_tf, ConstDequantizeOptimizer._fold_node)


SETTINGS = {
    "per channel": QatSettings(),
    "whole tensors": QatSettings(per_channel=False),
    "round trip": QatSettings(op="round_trip"),
    "signed activations": QatSettings(activations=(-1.0, 6.0)),
}


@pytest.fixture(scope="module", params=SETTINGS)
def net(request, tf):
    """(function, cleaned model) of a small QAT model."""
    function = conv_net(tf, SETTINGS[request.param])
    source = load_source(function)
    assert source.notes == ()
    return function, default_pipeline().run(source.model)[0]


IMAGES = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)


def test_a_qat_model_keeps_its_results_and_every_scale(net):
    function, model = net
    expected = function(IMAGES)["logits"].numpy()
    found = NativeSession(model).run({"image": IMAGES})["logits"]
    # Sums in another order may tip single values over half a quantum.
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
    assert len(dequantized(model)) == 4
    assert len(find_chains(model)[0]) == 6
    assert TensorProto.UINT8 not in {t.data_type for t in model.proto.graph.initializer}
    assert {"image", "Relu6:0", "add_2:0", "Mean:0"} <= set(fake_quant_ranges(model))


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_a_collapsed_qat_model_has_8_bits_everywhere_and_never_uint8(net, mode):
    function, model = net
    collapsed = CollapseFakeQuant(Recipe.of(mode)).run(model).model
    assert find_chains(collapsed) == [[]]
    counts = ops(collapsed)
    assert counts["QuantizeLinear"] == 6
    assert not counts["Floor"] + counts["Round"]
    types = {t.data_type for t in collapsed.proto.graph.initializer}
    assert TensorProto.UINT8 not in types
    assert (TensorProto.INT8 in types) == (mode == "INT8")
    assert (TensorProto.FLOAT8E4M3FN in types) == (mode == "FP8")
    expected = function(IMAGES)["logits"].numpy()
    found = NativeSession(collapsed, optimize=False).run({"image": IMAGES})["logits"]
    np.testing.assert_allclose(found, expected, atol=0.15 * np.abs(expected).max())


@pytest.mark.rtx
@pytest.mark.parametrize("mode", ["FP32", "INT8", "FP8"])
def test_tensorrt_builds_it(net, rtx, tmp_path, mode):
    _, model = net
    collapsed = CollapseFakeQuant(Recipe.of(mode)).run(model).model
    if mode == "INT8":
        assert len(dequantized(collapsed)) == 4
    assert rtx.parse(collapsed) == ()
    profile = {"image": InputProfile((1, 16, 16, 3), (2, 16, 16, 3), (4, 16, 16, 3))}
    engine = rtx.build(collapsed, (profile,), BuildOptions(targets=("SM89",)), tmp_path / "engine")
    assert isinstance(engine, BuiltEngine)
