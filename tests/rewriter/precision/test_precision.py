"""Precision through the verbs: real TensorRT-RTX builds, the rules of calibration, and what the report says."""

import json
import re

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import QUANTIZED_OPS, Recipe
from rewriter import AccuracyTarget, Converter, PrecisionOptions, load
from rewriter.errors import ArtifactError, ConversionError, ConverterStateError, InputError, InvalidParameterError
from rewriter.params import ConversionParams
from rewriter.precision.given import check_calibration

pytestmark = pytest.mark.rtx
#: Largest relative difference from float32 that each mode may make on the network below.
TOLERANCES = {"FP32": 1e-6, "TF32": 1e-6, "FP16": 5e-3, "BF16": 3e-2, "INT8": 8e-2, "FP8": 1.2e-1}


def network(batch="batch"):
    """Conv-Relu, Conv plus residual, Relu, pooling, Gemm, Softmax: [batch, 3, 8, 8] -> [batch, 5]."""
    rng = np.random.default_rng(3)

    def weight(name, *shape):
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
        return numpy_helper.from_array((rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32), name)

    nodes = [
        h.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        h.make_node("Relu", ["c1"], ["r1"], "relu1"),
        h.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        h.make_node("Add", ["c2", "r1"], ["a"], "residual"),
        h.make_node("Relu", ["a"], ["r2"], "relu2"),
        h.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        h.make_node("Flatten", ["p"], ["f"], "flatten"),
        h.make_node("Gemm", ["f", "w3", "b3"], ["g"], "head", transB=1),
        h.make_node("Softmax", ["g"], ["y"], "softmax"),
    ]
    weights = [weight("w1", 16, 3, 3, 3), weight("b1", 16), weight("w2", 16, 16, 3, 3), weight("b2", 16)]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, [batch, 3, 8, 8])],
        [h.make_tensor_value_info("y", T.FLOAT, [batch, 5])],
        [*weights, weight("w3", 5, 16), weight("b3", 5)],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)


def samples(*batches, seed=1):
    rng = np.random.default_rng(seed)
    return lambda: ({"x": rng.standard_normal((b, 3, 8, 8)).astype(np.float32)} for b in batches)


def converted(rtx, mode, folder, **options):
    """The network in a mode, converted, built and saved; (report, native function, emulated function)."""
    quantizes = mode in ("INT8", "FP8")
    with Converter(model=network(), backend=rtx, progress=False, precision_mode=mode, **options) as converter:
        converter.convert(samples(8, 8) if quantizes and "calibration" not in options else None)
        converter.build(samples(1, 8))
        converter.save(folder)
        report = converter.report
    return report, load(folder), load(folder, execution="emulate")


def quantised_tensors(rtx):
    """What INT8 quantises of the network: TensorRT-RTX 1.4 has no INT8 convolution."""
    return ("f",) if rtx.version.startswith("1.4.") else ("x", "r1", "f")


def check_built(rtx, report, mode):
    """TensorRT-RTX 1.4 has no INT8 convolution, and builds nothing quantised without a GPU; both have to be told."""
    (engine,) = report.engines
    if mode in ("INT8", "FP8", "INT4") and rtx.version.startswith("1.4."):
        assert report.precision.kept if engine.built else "builds it only on a machine with a GPU" in engine.reason
    else:
        assert engine.built, engine.reason
        assert not report.precision.kept


@pytest.mark.parametrize("mode", list(TOLERANCES))
def test_every_mode_is_built_and_emulated(rtx, mode, tmp_path):
    report, native, emulated = converted(rtx, mode, tmp_path / "out")
    (engine,) = report.engines
    check_built(rtx, report, mode)
    assert engine.precision == report.precision.label == {"INT8": "INT8+FP16", "FP8": "FP8+FP16"}.get(mode, mode)
    if report.precision.kept:
        return
    (x,) = (sample["x"] for sample in samples(8, seed=9)())
    expected, actual = native(x)["y"], emulated(x)["y"]
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    assert difference <= TOLERANCES[mode]
    # Lower precision that changes nothing was not applied; without any, only the order of additions may differ.
    assert (difference > 1e-6) == (TOLERANCES[mode] > 1e-6)


def test_lower_precision_makes_smaller_engines(rtx, tmp_path):
    sizes = {mode: converted(rtx, mode, tmp_path / mode)[0].engines[0].size for mode in ("FP32", "FP16")}
    assert sizes["FP16"] < sizes["FP32"]


def test_the_artifact_says_what_it_was_lowered_with(rtx, tmp_path):
    converted(rtx, "INT8", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["params"]["precision_mode"] == "INT8"
    assert manifest["params"]["recipe"]["float_type"] == "FP16"
    assert {engine["precision"] for engine in manifest["engines"]} <= {"INT8+FP16"}
    table = RangeTable.from_json((tmp_path / "out" / "calibration.json").read_text())
    assert set(table.ranges) == set(quantised_tensors(rtx))
    assert (table.method, table.samples) == ("percentile 99.999", 2)


def test_ranges_are_used_again_without_data(rtx, tmp_path):
    first, _, emulated = converted(rtx, "INT8", tmp_path / "one")
    again, _, once_more = converted(rtx, "INT8", tmp_path / "two", calibration=tmp_path / "one")
    assert again.precision.calibration == first.precision.calibration
    (x,) = (sample["x"] for sample in samples(4)())
    np.testing.assert_array_equal(emulated(x)["y"], once_more(x)["y"])


def test_kept_nodes_keep_their_precision(rtx, tmp_path):
    options = PrecisionOptions(keep_nodes=["^conv"], keep_ops=["Gemm"])
    report, native, emulated = converted(rtx, "INT8", tmp_path / "out", precision=options)
    assert not report.precision.calibration  # nothing is left to quantise, so nothing was calibrated
    assert not any(rule.startswith("quantize") for rule in report.engines[0].lowering)
    (x,) = (sample["x"] for sample in samples(4)())
    assert np.abs(native(x)["y"] - emulated(x)["y"]).max() < TOLERANCES["FP16"]


@pytest.mark.parametrize("dynamic", [True, False])
def test_calibration_runs_in_build_for_dynamic_shapes_and_in_convert_otherwise(rtx, dynamic):
    calls = []

    def input_fn():
        calls.append(1)
        yield from samples(2)()

    params = ConversionParams(precision_mode="INT8", is_dynamic_op=dynamic, max_batch_size=4)
    with Converter(model=network(), backend=rtx, progress=False, conversion_params=params) as converter:
        converter.convert(input_fn)
        assert len(calls) == (0 if dynamic else 1)
        converter.build(samples(2))
        assert len(calls) == 1
        converter.build(samples(4))
        assert len(calls) == 1  # ranges do not depend on shapes


def test_without_dynamic_shapes_calibration_runs_in_convert(rtx):
    calls = []

    def input_fn():
        calls.append(1)
        yield from samples(2)()

    with Converter(
        model=network(), backend=rtx, progress=False, precision_mode="INT8", use_dynamic_shape=False
    ) as converter:
        converter.convert(input_fn)
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "input_fn", "message"),
    [
        (
            {"precision_mode": "INT8"},
            None,
            "needs calibration_input_fn (--calibration-inputs): TENSORS no range yet",
        ),
        (
            {"precision_mode": "FP16"},
            samples(1),
            "leave calibration_input_fn (--calibration-inputs) out: precision_mode='FP16' needs no",
        ),
        ({"precision_mode": "INT8", "use_calibration": False}, samples(1), "use_calibration is False"),
        ({"precision_mode": "INT8", "use_calibration": False}, None, "TENSORS no range in the model"),
        ({"precision_mode": "INT8", "calibration": RangeTable()}, samples(1), "the ranges are given as calibration="),
        (
            {"precision_mode": "INT8", "calibration": RangeTable({"x": TensorRange(-1, 1)})},
            None,
            "made for another model: TENSORS no range in it",
        ),
        ({"precision_mode": "INT8"}, "samples", "must be a function that yields inputs, not str"),
    ],
)
def test_calibration_inputs_are_wanted_exactly_when_needed(rtx, options, input_fn, message):
    converter = Converter(model=network(), backend=rtx, progress=False, **options)
    names = [name for name in quantised_tensors(rtx) if name not in getattr(options.get("calibration"), "ranges", ())]
    listed = ", ".join(map(repr, names))
    tensors = f"the tensors {listed} have" if len(names) > 1 else f"the tensor {listed} has"
    with converter, pytest.raises(InvalidParameterError, match=re.escape(message.replace("TENSORS", tensors))):
        converter.convert(input_fn)


def test_calibration_inputs_that_do_not_fit_are_told(rtx):
    with Converter(model=network(), backend=rtx, progress=False, precision_mode="INT8") as converter:
        converter.convert(lambda: [np.zeros((1, 4), np.float32)])
        with pytest.raises(InputError, match="sample 0"):
            converter.build(samples(1))


def test_no_calibration_inputs_at_all_are_told(rtx):
    with Converter(model=network(), backend=rtx, progress=False, precision_mode="INT8") as converter:
        converter.convert(list)
        with pytest.raises(InputError, match="calibration"):
            converter.build(samples(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": PrecisionOptions(float_type="FP16")}, "goes with precision_mode INT8 or FP8; for FP32"),
        ({"precision": PrecisionOptions(calibration_method="best")}, "calibration_method must be one of percentile"),
        ({"precision": PrecisionOptions(percentile=50)}, "percentile must be above 50"),
        ({"precision": PrecisionOptions(int4_block=17)}, "int4_block must be 0 or one of 16, 32"),
        ({"precision": PrecisionOptions(asymmetric="ignore")}, "asymmetric must be one of symmetrise, refuse"),
        (
            {"precision": PrecisionOptions(float_type="half")},
            "float_type must be one of FP32, FP16, BF16, in either case",
        ),
        ({"precision": PrecisionOptions(float_type=16)}, "float_type must be one of FP32"),
        ({"precision": PrecisionOptions(percentile=True)}, "percentile must be above 50"),
        ({"precision": PrecisionOptions(int4_block=16.0)}, "int4_block must be 0 or one of 16, 32"),
        ({"precision": PrecisionOptions(int4_block=False)}, "int4_block must be 0 or one of 16, 32"),
        ({"precision": PrecisionOptions(keep_ops="Conv")}, "keep_ops must be a list"),
        ({"precision": PrecisionOptions(keep_nodes=["("])}, "not a regular expression"),
        ({"precision": PrecisionOptions(quantize_ops=["Relu"])}, "quantize_ops must be one of Conv"),
        ({"precision": {"float_type": "FP16"}}, "precision must be a PrecisionOptions, not dict"),
        ({"calibration": 3}, "calibration must be a RangeTable, or the path"),
    ],
)
def test_bad_options_are_told_at_once(rtx, options, message):
    with pytest.raises(InvalidParameterError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Converter(model=network(), backend=rtx, progress=False, **options)


NOT_QUANTISED = "goes with precision_mode INT8 or FP8; for FP16 leave it out"


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (
            "FP16",
            {"calibration_method": "minmax"},
            f"calibration_method='minmax' (--calibration-method) {NOT_QUANTISED}",
        ),
        ("FP16", {"percentile": 99.0}, f"percentile=99.0 (--percentile) {NOT_QUANTISED}"),
        ("FP16", {"quantize_ops": ["Conv"]}, f"quantize_ops=['Conv'] {NOT_QUANTISED}"),
        ("FP16", {"asymmetric": "refuse"}, f"asymmetric='refuse' (--asymmetric) {NOT_QUANTISED}"),
        (
            "INT8",
            {"calibration_method": "minmax", "percentile": 99.0},
            "percentile=99.0 (--percentile) goes with calibr",
        ),
        ("FP32", {"keep_ops": ["Conv"]}, "keep_ops=['Conv'] (--keep-ops) means nothing for FP32, which lowers no node"),
        ("TF32", {"keep_nodes": ["conv"]}, "keep_nodes=['conv'] (--keep-nodes) means nothing for TF32"),
    ],
)
def test_options_that_mean_nothing_are_refused(mode, options, message):
    with pytest.raises(InvalidParameterError) as caught:
        PrecisionOptions(**options).recipe(mode)
    assert message in str(caught.value)


def test_options_that_mean_something_are_taken():
    assert PrecisionOptions(float_type="bf16").recipe("INT8").float_type == "BF16"
    assert PrecisionOptions(keep_ops=["Conv"], int4_block=32).recipe("FP32").keep_ops == ("Conv",)
    assert PrecisionOptions(quantize_ops=list(QUANTIZED_OPS), keep_ops=[]).recipe("FP32") == Recipe.of("FP32")
    assert PrecisionOptions(percentile=99).recipe("FP8").quantizes


def test_ranges_of_an_artifact_are_checked(rtx, tmp_path):
    folder = tmp_path / "out"
    converted(rtx, "INT8", folder)
    path = folder / "calibration.json"
    table = check_calibration(folder)
    path.write_text(path.read_text().replace('"samples": 2', '"samples": 3'))
    with pytest.raises(ArtifactError, match=r"calibration\.json is not the file that was saved"):
        check_calibration(str(folder))
    assert [read.ranges for read in table.tables.values()] == [check_calibration(path).ranges]
    with pytest.raises(ArtifactError, match="is no artifact"):
        check_calibration(tmp_path)
    converted(rtx, "FP16", tmp_path / "half")
    with pytest.raises(ArtifactError, match=r"holds no calibration\.json"):
        check_calibration(tmp_path / "half")


def test_a_calibration_file_that_is_none_is_told(rtx, tmp_path):
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises((ArtifactError, InvalidParameterError), match=r"calibration\.json"):
        Converter(model=network(), backend=rtx, progress=False, precision_mode="INT8", calibration=tmp_path)


def test_progress_tells_of_every_calibration_input(rtx):
    events = []
    with Converter(model=network(), backend=rtx, progress=events.append, precision_mode="INT8") as converter:
        converter.convert(samples(1, 1, 1))
        converter.build(samples(1))
    told = [event.done for event in events if event.stage == "calibration" and event.seconds is None]
    assert told == [0, 1, 2, 3]


def test_int4_weights(rtx, tmp_path):
    options = PrecisionOptions(int4_block=16)
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((64, 32)).astype(np.float32), "w")
    graph = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["m"], "matmul"), h.make_node("Relu", ["m"], ["y"], "relu")],
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, ["batch", 64])],
        [h.make_tensor_value_info("y", T.FLOAT, ["batch", 32])],
        [weight],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)
    with Converter(
        model=model, backend=rtx, progress=False, precision_mode="FP16", precision=options, minimum_segment_size=1
    ) as converter:
        converter.convert()
        converter.build(lambda: [np.zeros((2, 64), np.float32)])
        (engine,) = converter.report.engines
        check_built(rtx, converter.report, "INT4")
        assert engine.precision == "FP16+INT4"
        converter.save(tmp_path / "out")
    x = rng.standard_normal((2, 64)).astype(np.float32)
    exact, coarse = load(tmp_path / "out")(x)["y"], load(tmp_path / "out", execution="emulate")(x)["y"]
    assert 1e-3 < np.abs(exact - coarse).max() / np.abs(exact).max() < 0.15


def test_fp8_is_built_only_for_what_has_it(rtx, tmp_path):
    report, _, _ = converted(rtx, "FP8", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["params"]["targets"]) == {target for target in rtx.default_targets if int(target[2:]) >= 89}
    for engine in manifest["engines"]:
        assert engine["targets"] == manifest["params"]["targets"]
    assert any("no engine for SM80, SM86" in note for note in report.precision.notes)


def test_fp8_for_gpus_without_it_is_told():
    with pytest.raises(InvalidParameterError, match="FP8' needs targets of SM89 or newer, not SM80"):
        Converter(model=network(), backend="tensorrt_rtx", targets=["sm80"], progress=False, precision_mode="FP8")


def test_the_accuracy_guard_keeps_what_breaks_the_target(rtx, tmp_path):
    """A product beyond FP16's range, in the middle of a network that is fine: that one, and only that, is kept."""
    graph = h.make_graph(
        [
            h.make_node("Mul", ["x", "three"], ["a"], "before"),
            h.make_node("Mul", ["a", "large"], ["b"], "overflow"),
            h.make_node("Mul", ["b", "small"], ["c"], "back"),
            h.make_node("Add", ["c", "x"], ["y"], "after"),
        ],
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, ["batch", 4])],
        [h.make_tensor_value_info("y", T.FLOAT, ["batch", 4])],
        [h.make_tensor(name, T.FLOAT, [], [value]) for name, value in (("three", 3), ("large", 6e4), ("small", 1e-3))],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)
    data = [np.float32([[1, 2, 3, 4]]), np.float32([[-4, 0.5, 8, 1]])]
    with Converter(
        model=model,
        backend=rtx,
        progress=False,
        precision_mode="FP16",
        accuracy=AccuracyTarget(data, max_rel_diff=2e-3),
    ) as converter:
        converter.convert()
        converter.build(lambda: data)
        report = converter.report
        converter.save(tmp_path / "out")
    assert "overflow" in report.precision.kept
    assert "before" not in report.precision.kept
    assert report.engines[0].built
    assert report.precision.accuracy["runs"] > 1
    native, emulated = load(tmp_path / "out"), load(tmp_path / "out", execution="emulate")
    for x in data:
        np.testing.assert_allclose(emulated(x)["y"], native(x)["y"], rtol=2e-3)


def test_an_accuracy_target_of_another_kind_is_told(rtx):
    with pytest.raises(InvalidParameterError, match="accuracy must be an AccuracyTarget, not float"):
        Converter(model=network(), backend=rtx, accuracy=0.1)


def test_what_means_nothing_to_fp32_is_told(rtx):
    with pytest.raises(InvalidParameterError, match="leave accuracy out: precision_mode='FP32' lowers nothing"):
        Converter(model=network(), backend=rtx, accuracy=AccuracyTarget([np.zeros((1, 3, 8, 8))], max_rel_diff=1))
    with pytest.raises(
        InvalidParameterError, match=r"leave calibration \(--calibration\) out: precision_mode='FP32' needs no ranges"
    ):
        Converter(model=network(), backend=rtx, calibration=RangeTable())


def test_the_converter_gives_functions_of_either_arithmetic(rtx):
    (x,) = (sample["x"] for sample in samples(2)())
    with Converter(model=network(), backend=rtx, progress=False, precision_mode="FP16") as converter:
        native = converter.convert()
        emulated = converter.function("emulate")
        np.testing.assert_array_equal(converter.function()(x)["y"], native(x)["y"])
    difference = np.abs(emulated(x)["y"] - native(x)["y"]).max()
    assert 1e-6 < difference < TOLERANCES["FP16"]


def test_what_int8_computes_is_known_once_it_is_calibrated(rtx, tmp_path):
    with Converter(model=network(), backend=rtx, progress=False, precision_mode="INT8") as converter:
        converter.convert(samples(4))
        with pytest.raises(ConverterStateError, match="call it first"):
            converter.function("emulate")
        with pytest.raises(ConverterStateError, match="save needs the ranges of INT8"):
            converter.save(tmp_path / "early")
        converter.calibrate()
        converter.save(tmp_path / "calibrated", save_gpu_specific_engines=False)
    (x,) = (sample["x"] for sample in samples(2)())
    native, emulated = load(tmp_path / "calibrated"), load(tmp_path / "calibrated", execution="emulate")
    assert np.abs(emulated(x)["y"] - native(x)["y"]).max() > 1e-6
    manifest = tmp_path / "calibrated" / "manifest.json"
    data = json.loads(manifest.read_text())
    del data["files"]["calibration.json"]
    manifest.write_text(json.dumps(data))
    (tmp_path / "calibrated" / "calibration.json").unlink()
    with pytest.raises(ConversionError, match="no range of"):
        load(tmp_path / "calibrated", execution="emulate")


def test_the_report_says_what_nodes_compute_in(rtx, tmp_path):
    options = PrecisionOptions(keep_nodes=["conv2"], keep_ops=["Softmax"])
    report = converted(rtx, "INT8", tmp_path / "out", precision=options)[0]
    (engine,) = report.engines
    if not rtx.version.startswith("1.4."):
        assert engine.arithmetic == {"INT8": 2, "FP16": 5, "FP32": 2}
    assert ("keep-user", "softmax", "named in the precision recipe") in engine.decisions
    assert report.from_dict(json.loads(report.to_json())).engines == report.engines
