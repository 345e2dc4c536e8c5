"""The small models of the zoo, whole way, in the test suite; all of them: benchmarks/convert_zoo.py."""

import numpy as np
import pytest


@pytest.mark.tensorflow
@pytest.mark.rtx
@pytest.mark.parametrize("name", ["multi_io", "cond", "while_loop", "gather_mix", "bilstm"])
def test_converts_and_computes_what_tensorflow_computes(benchmark_module, tmp_path, name):
    zoo, convert_zoo = benchmark_module("zoo"), benchmark_module("convert_zoo")
    result = convert_zoo.examine(zoo.load(name, tmp_path), tmp_path)
    assert result["status"] == "ok", result
    assert result["native_without_reason"] == []
    assert result["engines_built"] >= 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"max_rel_diff": 2e-5}, "wrong"),
        ({"max_rel_diff": float("nan")}, "wrong"),
        ({"native_without_reason": ["a"]}, "native node without a reason"),
        ({"spread": 0.0}, "degenerate model"),
    ],
)
def test_the_status_names_what_is_wrong(benchmark_module, change, status):
    good = {"max_rel_diff": 1e-6, "tolerance": 1e-5, "native_without_reason": [], "spread": 0.5}
    assert benchmark_module("convert_zoo").judge({**good, **change}) == status


def test_an_unknown_model_is_named_with_the_known_ones(benchmark_module, tmp_path):
    with pytest.raises(KeyError, match="no model 'resnet' in the zoo; there are: ResNet50"):
        benchmark_module("zoo").load("resnet", tmp_path)


def test_a_package_that_is_not_installed_is_told_with_its_install_line(benchmark_module):
    zoo = benchmark_module("zoo")
    with pytest.raises(zoo.UnavailableError, match=r"no_such_package is not installed \(pip install it\)"):
        zoo.package_file("no_such_package", "*.h5", "pip install it")


@pytest.mark.parametrize(
    ("actual", "reference", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.5], [0.0], 0.5),
        ([np.inf, np.nan], [np.inf, np.nan], 0.0),
        ([np.inf], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        (["a"], ["a"], 0.0),
        (["a"], ["b"], np.inf),
    ],
)
def test_relative_difference(benchmark_module, actual, reference, expected):
    assert benchmark_module("_common").relative_difference(actual, reference) == expected
