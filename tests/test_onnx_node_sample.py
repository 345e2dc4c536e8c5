"""A sample of the onnx package's node tests through the whole pipeline; all of them: benchmarks/onnx_node_tests.py."""

import importlib
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

SAMPLE, CHUNKS, SEED = 150, 5, 20
BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")


@pytest.fixture(scope="module")
def judge():
    """The module benchmarks/_node_case.py."""
    sys.path.insert(0, BENCHMARKS)
    try:
        yield importlib.import_module("_node_case")
    finally:
        sys.path.remove(BENCHMARKS)


@pytest.fixture(scope="module")
def cases(judge):
    """The sample, the same in every run with the same onnx package."""
    everything = judge.load_cases()
    chosen = np.random.default_rng(SEED).choice(len(everything), SAMPLE, replace=False)
    return [everything[i] for i in chosen]


@pytest.fixture(scope="module")
def backend():
    from rewriter.backends import open_backend

    opened = open_backend("tensorrt_rtx", ())
    yield opened
    opened.close()


@pytest.mark.rtx
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_case_is_wrong_crashes_or_stays_native_without_a_reason(judge, cases, backend, tmp_path, chunk):
    results = []
    for case in cases[chunk::CHUNKS]:
        folder = tmp_path / case.name
        folder.mkdir()
        results.append(judge.run_case(case, backend, folder))
    assert [r for r in results if r.outcome in judge.BAD] == []
    assert [r for r in results if r.without_reason] == []
    # Otherwise the pipeline would pass by doing nothing.
    assert sum(r.engine_nodes > 0 for r in results) >= len(results) // 3


@pytest.mark.parametrize(
    ("serve", "timeout", "outcome"),
    [
        (os._exit, 60.0, "crash"),  # called with other arguments than it takes, it ends the process all the same
        (None, 0.0, "hang"),
    ],
)
def test_a_process_that_dies_or_hangs_costs_its_case(judge, serve, timeout, outcome):
    node_tests = importlib.import_module("onnx_node_tests")
    results = list(node_tests.run_all(["a", "b"], jobs=1, build=False, timeout=timeout, serve=serve))
    assert [(r.name, r.outcome) for r in results] == [("a", outcome), ("b", outcome)]


@pytest.mark.parametrize(
    ("reason", "general"),
    [
        ("TensorRT does not support Unique", "TensorRT does not support the operator"),
        ("TensorRT's parser refuses Unique: K is 3841", "TensorRT's parser refuses the operator: K is N"),
        ("'a_1' of node_7 has INT32, doesn't it", "'*' of * has INT32, doesn't it"),
    ],
)
def test_equal_reasons_are_counted_together(judge, reason, general):
    assert judge.generalise(reason, "node_7", "Unique") == general


def answer(**values):
    return {name: np.asarray(value) for name, value in values.items()}


ORIGINAL = answer(y=np.float32([1, 2, np.nan]), n=np.int64(3))


@pytest.mark.parametrize(
    "wrong",
    [
        answer(y=np.float32([1, 2.001, np.nan]), n=np.int64(3)),
        answer(y=np.float32([1, 2, 3]), n=np.int64(3)),
        answer(y=np.float32([1, 2]), n=np.int64(3)),
        answer(y=np.float64([1, 2, np.nan]), n=np.int64(3)),
        answer(y=np.float32([1, 2, np.nan])),
        answer(n=np.int64(3), y=np.float32([1, 2, np.nan])),
    ],
    ids=["value", "nan", "shape", "dtype", "missing", "order"],
)
def test_the_judge_notices_what_is_wrong(judge, wrong):
    with pytest.raises(judge.WrongResultError, match="output"):
        judge._compare(wrong, ORIGINAL, random=False)


def test_the_judge_tells_rounding_from_equality(judge):
    assert judge._compare(ORIGINAL, ORIGINAL, random=False).exact
    rounded = judge._compare(answer(y=np.float32([1, 2.000001, np.nan]), n=np.int64(3)), ORIGINAL, random=False)
    assert not rounded.exact
    assert 0 < rounded.difference < judge.ROUNDING


def test_a_wrong_pipeline_is_called_wrong(judge, monkeypatch, tmp_path):
    """The judge must not depend on the pipeline to be honest: here the pipeline answers with other numbers."""
    case = next(c for c in judge.load_cases("^test_relu$"))
    feeds, _ = judge._data(case)
    wrong = {"y": np.maximum(feeds["x"], 0) + 1}

    class Wrong:
        report = types.SimpleNamespace(engines=(), native=(), total_nodes=1)

        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def convert(self):
            function = lambda feeds: wrong  # noqa: E731 - needs the attribute below
            function.close = lambda: None
            return function

        def build(self, input_fn):
            pass

        def save(self, folder):
            import onnx

            folder.mkdir()
            onnx.save(case.model, folder / "model.onnx")
            return folder

    class Loaded:
        def __enter__(self):
            return lambda feeds: wrong

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("rewriter.Converter", Wrong, raising=False)
    monkeypatch.setattr("rewriter.load", lambda path: Loaded(), raising=False)
    result = judge.run_case(case, None, tmp_path)
    assert (result.outcome, result.exact) == ("wrong", False)
    assert "outputs differ by" in result.detail
