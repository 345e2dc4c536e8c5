"""QAT models: the export computes what TensorFlow computes, and weights keep their int8 levels and scales."""

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto

from passes.pipeline import default_pipeline
from passes.precision.fake_quant import CollapseFakeQuant, fake_quant_ranges
from passes.precision.quantization.fake_quant_chains import find_chains
from passes.precision.recipe import Recipe
from passes.steps.quantized_constants import Constants
from rewriter.backends.base import BuildOptions, BuiltEngine, InputProfile
from rewriter.errors import ExportError
from rewriter.frontend import load_source
from rewriter.runtime.native import NativeSession
from tests.rewriter.frontend.qat_models import QatSettings, conv_net

pytestmark = pytest.mark.tensorflow


def cleaned(tf, body, x, **options):
    """(TensorFlow's results, the cleaned model, its results, notes) of a function of one tensor; dicts stay dicts."""
    spec = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
    function = tf.function(body, input_signature=[spec])
    source = load_source(function, samples=[x], **options)
    model, _ = default_pipeline().run(source.model)
    [name] = [value.name for value in model.proto.graph.input]
    found = NativeSession(model).run({name: x})
    expected = function(x)
    if isinstance(expected, dict):
        expected = {name: value.numpy() for name, value in expected.items()}
        return expected, model, {s.name: found[s.tensor] for s in source.signature.outputs}, source.notes
    [result] = found.values()
    return expected.numpy(), model, result, source.notes


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


RANGES = ((0.0, 6.0), (-1.0, 1.0), (-1.3, 2.7), (-0.5, 2.0))
TIES = np.concatenate([values(low, high, (2, 900, 3)) for low, high in RANGES])


def test_fake_quant_of_activations_is_bit_equal_at_the_ties(tf):
    def body(x):
        found, quantization = {}, tf.quantization
        for i, (low, high) in enumerate(RANGES):
            for narrow in (False, True):
                key = f"{i}_{'narrow' if narrow else 'wide'}"
                options = {"narrow_range": narrow}
                channels = [low, low / 2, low / 4], [high, high / 2, high / 4]
                found[f"args_{key}"] = quantization.fake_quant_with_min_max_args(x, low, high, **options)
                found[f"vars_{key}"] = quantization.fake_quant_with_min_max_vars(x, low, high, **options)
                found[f"channels_{key}"] = quantization.fake_quant_with_min_max_vars_per_channel(
                    x, *channels, **options
                )
        return found

    expected, model, found, notes = cleaned(tf, body, TIES)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    assert notes == ()
    chains = {chain.output: chain for chain in find_chains(model)[0]}
    assert chains.keys() == expected.keys()
    for key, chain in chains.items():
        assert chain.levels == (255 if key.endswith("narrow") else 256)
        assert chain.step.size == (3 if key.startswith("channels") else 1)


@pytest.mark.parametrize("given", [True, False])
def test_quantize_and_dequantize_is_bit_equal(tf, given):
    bounds = np.array([0.2, 0.9, 2], np.float32)

    def body(x):
        found = {}
        for i, (low, high) in enumerate(RANGES):
            for signed in (False, True):
                options = {"input": x, "input_min": low, "input_max": high, "signed_input": signed}
                options |= {"range_given": given, "narrow_range": bool(i % 2)}
                mode = {"round_mode": "HALF_UP" if i > 1 else "HALF_TO_EVEN"}
                key = f"{i}_{'signed' if signed else 'unsigned'}"
                found[f"v2_{key}"] = tf.raw_ops.QuantizeAndDequantizeV2(**options, **mode)
                found[f"v3_{key}"] = tf.raw_ops.QuantizeAndDequantizeV3(**options, num_bits=8)
                found[f"v4_{key}"] = tf.raw_ops.QuantizeAndDequantizeV4(**options, **mode)
        found["axis"] = tf.raw_ops.QuantizeAndDequantizeV3(
            input=x, input_min=-bounds, input_max=2 * bounds, num_bits=8, range_given=given, axis=2
        )
        return found

    expected, model, found, notes = cleaned(tf, body, TIES)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    # Equal nodes are merged: at the least there is one a range, signed and not, and the one along an axis.
    assert (len(find_chains(model)[0]) >= 2 * len(RANGES) + 1) == given
    assert given or find_chains(model) == [[]]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(model))
    assert bool(notes) != given
    assert all("from the data of each run" in note for note in notes)


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
        cleaned(tf, body, values(-1, 1, (2, 8)), islands=False)


def weights(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LAYERS = {
    "conv": ((3, 3, 4, 6), lambda tf, x, w: tf.nn.conv2d(x, w, 1, "SAME")),
    "depthwise": ((3, 3, 4, 2), lambda tf, x, w: tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "SAME")),
    "transposed": (
        (3, 3, 6, 4),
        lambda tf, x, w: tf.nn.conv2d_transpose(x, w, tf.stack([tf.shape(x)[0], 16, 16, 6]), 2),
    ),
    "dense": ((4, 6), lambda tf, x, w: tf.matmul(tf.reduce_mean(x, [1, 2]), w)),
    "dense_transposed": ((6, 4), lambda tf, x, w: tf.matmul(tf.reduce_mean(x, [1, 2]), w, transpose_b=True)),
    "tensordot": ((4, 6), lambda tf, x, w: tf.tensordot(x, w, 1)),
}


@pytest.mark.parametrize("kind", ["vars", "per channel", "round trip", "round trip of the data"])
def test_weights_keep_their_levels_and_scales(tf, kind):
    variables = {name: tf.Variable(weights(shape, seed)) for seed, (name, (shape, _)) in enumerate(LAYERS.items())}

    def quantised(variable, array):
        if kind == "per channel":
            high = np.abs(array).max(tuple(range(array.ndim - 1)))
            return tf.quantization.fake_quant_with_min_max_vars_per_channel(variable, -high, high, narrow_range=True)
        high = float(np.abs(array).max())
        if kind == "vars":
            return tf.quantization.fake_quant_with_min_max_vars(variable, -high, high, narrow_range=True)
        given = kind == "round trip"
        return tf.quantization.quantize_and_dequantize_v2(variable, -high, high, range_given=given, narrow_range=True)

    arrays = {name: variable.numpy() for name, variable in variables.items()}

    def body(x):
        return {name: apply(tf, x, quantised(variables[name], arrays[name])) for name, (_, apply) in LAYERS.items()}

    expected, model, found, notes = cleaned(tf, body, weights((2, 8, 8, 4), seed=9))
    assert notes == ()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    constants = dequantized(model)
    assert len(constants) == len(LAYERS)
    values = []
    for levels, scale, axis in constants.values():
        assert scale.shape == ((levels.shape[axis],) if kind == "per channel" and scale.ndim else ())
        spread = scale.reshape([-1, *[1] * (levels.ndim - axis - 1)]) if scale.ndim else scale
        values.append(np.sort((levels * spread).ravel()))
    for name, variable in variables.items():
        wanted = np.sort(quantised(variable, arrays[name]).numpy().ravel())
        assert any(np.array_equal(value, wanted) for value in values), name
    outputs = {node.output[0] for node in model.proto.graph.node if node.name in constants}
    readers = [node.op_type for node in model.proto.graph.node if outputs & set(node.input)]
    assert set(readers) <= {"Conv", "ConvTranspose", "MatMul", "Gemm"}
    assert len(readers) == len(LAYERS)


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
