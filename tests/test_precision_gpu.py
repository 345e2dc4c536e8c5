"""The parts of the precision table on a GPU that need no GPU: judgement, tables, what travels."""

import re

import numpy as np
import pytest


@pytest.fixture(scope="module")
def report(benchmark_module):
    return benchmark_module("_precision_report")


FACTS = {"built_coverage": 1.0, "not_built": [], "native": [], "notes": ["INT8: Conv stays in FP16"]}


def accuracy_row(**changes):
    row = {
        "model": "cnn", "mode": "INT8", "built": "here", "nodes in": "FP16 34, INT8 2", "provider": "cuda",
        "facts": FACTS, "calls": 313, "engine calls": 313, "fallbacks": {}, "top1": 97.1, "native top1": 97.3,
        "emulated top1": 97.3, "points": -0.2, "points from native": -0.2, "flips": 30, "rms emulated": 1e-3,
        "rms native": 2e-3, "emulated from native": 2e-3, "status": "ok",
    }  # fmt: skip
    return row | changes


def latency_row(batch, **changes):
    row = {
        "model": "cnn", "mode": "INT8", "batch": batch, "nodes in": "FP16 34, INT8 2", "provider": "cuda",
        "calls": 440, "engine calls": 440, "launches": 437, "fallbacks": {}, "no_graph": {}, "no_plan": {},
        "us": 100.4 * batch, "stream us": 90.0 * batch, "status": "ok",
    }  # fmt: skip
    return row | changes


def result(part, rows, **more):
    return {"experiment": {"part": part, "model": "cnn", "mode": "INT8"}, "rows": rows, **more}


def test_top1_is_compared_with_both(report):
    labels = np.array([0, 1, 2, 3], np.uint8)
    answers, native, emulated = np.array([0, 1, 2, 9]), np.array([0, 1, 2, 3], np.uint8), np.array([0, 9, 9, 9])
    found = report.top1_row(answers, labels, native, emulated)
    assert (found["top1"], found["native top1"], found["emulated top1"]) == (75.0, 100.0, 25.0)
    assert (found["points"], found["points from native"]) == (50.0, -25.0)
    assert (found["flips"], found["flips from native"], found["images"]) == (2, 1, 4)


def test_answers_to_other_images_are_no_result(report):
    with pytest.raises(AssertionError, match="other images"):
        report.top1_row(np.zeros(3), np.zeros(4), np.zeros(4), np.zeros(4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ok"),
        ({"points": -0.21}, "-0.21 points from the emulation"),
        ({"points": float("nan")}, "points from the emulation"),
        ({"fallbacks": {"the artifact holds no engine for it": 313}}, "313 fallbacks: the artifact holds no engine"),
        ({"engine calls": 0}, "313 of 313 calls without an engine"),
        ({"facts": {**FACTS, "built_coverage": 0.9, "not_built": ["TRTEngineOp_000: no"]}}, "only 90 % of the nodes"),
        ({"facts": {**FACTS, "built_coverage": 0.9, "native": ["Conv: no"]}}, "(Conv: no)"),
        ({"provider": "cpu", "engine calls": 0, "fallbacks": {"no GPU": 1}}, "ok"),
    ],
)
def test_a_row_is_ok_only_when_engines_did_everything_and_top1_is_as_predicted(report, changes, words):
    assert words in report.judge(accuracy_row(**changes))


def test_a_model_without_labels_is_judged_by_its_outputs(report):
    row = accuracy_row(model="ResNet50", **{"rms emulated": 0.04})
    del row["points"]
    assert report.judge(row) == "ok"
    assert "differs from the emulation" in report.judge(row | {"rms emulated": 0.06})
    assert report.judge(row | {"rms emulated": 0.06, "emulated from native": 0.04}) == "ok"
    assert "differs from the emulation" in report.judge(row | {"rms emulated": float("nan")})


def test_a_latency_is_ok_only_with_engines_and_graphs(report):
    assert report.judge_latency(latency_row(1)) == "ok"
    eager = report.judge_latency(latency_row(1, launches=0, no_graph={"a step cannot be captured": 1}))
    assert eager == "440 of 440 calls without a CUDA graph: a step cannot be captured"
    assert "3 fallbacks: refused" in report.judge_latency(latency_row(1, fallbacks={"refused": 3}))


def test_the_tables_hold_every_row_and_say_what_is_missing(report):
    results = [result("accuracy", [accuracy_row()]), result("latency", [latency_row(b) for b in (1, 8, 32)])]
    text, good = report.render(results, "a GPU", [("cnn", "INT8")])
    assert good
    assert "| 97.10 " in text
    assert re.search(r"\| +100 \| +803 \| +3213 \| +90 \| +720 \| +2880 \| ok +\|", text)
    assert "PASS: INT8 executed within 0.2 points of emulated top-1: largest 0.20 (cnn)" in text
    assert "- INT8: Conv stays in FP16" in text
    text, good = report.render(results, "a GPU", [("cnn", "INT8"), ("cnn", "FP8")])
    assert not good
    assert text.count("not run") == 2
    assert "FAIL: FP8 executed within 0.2 points of emulated top-1: no figure; no figure for cnn" in text


def test_a_figure_of_partly_native_execution_passes_no_criterion(report):
    row = accuracy_row(fallbacks={"refused": 313}, points=0.0)
    row["status"] = report.judge(row)
    (line,) = report.verdicts([result("accuracy", [row])], [("cnn", "INT8"), ("ResNet50", "FP8")])
    assert line.startswith("FAIL: INT8")
    assert line.endswith("not ok: cnn")


def test_a_crash_after_some_rows_is_no_success(report):
    text, good = report.render(
        [result("latency", [latency_row(1)], failed="exit status -11: |")], "a GPU", [("cnn", "INT8")], ["latency"]
    )
    assert not good
    assert "exit status -11" in text
    assert re.search(r"\| +100 \| +\| +\| +90 \|", text)


def test_networks_that_are_not_timed_are_not_missed(report):
    row = accuracy_row(model="cnn_qat")
    told = {"experiment": {"part": "accuracy", "model": "cnn_qat", "mode": "INT8"}, "rows": [row]}
    assert report.render([told], "a GPU", [("cnn_qat", "INT8")])[1]


def test_ranges_are_counted_not_listed(report):
    notes = ["INT8: Conv stays", "a/b: range 0..4 became -4..4: step 1 -> 2", "c: the range is symmetric, its step"]
    assert report.telling(notes) == ["INT8: Conv stays", "2 trained ranges were made symmetric"]


def test_calls_between_two_stats(benchmark_module):
    before = {"calls": 3, "engine_calls": 3, "graph_launches": 0, "fallbacks": {"a": 1}}
    after = {"calls": 9, "engine_calls": 8, "graph_launches": 5, "fallbacks": {"a": 1, "b": 2}, "no_graph": {"c": 1}}
    assert benchmark_module("precision_gpu").grown(before, after) == {
        "calls": 6, "engine calls": 5, "launches": 5, "fallbacks": {"b": 2}, "no_graph": {"c": 1}, "no_plan": {},
    }  # fmt: skip


def test_images_that_came_out_otherwise_are_refused(benchmark_module, tmp_path):
    carry = benchmark_module("_precision_carry")
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    np.savez(tmp_path / "digits.npz", images=images, sha256=np.array("0" * 64))
    with pytest.raises(carry.DrawnOtherwiseError, match="--images"):
        carry.test_images(tmp_path)
    np.savez(tmp_path / "digits.npz", images=images, sha256=np.array(carry.digest(images)))
    for _ in range(2):  # read, then kept
        np.testing.assert_array_equal(carry.test_images(tmp_path), images.astype(np.float32) / 255)


def test_an_artifact_that_is_not_there_is_made_only_when_asked(benchmark_module, tmp_path):
    carry = benchmark_module("_precision_carry")
    with pytest.raises(carry.NotReadyError, match="cnn in INT8"):
        carry.ready(tmp_path, "cnn", "INT8", make=False)


def test_only_built_engines_count_as_arithmetic(benchmark_module):
    carry = benchmark_module("_precision_carry")
    assert carry.arithmetic_text({"arithmetic": {"FP16": 34, "other": 3, "INT8": 2}}) == "FP16 34, INT8 2"
    assert carry.arithmetic_text({"arithmetic": {}}) == "no engine"
