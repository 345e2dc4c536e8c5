"""The parts of `benchmarks/rivals.py` that need no GPU, torch or JAX: a model's steps, the plan, the runner, tables."""

import json
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def model_of(nodes, inputs, outputs, **weights):
    """A model of opset 18; inputs map names to (type, shape), outputs name float32 values."""
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", given, found, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_shape_arithmetic_is_folded_for_fixed_shapes(benchmark_module):
    graph = benchmark_module("_rivals_graph")
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"], axis=0),
        helper.make_node("Concat", ["rows", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    model = model_of(
        nodes, {"x": (TensorProto.FLOAT, ["batch", 2, 3])}, ["y"], zero=np.array([0]), rest=np.array([-1])
    )  # fmt: skip
    program = graph.program_of(graph.fixed(model, {"x": (4, 2, 3)}))
    assert [(step.op, step.arguments) for step in program.steps] == [("Reshape", {"shape": (4, 6)})]
    assert (program.inputs, program.outputs, dict(program.weights)) == (("x",), ("y",), {})


def test_static_operands_become_arguments_and_padding_is_written_out(benchmark_module):
    graph = benchmark_module("_rivals_graph")
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[2, 2], auto_pad="SAME_UPPER"),
        helper.make_node("Clip", ["c", "", "six"], ["k"]),
        helper.make_node("ReduceMean", ["k", "axes"], ["m"], keepdims=0),
        helper.make_node("Slice", ["m", "start", "end", "axis"], ["y"]),
    ]
    model = model_of(
        nodes, {"x": (TensorProto.FLOAT, ["n", 1, 8, 9])}, ["y"], kernel=np.ones((5, 1, 3, 3), np.float32),
        six=np.float32(6), axes=np.array([-1, 2]), start=np.array([1]), end=np.array([-1]), axis=np.array([1]),
    )  # fmt: skip
    program = graph.program_of(graph.fixed(model, {"x": (2, 1, 8, 9)}))
    assert [(step.op, step.inputs) for step in program.steps] == [
        ("Conv", ("x", "kernel")),
        ("Clip", ("c",)),
        ("ReduceMean", ("k",)),
        ("Slice", ("m",)),
    ]
    conv, clip, mean, cut = (step.arguments for step in program.steps)
    # 8 -> 4 needs one more row than there is, behind; 9 -> 5 one column on each side.
    assert conv == {"strides": (2, 2), "dilations": (1, 1), "pads": ((0, 1), (1, 1)), "group": 1}
    assert clip == {"low": -np.inf, "high": 6.0}
    assert mean == {"axes": (3, 2), "keepdims": False}
    assert cut == {"cuts": (slice(None), slice(1, 4, 1))}
    assert set(program.weights) == {"kernel"}


def test_a_node_without_a_step_is_named(benchmark_module):
    graph = benchmark_module("_rivals_graph")
    model = model_of([helper.make_node("Det", ["x"], ["y"], name="odd")], {"x": (TensorProto.FLOAT, [2, 2])}, ["y"])
    with pytest.raises(graph.UnknownOperatorError, match="no step for Det \\('odd'\\)"):
        graph.program_of(graph.fixed(model, {"x": (2, 2)}))


def test_half_clips_what_float16_cannot_hold_and_keeps_the_ends_float32(benchmark_module):
    graph = benchmark_module("_rivals_graph")
    nodes = [
        helper.make_node("Cast", ["mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "low"], ["shift"]),
        helper.make_node("Add", ["x", "shift"], ["y"]),
    ]
    inputs = {"x": (TensorProto.FLOAT, [2, 3]), "mask": (TensorProto.BOOL, [2, 3])}
    model = graph.as_half(graph.fixed(model_of(nodes, inputs, ["y"], low=np.float32(-1e9)), {"x": (2, 3)}))
    x, mask = np.ones((2, 3), np.float32), np.array([[True, False, False], [False, True, False]])
    session = pytest.importorskip("onnxruntime").InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x, "mask": mask})
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, np.where(mask, -65504.0, 1), rtol=1e-3)


def told(rivals, tmp_path, *hows):
    cases = [{"place": place, "how": how} for place, how in enumerate(hows)]
    return {
        "part": "speed", "work": "fail", "model": "unet", "folder": str(tmp_path), "device": "cpu", "batches": [1],
        "alone": True, "case_seconds": 0.7, "seconds": 60.0, "environment": {}, "cases": cases,
        "timing": {"calls": 0, "warmup": 0, "seconds": 1.0},
    }  # fmt: skip


def test_what_raises_crashes_or_hangs_costs_its_own_row(benchmark_module, tmp_path):
    rivals, rows = benchmark_module("rivals"), []
    group = told(rivals, tmp_path, "good", "raise", "exit", "hang", "good")
    rivals.run_groups([group], 1, time.perf_counter() + 60, rows.extend)
    found = {row["place"]: row for row in rows}
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert found[0]["us"] == found[4]["us"] == 1.0
    assert found[1]["failed"] == "RuntimeError: told to"
    assert found[2]["failed"].startswith("exit status 3")
    assert found[3]["failed"] == "no end after 1 s"
    assert {row["model"] for row in rows} == {"unet"}


def test_a_process_that_never_starts_fails_all_its_cases_at_once(benchmark_module, tmp_path):
    rivals, rows, starts = benchmark_module("rivals"), [], []

    def run(group, seconds):
        starts.append(len(group["cases"]))
        return [], "exit status 1: no such package"

    rivals.run_groups([told(rivals, tmp_path, "good", "good")], 1, time.perf_counter() + 60, rows.extend, run)
    assert starts == [2]
    assert [row["failed"] for row in rows] == ["exit status 1: no such package"] * 2


def test_nothing_is_begun_when_the_time_is_over(benchmark_module, tmp_path):
    rivals, rows = benchmark_module("rivals"), []
    rivals.run_groups([told(rivals, tmp_path, "good")], 1, time.perf_counter(), rows.extend, None)
    assert [row["failed"] for row in rows] == ["not begun: the time for all was over"]


def test_the_plan_covers_every_system_and_each_case_has_its_own_place(benchmark_module, tmp_path):
    rivals = benchmark_module("rivals")
    options = rivals._parse([str(tmp_path)])
    groups = rivals.timed_groups(options)
    assert {group["work"] for group in groups} == {
        "ours", "chain", "transposes", "compile", "onnxruntime", "torch", "jax", "smoke",
    }  # fmt: skip
    for model in rivals.MODELS:
        cases = [case["place"] for group in groups if group["model"] == model for case in group["cases"]]
        assert len(set(cases)) == len(cases)
    ours = {case["precision"] for g in groups if (g["work"], g["model"]) == ("ours", "vit") for case in g["cases"]}
    assert ours == {"TF32", "FP16", "BF16", "INT8", "FP8"}
    assert all(group["alone"] for group in groups)
    converted = [
        (g["model"], g["cases"][0]["precision"], g["cases"][0]["cancel"]) for g in rivals.convert_groups(options)
    ]
    assert len(set(converted)) == len(converted)
    assert {("EfficientNetB0", "FP16", on) for on in (True, False)} | {("chain7", "FP32", False)} <= set(converted)
    json.dumps(groups)


def test_calls_are_timed_in_rounds_and_slow_ones_less_often(benchmark_module):
    workers = benchmark_module("_rivals_workers")
    calls = []
    found = workers.timed(lambda: calls.append(1), lambda: None, workers.Timing(calls=50, warmup=5, seconds=10.0))
    assert found["calls"] == 50
    assert found["p10"] <= found["us"] <= found["p90"]
    assert len(calls) == 3 + 1 + 5 + 2 * 50
    few = workers.timed(lambda: None, lambda: None, workers.Timing(calls=50, warmup=5, seconds=0.0))
    assert few["calls"] == 20
    assert workers.timed(calls.clear, calls.clear, workers.Timing(calls=0, warmup=0, seconds=1.0)) == {}


def test_rows_of_an_earlier_run_stay_unless_they_are_measured_again(benchmark_module, tmp_path):
    rivals, kept = benchmark_module("rivals"), benchmark_module("_rivals_kept")
    earlier = {
        "question": rivals.QUESTION, "environment": {"date": "yesterday"},
        "rows": [
            speed("ours", "FP16", 1, 100.0), speed("JAX", "FP16", 1, 200.0), speed("torch", "FP16", 1, 300.0),
            {**speed("JAX", "FP16", 8, 0.0), "failed": "not begun"},
            {"part": "convert", "model": "unet", "precision": "FP16", "cancel": True},
        ],
    }  # fmt: skip
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    out = tmp_path / "new.json"
    options = rivals._parse(
        [str(tmp_path / "not" / "there"), "--merge", str(tmp_path / "earlier.json"), "--json", str(out)]
    )
    rows = kept.Kept(options, rivals.QUESTION, rivals.MODELS)
    rows.add([
        speed("JAX", "FP16", 1, 20.0), speed("JAX", "FP16", 8, 30.0),
        {"part": "speed", "model": "unet", "system": "torch", "precision": "FP16", "batch": 1, "failed": "no end"},
        {"part": "convert", "model": "unet", "precision": "FP16", "cancel": False},
    ])  # fmt: skip
    found = json.loads(out.read_text())
    times = {(r["system"], r["batch"]): r["us"] for r in found["rows"] if r["part"] == "speed"}
    assert times == {("ours", 1): 100.0, ("JAX", 1): 20.0, ("torch", 1): 300.0, ("JAX", 8): 30.0}
    assert not any("failed" in row for row in found["rows"])
    assert {row["cancel"] for row in found["rows"] if row["part"] == "convert"} == {True, False}
    assert [run["environment"] for run in found["merged"]] == [{"date": "yesterday"}]
    assert "merge" not in found["options"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"question": "another"}'])
def test_what_cannot_be_merged_is_told_at_once(benchmark_module, tmp_path, text):
    rivals, path = benchmark_module("rivals"), tmp_path / "earlier.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=r"^Error: --merge .*earlier\.json (cannot be read|was not written)"):
        benchmark_module("_rivals_kept").Kept(rivals._parse([str(tmp_path), "--merge", str(path)]), rivals.QUESTION, ())


def test_max_autotune_is_compiled_before_anything_is_timed(benchmark_module, tmp_path):
    rivals = benchmark_module("rivals")
    options = rivals._parse([str(tmp_path), "--parts", "jax", "max_autotune"])
    prepared, timed = (make(options) for make in (rivals.compile_groups, rivals.timed_groups))
    for groups in (prepared, timed):
        modes = [(g["work"], g["model"]) for g in groups for case in g["cases"] if case.get("mode") == "max-autotune"]
        assert modes == [("compile", model) for model in rivals.MODELS]
    assert [group["work"] for group in timed] == ["jax"] * 5 + ["compile"] * 5


def speed(system, precision, batch, us, **more):
    figures = {"us": us, "p10": us * 0.9, "p90": us * 1.1, "in a row": us / 2, "difference": 1e-3}
    return {
        "part": "speed", "model": "unet", "system": system, "precision": precision, "batch": batch, **figures, **more
    }  # fmt: skip


DOCUMENT = {
    "models": {"unet": "U-Net of a test"},
    "rows": [
        speed("ours", "FP16", 1, 100.0),
        speed("torch compile", "FP16", 1, 150.0),
        speed("ORT, graph", "FP16", 1, 300.0),
        speed("ours", "FP16", 8, 400.0, note="no engine fits"),
        speed("JAX", "FP16", 8, 200.0),
        {"part": "speed", "model": "unet", "system": "torch eager", "precision": "FP16", "batch": 8,
         "failed": "no memory"},
        {"part": "compile", "model": "unet", "system": "torch compile", "precision": "FP16", "batch": 1,
         "first call s": 9},
        {"part": "convert", "model": "unet", "precision": "FP16", "cancel": False, "seconds": 3.0, "engines": 1,
         "segments": 1, "coverage": 1.0, "arithmetic": {"FP16": 41}},
        {"part": "transposes", "model": "unet", "precision": "FP16", "batch": 1, "transposes without": 2,
         "transposes with": 1, "without us": 110.0, "with us": 100.0, "without, in a row": 90.0,
         "with, in a row": 90.0},
        {"part": "transposes", "model": "vit", "precision": "FP16", "batch": 1, "transposes without": 74,
         "transposes with": 74},
        {"part": "chain", "model": "chain", "system": "ours, 7 steps, graph", "us": 60.0, "p10": 1.0, "p90": 2.0,
         "in a row": 3.0},
        {"part": "chain", "model": "chain", "system": "ORT, eager", "us": 100.0, "p10": 1.0, "p90": 2.0,
         "in a row": 3.0},
        {"part": "smoke", "model": "unet", "command": ["bench", "x"], "status": 0, "seconds": 2.0, "said": "done"},
    ],
}  # fmt: skip


def test_the_tables_tell_figures_ratios_verdicts_and_failures(benchmark_module):
    text = benchmark_module("rivals").render(DOCUMENT)
    assert "### U-Net of a test" in text
    assert "| torch compile: 1.50" in text
    assert "| JAX: 0.50" in text
    assert "MISS: 7 steps in a graph take 0.600 of the time of ORT, eager (wanted <= 0.5)" in text
    assert "2 -> 1" in text
    assert "1.100" in text
    assert "74 -> 74" in text
    assert "nothing to cancel" in text
    assert "no memory" in text
    assert "fell back: no engine fits" in text
    assert "trt-rewriter bench x" in text


def test_merged_runs_are_told(benchmark_module):
    more = {"merged": [{"environment": {"date": "2026-01-02 03:04"}}], "options": {"parts": ["jax", "chain"]}}
    assert (
        benchmark_module("rivals")
        .render(DOCUMENT | more)
        .startswith(
            "The last run measured again: jax, chain; rows that it did not make are those of 2026-01-02 03:04 UTC."
        )
    )


def test_facts_and_charts_come_from_the_same_rows(benchmark_module):
    rivals = benchmark_module("rivals")
    facts = rivals.facts(DOCUMENT)
    assert (facts["fp16_cells"], facts["fp16_faster"]) == ("2", "1")
    assert (facts["fp16_least"], facts["fp16_most"], facts["chain_ratio"]) == ("0.50", "1.50", "0.60")
    charts = rivals.plots(DOCUMENT)
    assert sorted(charts) == ["fp16_batch1", "fp16_batch8", "relative"]
    assert charts["relative"].series["FP16"] == [1.5, 0.5]
    assert charts["fp16_batch1"].series == {
        "ours": [100.0], "torch compile (best mode)": [150.0], "ORT, graph (best layout)": [300.0],
    }  # fmt: skip
    assert rivals.plots({"models": {}, "rows": []}) == {}
    assert rivals.facts({"models": {}, "rows": []}) == {}


def test_others_are_shown_at_their_best_and_their_cases_are_counted(benchmark_module):
    rows = [
        speed("ours", "FP16", 1, 100.0), speed("ORT, graph", "FP16", 1, 300.0),
        speed("ORT NHWC, graph", "FP16", 1, 200.0), speed("torch compile", "FP16", 1, 90.0),
        speed("torch compile, max-autotune", "FP16", 1, 80.0), speed("ours", "FP16", 8, 100.0),
        speed("ORT", "FP16", 8, 400.0), speed("ORT NHWC", "FP16", 8, 500.0),
        speed("JAX", "FP16", 8, 1.0, difference=float("nan")),
    ]  # fmt: skip
    rivals, document = benchmark_module("rivals"), {"models": {}, "rows": rows}
    charts = rivals.plots(document)
    assert charts["fp16_batch1"].series["ORT, graph (best layout)"] == [200.0]
    assert charts["fp16_batch1"].series["torch compile (best mode)"] == [80.0]
    assert charts["fp16_batch8"].series["ORT (best layout)"] == [400.0]
    told = "ONNX Runtime 2 of 2, PyTorch 1 of 2 (its max-autotune 1), XLA (JAX) 0 of 2"
    assert rivals.facts(document)["fp16_measured"] == told
    assert charts["relative"].title.endswith(f"Cases measured, FP16: {told}")
    assert charts["relative"].series["FP16"] == [0.8, 4.0]
    text = rivals.render(document)
    table = text[text.index("### The others' time over ours in FP16, one call") :]
    assert f"above 1, ours is quicker. Empty: not measured. Cases measured: {told}." in table
    assert "torch eager" not in table.split("###")[1]


@pytest.mark.parametrize(
    ("difference", "shown", "why"),
    [
        (float("inf"), "inf (!)", "difference inf: the result is no number"),
        (float("nan"), "nan (!)", "difference nan: the result is no number"),
        (0.3, "3.0e-01 (!)", "differs by more than 0.1"),
    ],
)
def test_a_result_that_is_far_off_is_marked_and_told(benchmark_module, difference, shown, why):
    rows = [speed("ours", "FP8", 1, 9.0), speed("ours", "FP8", 8, 9.0, difference=difference)]
    text = benchmark_module("rivals").render({"models": {}, "rows": rows})
    assert shown in text
    assert "| speed | unet FP8 ours | 8     | " + why in text
    assert "Without figures" not in benchmark_module("rivals").render({"models": {}, "rows": rows[:1]})


def test_what_has_no_batch_has_an_empty_cell(benchmark_module):
    row = {"part": "smoke", "model": "unet", "failed": "not begun"}
    text = benchmark_module("rivals").render({"models": {}, "rows": [row, row]})
    assert "| smoke | unet |       | not begun |" in text


def test_each_table_stands_once(benchmark_module):
    headings = [line for line in benchmark_module("rivals").render(DOCUMENT).splitlines() if line.startswith("### ")]
    assert len(set(headings)) == len(headings)


def test_the_models_have_inputs_that_differ_and_repeat(benchmark_module):
    models = benchmark_module("_rivals_models")
    rivals = benchmark_module("rivals")
    assert {*rivals.MODELS, *rivals.TRANSPOSED} == set(models.MODELS) == set(models.ABOUT)
    for name in models.MODELS:
        one, again, other = (models.feeds_of(name, 1, number) for number in (1, 1, 2))
        for key, value in one.items():
            np.testing.assert_array_equal(value, again[key])
            assert len(value) == 1
        assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_transposes_inside_functions_and_branches_are_counted(benchmark_module, tmp_path):
    ours = benchmark_module("_rivals_ours")
    turn = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])
    model = model_of([turn], {"x": (TensorProto.FLOAT, [2, 2])}, ["y"])
    body = helper.make_graph([turn], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
    model.functions.append(helper.make_function("d", "f", ["x"], ["y"], [turn], [helper.make_opsetid("", 18)]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert ours.transposes_in(tmp_path) == 4
