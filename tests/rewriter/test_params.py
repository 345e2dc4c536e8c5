import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from rewriter import ConversionParams, InvalidParameterError, TrtPrecisionMode, supported_profile_strategies
from rewriter import params as parameters


def test_defaults_are_tf_trts():
    params = ConversionParams()
    assert params == (None, 1 << 30, "FP32", 3, True, 1, True, 1, True)
    assert params._replace(minimum_segment_size=7).minimum_segment_size == 7
    with pytest.raises(AttributeError):
        params.max_batch_size = 2


def test_precision_modes_in_both_cases():
    assert TrtPrecisionMode.supported_precision_modes() == [
        *("FP32", "FP16", "INT8", "TF32", "BF16", "FP8"),
        *("fp32", "fp16", "int8", "tf32", "bf16", "fp8"),
    ]
    assert TrtPrecisionMode.supported_precision_modes()[:3] == ["FP32", "FP16", "INT8"]  # TF-TRT's, first
    assert parameters.check_params(ConversionParams(precision_mode="fp32")).precision_mode == "FP32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision_mode": "FP64"}, "precision_mode must be one of FP32, FP16"),
        ({"precision_mode": "Int8"}, "not 'Int8'"),
        ({"precision_mode": None}, "precision_mode must be one of"),
        ({"minimum_segment_size": 0}, "minimum_segment_size must be a positive integer, or -1"),
        ({"minimum_segment_size": -2}, "not -2"),
        ({"minimum_segment_size": True}, "not True"),
        ({"max_workspace_size_bytes": 0}, "max_workspace_size_bytes must be an integer of at least 1"),
        ({"max_workspace_size_bytes": 1 << 63}, "max_workspace_size_bytes must be at most 9223372036854775296"),
        ({"max_workspace_size_bytes": 1e9}, "max_workspace_size_bytes must be an integer"),
        ({"maximum_cached_engines": 0}, "maximum_cached_engines must be an integer of at least 1"),
        ({"max_batch_size": "8"}, "max_batch_size must be an integer of at least 1, not '8'"),
        ({"is_dynamic_op": 1}, "is_dynamic_op must be True or False"),
        ({"allow_build_at_runtime": None}, "allow_build_at_runtime must be True or False"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(InvalidParameterError, match=message.replace("(", r"\(")):
        parameters.check_params(ConversionParams(**change))


def test_integers_of_numpy_are_integers():
    params = ConversionParams(max_workspace_size_bytes=np.int64(5), minimum_segment_size=np.int32(-1))
    checked = parameters.check_params(params)
    assert (checked.max_workspace_size_bytes, checked.minimum_segment_size) == (5, -1)
    assert type(checked.max_workspace_size_bytes) is int
    largest = ConversionParams(max_workspace_size_bytes=sys.maxsize - 512)
    assert parameters.check_params(largest).max_workspace_size_bytes == sys.maxsize - 512


def test_switches_and_samples():
    assert parameters.check_switch("verify", False) is False
    with pytest.raises(InvalidParameterError, match="allow_double must be True or False, not 'no'"):
        parameters.check_switch("allow_double", "no")
    for value in (np.True_, np.False_):
        checked = parameters.check_switch("verify", value)
        assert (checked, type(checked)) == (bool(value), bool)
    numpy = ConversionParams(use_calibration=np.False_, is_dynamic_op=np.True_)
    assert parameters.check_params(numpy).use_calibration is False
    assert parameters.check_profile_strategy(np.False_, None) == "ImplicitBatchModeCompatible"
    assert parameters.check_tolerance(np.float32(0.5)) == 0.5
    assert parameters.check_samples(None) is None
    assert parameters.check_samples(iter([1, 2])) == [1, 2]
    for bad in (3, "abc"):
        with pytest.raises(InvalidParameterError, match="samples must be a list of inputs"):
            parameters.check_samples(bad)
    with pytest.raises(InvalidParameterError, match="use_dynamic_shape must be True or False"):
        parameters.check_profile_strategy("no", None)


def test_params_must_be_params():
    with pytest.raises(InvalidParameterError, match="must be a ConversionParams, not dict"):
        parameters.check_params({"precision_mode": "FP32"})


def test_single_arguments_beside_conversion_params_are_a_contradiction():
    whole = ConversionParams(minimum_segment_size=5)
    assert parameters.merge_params(whole, ConversionParams()) == whole
    with pytest.raises(InvalidParameterError, match="minimum_segment_size and conversion_params are both given"):
        parameters.merge_params(whole, ConversionParams(minimum_segment_size=4))


@pytest.mark.parametrize(
    ("dynamic", "strategy", "meaning"),
    [
        (None, None, "Range"),
        (True, "Optimal", "Optimal"),
        (True, "range+OPTIMAL", "Range+Optimal"),
        (None, "Range+Optimal", "Range+Optimal"),
        (False, None, "ImplicitBatchModeCompatible"),
        (False, "ImplicitBatchModeCompatible", "ImplicitBatchModeCompatible"),
    ],
)
def test_profile_strategy(dynamic, strategy, meaning):
    assert parameters.check_profile_strategy(dynamic, strategy) == meaning


def test_wrong_profile_strategies():
    with pytest.raises(InvalidParameterError, match="must be one of Range, Optimal"):
        parameters.check_profile_strategy(True, "widest")
    with pytest.raises(InvalidParameterError, match="needs use_dynamic_shape=True"):
        parameters.check_profile_strategy(False, "Optimal")
    assert len(supported_profile_strategies()) == 4


def test_lists_of_names_and_patterns():
    assert parameters.check_names("op_denylist", ["Conv"]) == ("Conv",)
    assert parameters.check_patterns("node_denylist", ("^a",)) == ("^a",)
    assert parameters.check_names("tags", {"serve", "gpu"}) == ("gpu", "serve")
    assert parameters.check_names("tags", frozenset({"b", "c", "a"})) == ("a", "b", "c")
    assert parameters.check_names("inputs", (name for name in "ba")) == ("b", "a")
    assert parameters.check_names("inputs", {"b": 1, "a": 2}.keys()) == ("b", "a")
    for bad in ("Conv", [1], 3, b"Conv", {"Conv": 1}, {1}, iter([1])):
        with pytest.raises(InvalidParameterError, match="op_denylist must be a list of strings"):
            parameters.check_names("op_denylist", bad)
    with pytest.raises(InvalidParameterError, match="is not a regular expression"):
        parameters.check_patterns("node_denylist", ["("])


def test_functions_that_yield_inputs():
    def generous(size=3, *more, **named):
        yield size

    def wanting(first):
        yield first

    @functools.wraps(wanting)
    def wrapper():
        return wanting(1)

    for good in (generous, wrapper, functools.partial(wanting, 1), lambda: [1], [1].__iter__, dict):
        assert parameters.check_input_fn("input_fn", good) is good
    for bad, words in (
        (
            lambda a: [a],
            "input_fn must take no arguments and yield inputs, but this function takes .a.: missing .* 'a'",
        ),
        (wanting, r"takes \(first\)"),
        ([1], "input_fn must be a function that yields inputs, not list"),
    ):
        with pytest.raises(InvalidParameterError, match=words):
            parameters.check_input_fn("input_fn", bad)


def test_callables_and_paths():
    assert parameters.check_callable("print_fn", None) is None
    assert parameters.check_callable("print_fn", print) is print
    with pytest.raises(InvalidParameterError, match="print_fn must be a function, not int"):
        parameters.check_callable("print_fn", 3)
    assert parameters.check_path("path", "a/b") == parameters.check_path("path", Path("a/b")) == Path("a/b")
    for bad, words in ((5, "path must be a path .*, not int"), (b"a", "not bytes"), ("", "path is empty")):
        with pytest.raises(InvalidParameterError, match=words):
            parameters.check_path("path", bad)
