"""TF-TRT's interface for TensorFlow 1, on frozen GraphDefs and SavedModels."""

import logging

import numpy as np
import pytest

from rewriter.errors import ConverterStateError, InputError, InvalidParameterError, SourceError
from rewriter.legacy import TrtGraphConverter, create_inference_graph
from rewriter.legacy.names import NodeNames, node_pattern
from rewriter.runtime.loading import load

pytestmark = [pytest.mark.rtx, pytest.mark.tensorflow]


@pytest.fixture(scope="module")
def graph_def():
    """image -> MatMul, Add, Relu (hidden) -> MatMul, Tanh (scores), Softmax (probabilities): frozen, as in TF1."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, [None, 16], "image")
        first = tf.constant(rng.standard_normal((16, 32), np.float32), name="first")
        second = tf.constant(rng.standard_normal((32, 4), np.float32) / 8, name="second")
        hidden = tf.nn.relu(tf.matmul(image, first, name="product") + 0.5, name="hidden")
        scores = tf.tanh(tf.matmul(hidden, second), name="scores")
        tf.nn.softmax(scores, name="probabilities")
    return graph.as_graph_def()


@pytest.fixture(scope="module")
def saved_model(graph_def, tmp_path_factory):
    """The same as a TF1 SavedModel, whose signature has other names than the tensors."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("tf1") / "model"
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tf.compat.v1.import_graph_def(graph_def, name="")
        graph = session.graph
        tf.compat.v1.saved_model.simple_save(
            session,
            str(folder),
            {"pixels": graph.get_tensor_by_name("image:0")},
            {"classes": graph.get_tensor_by_name("probabilities:0")},
        )
    return folder


IMAGES = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)


def expected(graph_def, name="probabilities:0"):
    import tensorflow as tf

    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tf.compat.v1.import_graph_def(graph_def, name="")
        return session.run(name, {"image:0": IMAGES})


@pytest.fixture
def options(rtx):
    return {"backend": rtx, "progress": False}


def test_names_of_nodes_and_tensors():
    class Tensor:
        name = "split:1"

    names = NodeNames.of(["a/b", "c:0", b"d", Tensor(), "a/b"], "outputs")
    assert names.nodes == ("a/b", "c", "d", "split")
    assert names.tensors == ("a/b", "c:0", "d", "split:1")
    assert NodeNames.of(None, "outputs").nodes == ()
    for wrong in ("softmax", b"softmax", 3, Tensor(), {"a": 1}):
        with pytest.raises(InvalidParameterError, match="outputs must be a list"):
            NodeNames.of(wrong, "outputs")
    with pytest.raises(InvalidParameterError, match="not 3"):
        NodeNames.of([3], "outputs")


def test_a_pattern_is_the_whole_name_with_the_exporters_number():
    import re

    pattern = node_pattern("StatefulPartitionedCall/model/conv.1")
    assert re.search(pattern, "model/conv.1")
    assert re.search(pattern, "model/conv.1__12")
    assert not re.search(pattern, "model/conv.12")
    assert not re.search(pattern, "model/convx1")
    assert not re.search(pattern, "other/model/conv.1")


def test_static_engines_as_by_default(graph_def, options, tmp_path):
    with TrtGraphConverter(
        input_graph_def=graph_def, nodes_denylist=["probabilities"], max_batch_size=4, **options
    ) as converter:
        function = converter.convert()
        (engine,) = converter.report.engines
        assert engine.built
        (ranges,) = engine.profiles[0].values()
        assert (ranges["min"][0], ranges["max"][0]) == (1, 4)
        denied = [v for v in converter.report.native if v.rule == "denylist"]
        assert [v.op_type for v in denied] == ["Softmax"]
        lines = []
        converter.summary(print_fn=lines.append)
        assert "[*] Total number of TensorRT engines: 1" in lines
        converter.save(tmp_path / "out")  # TF-TRT could not save what came from a GraphDef
    np.testing.assert_allclose(function(image=IMAGES)["probabilities"], expected(graph_def), atol=1e-6)
    with load(tmp_path / "out") as loaded:
        np.testing.assert_allclose(loaded(image=IMAGES)["probabilities"], expected(graph_def), atol=1e-6)


def test_dynamic_engines_are_built_when_asked(graph_def, options):
    with TrtGraphConverter(input_graph_def=graph_def, is_dynamic_op=True, **options) as converter:
        with pytest.raises(ConverterStateError, match="build needs a converted model"):
            converter.build()
        converter.convert()
        assert not any(engine.built for engine in converter.report.engines)
        converter.build(lambda: [IMAGES])
        assert all(engine.built for engine in converter.report.engines)


def test_a_list_without_an_end_of_the_graph_only_denies(graph_def, options):
    with TrtGraphConverter(
        input_graph_def=graph_def, nodes_denylist=["hidden", "nowhere"], is_dynamic_op=True, **options
    ) as converter:
        function = converter.convert()
        report = converter.report
    assert [v.node for v in report.native if v.rule == "denylist"] == ["hidden"]
    assert list(function(image=IMAGES)) == ["probabilities"]
    (verdict,) = [v for v in report.native if v.rule == "denylist"]
    assert verdict.reason == "nodes_denylist holds 'hidden'"
    (idle,) = [f for f in report.failures if f.kind == "idle"]
    assert idle.target == "nodes_denylist"
    assert idle.reason.startswith("no node of the ONNX graph comes from 'nowhere'")


def test_several_outputs_out_of_the_list(graph_def, options):
    with TrtGraphConverter(
        input_graph_def=graph_def, nodes_denylist=["scores:0", "probabilities"], is_dynamic_op=True, **options
    ) as converter:
        outputs = converter.convert()(image=IMAGES)
    assert set(outputs) == {"scores", "probabilities"}
    np.testing.assert_allclose(outputs["scores"], expected(graph_def, "scores:0"), atol=1e-6)


def test_a_file_has_the_outputs_that_its_graph_has(graph_def, options, tmp_path):
    import tensorflow as tf

    path = tmp_path / "frozen.pb"
    path.write_bytes(graph_def.SerializeToString())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    for source in (path, str(path), graph):
        with TrtGraphConverter(
            input_graph_def=source, nodes_denylist=["scores", "probabilities"], is_dynamic_op=True, **options
        ) as converter:
            assert set(converter.convert()(image=IMAGES)) == {"scores", "probabilities"}
    (tmp_path / "other.pb").write_text("no graph")
    with pytest.raises(SourceError, match=r"other\.pb"):
        TrtGraphConverter(input_graph_def=tmp_path / "other.pb", nodes_denylist=["scores"], **options)


def test_a_misspelt_output_is_an_error(graph_def, options):
    with pytest.raises(InvalidParameterError, match=r"'scroes' is no node of the graph: did you mean 'scores'\?"):
        TrtGraphConverter(input_graph_def=graph_def, nodes_denylist=["scroes", "probabilities"], **options)


def test_fp8_is_calibrated_as_int8_is(graph_def, options):
    with TrtGraphConverter(input_graph_def=graph_def, precision_mode="fp8", **options) as converter:
        converter.convert()
        with pytest.raises(ConverterStateError, match="build needs the ranges of FP8: call calibrate"):
            converter.build()
        converter.calibrate(["probabilities"], np.int64(2), lambda: {"image:0": IMAGES})
        assert converter.report.precision.calibration["samples"] == 2


@pytest.mark.parametrize("value", ["abc", [[1.0], [1.0, 2.0]], object()])
def test_feeds_that_make_no_array(graph_def, options, value):
    with TrtGraphConverter(input_graph_def=graph_def, precision_mode="INT8", **options) as converter:
        converter.convert()
        with pytest.raises(InputError, match=r"feed_dict_fn returned for 'image:0' a .* that makes no array"):
            converter.calibrate(["probabilities"], 1, lambda: {"image:0": value})


def test_numbers_and_switches_of_numpy(graph_def, options):
    with TrtGraphConverter(
        input_graph_def=graph_def, max_batch_size=np.int64(2), use_calibration=np.True_, **options
    ) as converter:
        converter.convert()
        (engine,) = converter.report.engines
        (ranges,) = engine.profiles[0].values()
        assert ranges["max"][0] == 2


def test_tags_in_any_order(saved_model, options):
    TrtGraphConverter(str(saved_model), {"serve"}, is_dynamic_op=True, **options).close()


def test_int8_is_calibrated_after_convert(graph_def, options, tmp_path, caplog):
    fed = []

    def feed():
        fed.append(1)
        return {"image:0": IMAGES.tolist()}

    caplog.set_level(logging.INFO, "rewriter.legacy")
    with TrtGraphConverter(input_graph_def=graph_def, precision_mode="int8", **options) as converter:
        assert "is_dynamic_op=False is not used" in caplog.text
        with pytest.raises(ConverterStateError, match="call convert"):
            converter.calibrate(["probabilities"], 2, feed)
        converter.convert()
        for call in (lambda: converter.save(tmp_path / "a"), converter.build):
            with pytest.raises(ConverterStateError, match="call calibrate"):
                call()
        for arguments, message in (
            ({}, "exactly one of feed_dict_fn and input_map_fn"),
            ({"feed_dict_fn": feed, "input_map_fn": dict}, "exactly one"),
            ({"input_map_fn": dict}, "give feed_dict_fn, which returns arrays"),
            ({"feed_dict_fn": {}}, "must be a function"),
            ({"feed_dict_fn": feed, "num_runs": 0}, "num_runs must be an integer of at least 1"),
        ):
            with pytest.raises(InvalidParameterError, match=message):
                converter.calibrate(["probabilities"], **{"num_runs": 2, **arguments})
        with pytest.raises(InputError, match="'pixels:0', which is no input: inputs are image"):
            converter.calibrate(["probabilities:0"], 1, lambda: {"pixels:0": IMAGES})
        function = converter.calibrate(["probabilities:0", "hidden:0"], 2, feed)
        assert len(fed) == 2
        assert "'hidden:0' is no output" in caplog.text
        with pytest.raises(ConverterStateError, match="has run already"):
            converter.calibrate(["probabilities"], 2, feed)
        assert converter.report.precision.calibration["samples"] == 2
        converter.build(lambda: [IMAGES])
        assert all(engine.built for engine in converter.report.engines)
        converter.save(tmp_path / "out")
        assert (tmp_path / "out" / "calibration.json").is_file()
    np.testing.assert_allclose(function(image=IMAGES)["probabilities"], expected(graph_def), atol=1e-6)


def test_a_saved_model_is_fed_by_tensor_or_signature_names(saved_model, options):
    with TrtGraphConverter(str(saved_model), precision_mode="INT8", nodes_denylist=["hidden"], **options) as converter:
        converter.convert()
        feeds = iter([{"image:0": IMAGES}, {"image": IMAGES}, {"pixels": IMAGES}])
        function = converter.calibrate(["probabilities:0"], 3, lambda: next(feeds))
        assert [v.node for v in converter.report.native if v.rule == "denylist"] == ["hidden"]
    assert list(function(pixels=IMAGES)) == ["classes"]


def test_other_precisions_have_nothing_to_calibrate(graph_def, options):
    with TrtGraphConverter(input_graph_def=graph_def, is_dynamic_op=True, **options) as converter:
        converter.convert()
        with pytest.raises(ConverterStateError, match="nothing to do"):
            converter.calibrate(["probabilities"], 1, dict)
        with pytest.raises(ConverterStateError, match="convert"):
            converter.convert()


def test_one_call_does_it_all(graph_def, saved_model, options, tmp_path):
    function = create_inference_graph(
        graph_def, ["probabilities"], max_batch_size=2, output_saved_model_dir=tmp_path / "one", **options
    )
    np.testing.assert_allclose(function(image=IMAGES)["probabilities"], expected(graph_def), atol=1e-6)
    with load(tmp_path / "one") as loaded:
        assert len(loaded.engines) == 1
        assert not loaded.stats()["fallbacks"]
    function = create_inference_graph(
        None, None, is_dynamic_op=True, input_saved_model_dir=saved_model, minimum_segment_size=2, **options
    )
    assert list(function(pixels=IMAGES)) == ["classes"]


def test_arguments_of_the_one_call_are_checked(graph_def, options):
    for arguments, message in (
        ({"outputs": 5}, "outputs must be a list of nodes"),
        ({"outputs": "probabilities"}, "outputs must be a list of nodes"),
        ({"outputs": ["probabilities"], "use_calibration": True}, "create_inference_graph does not calibrate"),
        ({"outputs": ["probabilities"], "foo": 1}, "has no argument 'foo'"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            create_inference_graph(graph_def, **arguments, **options)
    create_inference_graph(graph_def, ["probabilities"], is_dynamic_op=True, use_calibration=False, **options)


def test_a_file_with_a_graph(graph_def, options, tmp_path):
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph_def.SerializeToString())
    with TrtGraphConverter(input_graph_def=path, nodes_denylist=["hidden"], is_dynamic_op=True, **options) as converter:
        function = converter.convert()
        assert [v.node for v in converter.report.native if v.rule == "denylist"] == ["hidden"]
    np.testing.assert_allclose(function(image=IMAGES)["probabilities"], expected(graph_def), atol=1e-6)


def test_arguments_are_checked(graph_def, options, caplog):
    for arguments, message in (
        ({}, "exactly one of input_graph_def and input_saved_model_dir"),
        ({"input_graph_def": graph_def, "input_saved_model_dir": "x"}, "exactly one"),
        ({"input_graph_def": graph_def, "max_batch_size": None}, "max_batch_size must be an integer"),
        ({"input_graph_def": graph_def, "precision_mode": "fp64"}, "precision_mode must be one of"),
        ({"input_graph_def": graph_def, "model": "x"}, "model is no option"),
        ({"input_graph_def": graph_def, "is_dynamic_op": None}, "is_dynamic_op must be True or False"),
        ({"input_graph_def": graph_def, "nodes_denylist": "x"}, "nodes_denylist must be a list"),
        ({"input_graph_def": graph_def, "nodes_denylist": 3}, "nodes_denylist must be a list of nodes.*not 3"),
        ({"input_graph_def": graph_def, "foo": 3}, "TrtGraphConverter has no argument 'foo'"),
        ({"input_graph_def": graph_def, "nodes_blacklist": []}, "did you mean 'node_denylist'"),
        ({"input_graph_def": graph_def, "allow_build_at_runtime": 3}, "allow_build_at_runtime must be True or False"),
        ({"input_graph_def": graph_def, "use_calibration": 3}, "use_calibration must be True or False"),
        ({"input_graph_def": graph_def, "is_dynamic_op": True, "max_batch_size": "x"}, "max_batch_size must be an"),
        ({"input_saved_model_dir": 5}, "input_saved_model_dir must be a path"),
        ({"input_saved_model_dir": "x", "input_saved_model_tags": 5}, "input_saved_model_tags must be a list"),
        ({"input_saved_model_dir": "x", "input_saved_model_tags": "serve"}, "input_saved_model_tags must be a list"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            TrtGraphConverter(**arguments, **options)
    TrtGraphConverter(input_graph_def=graph_def, is_dynamic_op=True, max_batch_size=8, **options).close()
    assert "max_batch_size=8 is not used" in caplog.text
    TrtGraphConverter(input_graph_def=graph_def, is_dynamic_op=True, max_batch_size=None, **options).close()


def test_node_denylist_is_added(graph_def, options):
    with TrtGraphConverter(
        input_graph_def=graph_def, nodes_denylist=["hidden"], node_denylist=["^sco"], is_dynamic_op=True, **options
    ) as converter:
        converter.convert()
        assert {v.node for v in converter.report.native if v.rule == "denylist"} == {"hidden", "scores"}
