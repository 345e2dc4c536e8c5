"""TF-TRT's documented behaviours, one by one: what it promised, and that it holds here, or what is promised instead."""

import inspect
import json
import os
import re

import numpy as np
import pytest

import rewriter as trt
from rewriter.errors import ConverterStateError, InputError, InvalidParameterError

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
converts = [pytest.mark.tensorflow, pytest.mark.rtx]


def defaults_of(function):
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel of seven nodes, all of which TensorRT takes, with two signatures."""
    import tensorflow as tf

    class Network(tf.Module):
        def __init__(self):
            rng = np.random.default_rng(1)
            self.first = tf.Variable(rng.standard_normal((8, 16), np.float32))
            self.second = tf.Variable(rng.standard_normal((16, 4), np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")])
        def scores(self, x):
            return {"scores": tf.nn.softmax(tf.tanh(tf.nn.relu(x @ self.first) @ self.second))}

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")])
        def embed(self, x):
            return {"embedding": tf.tanh(tf.nn.relu(x @ self.first) + 1.0)}

    network = Network()
    folder = str(tmp_path_factory.mktemp("network") / "saved")
    tf.saved_model.save(network, folder, signatures={"serving_default": network.scores, "embed": network.embed})
    return folder


@pytest.fixture
def make(rtx, saved, monkeypatch):
    """Makes converters of that model and closes them; no variable of TF-TRT is set."""
    for name in [name for name in os.environ if name.startswith("TF_TRT_")]:
        monkeypatch.delenv(name)
    made = []

    def converter(**arguments):
        made.append(trt.TrtGraphConverterV2(saved, backend=rtx, progress=False, **arguments))
        return made[-1]

    yield converter
    for one in made:
        one.close()


def batches(*sizes):
    return lambda: iter([X[:size] for size in sizes])


class TestArguments:
    def test_names_and_defaults_of_the_converter(self):
        """`TrtGraphConverterV2` has twelve arguments in this order; all of them have defaults."""
        assert list(defaults_of(trt.TrtGraphConverterV2.__init__).items())[:12] == [
            ("input_saved_model_dir", None),
            ("input_saved_model_tags", None),
            ("input_saved_model_signature_key", None),
            ("use_dynamic_shape", None),
            ("dynamic_shape_profile_strategy", None),
            ("max_workspace_size_bytes", trt.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES),
            ("precision_mode", "FP32"),
            ("minimum_segment_size", 3),
            ("maximum_cached_engines", 1),
            ("use_calibration", True),
            ("allow_build_at_runtime", True),
            ("conversion_params", None),
        ]

    def test_names_and_defaults_of_the_methods(self):
        """convert(calibration_input_fn), build(input_fn), save(dir, save_gpu_specific_engines, options), summary()."""
        converter = trt.TrtGraphConverterV2
        assert defaults_of(converter.convert) == {"calibration_input_fn": None}
        assert list(defaults_of(converter.build)) == ["input_fn"]
        assert list(defaults_of(converter.save).items())[1:] == [
            ("save_gpu_specific_engines", True),
            ("options", None),
        ]
        assert defaults_of(converter.summary) == {"line_length": 160, "detailed": True, "print_fn": None}

    def test_names_and_defaults_for_tensorflow_1(self):
        """`TrtGraphConverter` and `create_inference_graph` have TF-TRT's arguments, in its order, with its defaults."""
        workspace = trt.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES
        assert list(defaults_of(trt.TrtGraphConverter.__init__).items()) == [
            ("input_saved_model_dir", None),
            ("input_saved_model_tags", None),
            ("input_saved_model_signature_key", None),
            ("input_graph_def", None),
            ("nodes_denylist", None),
            ("max_batch_size", 1),
            ("max_workspace_size_bytes", workspace),
            ("precision_mode", "FP32"),
            ("minimum_segment_size", 3),
            ("is_dynamic_op", False),
            ("maximum_cached_engines", 1),
            ("use_calibration", True),
        ]
        empty = inspect.Parameter.empty
        assert list(defaults_of(trt.create_inference_graph).items()) == [
            ("input_graph_def", empty),
            ("outputs", empty),
            ("max_batch_size", 1),
            ("max_workspace_size_bytes", workspace),
            ("precision_mode", "FP32"),
            ("minimum_segment_size", 3),
            ("is_dynamic_op", False),
            ("maximum_cached_engines", 1),
            ("input_saved_model_dir", None),
            ("input_saved_model_tags", None),
            ("input_saved_model_signature_key", None),
            ("output_saved_model_dir", None),
        ]
        assert list(defaults_of(trt.TrtGraphConverter.calibrate).items())[2:] == [
            ("feed_dict_fn", None),
            ("input_map_fn", None),
        ]

    def test_the_nine_fields_of_conversion_params(self):
        """`ConversionParams` is a named tuple of nine fields (TF 2.4), immutable, changed with `_replace`."""
        assert trt.ConversionParams()._asdict() == {
            "rewriter_config_template": None,
            "max_workspace_size_bytes": trt.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
            "precision_mode": "FP32",
            "minimum_segment_size": 3,
            "is_dynamic_op": True,
            "maximum_cached_engines": 1,
            "use_calibration": True,
            "max_batch_size": 1,
            "allow_build_at_runtime": True,
        }
        assert trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(max_batch_size=4).max_batch_size == 4
        with pytest.raises(AttributeError):
            trt.ConversionParams().max_batch_size = 2
        assert trt.TrtConversionParams is trt.ConversionParams

    def test_precision_modes_in_either_case(self):
        """FP32, FP16 and INT8 in upper or in lower case; TrtPrecisionMode names them; others are a ValueError."""
        modes = trt.TrtPrecisionMode.supported_precision_modes()
        assert {"FP32", "FP16", "INT8", "fp32", "fp16", "int8"} <= set(modes)
        assert (trt.TrtPrecisionMode.FP16, trt.TrtPrecisionMode.INT8) == ("FP16", "INT8")

    def test_profile_strategies(self):
        """Four profile strategies, listed by supported_profile_strategies()."""
        assert trt.supported_profile_strategies() == [
            "Range",
            "Optimal",
            "Range+Optimal",
            "ImplicitBatchModeCompatible",
        ]
        assert (trt.PROFILE_STRATEGY_RANGE, trt.PROFILE_STRATEGY_OPTIMAL) == ("Range", "Optimal")
        assert trt.PROFILE_STRATEGY_RANGE_OPTIMAL == "Range+Optimal"
        assert trt.PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE == "ImplicitBatchModeCompatible"


class TestValues:
    pytestmark = converts

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"precision_mode": "FP64"}, "precision_mode must be one of"),
            ({"minimum_segment_size": 0}, "positive integer, or -1"),
            ({"minimum_segment_size": -2}, "positive integer, or -1"),
            ({"use_dynamic_shape": True, "dynamic_shape_profile_strategy": "Widest"}, "must be one of Range, Optimal"),
        ],
    )
    def test_wrong_values_are_value_errors(self, make, arguments, message):
        """Unknown precision modes and strategies, and sizes that are neither positive nor -1, are ValueErrors."""
        with pytest.raises(ValueError, match=message):
            make(**arguments)

    def test_strategies_in_any_case(self, make):
        """Strategies may be written in any case."""
        make(use_dynamic_shape=True, dynamic_shape_profile_strategy="range+optimal")

    def test_conversion_params_in_the_place_of_arguments(self, make):
        """`conversion_params` replaces the single arguments. Where TF-TRT dropped one that was given beside it, that is
        an error here."""
        assert make(conversion_params=trt.ConversionParams(precision_mode="fp16")).params.precision_mode == "FP16"
        with pytest.raises(ValueError, match="set precision_mode in conversion_params"):
            make(conversion_params=trt.ConversionParams(), precision_mode="FP16")

    def test_source_is_required(self, rtx):
        """A converter needs a source."""
        with pytest.raises(ValueError, match="exactly one of input_saved_model_dir and model"):
            trt.TrtGraphConverterV2(backend=rtx)


class TestOrder:
    pytestmark = converts

    def test_nothing_before_convert(self, make, tmp_path):
        """build(), save() and summary() before convert() are errors: RuntimeErrors, some of TF-TRT's were asserts."""
        converter = make()
        for call in (lambda: converter.build(batches(1)), lambda: converter.save(tmp_path / "out"), converter.summary):
            with pytest.raises(RuntimeError, match="call convert"):
                call()

    def test_convert_once(self, make):
        """convert() runs once for a converter."""
        converter = make()
        converter.convert()
        with pytest.raises(RuntimeError, match="make a new Converter"):
            converter.convert()

    def test_convert_needs_no_gpu(self, make):
        """Lifted: TF-TRT's convert() refused to run where no GPU was visible."""
        assert make().convert()(x=X)["scores"].shape == (4, 4)

    def test_convert_returns_a_function_of_the_signature(self, make, saved):
        """convert() returns a function that takes the signature's names and returns its outputs by name."""
        import tensorflow as tf

        function = make().convert()
        expected = tf.saved_model.load(saved).signatures["serving_default"](x=tf.constant(X))
        assert list(function(x=X)) == ["scores"]
        np.testing.assert_allclose(function(x=X)["scores"], expected["scores"], atol=1e-6)

    def test_build_needs_inputs(self, make):
        """build() without input_fn is an error, unless all shapes are fixed, so that it knows them (lifted)."""
        converter = make()
        converter.convert()
        with pytest.raises((RuntimeError, ValueError), match="input_fn"):
            converter.build()

    def test_build_again_widens(self, make):
        """Lifted: TF-TRT refused a second build(); here it adds shapes to those seen before."""
        converter = make()
        converter.convert()
        converter.build(batches(1))
        converter.build(batches(4))
        (ranges,) = converter.report.engines[0].profiles[0].values()
        assert (ranges["min"][0], ranges["max"][0]) == (1, 4)

    def test_input_fn_yields_arrays_tuples_or_dicts(self, make):
        """input_fn yields one array, a list or tuple of arrays, or a dict by input name."""
        converter = make()
        converter.convert()
        converter.build(lambda: iter([X[:1], [X[:2]], (X[:3],), {"x": X}]))
        assert all(engine.built for engine in converter.report.engines)
        with pytest.raises(InputError, match="'x'"):
            converter.build(lambda: [{"x": object()}])

    def test_save_without_build(self, make, tmp_path):
        """save() works without build(): engines are then built at run time, if at all."""
        converter = make()
        converter.convert()
        converter.save(tmp_path / "out")
        with trt.load(tmp_path / "out") as function:
            assert len(function.engines) == 0
            assert function(x=X)["scores"].shape == (4, 4)


class TestCalibration:
    pytestmark = converts

    def test_int8_needs_inputs(self, make):
        """INT8 with use_calibration needs calibration_input_fn in convert()."""
        with pytest.raises(ValueError, match="needs calibration_input_fn"):
            make(precision_mode="INT8").convert()

    @pytest.mark.parametrize("arguments", [{}, {"precision_mode": "FP16"}])
    def test_others_refuse_inputs(self, make, arguments):
        """calibration_input_fn is an error where no calibration is needed."""
        with pytest.raises(ValueError, match="leave calibration_input_fn"):
            make(**arguments).convert(calibration_input_fn=batches(1))

    def test_use_calibration_false_wants_ranges_in_the_model(self, make):
        """use_calibration=False expects every range in the model; a missing one is an error that names the tensor."""
        with pytest.raises(ValueError, match="no range in the model"):
            make(precision_mode="INT8", use_calibration=False).convert()

    def test_use_calibration_means_nothing_to_other_modes(self, make):
        """use_calibration is ignored unless the precision mode is INT8 (here also FP8)."""
        make(precision_mode="FP16", use_calibration=False).convert()

    def test_calibration_waits_for_build_with_dynamic_shapes(self, make, tmp_path):
        """With dynamic shapes convert() keeps the calibration function, and build() calls it."""
        calls = []

        def typical():
            calls.append(1)
            yield X

        converter = make(precision_mode="int8", use_dynamic_shape=True)
        converter.convert(calibration_input_fn=typical)
        assert not calls
        converter.build(batches(4))
        assert calls
        assert converter.report.engines[0].precision.startswith("INT8")

    def test_no_saving_before_calibration(self, make, tmp_path):
        """A model that needs calibration cannot be saved before it: a RuntimeError."""
        converter = make(precision_mode="INT8")
        converter.convert(calibration_input_fn=batches(4))
        with pytest.raises(RuntimeError, match="save needs the ranges of INT8"):
            converter.save(tmp_path / "out")
        converter.calibrate()
        converter.save(tmp_path / "out")

    def test_calibration_runs_in_convert_without_dynamic_shapes(self, make):
        """Without dynamic shapes it is convert() that calibrates."""
        calls = []

        def typical():
            calls.append(1)
            yield X

        make(precision_mode="INT8", use_dynamic_shape=False).convert(calibration_input_fn=typical)
        assert calls

    def test_inputs_of_different_shapes(self, make):
        """Lifted: all calibration inputs had to have one shape."""
        converter = make(precision_mode="INT8")
        converter.convert(calibration_input_fn=batches(1, 4, 2))
        converter.build(batches(2))
        assert converter.report.precision.calibration["samples"] == 3

    def test_ranges_outlive_the_engines(self, make, tmp_path):
        """save(save_gpu_specific_engines=False) after calibration: no engines, the ranges stay, other GPUs build."""
        converter = make(precision_mode="INT8")
        converter.convert(calibration_input_fn=batches(4))
        converter.build(batches(4))
        converter.save(tmp_path / "portable", save_gpu_specific_engines=False)
        assert (tmp_path / "portable" / "calibration.json").is_file()
        assert not list((tmp_path / "portable").rglob("*.engine"))
        again = make(precision_mode="INT8", calibration=tmp_path / "portable")
        again.convert()
        again.build(batches(4))
        assert all(engine.built for engine in again.report.engines)


class TestProfiles:
    pytestmark = converts

    @pytest.mark.parametrize(
        ("strategy", "expected"),
        [
            ("Range", [(1, 4)]),
            ("Optimal", [(1, 1), (4, 4)]),
            ("Range+Optimal", [(1, 1), (1, 4), (4, 4)]),
            ("ImplicitBatchModeCompatible", [(1, 4)]),
        ],
    )
    def test_what_each_strategy_makes(self, make, strategy, expected):
        """Range: one profile over all inputs; Optimal: one for each; both; and batches from 1."""
        converter = make(use_dynamic_shape=True, dynamic_shape_profile_strategy=strategy)
        converter.convert()
        converter.build(batches(1, 4))
        profiles = [next(iter(profile.values())) for profile in converter.report.engines[0].profiles]
        assert sorted((ranges["min"][0], ranges["max"][0]) for ranges in profiles) == expected

    def test_use_dynamic_shape_false_is_implicit_batch_mode(self, make):
        """use_dynamic_shape=False: batches from 1 up to what was seen. (TF-TRT's None meant False; here True.)"""
        converter = make(use_dynamic_shape=False)
        converter.convert()
        converter.build(batches(4))
        (ranges,) = converter.report.engines[0].profiles[0].values()
        assert (ranges["min"][0], ranges["max"][0]) == (1, 4)
        with pytest.raises(ValueError, match="needs use_dynamic_shape=True"):
            make(use_dynamic_shape=False, dynamic_shape_profile_strategy="Optimal")

    def test_is_dynamic_op_false_builds_static_engines(self, make):
        """is_dynamic_op=False: engines for batches up to max_batch_size are built in convert()."""
        converter = make(conversion_params=trt.ConversionParams(is_dynamic_op=False, max_batch_size=3))
        converter.convert()
        (ranges,) = converter.report.engines[0].profiles[0].values()
        assert (ranges["min"][0], ranges["max"][0]) == (1, 3)


class TestSegments:
    pytestmark = converts

    def test_smaller_segments_stay_native(self, make):
        """minimum_segment_size is the number of nodes below which a segment stays native, with the reason."""
        converter = make(minimum_segment_size=100)
        converter.convert()
        assert converter.report.engines == ()
        assert {verdict.rule for verdict in converter.report.native} == {"min_segment"}

    def test_minus_one_leaves_the_main_graph_alone(self, make):
        """minimum_segment_size=-1 converts no node of the main graph."""
        converter = make(minimum_segment_size=-1)
        function = converter.convert()
        assert converter.report.engines == ()
        assert {verdict.rule for verdict in converter.report.native} == {"main_graph_native"}
        assert function(x=X)["scores"].shape == (4, 4)

    def test_names_of_engines(self, make):
        """Engines are called TRTEngineOp_ and a number of three digits."""
        converter = make()
        converter.convert()
        assert [engine.name for engine in converter.report.engines] == ["TRTEngineOp_000"]


class TestSummary:
    pytestmark = converts

    def test_columns_rows_and_totals(self, make):
        """summary(): nine columns, one row an engine, the count of each operator with `detailed`, two totals."""
        converter = make()
        converter.convert()
        converter.build(batches(2))
        lines = []
        converter.summary(print_fn=lines.append)
        headers = (
            "TRTEngineOP Name|Device|# Nodes|# Inputs|# Outputs|Input DTypes|Output Dtypes|Input Shapes|Output Shapes"
        )
        assert re.fullmatch(headers.replace("|", r"\s+"), lines[0])
        assert set(lines[1]) == {"="}
        nodes = converter.report.total_nodes
        row = rf"TRTEngineOp_000\s+GPU\s+{nodes}\s+1\s+1\s+float32\s+float32\s+\[-1, 8\]\s+\[-1, 4\]"
        assert re.fullmatch(row, lines[2])
        assert "  - Softmax: 1x" in lines
        assert "[*] Total number of TensorRT engines: 1" in lines
        assert f"[*] % of OPs Converted: 100.00% [{nodes}/{nodes}]" in lines

    def test_print_fn_and_detail(self, make, capsys):
        """print_fn gets each line and defaults to print; detailed=False leaves the operators out."""
        converter = make()
        converter.convert()
        converter.summary(detailed=False)
        short = capsys.readouterr().out
        lines = []
        converter.summary(detailed=False, print_fn=lines.append)
        assert short == "\n".join(lines) + "\n"
        assert "- Softmax: 1x" not in short

    def test_line_length(self, make):
        """line_length has a least value: TF-TRT's was 160, here it is 80, for terminals are that wide."""
        converter = make()
        converter.convert()
        converter.summary(line_length=80, print_fn=lambda line: None)
        with pytest.raises(ValueError, match="line_length must be at least 80"):
            converter.summary(line_length=79)


class TestSaving:
    pytestmark = converts

    def test_with_and_without_engines(self, make, tmp_path):
        """save() keeps built engines; save_gpu_specific_engines=False leaves them out; both run."""
        converter = make(maximum_cached_engines=5, allow_build_at_runtime=False)
        converter.convert()
        converter.build(batches(1, 4))
        expected = converter.function()(x=X)["scores"]
        for name, engines, options in (("with", 1, {}), ("without", 0, {"save_gpu_specific_engines": False})):
            converter.save(str(tmp_path / name), **options)
            assert len(list((tmp_path / name).rglob("*.engine"))) == engines
            with trt.load(str(tmp_path / name)) as function:
                np.testing.assert_allclose(function(x=X)["scores"], expected, atol=1e-6)

    def test_what_the_run_time_needs_is_saved(self, make, tmp_path):
        """maximum_cached_engines and allow_build_at_runtime are saved with the model."""
        converter = make(maximum_cached_engines=5, allow_build_at_runtime=False)
        converter.convert()
        converter.save(tmp_path / "out")
        params = json.loads((tmp_path / "out" / "manifest.json").read_text())["params"]
        assert (params["maximum_cached_engines"], params["allow_build_at_runtime"]) == (5, False)

    def test_save_options_are_refused(self, make, tmp_path):
        """TF-TRT passed `options` on to tf.saved_model.save; an artifact has no use for them, which is said."""
        converter = make()
        converter.convert()
        with pytest.raises(InvalidParameterError, match="options must be None"):
            converter.save(tmp_path / "out", options=object())

    def test_several_signatures(self, make, tmp_path):
        """Lifted: TF-TRT saved the one signature that it had converted."""
        converter = make(input_saved_model_signature_key=["serving_default", "embed"], minimum_segment_size=1)
        converter.convert()
        converter.save(tmp_path / "out")
        with trt.load(tmp_path / "out") as function:
            assert list(function.signatures) == ["serving_default", "embed"]

    def test_one_signature_and_its_tags(self, make):
        """input_saved_model_signature_key and input_saved_model_tags choose what is converted."""
        converter = make(input_saved_model_signature_key="embed", input_saved_model_tags=["serve"])
        assert list(converter.convert()(x=X)) == ["embedding"]
        with pytest.raises(trt.SourceError, match="nowhere"):
            make(input_saved_model_signature_key="nowhere").convert()


class TestRunTime:
    pytestmark = converts

    def test_segments_run_natively_where_no_engine_can(self, make, tmp_path):
        """Without an engine that can run, the segment runs natively; here every such call is counted."""
        converter = make()
        converter.convert()
        converter.build(batches(4))
        converter.save(tmp_path / "out")
        with trt.load(tmp_path / "out", provider="cpu") as function:
            function(x=X)
            assert sum(function.stats()["fallbacks"].values()) == 1

    def test_native_execution_can_be_forbidden(self, make, tmp_path):
        """TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION=0 made most fallbacks an error; strict=True makes all."""
        converter = make()
        converter.convert()
        converter.build(batches(4))
        converter.save(tmp_path / "out")
        with (
            pytest.raises(trt.ConversionError, match="strict"),
            trt.load(tmp_path / "out", provider="cpu", strict=True) as function,
        ):
            function(x=X)


class TestTensorFlow1:
    pytestmark = converts

    def test_sources_exclude_each_other(self, rtx, saved):
        """Exactly one of input_graph_def and input_saved_model_dir: ValueErrors otherwise."""
        for sources in ({}, {"input_graph_def": object(), "input_saved_model_dir": saved}):
            with pytest.raises(ValueError, match="exactly one of input_graph_def"):
                trt.TrtGraphConverter(**sources, backend=rtx)

    def test_eager_mode_is_fine(self, rtx, saved):
        """Lifted: TF-TRT's class for TensorFlow 1 refused to work in eager mode."""
        with trt.TrtGraphConverter(saved, backend=rtx, progress=False, max_batch_size=2) as converter:
            function = converter.convert()
            assert all(engine.built for engine in converter.report.engines)
        assert function(x=X)["scores"].shape == (4, 4)

    def test_static_engines_need_a_batch_size(self, rtx, saved):
        """max_batch_size must be an integer with is_dynamic_op=False."""
        with pytest.raises(ValueError, match="max_batch_size must be an integer"):
            trt.TrtGraphConverter(saved, backend=rtx, max_batch_size=None)

    def test_int8_is_calibrated_with_feeds(self, rtx, saved, tmp_path):
        """INT8: convert(), calibrate(fetch_names, num_runs, feed_dict_fn), save(), in this order."""
        with trt.TrtGraphConverter(saved, backend=rtx, progress=False, precision_mode="INT8") as converter:
            with pytest.raises(ConverterStateError):
                converter.calibrate(["scores"], 1, lambda: {"x": X})
            converter.convert()
            with pytest.raises(ConverterStateError):
                converter.save(tmp_path / "early")
            converter.calibrate(["StatefulPartitionedCall:0"], 2, lambda: {"serving_default_x:0": X})
            with pytest.raises(ConverterStateError):
                converter.calibrate(["scores"], 1, lambda: {"x": X})
            converter.save(tmp_path / "out")
        with trt.load(tmp_path / "out") as function:
            assert function(x=X)["scores"].shape == (4, 4)


class TestTemplate:
    pytestmark = converts

    def test_none_is_the_default(self, make):
        """rewriter_config_template=None takes default passes."""
        make(conversion_params=trt.ConversionParams(rewriter_config_template=None)).convert()

    def test_a_proto_of_tensorflow_chooses_passes(self, make):
        """A RewriterConfig proto is a template; TensorRTOptimizer's parameters in it are those of the conversion."""
        from tensorflow.core.protobuf import rewriter_config_pb2

        template = rewriter_config_pb2.RewriterConfig(optimizers=["constfold", "dependency"])
        optimizer = template.custom_optimizers.add(name="TensorRTOptimizer")
        optimizer.parameter_map["minimum_segment_size"].i = 100
        converter = make(conversion_params=trt.ConversionParams(rewriter_config_template=template))
        converter.convert()
        assert converter.report.engines == ()
        assert converter.params.minimum_segment_size == 100

    def test_unknown_names_are_errors(self, make):
        """Optimizers that nobody knows are an error, which lists those that are known."""
        with pytest.raises(ValueError, match="constfold"):
            make(conversion_params=trt.ConversionParams(rewriter_config_template={"optimizers": ["fuse_all"]}))


class TestEnvironment:
    pytestmark = converts

    def test_operators_can_be_kept_native(self, make, monkeypatch):
        """TF_TRT_OP_DENYLIST: TensorFlow operators that are never converted."""
        monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Softmax,Conv2D")
        converter = make()
        converter.convert()
        assert [v.op_type for v in converter.report.native if v.rule == "denylist"] == ["Softmax"]

    def test_operators_can_be_pretended(self, make, monkeypatch):
        """TF_TRT_OP_FAKELIST: segments as if TensorRT took these operators; what rests on that cannot run there."""
        monkeypatch.setenv("TF_TRT_OP_FAKELIST", "Softmax")
        converter = make()
        converter.convert()
        assert [engine.name for engine in converter.report.engines] == ["TRTEngineOp_000"]

    def test_the_number_of_engines_can_be_limited(self, make, monkeypatch):
        """TF_TRT_MAX_ALLOWED_ENGINES: the largest so many segments; 0 and less is no limit, as the default here."""
        monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Tanh")
        for limit, engines in (("1", 1), ("0", 2)):
            monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", limit)
            converter = make(minimum_segment_size=1)
            converter.convert()
            assert len(converter.report.engines) == engines

    def test_builds_can_be_made_to_fail(self, make, monkeypatch):
        """TF_TRT_ABORT_CUDA_ENGINE_BUILD: every build fails, and the model runs natively."""
        monkeypatch.setenv("TF_TRT_ABORT_CUDA_ENGINE_BUILD", "true")
        converter = make()
        converter.convert()
        converter.build(batches(2))
        (engine,) = converter.report.engines
        assert not engine.built
        assert "aborted" in engine.reason
        assert converter.function()(x=X)["scores"].shape == (4, 4)

    def test_native_execution_can_be_forbidden(self, make, monkeypatch, tmp_path):
        """TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION=0: an engine that cannot run is an error."""
        converter = make()
        converter.convert()
        converter.build(batches(4))
        converter.save(tmp_path / "out")
        monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "false")
        with pytest.raises(trt.ConversionError, match="strict"), trt.load(tmp_path / "out", provider="cpu") as function:
            function(x=X)

    def test_variables_without_meaning_are_told(self, make, monkeypatch):
        """TF_TRT_EXPERIMENTAL_FEATURES and its like do nothing here; the report says so."""
        monkeypatch.setenv("TF_TRT_EXPERIMENTAL_FEATURES", "remove_native_segments")
        converter = make()
        converter.convert()
        assert any("remove_native_segments" in note for note in converter.report.precision.notes)


class TestOldModels:
    pytestmark = converts

    def test_what_tf_trt_saved_is_converted_again(self, rtx, saved, tmp_path):
        """A SavedModel of TF-TRT, which TensorFlow cannot load any more, is a source; what it recorded is told."""
        import tensorflow as tf

        from tests.rewriter.rescuing import old_models

        old_models.convert(tf, saved, tmp_path / "old", old_models.Style(precision="FP16"))
        with trt.Converter(tmp_path / "old", backend=rtx, progress=False) as converter:
            function = converter.convert()
            told = " ".join(converter.report.precision.notes)
        assert "FP16" in told
        expected = tf.saved_model.load(saved).signatures["serving_default"](x=tf.constant(X))
        np.testing.assert_allclose(function(x=X)["scores"], expected["scores"], atol=1e-6)
