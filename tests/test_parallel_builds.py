"""The parts of `benchmarks/parallel_builds.py` that build nothing: tables, verdict, options, models, memory."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")
#: Watches one child that takes 64 MiB, until it is seen with them.
WATCHED = """
import json, subprocess, sys
sys.path.insert(0, ".")
from _parallel_builds_work import Watch
code = "block = bytearray(64 << 20); print(1, flush=True); input()"
with Watch() as watch:
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    while not watch.told()["child_mib"] or watch.told()["child_mib"] < 64:
        assert child.poll() is None
    child.communicate(b"\\n")
print(json.dumps(watch.told()))
"""


@pytest.fixture(scope="module")
def script(benchmark_module):
    return benchmark_module("parallel_builds")


def row(kind, jobs, seconds, sha256="a", **more):
    return {
        "kind": kind, "jobs": jobs, "run": 0, "seconds": seconds, "engines": 4, "MB": 2.4, "sha256": sha256,
        "children": jobs, "child_mib": 200.0 + jobs, **more,
    }  # fmt: skip


def document(*rows):
    child = {"start_s": 0.123, "idle_mib": 132.0, "version": "1.2"}
    return {"environment": {"cpus": 2}, "child": child, "rows": list(rows)}


def test_each_number_of_jobs_is_compared_with_the_least_of_its_run(script):
    told = document(
        *(row("blocks", 2, seconds, run=run) for run, seconds in enumerate((4.0, 2.0, 1.0))),
        *(row("blocks", 1, seconds, run=run) for run, seconds in enumerate((4.0, 9.0, 2.0))),
        row("weights", 1, 5.0), row("weights", 2, 5.0),
    )  # fmt: skip
    first, second, *_ = script.lines(told)
    assert (first["jobs"], first["seconds, median"], first["lowest .. highest"]) == (1, 4.0, "2.00 .. 9.00")
    assert (second["jobs"], second["times as fast as jobs 1"], second["children"], second["child MiB"]) == (
        2,
        2.0,
        2,
        202,
    )
    text = script.render(told)
    assert "PASS: the engines are the same byte for byte" in text
    assert "there after 0.12 s, 132 MiB." in text
    facts = script.facts(told)
    assert (facts["least"], facts["most"], facts["jobs"], facts["cores"]) == ("1.0", "2.0", "2", "2")
    assert facts["equal"] == "engines the same byte for byte"
    chart = script.plots(told)["seconds"]
    assert dict(chart.series) == {"jobs=1": [4.0, 5.0], "jobs=2": [2.0, 5.0]}


def test_engines_that_depend_on_jobs_are_a_failure(script):
    told = document(row("targets", 1, 2.0), row("targets", 2, 1.0, "b"))
    assert script.different(told) == ["engines of several targets: 2 different sets of engines with jobs 1, 2"]
    assert "FAILED: engines of several targets" in script.render(told)
    assert "PASS" not in script.render(told)


def test_memory_that_is_not_known_is_left_out(script):
    told = document(row("blocks", 1, 2.0, children=None, child_mib=None))
    told["child"]["idle_mib"] = None
    assert "there after 0.12 s." in script.render(told)
    assert "idle" not in script.facts(told)
    assert script.lines(told)[0]["child MiB"] is None


@pytest.mark.parametrize(("cores", "jobs"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_jobs_go_up_to_the_cores(script, cores, jobs):
    assert script.powers(cores) == jobs


@pytest.mark.parametrize("words", [["--runs", "0"], ["--jobs", "0"], ["--jobs", "2", "2"], ["--only", "none"]])
def test_options_that_measure_nothing_are_refused(script, words, capsys):
    with pytest.raises(SystemExit):
        script._parse(words)
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "size", "nodes"), [("blocks", 2, 11), ("weights", 1, 4)])
def test_a_chain_has_an_operator_between_its_segments_that_tensorrt_has_not(benchmark_module, kind, size, nodes):
    model = benchmark_module("_parallel_builds_work").chain(kind, 3, size)
    onnx.checker.check_model(model)
    assert len(model.graph.node) == 3 * nodes
    assert [node.domain for node in model.graph.node].count("ai.onnx.ml") == 3
    if kind == "weights":
        assert sum(len(weight.raw_data) for weight in model.graph.initializer) >= 3 * 2**20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory of processes is read from /proc")
def test_the_memory_of_a_child_is_its_own():
    """In a process of its own: this one may have children of other tests."""
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, cwd=BENCHMARKS, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["children"] >= 1
    assert 64 <= told["child_mib"] < 128
