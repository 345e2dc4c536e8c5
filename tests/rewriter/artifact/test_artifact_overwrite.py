"""Overwriting loses nothing but the artifact; reading one that is replaced meanwhile gives one of the two."""

import json
import re

import pytest
from onnx import TensorProto, parser

from passes import model as models
from passes.segments import TensorSpec
from rewriter import artifact as artifacts
from rewriter.artifact import ArtifactPart, EngineEntry, check_output, load_artifact, reading, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.artifact import paths as artifact_paths
from rewriter.errors import ArtifactError
from rewriter.runtime.loading import load
from rewriter.source import Signature

SIGNATURE = Signature((TensorSpec("x", TensorProto.FLOAT, (2,)),), (TensorSpec("y", TensorProto.FLOAT, (2,)),))
ENGINE = "engines/TRTEngineOp_000/0123abcd.engine"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def save(out, tmp_path):
    """Saves a model whose only node is `operator`, with an engine that says the same."""

    def do(operator="Relu", directory=out, **changes):
        text = f'<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {{ y = {operator}(x) }}'
        path = tmp_path / f"{operator}.engine"
        path.write_bytes(operator.encode() * 100)
        record = manifests.hash_file(path)
        entry = EngineEntry("TRTEngineOp_000", "0123abcd", record.size, record.sha256, "tensorrt_rtx", "1.7.1.116")
        given = {
            "model": models.Model(parser.parse_model(text)),
            "signature": SIGNATURE,
            "params": {"operator": operator},
            "engines": [(entry, path)],
            "report": {},
        }
        overwrite = changes.pop("overwrite", True)
        return save_artifact(directory, ArtifactPart(**{**given, **changes}), overwrite=overwrite)

    return do


def operator(artifact):
    """What the artifact computes; every part must say the same."""
    (node,) = artifact.model.proto.graph.node
    assert artifact.params == {"operator": node.op_type}
    assert all(entry.usable for entry in artifact.engines)
    return node.op_type


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("strange", "told"),
    [
        (["notes.txt"], "notes.txt"),
        (["d", "c.txt", "b", "a"], "a, b, c.txt and 1 more"),
        (["engines/mine.txt"], "engines/mine.txt"),
        (["engines/TRTEngineOp_000/ffff.engine"], "engines/TRTEngineOp_000/ffff.engine"),
        (["logs/deep/events"], "logs/"),
        (["logs/", "engines/old/"], "engines/old/, logs/"),
        (["two\nlines"], "'two\\nlines'"),
    ],
)
def test_files_of_others_are_not_overwritten(save, out, strange, told):
    save()
    for name in strange:
        path = out / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("mine")
    before = listing(out)
    words = f"not overwritten, for its folder holds what is no part of it: {told}; move that away"
    for refused in (lambda: save("Neg"), lambda: check_output(out, overwrite=True)):
        with pytest.raises(ArtifactError, match=re.escape(words)) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert listing(out) == before
    assert operator(load_artifact(out)) == "Relu"


def test_the_runtime_cache_of_an_artifact_goes_with_it(save, out):
    """It is not in the manifest, for it is made by the runs of the artifact."""
    save()
    cache = out / "runtime_cache"
    cache.mkdir()
    for suffix in ("cache", "json"):
        (cache / f"{'0123456789abcdef' * 2}.{suffix}").write_bytes(b"kernels")
    save("Neg")
    assert operator(load_artifact(out)) == "Neg"
    assert not cache.exists()
    cache.mkdir()
    (cache / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"no part of it: runtime_cache/notes\.txt;"):
        save()


def test_a_link_to_a_folder_is_somebodys_too(save, out, tmp_path):
    save()
    (out / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="no part of it: elsewhere/;"):
        save("Neg")


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"engines": 7}, {"signature": None}])
def test_an_artifact_that_cannot_be_read_is_overwritten_all_the_same(save, out, change):
    save()
    path = out / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    save("Neg")
    assert operator(load_artifact(out)) == "Neg"


def test_a_manifest_that_lists_nothing_protects_the_engines(save, out):
    save()
    path = out / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": 3}))
    with pytest.raises(ArtifactError, match="no part of it: engines/;"):
        save("Neg")


@pytest.mark.parametrize("below", ["new", "a/b/c", "engines", "model.onnx"])
def test_an_output_inside_an_artifact_is_refused(save, out, below):
    save()
    before = listing(out)
    for refused in (lambda: save("Neg", out / below), lambda: check_output(out / below)):
        with pytest.raises(ArtifactError, match=r"lies inside the artifact .*out: choose a directory outside of it"):
            refused()
    assert listing(out) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (None, "must be a str or a pathlib.Path, not NoneType"),
        (3, "must be a str or a pathlib.Path, not int"),
        (b"out", "must be a str or a pathlib.Path, not bytes"),
        ("", "the path of an artifact is empty"),
        ("a\0b", r"'a\\x00b' cannot be the path of an artifact: .*embedded null"),
        ("n" * 300, r"'n{100}\.\.\.' cannot be the path of an artifact: File name too long \(choose a shorter one\)"),
    ],
)
def test_what_can_be_no_path_is_told(save, path, words):
    for refused in (load, load_artifact, check_output, lambda path: save(directory=path)):
        with pytest.raises(ArtifactError, match=words) as caught:
            refused(path)
        assert "\n" not in str(caught.value)


def test_a_loop_of_links_is_told(save, out):
    out.symlink_to(out)
    for refused in (load, check_output, lambda path: save(directory=path)):
        with pytest.raises(ArtifactError, match="cannot be the path of an artifact: Too many levels"):
            refused(out)


@pytest.fixture
def meanwhile(monkeypatch):
    """Lets something happen while an artifact is read: `actions`, one an attempt, before a function is called."""

    def do(function, *actions):
        original, waiting = getattr(reading, function), list(actions)

        def wrapped(*args):
            if waiting:
                waiting.pop(0)()
            return original(*args)

        monkeypatch.setattr(reading, function, wrapped)
        return waiting

    return do


# Before the files are examined, between that and the model, and after the model: each mixes two artifacts.
STEPS = ["examine_files", "_read_model", "_check_signature", "_read_json"]


@pytest.mark.parametrize("check_hashes", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_an_artifact_replaced_while_it_is_read_is_read_again(save, out, meanwhile, step, check_hashes, caplog):
    save("Relu")
    meanwhile(step, lambda: save("Tanh"), lambda: save("Neg"))
    assert operator(load_artifact(out, check_hashes)) == "Neg"
    assert "natively" not in caplog.text


def test_the_same_artifact_saved_again_is_no_damage(save, out, meanwhile):
    """Manifests may be equal to the byte: the file that holds one tells."""
    save()
    gone = out / ENGINE

    waiting = meanwhile("examine_files", gone.unlink)
    meanwhile("_read_model", save)
    assert operator(load_artifact(out)) == "Relu"
    assert not waiting


def test_a_folder_that_vanishes_between_two_renames_is_waited_for(save, out, tmp_path, meanwhile, monkeypatch):
    save("Relu")
    aside = tmp_path / ".out.old-abc" / "out"
    aside.parent.mkdir()
    waits = []

    def come_back():
        waits.append(len(waits))
        if len(waits) == 2:
            save("Neg")

    monkeypatch.setattr(reading, "_wait_for_rename", come_back)
    meanwhile("examine_files", lambda: out.rename(aside))
    assert operator(load_artifact(out)) == "Neg"
    assert waits == [0, 1]


def test_a_folder_that_does_not_come_back_is_an_error(save, out, tmp_path, monkeypatch):
    save()
    aside = tmp_path / ".out.old-abc" / "out"
    aside.parent.mkdir()
    out.rename(aside)
    waits = []
    monkeypatch.setattr(reading, "_wait_for_rename", lambda: waits.append(1))
    with pytest.raises(ArtifactError, match="no such artifact"):
        load_artifact(out)
    assert len(waits) == reading.RETRIES


def test_a_missing_folder_is_told_at_once(out, monkeypatch):
    attempts = []
    read = reading.read_manifest
    monkeypatch.setattr(reading, "read_manifest", lambda root: attempts.append(root) or read(root))
    with pytest.raises(ArtifactError, match="no such artifact"):
        load_artifact(out)
    assert len(attempts) == 1


def test_an_artifact_replaced_again_and_again_is_an_error(save, out, meanwhile):
    save()
    waiting = meanwhile("_check_signature", *[save] * (reading.RETRIES + 5))
    with pytest.raises(ArtifactError, match="is replaced again and again"):
        load_artifact(out)
    assert len(waiting) == 4


def test_an_engine_that_stays_missing_is_unusable_and_said_once(save, out, caplog):
    save()
    (out / ENGINE).unlink()
    (entry,) = load_artifact(out).engines
    assert entry.problem == f"{ENGINE} is missing"
    assert caplog.text.count("runs natively") == 1


def test_the_names_are_those_of_the_module(out):
    assert artifacts.check_output is artifact_paths.check_output
    assert artifacts.is_artifact is artifact_paths.is_artifact
    assert not artifacts.is_artifact(out)
