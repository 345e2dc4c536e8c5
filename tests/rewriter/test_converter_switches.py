"""TF-TRT's environment variables, and the arguments that do the same, on a whole conversion."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from rewriter.converter import Converter
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.params import ConversionParams
from rewriter.runtime.loading import load

pytestmark = pytest.mark.rtx


@pytest.fixture
def model():
    """Relu-Neg-Abs | Scaler, which TensorRT has not | Exp-Neg."""
    nodes = [
        h.make_node("Relu", ["x"], ["a"], "relu"),
        h.make_node("Neg", ["a"], ["b"], "neg"),
        h.make_node("Abs", ["b"], ["c"], "abs"),
        h.make_node("Scaler", ["c"], ["d"], "scale", domain="ai.onnx.ml", offset=[0.5], scale=[2.0]),
        h.make_node("Exp", ["d"], ["e"], "exp"),
        h.make_node("Neg", ["e"], ["y"], "out"),
    ]
    x, y = (h.make_tensor_value_info(name, T.FLOAT, ["n", 4]) for name in "xy")
    info = [h.make_tensor_value_info("d", T.FLOAT, ["n", 4])]
    graph = h.make_graph(nodes, "g", [x], [y], value_info=info)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18), h.make_opsetid("ai.onnx.ml", 3)], ir_version=10)


@pytest.fixture
def converted(model, rtx):
    def make(**options):
        converter = Converter(model=model, backend=rtx, progress=False, minimum_segment_size=1, **options)
        function = converter.convert()
        converter.build(lambda: [np.ones((2, 4), np.float32)])
        return converter, function

    return make


def nodes_of(report):
    return [e.nodes for e in report.engines]


@pytest.mark.parametrize("by_name", [True, False])
def test_max_engines_keeps_the_largest(converted, monkeypatch, by_name):
    if by_name:
        monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "1")
    converter, _ = converted(**({} if by_name else {"max_engines": 1}))
    assert nodes_of(converter.report) == [3]
    assert {v.node: v.rule for v in converter.report.native} == {
        "scale": "domain",
        "exp": "max_engines",
        "out": "max_engines",
    }


def test_there_is_no_hidden_limit(converted, monkeypatch):
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "0")
    assert nodes_of(converted()[0].report) == [3, 2]


@pytest.mark.parametrize("by_name", [True, False])
def test_denied_operators(converted, monkeypatch, by_name):
    if by_name:
        monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Relu,BiasAdd")
    converter, _ = converted(**({} if by_name else {"op_denylist": ["Relu"]}))
    assert [v.node for v in converter.report.native if v.rule == "denylist"] == ["relu"]
    notes = " ".join(converter.report.precision.notes)
    assert ("TF_TRT_OP_DENYLIST=Relu,BiasAdd" in notes) == by_name


@pytest.mark.parametrize("by_name", [True, False])
def test_a_fake_list_is_cut_and_never_built(converted, monkeypatch, tmp_path, by_name):
    if by_name:
        monkeypatch.setenv("TF_TRT_OP_FAKELIST", "Scaler")
    converter, function = converted(**({} if by_name else {"op_fakelist": ["Scaler"]}))
    (engine,) = converter.report.engines
    assert (engine.nodes, engine.built) == (6, False)
    assert "not runnable" in engine.reason
    x = np.ones((2, 4), np.float32)
    expected = -np.exp((np.abs(-x) - 0.5) * 2)
    np.testing.assert_allclose(function(x)["y"], expected, rtol=1e-6)
    converter.save(tmp_path / "out")
    with load(tmp_path / "out") as loaded:
        np.testing.assert_allclose(loaded(x)["y"], expected, rtol=1e-6)
        (reason,) = loaded.stats()["fallbacks"]
    assert reason.startswith("not runnable: ")


@pytest.mark.parametrize("by_name", [True, False])
def test_every_build_fails_on_request(converted, monkeypatch, by_name):
    if by_name:
        monkeypatch.setenv("TF_TRT_ABORT_CUDA_ENGINE_BUILD", "true")
    converter, function = converted(**({} if by_name else {"abort_builds": True}))
    assert [e.built for e in converter.report.engines] == [False, False]
    assert {f.kind for f in converter.report.failures} == {"aborted"}
    assert all("abort_builds" in e.reason for e in converter.report.engines)
    assert nodes_of(converter.report) == [3, 2], "nothing is denied for it"
    assert function(np.ones((2, 4), np.float32))["y"].shape == (2, 4)


def test_native_runs_can_be_forbidden_everywhere(converted, monkeypatch, tmp_path):
    converter, _ = converted()
    converter.save(tmp_path / "out")
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "0")
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ConversionError, match="strict: 2 engine nodes would not run on TensorRT"):
        converter.function()(x)
    with pytest.raises(ConversionError, match="strict: 2 engine nodes would not run on TensorRT"):
        load(tmp_path / "out")
    with load(tmp_path / "out", strict=False) as loaded:
        assert loaded(x)["y"].shape == (2, 4)
    with load(tmp_path / "out", execution="native") as loaded:
        assert loaded(x)["y"].shape == (2, 4)


def test_conversion_itself_works_where_native_runs_are_forbidden(converted, monkeypatch, tmp_path):
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "0")
    converter, function = converted()
    converter.save(tmp_path / "out")
    assert [e.built for e in converter.report.engines] == [True, True]
    with pytest.raises(ConversionError, match="strict"):
        function(np.ones((2, 4), np.float32))


def test_a_bad_value_is_told_before_any_work(converted, monkeypatch):
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "many")
    with pytest.raises(InvalidParameterError, match="TF_TRT_MAX_ALLOWED_ENGINES must be an integer"):
        converted()


def test_what_means_nothing_here_is_told(converted, monkeypatch):
    monkeypatch.setenv("TF_TRT_FIXED_ALGORITHM_ID", "3")
    assert any("TF_TRT_FIXED_ALGORITHM_ID has no meaning" in n for n in converted()[0].report.precision.notes)


def test_the_report_and_the_picture_are_written_on_request(converted, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", str(tmp_path / "report.csv"))
    monkeypatch.setenv("TF_TRT_EXPORT_GRAPH_VIZ_PATH", str(tmp_path / "graph.dot"))
    converter, _ = converted()
    text = capsys.readouterr().out
    assert "Scaler: 1 node" in text
    rows = (tmp_path / "report.csv").read_text().splitlines()
    assert rows[0] == "OP Name|Reason|Count"
    assert rows[1].startswith("ai.onnx.ml::Scaler|domain: ")
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")
    # The same by methods.
    lines = []
    converter.nonconversion_report(tmp_path / "again.csv", print_fn=lines.append)
    assert (tmp_path / "again.csv").read_text().splitlines() == rows
    assert "\n".join(lines) in text
    converter.draw(tmp_path / "graph.svg")
    assert "<svg" in (tmp_path / "graph.svg").read_text()


def test_the_report_alone_is_printed(converted, monkeypatch, capsys):
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", "1")
    converted()
    assert "Scaler: 1 node" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_told_before_any_work(converted, monkeypatch, tmp_path):
    monkeypatch.setenv("TF_TRT_EXPORT_GRAPH_VIZ_PATH", str(tmp_path / "gone" / "graph.dot"))
    with pytest.raises(InvalidParameterError, match=r"TF_TRT_EXPORT_GRAPH_VIZ_PATH=.*gone"):
        converted()


def test_a_batch_size_that_nothing_reads_is_told(model, rtx):
    params = ConversionParams(max_batch_size=8)
    with Converter(model=model, backend=rtx, progress=False, conversion_params=params) as converter:
        converter.convert()
        assert any("max_batch_size=8 is not used" in note for note in converter.report.precision.notes)


def test_a_check_is_made_after_a_dry_run_too(model, rtx):
    seen = []
    with Converter(model=model, backend=rtx, progress=False) as converter:
        converter.dry_run()
        converter.convert(check=lambda signature: seen.append([spec.name for spec in signature.inputs]))
    assert seen == [["x"]]


@pytest.mark.parametrize("arguments", [{"dynamic_shape_profile_strategy": "Optimal"}, {"use_dynamic_shape": False}])
def test_a_template_that_asks_for_another_strategy(model, rtx, arguments):
    optimizer = {"name": "TensorRTOptimizer", "parameter_map": {"profile_strategy": "range"}}
    params = ConversionParams(rewriter_config_template={"custom_optimizers": [optimizer]})
    with pytest.raises(InvalidParameterError, match="set it in one place"):
        Converter(model=model, backend=rtx, conversion_params=params, **arguments)
