"""What a template comes to: lists in order, toggles, custom optimizers, overrides, and the record of it all."""

import json

import pytest

from passes.base import Pipeline
from passes.cancel_transposes import CancelTransposes
from passes.common_subexpressions import CommonSubexpressions
from passes.fold_constants import FoldConstants
from passes.pipeline import OPTIONAL_PASSES, SelectedPipeline, default_pipeline
from rewriter.errors import InvalidParameterError
from rewriter.frontend.grappler import GrapplerOptions
from rewriter.params import ConversionParams
from rewriter.pass_selection import CustomOptimizer, PassSelection, RewriterConfig, parse_rewriter_config
from rewriter.pass_selection.config import TOGGLE_FIELDS
from rewriter.pass_selection.table import IDLE_FIELDS, OPTIMIZERS, known_names
from rewriter.runtime.native import evaluate

#: What TF-TRT ran before its own optimizer.
OF_TF_TRT = ("pruning", "debug_stripper", "layout", "dependency", "constfold", "common_subgraph_elimination")


def verdict(selection, name, source=None):
    found = [v for v in selection.verdicts if v.name == name and (source is None or v.source == source)]
    assert len(found) == 1, selection.verdicts
    return found[0]


def test_none_is_what_runs_today():
    selection = parse_rewriter_config(None)
    assert selection == PassSelection()
    assert selection.grappler == GrapplerOptions()
    assert selection.pipeline(evaluate) == default_pipeline(evaluate)
    assert isinstance(selection.pipeline(), Pipeline)
    params = ConversionParams(precision_mode="FP16")
    assert selection.apply(params) == params
    assert selection.to_json()["given"] is False


def test_an_empty_template_chooses_the_same_passes():
    selection = parse_rewriter_config(RewriterConfig())
    assert selection.grappler.optimizers == GrapplerOptions().optimizers
    assert selection.passes == PassSelection().passes
    assert (selection.rounds, selection.grappler.iterations, selection.minimum_nodes) == (2, 1, 4)


def test_the_order_is_the_users():
    selection = parse_rewriter_config({"optimizers": OF_TF_TRT, "meta_optimizer_iterations": "ONE"})
    chosen = ("function", "pruning", "debug_stripper", "dependency", "constfold")
    assert selection.grappler.optimizers == chosen
    assert selection.passes == (CancelTransposes(), FoldConstants(), CommonSubexpressions())
    assert (selection.rounds, selection.grappler.iterations) == (1, 1)
    turned = parse_rewriter_config({"optimizers": [*reversed(OF_TF_TRT), "function", "constfold"]})
    assert turned.passes == (CommonSubexpressions(), FoldConstants(), CancelTransposes(), FoldConstants())
    assert turned.grappler.optimizers[-2:] == ("function", "constfold")


def test_our_passes_by_name():
    selection = parse_rewriter_config({"optimizers": ["cancel_transposes", "common_subexpressions", "legalize"]})
    assert selection.grappler.optimizers == ("function",)
    assert selection.passes == (CancelTransposes(), CommonSubexpressions())
    assert verdict(selection, "legalize").note.startswith("always runs: TensorRT's parser refuses")


def test_the_evaluator_reaches_the_folding():
    pipeline = parse_rewriter_config({"optimizers": ["constfold"], "min_graph_nodes": 9}).pipeline(evaluate)
    assert isinstance(pipeline, SelectedPipeline)
    assert pipeline.optional[0].evaluate is evaluate
    assert (pipeline.rounds, pipeline.minimum_nodes) == (2, 9)


def test_toggles_remove_and_add():
    selection = parse_rewriter_config(
        {
            "constant_folding": False,
            "common_subgraph_elimination": "ON",
            "shape_optimization": True,
            "arithmetic_optimization": "AGGRESSIVE",
        }
    )
    # What is added goes to Grappler's own place.
    assert selection.grappler.optimizers == ("function", "shape", "arithmetic", "dependency")
    assert dict(selection.grappler.toggles) == {"shape_optimization": "ON", "arithmetic_optimization": "AGGRESSIVE"}
    assert selection.passes == (CommonSubexpressions(),)
    assert verdict(selection, "constfold").note == "left out"
    added = parse_rewriter_config({"optimizers": ["dependency", "constfold"], "shape_optimization": True})
    assert added.grappler.optimizers == ("function", "dependency", "constfold", "shape")
    assert parse_rewriter_config({"dependency_optimization": "ON"}).verdicts[-1].note == "is chosen already"
    left = parse_rewriter_config({"optimizers": ["pruning", "constfold"], "disable_model_pruning": True})
    assert left.grappler.optimizers == ("function", "constfold")


def test_experiments_count_as_on():
    selection = parse_rewriter_config({"shape_optimization": "EXPERIMENTAL_MLIR"})
    assert "shape" in selection.grappler.optimizers
    assert selection.grappler.toggles == ()


def test_everything_off_leaves_what_results_depend_on():
    # What TF-TRT set for "disable_non_trt_optimizers".
    off = dict.fromkeys(set(TOGGLE_FIELDS) - set(IDLE_FIELDS), "OFF")
    selection = parse_rewriter_config({**off, "disable_model_pruning": True, "memory_optimization": "NO_MEM_OPT"})
    assert selection.grappler.optimizers == ("function",)
    assert selection.passes == ()
    assert verdict(selection, "function", "function_optimization=OFF").note.startswith("cannot be switched off")
    same = parse_rewriter_config({"disable_meta_optimizer": True, "optimizers": OF_TF_TRT})
    assert (same.grappler.optimizers, same.passes) == (("function",), ())
    assert verdict(same, "layout").note == "left out: disable_meta_optimizer is True"


def test_what_has_no_work_says_why():
    template = {
        "remapping": True,
        "auto_mixed_precision": True,
        "memory_optimization": "MANUAL",
        "auto_parallel": {"enable": True, "num_replicas": 2},
        "use_plugin_optimizers": "ON",
        "experimental_disable_folding_quantization_emulation": True,
    }
    selection = parse_rewriter_config(template)
    assert selection.grappler.optimizers == GrapplerOptions().optimizers
    for name in ("remap", "auto_mixed_precision", "memory", "autoparallel", "use_plugin_optimizers"):
        assert "has no work: " in verdict(selection, name).note
    assert "never folded" in verdict(selection, "experimental_disable_folding_quantization_emulation").note


def test_every_entry_has_an_answer():
    selection = parse_rewriter_config({"optimizers": known_names()})
    json.dumps(selection.to_json())
    assert [v.name for v in selection.verdicts] == list(known_names())
    for entry in selection.verdicts:
        assert entry.tensorflow or entry.onnx or entry.note, entry
    # No optimizer runs in neither stage without a reason.
    assert all(o.grappler or o.onnx or o.note for o in OPTIMIZERS)
    assert {o.onnx for o in OPTIMIZERS if o.onnx} == set(OPTIONAL_PASSES)


def test_options_of_our_passes():
    entry = CustomOptimizer("fold_constants", {"max_bytes": 1024})
    assert parse_rewriter_config(RewriterConfig(custom_optimizers=(entry,))).passes == (FoldConstants(max_bytes=1024),)
    # Not chosen yet: at the end.
    template = {"optimizers": ["layout"], "custom_optimizers": [entry, CustomOptimizer("constfold")]}
    passes = parse_rewriter_config(template).passes
    assert passes == (CancelTransposes(), FoldConstants(max_bytes=1024), FoldConstants())
    entry = CustomOptimizer("cancel_transposes", {"through_elementwise": False})
    passes = parse_rewriter_config({"optimizers": ["layout"], "custom_optimizers": [entry]}).passes
    assert passes == (CancelTransposes(through_elementwise=False),)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"optimizers": ["constfolding"]}, r"no pass 'constfolding'; did you mean 'constfold'.*\?"),
        (
            {"custom_optimizers": [CustomOptimizer("Mine")]},
            "no pass 'Mine'; known are TensorRTOptimizer, pruning, .* more",
        ),
        ({"optimizers": ["TensorRTOptimizer"]}, "no pass 'TensorRTOptimizer'"),
        (
            {"custom_optimizers": [CustomOptimizer("fold_constants", {"bytes": 1})]},
            "pass 'fold_constants' has no option 'bytes'; it has max_bytes",
        ),
        (
            {"custom_optimizers": [CustomOptimizer("common_subexpressions", {"weights": 1})]},
            "'weights' of 'common_subexpressions' must be True or False, not 1",
        ),
        ({"custom_optimizers": [CustomOptimizer("fold_constants", {"max_bytes": -1})]}, "must not be negative"),
        ({"custom_optimizers": [CustomOptimizer("constfold", {"max_bytes": 1})]}, "'constfold' takes no parameters"),
        ({"custom_optimizers": [CustomOptimizer("TensorRTOptimizer")] * 2}, "has 2 TensorRTOptimizers: keep one"),
        (
            {"custom_optimizers": [CustomOptimizer("TensorRTOptimizer", {"precision": "FP16"})]},
            "TensorRTOptimizer has no parameter 'precision'; it has minimum_segment_size, .*profile_strategy",
        ),
        (
            {"custom_optimizers": [CustomOptimizer("TensorRTOptimizer", {"minimum_segment_size": True})]},
            "'minimum_segment_size' of 'TensorRTOptimizer' must be an integer, not True",
        ),
        (
            {"custom_optimizers": [CustomOptimizer("TensorRTOptimizer", {"profile_strategy": "wide"})]},
            "dynamic_shape_profile_strategy must be one of Range",
        ),
    ],
)
def test_what_is_refused(template, message):
    with pytest.raises(InvalidParameterError, match=message):
        parse_rewriter_config(template)


def of_tensorrt(**parameters):
    return parse_rewriter_config({"custom_optimizers": [CustomOptimizer("TensorRTOptimizer", parameters)]})


def test_parameters_of_tf_trts_optimizer():
    selection = of_tensorrt(
        minimum_segment_size=5,
        max_batch_size=8,
        is_dynamic_op=False,
        max_workspace_size_bytes=1 << 20,
        maximum_cached_engines=4,
        precision_mode="int8",
        use_calibration=False,
        allow_build_at_runtime=False,
    )
    expected = ConversionParams(None, 1 << 20, "INT8", 5, False, 4, False, 8, False)
    assert selection.apply(ConversionParams()) == expected
    assert selection.apply(expected._replace(precision_mode="int8")) == expected
    with pytest.raises(InvalidParameterError, match="precision_mode is 'FP16', and 'INT8' in the TensorRTOptimizer"):
        selection.apply(ConversionParams(precision_mode="FP16"))
    assert "max_batch_size" in verdict(selection, "TensorRTOptimizer").note


@pytest.mark.parametrize(
    ("parameters", "strategy"),
    [
        ({}, None),
        ({"use_implicit_batch": True}, "ImplicitBatchModeCompatible"),
        ({"use_implicit_batch": False}, "Range"),
        ({"use_implicit_batch": False, "profile_strategy": "range+optimal"}, "Range+Optimal"),
        ({"profile_strategy": "implicitbatchmodecompatible"}, "ImplicitBatchModeCompatible"),
    ],
)
def test_profile_strategies(parameters, strategy):
    assert of_tensorrt(**parameters).profile_strategy == strategy


def test_what_grappler_itself_is_told():
    options = parse_rewriter_config(
        {
            "meta_optimizer_iterations": 5,
            "min_graph_nodes": -1,
            "meta_optimizer_timeout_ms": 100,
            "fail_on_optimizer_errors": True,
            "inter_optimizer_verifier_config": {"structure_verifier": "ON"},
            "post_optimization_verifier_config": {"structure_verifier": False},
        }
    ).grappler
    assert (options.iterations, options.minimum_nodes, options.timeout_ms, options.fail_on_errors) == (2, -1, 100, True)
    assert (options.verify_between, options.verify_after) == (True, False)
