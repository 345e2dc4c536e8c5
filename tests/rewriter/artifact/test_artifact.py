"""Artifacts: what is written, what is refused, and that nothing is ever half-written or lost."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from passes import model as models
from passes.segments import TensorSpec
from rewriter import installing
from rewriter.artifact import (
    ArtifactPart,
    EngineEntry,
    check_output,
    engine_file,
    is_artifact,
    load_artifact,
    save_artifact,
    writing,
)
from rewriter.artifact import manifest as manifests
from rewriter.backends.base import InputProfile
from rewriter.errors import ArtifactError
from rewriter.source import Signature

SIGNATURE = Signature(
    (TensorSpec("image", TensorProto.FLOAT, ("batch", 4), "x"),),
    (TensorSpec("image", TensorProto.FLOAT, ("batch", 300), "y"), TensorSpec("r", TensorProto.FLOAT, None)),
    "predict",
)
PROFILE = {"x": InputProfile((1, 4), (2, 4), (8, 4)), "n": InputProfile((1,), (2,), (3,), True)}


@pytest.fixture
def model():
    proto = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 4] x) => (float[batch, 300] y, float[batch, 300] r)
        {
            t = MatMul(x, w)
            y = Relu(t)
            r = Neg(t)
        }
        """
    )
    weights = np.arange(1200, dtype=np.float32).reshape(4, 300)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return models.from_proto(proto)


@pytest.fixture
def engine(tmp_path):
    """An entry and the file that holds its engine."""
    path = tmp_path / "scratch.engine"
    path.write_bytes(b"vtrt" + bytes(range(256)) * 40)
    record = manifests.hash_file(path)
    entry = EngineEntry(
        "TRTEngineOp_000", "0123abcd", record.size, record.sha256, "tensorrt_rtx", "1.7.1.116", ("SM89",), (PROFILE,)
    )
    return entry, path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "parent" / "out"


@pytest.fixture
def save(out, model, engine):
    def do(directory=out, **changes):
        given = {
            "model": model,
            "signature": SIGNATURE,
            "params": {"precision_mode": "FP32", "sizes": (1, 2)},
            "engines": [engine],
            "report": {"coverage": 0.5, "worst": float("nan")},
        }
        overwrite = changes.pop("overwrite", False)
        return save_artifact(directory, ArtifactPart(**{**given, **changes}), overwrite=overwrite)

    return do


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_is_saved_is_loaded(save, out, model, engine):
    assert save() == out.resolve()
    assert listing(out) == [
        "engines/TRTEngineOp_000/0123abcd.engine",
        "engines/TRTEngineOp_000/0123abcd.json",
        "manifest.json",
        "model.onnx",
        "model.onnx.data",
        "report.json",
    ]
    loaded = load_artifact(out)
    assert loaded.signature == SIGNATURE
    assert loaded.params == {"precision_mode": "FP32", "sizes": [1, 2]}
    assert loaded.report == {"coverage": 0.5, "worst": "nan"}
    assert loaded.engines == (engine[0],)
    assert loaded.engines[0].usable
    assert loaded.engine_path(loaded.engines[0]).read_bytes() == engine[1].read_bytes()
    assert loaded.model.proto.graph.node == model.proto.graph.node
    assert isinstance(loaded.model.weights["w"], np.memmap)
    np.testing.assert_array_equal(loaded.model.weights["w"], model.weights["w"])
    assert loaded.versions["onnx"] == onnx.__version__
    assert loaded.created.endswith("Z")
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)


def test_the_manifest_lists_every_other_file_with_size_and_hash(save, out):
    save()
    data = json.loads((out / "manifest.json").read_text())
    assert data["schema_version"] == 1
    assert sorted([*data["files"], "manifest.json"]) == listing(out)
    for name, record in data["files"].items():
        assert record == dataclasses.asdict(manifests.hash_file(out / name))
    assert data["signature"]["inputs"] == [{"name": "image", "dtype": "FLOAT", "shape": ["batch", 4], "tensor": "x"}]
    sidecar = json.loads((out / "engines/TRTEngineOp_000/0123abcd.json").read_text())
    assert sidecar == data["engines"][0]
    assert sidecar["profiles"][0]["n"] == {"min": [1], "opt": [2], "max": [3], "values": True}


def test_a_model_without_weights_or_engines_is_a_valid_artifact(save, out):
    small = models.Model(
        parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    )
    spec = TensorSpec("x", TensorProto.FLOAT, (2,))
    save(model=small, engines=[], signature=Signature((spec,), ()))
    assert listing(out) == ["manifest.json", "model.onnx", "report.json"]
    assert load_artifact(out).engines == ()


def test_an_empty_directory_is_a_fine_output(save, out):
    out.mkdir(parents=True)
    save()
    assert is_artifact(out)


def test_a_link_to_a_directory_is_followed(save, out, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    assert save(link) == real.resolve()
    assert link.is_symlink()
    assert is_artifact(real)


def test_the_engine_survives_its_scratch_file(save, out, engine):
    save()
    engine[1].unlink()
    assert load_artifact(out).engines[0].usable


def test_engines_are_copied_where_links_are_impossible(save, out, engine, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    save()
    assert load_artifact(out).engines[0].usable
    assert (out / engine[0].file).stat().st_nlink == 1


def test_existing_output_is_refused(save, out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(
        ArtifactError, match=r"exists and is not empty.*or allow to overwrite it \(overwrite=True, --overwrite\)"
    ):
        save()
    with pytest.raises(ArtifactError, match="not an artifact of trt-rewriter, so it is not overwritten"):
        save(overwrite=True)
    assert contents(out) == {"notes.txt": b"mine"}


def test_overwrite_replaces_an_artifact_as_a_whole(save, out):
    save()
    save(overwrite=True, engines=[], params={"second": True})
    assert load_artifact(out).params == {"second": True}
    assert listing(out) == ["manifest.json", "model.onnx", "model.onnx.data", "report.json"]
    assert list(out.parent.iterdir()) == [out]


def test_an_artifact_can_be_written_over_the_one_it_is_mapped_from(save, out):
    save()
    loaded = load_artifact(out)
    save(overwrite=True, model=loaded.model)
    np.testing.assert_array_equal(load_artifact(out).model.weights["w"], loaded.model.weights["w"])


def test_a_file_is_no_output(save, out):
    out.parent.mkdir()
    out.write_text("x")
    with pytest.raises(ArtifactError, match="is a file: choose another directory"):
        save(overwrite=True)
    with pytest.raises(ArtifactError, match="is a file"):
        save(out / "below")
    assert out.read_text() == "x"


def test_an_unwritable_parent_is_named(save, out, tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "parent"))

    monkeypatch.setattr(installing.tempfile, "mkdtemp", refuse)
    with pytest.raises(
        ArtifactError, match=r"cannot write the artifact .*out: Permission denied \(.*parent\)"
    ) as caught:
        save()
    assert isinstance(caught.value.__cause__, PermissionError)
    assert not out.parent.exists()


def test_check_output_sees_an_unwritable_parent(out, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="not writable"):
        check_output(out)


def failing(function, when):
    """`function`, except that it fails the first time `when` says so."""
    state = {"failed": False}

    def wrapped(*args, **kwargs):
        if not state["failed"] and when(*args, **kwargs):
            state["failed"] = True
            raise OSError(28, "No space left on device")
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("step", ["weights", "engine", "manifest", "install"])
def test_a_failure_at_any_step_changes_nothing(save, out, monkeypatch, step, existing):
    if existing:
        save(params={"first": True})
        before = contents(out)
    if step == "weights":
        monkeypatch.setattr(models, "write_weights", failing(models.write_weights, lambda *a: True))
    elif step == "engine":
        monkeypatch.setattr(writing, "place_engine", failing(writing.place_engine, lambda *a: True))
    elif step == "manifest":
        write = failing(writing.write_json, lambda path, data: path.name == "manifest.json")
        monkeypatch.setattr(writing, "write_json", write)
    else:
        rename = failing(Path.rename, lambda self, target: Path(target) == out)
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ArtifactError, match="No space left"):
        save(overwrite=True)
    if existing:
        assert contents(out) == before
        assert list(out.parent.iterdir()) == [out]
    else:
        assert not out.parent.exists()
    save(overwrite=True)
    assert load_artifact(out).params["precision_mode"] == "FP32"


def test_an_interrupt_leaves_nothing_behind(save, out, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "place_engine", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save()
    assert not out.parent.exists()


def test_a_changed_engine_is_not_saved(save, out, engine):
    engine[1].write_bytes(b"other")
    with pytest.raises(ArtifactError, match="TRTEngineOp_000 has changed since it was built"):
        save()
    engine[1].unlink()
    with pytest.raises(ArtifactError, match="file of engine TRTEngineOp_000 is gone"):
        save()
    assert not out.exists()


def test_the_same_engine_twice_is_refused(save, engine):
    with pytest.raises(ArtifactError, match="given twice"):
        save(engines=[engine, engine])


@pytest.mark.parametrize("key", ["../up", "a/b", "", ".hidden", "x" * 300, "C:"])
def test_keys_that_are_no_file_names_are_refused(key):
    with pytest.raises(ArtifactError, match="cannot be a file name"):
        engine_file("TRTEngineOp_000", key)


def test_what_json_cannot_hold_is_named(save, out):
    with pytest.raises(ArtifactError, match=r"params\.a\[1\] is a ndarray"):
        save(params={"a": [1, np.zeros(2)]})
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "report.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(save, out, name, damage):
    save()
    path = out / name
    data = path.read_bytes()
    if damage == "flip":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is (damaged|missing)"):
        load_artifact(out)


@pytest.mark.parametrize("suffix", ["engine", "json"])
def test_a_damaged_engine_is_unusable_but_no_error(save, out, engine, suffix):
    save()
    path = out / f"engines/TRTEngineOp_000/0123abcd.{suffix}"
    unlinked = bytearray(path.read_bytes())
    path.unlink()
    (entry,) = load_artifact(out).engines
    assert entry.problem == f"engines/TRTEngineOp_000/0123abcd.{suffix} is missing"
    unlinked[7] ^= 1
    path.write_bytes(unlinked)
    (entry,) = load_artifact(out).engines
    assert "is damaged: its sha256" in entry.problem
    assert not entry.usable
    (entry,) = load_artifact(out, check_hashes=False).engines
    assert entry.usable


def test_unusable_engines_are_said_in_the_log(save, out, caplog):
    save()
    (out / "engines/TRTEngineOp_000/0123abcd.engine").unlink()
    load_artifact(out)
    assert "runs natively" in caplog.text


def test_an_engine_that_is_not_listed_as_a_file_is_unusable(save, out):
    save()
    edit_manifest(out, lambda data: data["files"].pop("engines/TRTEngineOp_000/0123abcd.engine"))
    assert "not listed" in load_artifact(out).engines[0].problem


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "C:/x", "C:x", "a\\b", "./a", "a//b", "", "."])
def test_unsafe_paths_are_refused(save, out, name):
    save()
    edit_manifest(out, lambda data: data["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    with pytest.raises(ArtifactError, match="unsafe path"):
        load_artifact(out)


def test_links_out_of_the_artifact_are_refused(save, out, tmp_path):
    save()
    for name in ("model.onnx.data", "engines/TRTEngineOp_000/0123abcd.engine"):
        outside = tmp_path / "outside"
        shutil.move(out / name, outside)
        (out / name).symlink_to(outside)
        with pytest.raises(ArtifactError, match=f"{name} is a link that leads out"):
            load_artifact(out)
        (out / name).unlink()
        shutil.move(outside, out / name)
    load_artifact(out)


def test_links_inside_the_artifact_are_fine(save, out):
    save()
    (out / "model.onnx.data").rename(out / "real.data")
    (out / "model.onnx.data").symlink_to("real.data")
    load_artifact(out)


def rewrite_model(out, change):
    """Changes model.onnx and makes the manifest agree: an attacker's work, not damage."""
    proto = onnx.load(out / "model.onnx", load_external_data=False)
    change(proto)
    (out / "model.onnx").write_bytes(proto.SerializeToString())
    record = manifests.hash_file(out / "model.onnx")
    edit_manifest(out, lambda data: data["files"].update({"model.onnx": dataclasses.asdict(record)}))


def test_weights_come_from_listed_files_only(save, out, tmp_path):
    save()
    (out / "other.data").write_bytes(bytes(4800))

    def point(location):
        def change(proto):
            proto.graph.initializer[0].external_data[0].value = location

        return change

    for location in ("other.data", "../parent/out/model.onnx.data", "/etc/passwd"):
        rewrite_model(out, point(location))
        with pytest.raises(ArtifactError, match="which the manifest does not list"):
            load_artifact(out)


def add_constant(location):
    """Adds a Constant whose value lies in a file."""

    def change(proto):
        tensor = TensorProto(name="c", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))

    return change


def test_tensors_in_attributes_come_from_listed_files_too(save, out):
    save()
    rewrite_model(out, add_constant("model.onnx.data"))
    assert numpy_helper.to_array(load_artifact(out).model.proto.graph.node[-1].attribute[0].t) == 0.0
    rewrite_model(out, add_constant("../outside"))
    with pytest.raises(ArtifactError, match=r"'../outside', which the manifest does not list"):
        load_artifact(out)


def test_a_tensor_that_claims_to_be_read_already_is_refused(save, out):
    save()
    (out / models.STUB_LOCATION).write_bytes(bytes(4))
    record = dataclasses.asdict(manifests.hash_file(out / models.STUB_LOCATION))
    rewrite_model(out, add_constant(models.STUB_LOCATION))
    edit_manifest(out, lambda data: data["files"].update({models.STUB_LOCATION: record}))
    with pytest.raises(ArtifactError, match="'c', which is not a weight of the main graph"):
        load_artifact(out)


def test_a_signature_that_is_not_the_models_is_refused(save, out):
    save()
    edit_manifest(out, lambda data: data["signature"]["outputs"][0].update(tensor="q"))
    with pytest.raises(ArtifactError, match="output 'image' is not in"):
        load_artifact(out)


def test_a_newer_schema_is_refused_with_advice(save, out):
    save()
    edit_manifest(out, lambda data: data.update(schema_version=2))
    with pytest.raises(ArtifactError, match=r"newer trt-rewriter \(schema 2.*upgrade"):
        load_artifact(out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("signature"), "no field 'signature'"),
        (lambda d: d.update(schema_version=0), r"older format \(schema 0.*convert the model again"),
        (lambda d: d.update(schema_version="1"), "schema_version is '1'"),
        (lambda d: d.update(schema_version=True), "schema_version is True"),
        (lambda d: d.update(engines=7), "damaged"),
        (lambda d: d["files"].pop("model.onnx"), "does not list model.onnx"),
        (lambda d: d["files"].update(x=3), "damaged"),
        (lambda d: d["files"].update(x={"size": -1, "sha256": "0" * 64}), "size -1"),
        (lambda d: d["engines"][0].update(file="engines/other"), "expected 'engines/TRTEngineOp_000"),
        (lambda d: d["engines"][0].update(key="../x"), "cannot be a file name"),
        (lambda d: d["signature"]["inputs"][0].update(dtype="FLOAT33"), "FLOAT33"),
        (lambda d: d["signature"]["inputs"][0].update(shape=[1.5]), "dimension 1.5"),
        (lambda d: d.update(format="other"), "not a trt-rewriter artifact"),
    ],
)
def test_a_damaged_manifest_is_told_in_one_line(save, out, change, words):
    save()
    edit_manifest(out, change)
    with pytest.raises(ArtifactError, match=words) as caught:
        load_artifact(out)
    assert "\n" not in str(caught.value)


def test_a_file_of_an_artifact_names_its_folder(save, out):
    save()
    for path in (out / "model.onnx", next(out.rglob("*.engine"))):
        with pytest.raises(
            ArtifactError, match=rf"is a file in an artifact: give the folder of that, {re.escape(str(out))}$"
        ):
            load_artifact(path)


def test_things_that_are_no_artifact_get_a_hint(tmp_path, model):
    with pytest.raises(ArtifactError, match="no such artifact"):
        load_artifact(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"it has no manifest\.json"):
        load_artifact(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"is a SavedModel.*trt-rewriter convert"):
        load_artifact(tmp_path)
    models.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"is an ONNX file.*trt-rewriter convert"):
        load_artifact(tmp_path / "m.onnx")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        load_artifact(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match="of another kind"):
        load_artifact(tmp_path)
    assert not is_artifact(tmp_path)
