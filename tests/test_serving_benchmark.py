"""What serving.py of benchmarks/ does besides measuring: tables, facts, verdicts, loops of clients, its protocol."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")


@pytest.fixture(scope="module")
def serving(benchmark_module):
    return benchmark_module("serving")


@pytest.fixture(scope="module")
def report(benchmark_module):
    return benchmark_module("_serving_report")


@pytest.fixture(scope="module")
def loops(benchmark_module):
    return benchmark_module("_serving_loops")


def spread(middle):
    return {"middle": middle, "low": middle / 2, "high": middle * 2}


def request(path, ms, adds, model="digits", worst=0.0):
    times = spread(ms / 0.05)
    figures = {"ms": spread(ms), "adds_ms": spread(adds), "times": times, "worst": worst}
    return {"model": model, "environment": "ray", "path": path, **figures}


@pytest.fixture
def document():
    rate = {"model": "digits", "path": "Ray HTTP", "single": spread(1000.0), "joined": spread(2000.0), "worst": 1e-6}
    times = {"loop_s": spread(2.0), "loop_all_s": spread(1.5), "actors_s": spread(4.0), "ratio": spread(0.5)}
    kills = {"answered": 90, "lost": 0, "worst": 0.0}
    calibration = {"rows": 32, "batch": 4, "tensors": 5, "one_s": 6.0, "actors_s": 4.0, "equal": True}
    return {
        "versions": {"ray": {"ray": "2.0", "onnxruntime": "1.0", "numpy": "2.4"}},
        "apart": {"ray": {"digits": 0.9}},
        "rows": [request("in process", 0.05, 0.0), request("Ray handle", 3.05, 3.0), request("Ray HTTP", 8.05, 8.0)],
        "rates": [
            {**rate, "clients": 1, "ratio": spread(0.5), "rows_of_a_run": 1.0},
            {**rate, "clients": 8, "ratio": spread(2.0), "rows_of_a_run": 6.4},
        ],
        "data": [{"model": "digits", "rows": 4000, "batch": 64, **times, "once": True, "worst": 0.0}],
        "calibration": [calibration],
        "kills": {"kills": 3, "clients": 4, "retries": 5, "sure": kills, "once": {**kills, "answered": 98, "lost": 2}},
        "ends": {"triton": {"status": 0, "left": 0}, "ray": True},
        "left_out": ["triton: --triton-python names no Python that has it"],
    }


def test_tables_tell_everything(serving, document):
    text = serving.render(document)
    for line in (
        "Ray 2.0 (ONNX Runtime 1.0, numpy 2.4). Medians",
        "| digits | in process (Ray's environment) | 0.05 (0.025 .. 0.1) |",
        "| digits | Ray HTTP                       | 8.05 (4.03 .. 16.1) | 8.00 (4.00 .. 16.00) | 161",
        "| digits |       8 | Ray HTTP | 1000              | 2000          | 2.00 (1.00 .. 4.00) | 6.4           |",
        "| digits | 4000 |    64 | 2                 | 1.5                | 4           | 0.50 (0.25 .. 1.00)",
        "|     1 |   32 |     4 |       5 | 6             | 4          | yes        |",
        "| 4, with the retry |     3 |       90 |    0 | 5           |",
        "Left out: triton: --triton-python names no Python that has it.",
        "PASS: every answer is that of `load()` in the same run (at most 1e-06 from it).",
    ):
        assert line in text
    assert "FAILED" not in text


def test_what_the_script_prints_is_what_the_kept_figures_render_to(serving, document):
    rows = document["rows"]
    measured = {name: value for name, value in document.items() if name != "rows"} | {"latency": rows}
    assert serving.render(measured) == serving.render(json.loads(json.dumps(document)))


def test_facts_and_chart(serving, document):
    found = serving.facts(document)
    told = {name: value for name, value in found.items() if value != "not measured"}
    assert told == {
        "digits_ray_adds": "3.0 to 8.0", "digits_ray_times": "61.00 to 161.00", "digits_ray_alone": "0.5",
        "digits_ray_joined": "2.0", "kills": "3", "lost_sure": "0", "asked_sure": "90", "lost_once": "2",
        "asked_once": "100", "calibration": "1.50", "equal": "at most 1e-06 from it",
    }  # fmt: skip
    assert found["digits_triton_adds"] == found["ResNet50_ray_joined"] == "not measured"
    chart = serving.plots(document)["request"]
    assert chart.groups == ["digits"]
    assert chart.series == {"in process": [0.05], "Ray handle": [3.05], "Ray HTTP": [8.05]}


def test_facts_of_one_server_are_not_those_of_the_other(serving, document):
    document["rows"] += [{**request("Triton gRPC", 0.85, 0.8), "environment": "triton"}]
    document["rows"] += [{**request("in process", 0.06, 0.0), "environment": "triton"}]
    found = serving.facts(document)
    assert found["digits_ray_adds"] == "3.0 to 8.0"
    assert found["digits_triton_adds"] == "0.8"
    assert serving.plots(document)["request"].series["in process"] == [0.05]


def test_what_was_not_measured_is_not_told(serving, document):
    for name in ("data", "calibration", "kills"):
        del document[name]
    document["ends"] = {}
    text = serving.render(document)
    assert "### Several clients" in text
    assert "### Calibration" not in text
    assert "Replicas" not in text
    assert serving.facts(document)["kills"] == "not measured"
    assert serving.plots({**document, "rows": []}) == {}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d["rows"][1].update(worst=0.1), "digits, Ray handle: an answer differs from that"),
        (lambda d: d["rates"][0].update(worst=float("nan")), "digits, Ray HTTP: an answer differs"),
        (lambda d: d["data"][0].update(worst=float("inf")), "digits, map_batches: an answer differs"),
        (lambda d: d["kills"]["once"].update(worst=1.0), "kills, once: an answer differs"),
        (lambda d: d["apart"]["ray"].update(digits=0.0), "digits: answers to different requests are only 0"),
        (lambda d: d["data"][0].update(once=False), "digits: rows were lost or doubled"),
        (lambda d: d["calibration"][0].update(equal=False), "calibration: the actors' table is not"),
        (lambda d: d["kills"]["sure"].update(lost=2), "kills: the clients with the retry lost 2 requests"),
        (lambda d: d["ends"]["triton"].update(left=1), "Triton's end: exit status 0, 1 blocks of shared memory left"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(serving, report, document, spoil, words):
    assert report.failures(document) == []
    spoil(document)
    (found,) = report.failures(document)
    assert found.startswith(words)
    assert f"FAILED {found}" in serving.render(document)
    assert "PASS" not in serving.render(document)


def test_equal_bits_are_told(serving, document):
    for row in document["rates"]:
        row["worst"] = 0.0
    assert "that of `load()` in the same run (bit for bit)." in serving.render(document)


def test_mean_rows_of_a_run(serving):
    assert serving.mean_rows([{"1": 2, "8": 1}, {"2": 2}]) == pytest.approx(14 / 5)
    assert serving.mean_rows([{}]) is None


def test_spread_is_median_least_and_most(serving):
    assert serving.spread([3.0, 1.0, 10.0]) == {"middle": 3.0, "low": 1.0, "high": 10.0}


@pytest.fixture
def asked(loops):
    """A model that doubles: three requests of one row."""
    requests = tuple({"x": np.full((1, 2), value, np.float32)} for value in (1, 2, 3))
    expected = tuple({"y": 2 * each["x"]} for each in requests)
    return loops.Asked("double", Path("double"), requests, expected, lambda inputs: {"y": 2 * inputs["x"]})


def test_differences_are_seen_and_triton_s_shapes_are_allowed(asked):
    assert asked.worst({0: [{"y": np.full((1, 2, 1), 2.0)}], 2: [asked.expected[2]]}) == 0
    assert asked.worst({0: [asked.expected[0], asked.expected[1]]}) == 1
    assert asked.worst({0: [{"y": np.full((2, 1), 2.0)}]}) == float("inf")
    assert asked.worst({}) == 0
    assert asked.apart() == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_one_client_asks_one_after_the_other(loops, asked):
    found = loops.one_client(asked, asked.call, 7)
    assert len(found["seconds"]) == 7
    assert found["worst"] == 0
    assert loops.one_client(asked, lambda inputs: {"y": inputs["x"]}, 4)["worst"] == 0.5


def test_clients_share_the_requests_out(loops, asked):
    told = iter([{1: 5}, {1: 7, 3: 2}])
    found = loops.many_clients(asked, lambda: asked.call, 3, 12, lambda: next(told))
    assert (found["requests"], found["worst"], found["runs"]) == (12, 0, {"1": 2, "3": 2})
    assert found["seconds"] > 0


@pytest.mark.parametrize("first", [True, False])
def test_a_client_that_fails_is_an_error(loops, asked, first):
    calls = iter(range(100))

    def call(inputs):
        if first or next(calls) > 3:
            raise ValueError("no answer")
        return asked.call(inputs)

    with pytest.raises(RuntimeError, match="double, 2 clients: ValueError: no answer"):
        loops.many_clients(asked, lambda: call, 2, 8, dict)


WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from _serving_loops import obey, private_output
channel = private_output()
def add(a, b):
    print("noise")
    return a + b
obey({"add": add}, channel)
"""


def test_a_worker_answers_each_line_and_tells_failures():
    asked = '{"do": "add", "a": 1, "b": 2}\n{"do": "add", "a": 1, "b": "x"}\n'
    done = subprocess.run(
        [sys.executable, "-c", WORKER, BENCHMARKS], input=asked, capture_output=True, text=True, check=True, timeout=60
    )
    good, bad = map(json.loads, done.stdout.splitlines())
    assert good == {"ok": 3}
    assert bad["error"].startswith("TypeError: unsupported operand")
    assert "noise" in done.stderr


def test_a_worker_that_ends_is_told_with_what_it_printed(serving, tmp_path, monkeypatch):
    script = tmp_path / "_serving_triton.py"
    script.write_text("import sys; sys.exit('there is no server')")
    monkeypatch.setattr(serving, "__file__", str(tmp_path / "serving.py"))
    worker = serving.Worker("triton", sys.executable, tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)facts .*the process ended:.*there is no server"):
        worker.ask("facts")
    worker.close()


def test_without_both_environments_nothing_is_measured(serving, monkeypatch, capsys):
    for kind in ("RAY", "TRITON"):
        monkeypatch.delenv(f"TRT_REWRITER_{kind}_PYTHON", raising=False)
    with pytest.raises(SystemExit):
        serving.main([])
    assert "nothing to measure: give --ray-python, --triton-python or both" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        serving.main(["--ray-python", "/nowhere/python"])
    assert "there is no such file" in capsys.readouterr().err


def test_the_softmax_of_random_weights_is_cut_off(serving, benchmark_module):
    from onnx import checker, parser

    proto = parser.parse_model(
        textwrap.dedent("""\
        <ir_version: 10, opset_import: ["": 18]>
        g (float[n, 3] image) => (float[n, 3] p) { logits = Relu(image)  p = Softmax(logits) }""")
    )
    found = serving.without_softmax(proto)
    checker.check_model(found)
    assert [output.name for output in found.graph.output] == ["logits"]
    assert [node.op_type for node in found.graph.node] == ["Relu"]
