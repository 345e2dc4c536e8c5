"""The parts of `benchmarks/fat_artifacts.py` that need no GPU: models, cases, what is wanted of them, tables."""

import tarfile

import numpy as np
import onnx
import pytest

ALL = ("SM80", "SM86", "SM89", "SM120", "together", "narrow", "other", "own")


@pytest.fixture(scope="module")
def script(benchmark_module):
    return benchmark_module("fat_artifacts")


@pytest.fixture(scope="module")
def work(benchmark_module):
    return benchmark_module("_fat_artifacts_work")


@pytest.fixture(scope="module")
def models(benchmark_module):
    return benchmark_module("_fat_artifacts_models")


@pytest.mark.parametrize("name", ["conv_small", "bert_small"])
def test_models_compute_something_and_their_inputs_are_the_same_everywhere(models, name):
    runtime = pytest.importorskip("onnxruntime")
    proto = models.MODELS[name].make()
    onnx.checker.check_model(proto)
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, models.feeds(name, 2))
    assert found.shape[0] == 2
    assert 0.01 < np.abs(found).max() < 100
    np.testing.assert_array_equal(models.feeds(name, 4)["x"], models.feeds(name, 4)["x"])


@pytest.mark.parametrize(
    ("gpu", "found"), [("SM90", "SM89"), ("SM89", "SM89"), ("SM86", "SM80"), ("SM75", "SM80"), ("SM121", "SM120")]
)
def test_the_best_target_is_the_own_one_then_the_nearest_older_then_the_nearest_newer(work, gpu, found):
    assert work.best(("SM120", "SM80", "SM89"), gpu) == found


def test_what_is_wanted_of_the_cases_on_a_gpu_that_no_engine_names(work):
    wanted = {case.name: work.wanted(case, "SM90") for case in work.cases("SM90", ALL)}
    assert wanted == {
        "three targets and another version": (("SM89",), 0),
        "an older and a newer target": (("SM80",), 0),
        "the best one is damaged": (("SM80",), 0),
        "all are damaged": ((), 3),
        "the best one takes batches to 4 only": (("SM89", "SM80"), 0),
        "the same, one engine in memory": (("SM89",), 1),
        "another version only": ((), 3),
        "a newer target only": (("SM120",), 0),
        "one for this very GPU, too": (("SM90",), 0),
    }


def test_what_is_wanted_on_other_gpus(work):
    ampere = {case.name: work.wanted(case, "SM80") for case in work.cases("SM80", ALL)}
    assert ampere["the best one is damaged"] == (("SM89",), 0)
    assert ampere["the same, one engine in memory"] == (("SM80",), 0)
    assert work.wanted(work.cases("SM120", ALL)[0], "SM120") == (("SM120",), 0)


def test_cases_without_their_engine_are_left_out(work):
    names = [case.name for case in work.cases("SM90", [name for name in ALL if name not in ("own", "other")])]
    assert len(names) == 7
    assert "another version only" not in names
    assert "one for this very GPU, too" not in names


def case_row(**more):
    return {
        "case": "c", "engines": ["SM80", "own"], "damaged": ["SM80"], "wanted": ["SM90"], "wanted_native": 0,
        "refusable": False, "tolerance": 1e-2, "used": ["SM90"], "difference": 3.6e-4, "calls": 3, "native_calls": 0,
        **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "good"),
    [
        ({}, True),
        ({"difference": 0.02}, False),
        ({"difference": float("nan")}, False),
        ({"used": ["SM80"]}, False),
        ({"native_calls": 1}, False),
        ({"used": [], "native_calls": 3}, False),
        ({"used": [], "native_calls": 3, "refusable": True}, True),
    ],
)
def test_a_case_ends_as_wanted_or_not(work, more, good):
    assert work.as_wanted(case_row(**more)) is good


def timed_row(model, variant, turn, milliseconds, **more):
    return {
        "round": turn, "model": model, "precision": "FP16", "variant": variant, "MB": 1.25, "load_cold_s": 1.0,
        "load_warm_s": 0.1, "calls": 9, "engine_calls": 9, "native_calls": 0, "batch1_first_ms": 5.0,
        "batch1_gpu_ms": milliseconds, "batch16_first_ms": 6.0, "batch16_gpu_ms": 2 * milliseconds, **more,
    }  # fmt: skip


def document(*rows, cases=None):
    return {"gpu_target": "SM90", "tensorrt": "1.2", "cases": cases or [case_row()], "rows": list(rows)}


def test_tables_facts_and_chart(script):
    told = document(
        timed_row("m", "own", 0, 1.0), timed_row("m", "together", 0, 1.25), timed_row("m", "own", 1, 1.5),
        timed_row("m", "together", 1, 1.25, MB=None),
    )  # fmt: skip
    text = script.render(told)
    assert "| c        | SM80 (damaged), SM90 | SM90 | 0 of 3       | 3.6e-04      | yes       |" in text
    assert "1.000 .. 1.500" in text
    assert text.endswith("PASS: every case ended as wanted, and every timed call ran its engine.")
    facts = script.facts(told)
    assert (facts["right"], facts["cases"], facts["runs"], facts["comparisons"]) == ("1", "1", "2", "2")
    assert (facts["variants_most"], facts["rounds_most"], facts["together"]) == ("0", "50", "0.0 % less")
    assert dict(script.plots(told)["gpu"].series) == {"together": [2.5], "own": [2.5]}


def test_what_went_wrong_is_told(script):
    told = document(
        timed_row("m", "SM80", 0, 1.0, native_calls=2), timed_row("m", "together", 0, 2.0),
        cases=[case_row(used=["SM80"])],
    )  # fmt: skip
    text = script.render(told)
    assert "FAILED: c: wanted SM90, 0 native calls, at most 1e-02 of difference" in text
    assert "FAILED: m, SM80: calls ran natively" in text
    assert "PASS" not in text
    assert script.facts(told)["together"] == "50.0 % less"
    assert script.facts(told)["fastest"] == "SM80 2"


def test_a_bundle_is_unpacked_for_a_while(models, tmp_path):
    with pytest.raises(SystemExit, match=r"no fat_artifacts\.tar\.xz in .*make it with"), models.unpacked(tmp_path):
        pass
    (tmp_path / "a").write_text("1")
    with tarfile.open(tmp_path / models.ARCHIVE, "w:xz") as archive:
        archive.add(tmp_path / "a", "m/SM80/a")
    with models.unpacked(tmp_path) as place:
        assert (place / "m" / "SM80" / "a").read_text() == "1"
    assert not place.exists()


def test_a_machine_without_a_gpu_is_told_in_one_line(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("rewriter.runtime.device.missing_gpu", lambda: "no GPU")
    assert script.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: this needs a GPU: no GPU\n"


def test_rounds_must_be_some(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), "--rounds", "0"])
    assert "--rounds must be at least 1" in capsys.readouterr().err
