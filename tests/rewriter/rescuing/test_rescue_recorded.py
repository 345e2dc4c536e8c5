"""What engines recorded, made into parameters; no TensorFlow."""

import dataclasses

import pytest

from rewriter.params import DEFAULT_TRT_CONVERSION_PARAMS, MAXIMUM_WORKSPACE_SIZE_BYTES, ConversionParams, check_params
from rewriter.rescuing import EngineRecord, RescueReport
from rewriter.rescuing.recorded import recorded_params, recorded_strategy

ENGINE = EngineRecord("E", "", "E_native_segment", 4, max_workspace_size_bytes=1 << 30, static_engine=False)


def engines(**values):
    """An engine for each value of the one field that is given."""
    ((name, found),) = values.items()
    return [dataclasses.replace(ENGINE, **{name: value}) for value in found]


def test_defaults():
    assert recorded_params([ENGINE]) == (ConversionParams(), ())
    assert recorded_params([]) == (DEFAULT_TRT_CONVERSION_PARAMS, ())


@pytest.mark.parametrize(
    ("field", "values", "parameter", "taken"),
    [
        ("precision_mode", ["FP16", "FP32", "FP16"], "precision_mode", "FP16"),
        ("precision_mode", ["FP32", "INT8"], "precision_mode", "FP32"),
        ("static_engine", [True, True, False], "is_dynamic_op", False),
        ("maximum_cached_engines", [1, 3, 2], "maximum_cached_engines", 3),
        ("max_batch_size", [8, 32], "max_batch_size", 32),
        ("max_workspace_size_bytes", [100, 300], "max_workspace_size_bytes", 400),
        ("allow_build_at_runtime", [False, False, True], "allow_build_at_runtime", False),
    ],
)
def test_engines_that_disagree(field, values, parameter, taken):
    params, notes = recorded_params(engines(**{field: values}))
    assert getattr(params, parameter) == taken
    (note,) = notes
    assert note.startswith(f"the engines disagree on {field} (")
    assert check_params(params) == params


@pytest.mark.parametrize(
    ("recorded", "taken"),
    [(0, 1 << 30), ((1 << 63) - 1, MAXIMUM_WORKSPACE_SIZE_BYTES), ((1 << 63) - 513, (1 << 63) - 513)],
)
def test_workspace_limits_at_the_ends(recorded, taken):
    """TF-TRT's default since TensorRT 8.4 is all there is."""
    params, notes = recorded_params(engines(max_workspace_size_bytes=[recorded]))
    assert (params.max_workspace_size_bytes, notes) == (taken, ())
    check_params(params)


def test_calibration_counts_for_int8_only():
    assert recorded_params(engines(use_calibration=[False]))[0].use_calibration
    (engine,) = engines(use_calibration=[False])
    assert not recorded_params([dataclasses.replace(engine, precision_mode="INT8")])[0].use_calibration


def test_unknown_words():
    params, notes = recorded_params(engines(precision_mode=["FP4"]))
    assert params.precision_mode == "FP32"
    assert notes == ("the recorded precision_mode 'FP4' is none that TF-TRT had: FP32 is taken",)
    strategy, notes = recorded_strategy(engines(profile_strategy=["Unknown"]))
    assert strategy is None
    assert "'Unknown' is none that TF-TRT had" in notes[0]


@pytest.mark.parametrize(
    ("strategies", "implicit", "taken", "number"),
    [
        ([""], True, "ImplicitBatchModeCompatible", 0),
        ([""], False, "Range", 0),
        (["Optimal"], False, "Optimal", 0),
        (["Optimal", "Range", "Range"], False, "Range", 1),
        (["range+optimal", "Range+Optimal"], False, "Range+Optimal", 0),
        (["OPTIMAL"], False, "Optimal", 0),
    ],
)
def test_profile_strategy(strategies, implicit, taken, number):
    found = [dataclasses.replace(ENGINE, profile_strategy=s, implicit_batch=implicit) for s in strategies]
    strategy, notes = recorded_strategy(found)
    assert (strategy, len(notes)) == (taken, number)


def test_report():
    engine = dataclasses.replace(ENGINE, precision_mode="INT8", maximum_cached_engines=2)
    report = RescueReport("a", "b", (engine,), tensorflow="1.15.0")
    data = report.to_json()
    assert data["params"]["precision_mode"] == "INT8"
    assert data["engines"][0]["max_workspace_size_bytes"] == 1 << 30
    assert data["notes"] == list(report.notes)
    assert report.notes == (
        "TF-TRT converted it, 1 engine, with precision_mode='INT8', maximum_cached_engines=2, "
        "dynamic_shape_profile_strategy='ImplicitBatchModeCompatible': pass the same to keep that "
        "(what is not named was at its default, or is not recorded)",
        "TF-TRT never calibrated it: no engine has a calibration table",
    )
