"""The options that all benchmark scripts share, and the files they write."""

import argparse
import csv
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rewriter.params import check_params, supported_profile_strategies
from rewriter.settings import ConversionParams

BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")


@pytest.fixture(scope="module")
def options():
    """The module benchmarks/_options.py."""
    sys.path.insert(0, BENCHMARKS)
    try:
        yield importlib.import_module("_options")
    finally:
        sys.path.remove(BENCHMARKS)


@pytest.fixture
def parser(options):
    """A parser with all options."""
    made = argparse.ArgumentParser()
    options.add_metrics_options(made)
    options.add_timing_options(made, batch_size=(1, 8), num_iterations=30)
    options.add_conversion_options(made)
    return made


def test_names_and_defaults_of_tftrts_suite(options, parser):
    arguments = vars(options.parse(parser, []))
    assert arguments == {
        "json": None,
        "csv": None,
        "experiment_name": None,
        "batch_size": [1, 8],
        "num_iterations": 30,
        "num_warmup_iterations": 20,
        "trim_mean_percentage": 0.1,
        "precision": "FP32",
        "minimum_segment_size": 3,
        "max_workspace_size": 1 << 30,
        "num_build_batches": 1,
        "num_calib_batches": 10,
        "use_dynamic_shape": False,
        "allow_build_at_runtime": False,
        "no_tf32": False,
        "detailed_conversion_summary": False,
    }


def test_what_the_converter_is_told(options, parser):
    words = "--precision fp16 --minimum_segment_size 5 --max_workspace_size 4096 --use_dynamic_shape --no_tf32"
    found = options.converter_arguments(options.parse(parser, words.split()))
    assert found == {
        "precision_mode": "FP16",
        "minimum_segment_size": 5,
        "max_workspace_size_bytes": 4096,
        "allow_build_at_runtime": False,
        "dynamic_shape_profile_strategy": "Range",
    }
    fixed = options.converter_arguments(options.parse(parser, []))
    for arguments in (found, fixed):
        assert arguments.pop("dynamic_shape_profile_strategy") in supported_profile_strategies()
        check_params(ConversionParams(**arguments))
    assert options.converter_arguments(argparse.Namespace()) == {}


@pytest.mark.parametrize(
    ("words", "mode"),
    [("", "TF32"), ("--no_tf32", "FP32"), ("--precision TF32", "TF32"), ("--precision INT8 --no_tf32", "INT8")],
)
def test_fp32_may_use_tf32_unless_it_is_forbidden(options, parser, words, mode):
    assert options.precision_mode(options.parse(parser, words.split())) == mode


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--no_tf32 --precision TF32", "contradict"),
        ("--json /none/at/all.json", "no such folder"),
        ("--export_metrics_csv_path /none/at/all.csv", "no such folder"),
        ("--batch_size 0", "at least 1"),
        ("--num_iterations 0", "at least 1"),
        ("--num_warmup_iterations -1", "at least 0"),
        ("--trim_mean_percentage 0.5", "below 0.5"),
        ("--trim_mean_percentage nan", "below 0.5"),
        ("--precision FP12", "invalid choice"),
    ],
)
def test_what_is_refused(options, parser, words, message, capsys):
    with pytest.raises(SystemExit):
        options.parse(parser, words.split())
    assert message in capsys.readouterr().err


def test_files(options, parser, tmp_path):
    figures, lines = tmp_path / "f.json", tmp_path / "f.csv"
    words = ["--json", str(figures), "--export_metrics_csv_path", str(lines), "--experiment_name", "try"]
    arguments = options.parse(parser, words)
    rows = [{"model": "a", "ms": np.float32(1.5), "rounds": [1, 2]}, {"model": "b", "ratio": 2}]
    options.export_metrics(arguments, rows, question="how long?")
    found = json.loads(figures.read_text("utf-8"))
    assert (found["question"], found["experiment_name"]) == ("how long?", "try")
    assert found["options"]["precision"] == "FP32"
    assert not {"json", "csv"} & set(found["options"])
    assert found["rows"] == [{"model": "a", "ms": 1.5, "rounds": [1, 2]}, {"model": "b", "ratio": 2}]
    assert found["environment"]["packages"]["numpy"] == np.__version__
    with lines.open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first)[:4] == ["model", "ms", "ratio", "experiment_name"]
    assert (first["ms"], first["ratio"], second["ratio"]) == ("1.5", "", "2")
    assert first["version numpy"] == np.__version__


def test_no_file_without_an_option(options, parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options.export_metrics(options.parse(parser, []), [{"a": 1}])
    assert list(tmp_path.iterdir()) == []


def test_a_script_keeps_only_what_it_takes(options):
    made = argparse.ArgumentParser()
    options.add_conversion_options(made, ("precision",), precision="FP16")
    arguments = options.parse(made, [])
    assert options.recorded(arguments) == {"precision": "FP16"}
    assert options.converter_arguments(arguments) == {"precision_mode": "FP16"}
