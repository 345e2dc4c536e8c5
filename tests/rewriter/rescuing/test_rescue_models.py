"""Each variety of SavedModel that TF-TRT wrote: refused by TensorFlow, rescued, and the same as before to the bit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rewriter.errors import SourceError
from rewriter.frontend import load_source
from rewriter.rescuing import needs_rescue, rescue
from tests.rewriter.rescuing import old_models
from tests.rewriter.rescuing.old_models import Style, convert, convert_tf1, outputs

pytestmark = pytest.mark.tensorflow

TABLE = b"TRT-8501-EntropyCalibration2\nTensorRTInputPH_0: 3c010a14\n"
OLD_OPS = ("CreateTRTEngineCacheHandle", "engine_cache_handle", "InitializeTRTEngineOp")


@dataclasses.dataclass(frozen=True)
class Original:
    path: Path
    inputs: dict
    outputs: dict


@pytest.fixture(scope="session")
def originals(tf, tmp_path_factory):
    """Model name -> the model before TF-TRT, and what it computes."""
    folder = tmp_path_factory.mktemp("originals")
    saves = {
        "cnn": old_models.save_cnn,
        "multi": old_models.save_multi,
        "nchw": old_models.save_nchw,
        "table": lambda tf, path: old_models.save_table(tf, path, folder),
    }
    found = {}
    for name, save in saves.items():
        inputs = save(tf, folder / name)
        found[name] = Original(folder / name, inputs, outputs(tf, folder / name, inputs))
    return found


def same(got, wanted):
    assert sorted(got) == sorted(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, strict=True)


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


UNKNOWN_OP = "Op type not registered '(TRTEngineOp|CreateTRT\\w+|InitializeTRT\\w+)'"
VARIETIES = {
    "built FP16, dynamic shapes": ("cnn", convert, Style(precision="FP16", strategy="Range")),
    "not built": ("cnn", convert, Style(built=False)),
    "two engines": ("cnn", convert, Style(engines=2)),
    "inputs and outputs of several dtypes, INT8": ("multi", convert, Style(precision="INT8", calibration=TABLE)),
    "three engines, several dtypes": ("multi", convert, Style(engines=3)),
    "engines on the loaded model, until 2.9": ("cnn", convert, Style(own_trackable=False)),
    "variables not frozen": ("cnn", convert, Style(frozen=False, own_trackable=False, strategy="Optimal")),
    "variables not frozen, not built": ("cnn", convert, Style(frozen=False, own_trackable=False, built=False)),
    "channels first": ("nchw", convert, Style(engines=2)),
    "a user's table and asset": ("table", convert, Style(frozen=False, own_trackable=False)),
    "saved once more": ("cnn", convert, Style(resaved=True, engines=2)),
    "scoped names": ("cnn", convert, Style(scope="my/")),
    "resource ops of 1.14 to 2.0": ("cnn", convert, Style(resource_ops=OLD_OPS)),
    "TF1 SavedModel": ("cnn", convert_tf1, Style()),
    "TF1 SavedModel, two engines, scoped": ("multi", convert_tf1, Style(engines=2, scope="a/b/")),
    "1.13": ("cnn", convert_tf1, Style(funcdef_name=True)),
    "1.13 without the function library": ("multi", convert_tf1, Style(funcdef_name=True, library=False, engines=2)),
    "1.14 without the function library": (
        "multi",
        convert_tf1,
        Style(funcdef_name=True, library=False, arguments=True),
    ),
    "1.14, saved by TF2": ("cnn", convert, Style(funcdef_name=True, library=False)),
}
#: Those that are converted straight from the old folder as well.
CONVERTED = (
    "two engines",
    "channels first",
    "variables not frozen",
    "a user's table and asset",
    "1.13 without the function library",
)


@pytest.mark.parametrize("variety", VARIETIES)
def test_variety(tf, originals, tmp_path, variety):
    model, convert_, style = VARIETIES[variety]
    original = originals[model]
    old = convert_(tf, original.path, tmp_path / "old", style)
    with pytest.raises(Exception, match=UNKNOWN_OP):
        tf.saved_model.load(str(old))
    before = files(old)
    assert needs_rescue(old)
    report = rescue(old, tmp_path / "new")
    assert files(old) == before
    same(outputs(tf, tmp_path / "new", original.inputs), original.outputs)
    assert not needs_rescue(tmp_path / "new")
    assert [engine.name.rsplit("/", 1)[-1] for engine in report.engines] == [
        f"TRTEngineOp_000_{number:03d}" for number in range(style.engines)
    ]
    loaded = tf.saved_model.load(str(tmp_path / "new"))
    tf.saved_model.save(loaded, str(tmp_path / "again"), signatures=dict(loaded.signatures))
    same(outputs(tf, tmp_path / "again", original.inputs), original.outputs)


@pytest.mark.parametrize("variety", CONVERTED)
def test_conversion_straight_from_the_old_folder(tf, originals, run, tmp_path, variety):
    model, convert_, style = VARIETIES[variety]
    original = originals[model]
    old = convert_(tf, original.path, tmp_path / "old", style)
    source = load_source(old)
    assert source.origin == f"SavedModel {old}, tags serve, signature serving_default"
    assert source.notes[0].startswith(f"TF-TRT converted it, {style.engines} engine")
    plain = load_source(original.path)
    assert sorted(n.op_type for n in source.model.proto.graph.node) == sorted(
        n.op_type for n in plain.model.proto.graph.node
    )
    if model != "table":  # strings are no business of ONNX Runtime's session here
        got = run(source, **original.inputs)
        for name, value in original.outputs.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("convert_", [convert, convert_tf1])
def test_two_rescued_models_in_one_process(tf, originals, tmp_path, convert_):
    """TF-TRT called their segments alike, and TensorFlow has one library for all graphs of a process."""
    found = []
    for model in ("cnn", "multi"):
        old = convert_(tf, originals[model].path, tmp_path / model, Style())
        rescue(old, tmp_path / f"{model}_new")
        found.append(tf.saved_model.load(str(tmp_path / f"{model}_new")))
    for loaded, model in zip(found, ("cnn", "multi"), strict=True):
        function = loaded.signatures["serving_default"]
        got = {
            k: v.numpy() for k, v in function(**{k: tf.constant(v) for k, v in originals[model].inputs.items()}).items()
        }
        same(got, originals[model].outputs)


def test_every_tag_set_is_rescued(tf, originals, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    original = originals["multi"]
    old = convert_tf1(tf, original.path, tmp_path / "old", Style(engines=2))
    message = saved_model_pb2.SavedModel.FromString((old / "saved_model.pb").read_bytes())
    message.meta_graphs.add().CopyFrom(message.meta_graphs[0])
    message.meta_graphs[1].meta_info_def.tags.append("gpu")
    (old / "saved_model.pb").write_bytes(message.SerializeToString())
    assert len(rescue(old, tmp_path / "new").engines) == 4
    for tags in (["serve"], ["serve", "gpu"]):
        loaded = tf.saved_model.load(str(tmp_path / "new"), tags=tags)
        feeds = {name: tf.constant(value) for name, value in original.inputs.items()}
        same({k: v.numpy() for k, v in loaded.signatures["serving_default"](**feeds).items()}, original.outputs)


def test_native_segments_that_were_removed(tf, originals, tmp_path):
    old = convert(tf, originals["cnn"].path, tmp_path / "old", Style(native_segments=False))
    words = r"TRTEngineOp TRTEngineOp_000_000 in function \S+ of the SavedModel in .*old has lost its native segment"
    with pytest.raises(SourceError, match=words):
        rescue(old, tmp_path / "new")
    with pytest.raises(SourceError, match=words):
        load_source(old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_what_was_recorded(tf, originals, tmp_path):
    style = Style(
        precision="INT8", calibration=TABLE, strategy="Range+Optimal", workspace=(1 << 20,), cached_engines=4,
        allow_build=False,
    )  # fmt: skip
    old = convert(tf, originals["multi"].path, tmp_path / "old", style)
    report = rescue(old, tmp_path / "new")
    (engine,) = report.engines
    assert engine.calibration_bytes == len(TABLE)
    assert engine.segment.startswith("TRTEngineOp_000_000_native_segment_")
    assert engine.input_dtypes == ("float", "int32")
    assert not engine.implicit_batch
    assert report.tensorflow == "2.13.1"
    assert report.profile_strategy == "Range+Optimal"
    assert report.params._asdict() == {
        "rewriter_config_template": None,
        "max_workspace_size_bytes": 1 << 20,
        "precision_mode": "INT8",
        "minimum_segment_size": 3,
        "is_dynamic_op": True,
        "maximum_cached_engines": 4,
        "use_calibration": True,
        "max_batch_size": 1,
        "allow_build_at_runtime": False,
    }
    assert report.removed.assets == ("trt-serialized-engine.TRTEngineOp_000_000",)
    assert len(report.removed.functions) == 3
    assert "trt_engine_resources/TRTEngineOp_000_000/_initialize" in report.removed.objects
    assert not list((tmp_path / "new" / "assets").iterdir())
    assert not (tmp_path / "new" / "fingerprint.pb").exists()
    kept, calibrate = report.notes
    assert "precision_mode='INT8', max_workspace_size_bytes=1048576, maximum_cached_engines=4" in kept
    assert "dynamic_shape_profile_strategy='Range+Optimal': pass the same to keep that" in kept
    assert calibrate.endswith("calibrate again (convert(calibration_input_fn=...))")


def test_the_file_knows_nothing_of_engines(tf, originals, tmp_path):
    """Neither nodes nor objects, collections, assets, devices or op lists."""
    from tensorflow.core.protobuf import saved_model_pb2

    old = convert(tf, originals["table"].path, tmp_path / "old", VARIETIES["a user's table and asset"][2])
    assert "assets/trt-serialized-engine.TRTEngineOp_000_000" in files(old)
    rescue(old, tmp_path / "new")
    assert [name for name in files(tmp_path / "new") if name.startswith("assets/")] == ["assets/words.txt"]
    (tmp_path / "new" / "saved_model.pb").read_bytes()
    message = saved_model_pb2.SavedModel.FromString((tmp_path / "new" / "saved_model.pb").read_bytes())
    (meta_graph,) = message.meta_graphs
    text = str(message)
    assert "TRTResource" not in text
    assert "trt-serialized" not in text
    assert '"TRTEngineOp"' not in text
    assert [asset.filename for asset in meta_graph.asset_file_def] == ["words.txt"]
    assert {n.asset.asset_file_def_index for n in meta_graph.object_graph_def.nodes if n.HasField("asset")} == {0}
    segment = next(f for f in meta_graph.graph_def.library.function if "_native_segment_" in f.signature.name)
    assert not any("GPU" in node.device for node in segment.node_def)
    ops = {op.name for op in meta_graph.meta_info_def.stripped_op_list.op}
    assert {"PartitionedCall", "StatefulPartitionedCall"} <= ops


def test_a_loaded_model_outlives_its_temporary_folder_by_nothing(tf, originals, tmp_path):
    """The folder is there as long as the callee, for tables may read their files late; then it is gone."""
    import gc

    from rewriter.frontend import saved_model

    old = convert(tf, originals["cnn"].path, tmp_path / "old", Style())
    callee = saved_model.load(old, None, None)
    rescued = callee.owner[1]
    folder = rescued.path
    assert (folder / "saved_model.pb").is_file()
    assert (folder / "variables").is_symlink()
    assert callee.notes == rescued.report.notes
    del callee, rescued
    gc.collect()
    assert not folder.exists()
    assert (old / "variables" / "variables.index").is_file()
