"""The verbs on ONNX models, with real TensorRT-RTX and no TensorFlow."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from rewriter.converter import Converter
from rewriter.errors import ArtifactError, ConverterStateError, InputError, InvalidParameterError, SourceError
from rewriter.params import ConversionParams
from rewriter.runtime.loading import load

OPSETS = [h.make_opsetid("", 18), h.make_opsetid("ai.onnx.ml", 3)]
pytestmark = pytest.mark.rtx


def two_segments(batch="batch"):
    """Conv-Relu-Add | Scaler, an operator of classical machine learning that TensorRT has not | Mul-Sub-Relu."""
    rng = np.random.default_rng(0)
    weight = h.make_tensor(
        "w", T.FLOAT, [4, 3, 3, 3], rng.standard_normal((4, 3, 3, 3), np.float32).tobytes(), raw=True
    )
    nodes = [
        h.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        h.make_node("Relu", ["c"], ["r"], "relu"),
        h.make_node("Add", ["r", "one"], ["a"], "add"),
        h.make_node("Scaler", ["a"], ["f"], "scale", domain="ai.onnx.ml", offset=[0.5], scale=[2.0]),
        h.make_node("Mul", ["f", "one"], ["m"], "mul"),
        h.make_node("Sub", ["m", "a"], ["s"], "sub"),
        h.make_node("Relu", ["s"], ["y"], "out"),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, [batch, 3, 8, 8])],
        [h.make_tensor_value_info("y", T.FLOAT, [batch, 4, 8, 8])],
        [weight, h.make_tensor("one", T.FLOAT, [1], [1.5])],
        value_info=[h.make_tensor_value_info("f", T.FLOAT, [batch, 4, 8, 8])],
    )
    return h.make_model(graph, opset_imports=OPSETS, ir_version=10)


def samples(*batches):
    rng = np.random.default_rng(1)
    return lambda: ({"x": rng.standard_normal((b, 3, 8, 8)).astype(np.float32)} for b in batches)


@pytest.fixture
def backend(rtx):
    return rtx


def test_the_whole_road(backend, tmp_path):
    model = two_segments()
    with Converter(model=model, backend=backend, progress=False) as converter:
        function = converter.convert()
        (x,) = (s["x"] for s in samples(3)())
        converted = function(x)["y"]
        assert [e.built for e in converter.report.engines] == [False, False]
        assert "not built yet" in converter.report.engines[0].reason
        converter.build(samples(1, 4))
        report = converter.report
        assert [(e.name, e.built) for e in report.engines] == [("TRTEngineOp_000", True), ("TRTEngineOp_001", True)]
        assert report.engines[0].profiles[0]["x"]["min"] == [1, 3, 8, 8]
        assert report.engines[0].profiles[0]["x"]["max"] == [4, 3, 8, 8]
        assert [v.op_type for v in report.native] == ["ai.onnx.ml::Scaler"]
        assert report.native[0].reason
        assert report.built_coverage == report.coverage == pytest.approx(6 / 7)
        converter.save(tmp_path / "out")
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(converted, expected)
    with load(tmp_path / "out") as loaded:
        np.testing.assert_array_equal(loaded(x=x)["y"], expected)
        assert len(loaded.engines) == 2
        assert all(entry.usable for entry in loaded.engines)
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["params"]["minimum_segment_size"] == 3


def test_engine_nodes_name_their_files(backend, tmp_path):
    with Converter(model=two_segments(), backend=backend, progress=False) as converter:
        converter.convert()
        converter.build(samples(2))
        converter.save(tmp_path / "with")
        converter.save(tmp_path / "without", save_gpu_specific_engines=False)
    for folder, built in (("with", True), ("without", False)):
        proto = onnx.load(tmp_path / folder / "model.onnx")
        nodes = [n for n in proto.graph.node if n.domain == "trt_rewriter"]
        assert [n.op_type for n in nodes] == ["TRTEngineOp_000", "TRTEngineOp_001"]
        for node in nodes:
            attributes = {a.name: h.get_attribute_value(a) for a in node.attribute}
            files = [f.decode() for f in attributes["engine_files"]] if built else []
            assert all((tmp_path / folder / f).is_file() for f in files)
            assert bool(files) == built
        assert bool(list((tmp_path / folder).rglob("*.engine"))) == built


def test_building_again_adds_shapes(backend):
    with Converter(model=two_segments(), backend=backend, progress=False) as converter:
        converter.convert()
        converter.build(samples(2))
        converter.build(samples(5))
        ranges = converter.report.engines[0].profiles[0]["x"]
        assert (ranges["min"][0], ranges["max"][0]) == (2, 5)


def test_static_model_builds_without_samples(backend):
    with Converter(model=two_segments(batch=2), backend=backend, progress=False) as converter:
        converter.convert()
        converter.build()
        assert all(e.built for e in converter.report.engines)


def test_is_dynamic_op_false_builds_at_convert(backend):
    params = ConversionParams(is_dynamic_op=False, max_batch_size=6)
    with Converter(model=two_segments(), conversion_params=params, backend=backend, progress=False) as converter:
        converter.convert()
        ranges = converter.report.engines[0].profiles[0]["x"]
        assert (ranges["min"][0], ranges["max"][0]) == (1, 6)


def test_is_dynamic_op_false_tells_an_open_dimension_before_any_work(backend):
    model = two_segments()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    stages = []
    with Converter(
        model=model,
        conversion_params=ConversionParams(is_dynamic_op=False),
        backend=backend,
        progress=lambda event: stages.append(event.stage),
    ) as converter:
        with pytest.raises(InvalidParameterError, match=r"dimension 2 \(height\) of input 'x'"):
            converter.convert()
        assert "support" not in stages
        with pytest.raises(ConverterStateError, match="call convert"):
            converter.build()


def test_a_function_outlives_its_converter(backend):
    model = two_segments()
    with Converter(model=model, backend=backend, progress=False) as converter:
        function = converter.convert()
    (x,) = (s["x"] for s in samples(2)())
    assert function(x)["y"].shape == (2, 4, 8, 8)


def test_a_tolerance_must_be_a_positive_number(backend):
    for bad in (0, -1e-3, "much", True, float("nan")):
        with pytest.raises(InvalidParameterError, match="tolerance must be a positive number"):
            Converter(model=two_segments(), backend=backend, tolerance=bad)


def test_too_small_workspace_is_native_with_the_asked_size(backend):
    model = two_segments()
    with Converter(model=model, backend=backend, max_workspace_size_bytes=1, progress=False) as converter:
        converter.convert()
        converter.build(samples(64))
        unbuilt = [e for e in converter.report.engines if not e.built]
        assert unbuilt, "a workspace of one byte must be too small for the convolution"
        assert all(e.reason.startswith("workspace") and any(c.isdigit() for c in e.reason) for e in unbuilt)
        assert [f.kind for f in converter.report.failures] == ["workspace"] * len(unbuilt)


def test_denylists_keep_nodes_native(backend):
    with Converter(
        model=two_segments(), backend=backend, op_denylist=["Conv", "Conv2D"], node_denylist=["^su"], progress=False
    ) as converter:
        converter.convert()
        converter.build(samples(2))
        assert [f.target for f in converter.report.failures] == ["op_denylist"]
        lines = []
        converter.summary(print_fn=lines.append)
        assert any(line.startswith("Note: op_denylist") and "did you mean 'Conv'" in line for line in lines)
        native = {v.node: v for v in converter.report.native}
    assert native["conv"].rule == native["sub"].rule == "denylist"
    assert "Conv" in native["conv"].reason
    assert "^su" in native["sub"].reason


def test_nothing_supported_is_a_valid_artifact_said_plainly(backend, tmp_path):
    x = h.make_tensor_value_info("x", T.FLOAT, [4])
    y = h.make_tensor_value_info("y", T.FLOAT, [4])
    nodes = [
        h.make_node("Scaler", [a], [b], f"n{a}", domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
        for a, b in (("x", "p"), ("p", "q"), ("q", "y"))
    ]
    model = h.make_model(h.make_graph(nodes, "g", [x], [y]), opset_imports=OPSETS, ir_version=10)
    lines = []
    with Converter(model=model, backend=backend, progress=False) as converter:
        converter.convert()
        converter.build()
        converter.save(tmp_path / "out")
        converter.summary(print_fn=lines.append)
    assert "No engine: all 3 nodes run natively (reasons above)." in lines
    value = np.array([1, -2, 3, 4], np.float32)
    with load(tmp_path / "out") as function:
        np.testing.assert_array_equal(function(value)["y"], 8 * value - 14)
        assert function.stats()["fallbacks"] == {}


def test_progress_events_and_cancelling(backend):
    seen = []

    def progress(event):
        seen.append(event)
        return event.stage != "build" or event.seconds is not None

    with Converter(model=two_segments(), backend=backend, progress=progress) as converter:
        converter.convert()
        converter.build(samples(2))
        reasons = [e.reason for e in converter.report.engines]
    assert all(r.startswith("cancelled") for r in reasons)
    stages = [e.stage for e in seen if e.seconds is not None]
    assert {"passes", "support", "partition", "build"} <= set(stages)


def test_order_of_calls(backend):
    converter = Converter(model=two_segments(), backend=backend, progress=False)
    for call in (converter.build, lambda: converter.save("/nowhere"), converter.summary, lambda: converter.report):
        with pytest.raises(ConverterStateError, match="call convert"):
            call()
    converter.convert()
    with pytest.raises(ConverterStateError, match="make a new Converter"):
        converter.convert()
    converter.close()
    converter.close()
    with pytest.raises(ConverterStateError, match="closed"):
        converter.build(samples(1))
    unused = Converter(model=two_segments(), backend=backend, progress=False)
    unused.close()
    with pytest.raises(ConverterStateError, match="closed"):
        unused.convert()


def test_wrong_arguments(backend, tmp_path):
    for arguments, message in (
        ({}, "exactly one of input_saved_model_dir and model"),
        ({"model": two_segments(), "input_saved_model_dir": "x"}, "exactly one"),
        ({"model": two_segments(), "cache_full": "grow"}, "cache_full must be one of native, evict"),
        ({"model": two_segments(), "inputs": "x"}, "inputs must be a list of strings"),
        ({"model": two_segments(), "max_engines": 0}, "max_engines must be an integer of at least 1"),
        ({"model": two_segments(), "abort_builds": 1}, "abort_builds must be True or False"),
        ({"model": two_segments(), "engine_cache_dir": ""}, "engine_cache_dir must be the path of a folder"),
        ({"model": two_segments(), "targets": ["sm89"]}, "targets belong to the open backend"),
        ({"model": two_segments(), "input_saved_model_tags": "serve"}, "input_saved_model_tags must be a list"),
        ({"model": two_segments(), "samples": 3}, "samples must be a list of inputs"),
        ({"model": two_segments(), "progress": "yes"}, "progress must be True, False, None or a function"),
        ({"model": two_segments(), "allow_double": "no"}, "allow_double must be True or False"),
        ({"model": two_segments(), "op_denylist": "Conv"}, "op_denylist must be a list of strings"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            Converter(backend=backend, **arguments)
    for wrong, message in (("cuda", "backend"), (None, "backend must be a name or an open Backend, not None")):
        with pytest.raises(InvalidParameterError, match=message):
            Converter(model=two_segments(), backend=wrong)
    with pytest.raises(InvalidParameterError, match="targets must be a list of strings"):
        Converter(model=two_segments(), backend="tensorrt_rtx", targets="sm89")
    with pytest.raises(InvalidParameterError, match=r"(?i)sm99.*sm80"):
        Converter(model=two_segments(), backend="tensorrt_rtx", targets=["sm99"])


def test_wrong_calls(backend, tmp_path):
    with (
        Converter(model=tmp_path / "gone.onnx", backend=backend, progress=False) as converter,
        pytest.raises(SourceError, match=r"gone\.onnx"),
    ):
        converter.convert()
    with Converter(model=two_segments(), backend=backend, progress=False) as converter:
        with pytest.raises(InvalidParameterError, match="precision_mode='FP32' needs no calibration"):
            converter.convert(calibration_input_fn=samples(1))
        converter.convert()
        with pytest.raises(InvalidParameterError, match=r"dimension 0 \(batch\) of input 'x' is not fixed"):
            converter.build()
        with pytest.raises(InvalidParameterError, match="input_fn must be a function"):
            converter.build([np.zeros((1, 3, 8, 8), np.float32)])
        with pytest.raises(InvalidParameterError, match="yielded no inputs"):
            converter.build(lambda: iter(()))
        with pytest.raises(InputError, match=r"sample 0.*'x'"):
            converter.build(lambda: [np.zeros((1, 3, 8), np.float32)])
        with pytest.raises(InvalidParameterError, match="options must be None"):
            converter.save(tmp_path / "a", options=object())
        with pytest.raises(InvalidParameterError, match="line_length must be at least 80"):
            converter.summary(line_length=20)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(ArtifactError, match="exists and is not empty"):
            converter.save(tmp_path / "full")
        converter.build(samples(2))
        assert all(e.built for e in converter.report.engines), "a refused input_fn must not spoil a later one"


def test_input_fn_without_yield_is_told(backend):
    with Converter(model=two_segments(), backend=backend, progress=False) as converter:
        converter.convert()
        with pytest.raises(InputError, match="must yield inputs"):
            converter.build(lambda: None)


def test_names_with_brackets_survive_the_summary(backend):
    model = two_segments()
    for node in model.graph.node:
        node.name = f"m[/]{node.name}[0]"
    lines = []
    with Converter(model=model, backend=backend, node_denylist=[r"m\[/\]sub"], progress=False) as converter:
        converter.convert()
        converter.summary(print_fn=lines.append)
    assert any("m[/]sub[0]" in line for line in lines)


def test_arguments_of_the_views_are_checked(backend, tmp_path):
    with Converter(model=two_segments(), backend=backend, progress=False) as converter:
        for sizes, message in (
            ([1], r"sizes must be a dict of dimension name to size, not \[1\]"),
            ({3: 1}, "sizes must be a dict of dimension name to size"),
            ({"batch": None}, "the size of batch must be an integer of at least 1, not None"),
            ({"batch": 2.0}, "the size of batch must be an integer of at least 1, not 2.0"),
        ):
            with pytest.raises(InvalidParameterError, match=message):
                converter.dry_run(sizes=sizes)
        with pytest.raises(InvalidParameterError, match="default_dim must be an integer of at least 1, not 'a'"):
            converter.dry_run(default_dim="a")
        dry = converter.dry_run(sizes={"batch": np.int64(4)})
        for length in ("a", 10, None, 100.0):
            with pytest.raises(InvalidParameterError, match="line_length must be at least 80, not"):
                dry.render(length)
        with pytest.raises(InvalidParameterError, match="detailed must be True or False"):
            dry.render(detailed="no")
        assert dry.render(np.int64(100), detailed=np.True_) == dry.render(100)
        with pytest.raises(InvalidParameterError, match="check must be a function, not int"):
            converter.convert(check=3)
        converter.convert()
        for call, message in (
            (lambda: converter.draw(5), "path must be a path .*, not int"),
            (lambda: converter.draw(""), "path is empty"),
            (lambda: converter.page(5), "path must be a path .*, not int"),
            (lambda: converter.page("a.html", signature_key="a"), "the signature 'a' is not converted"),
            (lambda: converter.draw("a.svg", signature_key=["a"]), r"the signature \['a'\] is not converted"),
            (lambda: converter.draw(tmp_path / "a.svg", expand_engines=2), "expand_engines must be True or False"),
            (lambda: converter.nonconversion_report(5), "path must be a path .*, not int"),
            (lambda: converter.nonconversion_report(print_fn=5), "print_fn must be a function, not int"),
            (lambda: converter.summary(print_fn=3), "print_fn must be a function, not int"),
            (lambda: converter.summary(detailed=None), "detailed must be True or False, not None"),
            (lambda: converter.summary("a"), "line_length must be at least 80, not 'a'"),
            (lambda: converter.sample_input_fn([1]), "shapes must be a dict of input name to shape, not list"),
            (lambda: converter.sample_input_fn({"x": [("a", 3, 8, 8)]}), "the shapes of input 'x' must be one shape"),
        ):
            with pytest.raises(InvalidParameterError, match=message):
                call()
        assert list(tmp_path.iterdir()) == []
        converter.draw(str(tmp_path / "a.dot"), expand_engines=np.False_)
        converter.page(str(tmp_path / "a.html"))
        assert "Conversion report" in (tmp_path / "a.html").read_text("utf-8")


def test_names_may_come_out_of_sets_and_generators(backend):
    reports = []
    for denied in (["Sub"], {"Sub"}, (op for op in ["Sub"])):
        with Converter(model=two_segments(), backend=backend, op_denylist=denied, progress=False) as converter:
            converter.convert()
            reports.append([(node.node, node.rule) for node in converter.report.native])
    assert reports[0] == reports[1] == reports[2] != []


def test_input_functions_that_need_arguments_are_told(backend):
    def failing():
        raise TypeError("mine")

    def failing_later():
        yield np.zeros((1, 3, 8, 8), np.float32)
        len(3)

    with Converter(model=two_segments(), backend=backend, progress=False) as converter:
        converter.convert()
        with pytest.raises(InvalidParameterError, match=r"input_fn must take no arguments .* takes \(a\).*'a'"):
            converter.build(lambda a: [a])
        for function, message in ((failing, "^mine$"), (failing_later, "no len")):
            with pytest.raises(TypeError, match=message):
                converter.build(function)
        converter.build(samples(2))
        assert all(e.built for e in converter.report.engines)
