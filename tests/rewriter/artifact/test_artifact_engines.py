"""Engines built at run time, saved into an artifact that is there: never half, never losing another's."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import threading

import pytest
from onnx import parser

from passes import model as models
from passes.precision.ranges import RangeTable, TensorRange
from passes.segments import TensorSpec
from rewriter.artifact import ArtifactPart, check_output, load_artifact, save_artifact
from rewriter.artifact import engines as saving
from rewriter.artifact import manifest as manifests
from rewriter.artifact.engines import save_engines
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.errors import ArtifactError
from rewriter.runtime.slots import StoredEngine
from rewriter.source import Signature

OP = "TRTEngineOp_000"
HASH = "5" * 64


def spliced_model():
    """One engine node, written as `splice` writes it."""
    proto = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 20, "trt_rewriter": 1]>
        g (float[batch, 4] x) => (float[batch, 4] y)
        {{
            y = trt_rewriter.{OP} <segment_hash: string = "{HASH}", data_inputs: int = 1, precision: string = "FP32",
                profiles: string = "[]", backend: string = "", backend_version: string = ""> (x)
        }}
        <domain: "trt_rewriter", opset_import: ["": 20]>
        {OP} (x) => (y)
        {{
            a = Relu(x)
            y = Neg(a)
        }}
        """
    )
    return models.from_proto(proto)


def stored(tmp_path, key, content=None, op=OP, **more):
    path = tmp_path / f"{key}.scratch"
    path.unlink(missing_ok=True)  # an artifact may hold a link to it
    path.write_bytes(content or key.encode() * 100)
    record = manifests.hash_file(path)
    profile = {"x": InputProfile((1, 4), (2, 4), (8, 4))}
    entry = EngineEntry(
        op, key, record.size, record.sha256, "tensorrt_rtx", "1.7.1", ("SM89",), (profile,), "FP32", HASH
    )
    return StoredEngine(dataclasses.replace(entry, **more), path)


def part_of(name, *engines):
    spec = TensorSpec("x", 1, ("batch", 4))
    return ArtifactPart(
        model=spliced_model(),
        signature=Signature((spec,), (dataclasses.replace(spec, name="y", tensor="y"),), name),
        params={"precision_mode": "FP32"},
        engines=[(engine.entry, engine.path) for engine in engines],
        report={},
    )


@pytest.fixture
def artifact(tmp_path):
    """An artifact with one engine, "first"."""
    return save_artifact(tmp_path / "out", part_of("serve", stored(tmp_path, "first")))


@pytest.fixture
def shared(tmp_path):
    """An artifact of two signatures with one function; the engine "first" was built for "serve" only."""
    return save_artifact(tmp_path / "out", part_of("serve", stored(tmp_path, "first")), part_of("predict"))


def engines_of(artifact, name):
    loaded = load_artifact(artifact, signature=name)
    return {entry.key: (entry.problem, loaded.engine_path(entry).read_bytes()) for entry in loaded.engines}


def keys(artifact):
    return [(entry.key, entry.problem) for entry in load_artifact(artifact).engines]


def files_of(artifact):
    return {path.relative_to(artifact).as_posix(): path.read_bytes() for path in artifact.rglob("*") if path.is_file()}


def test_engines_are_added(artifact, tmp_path):
    before = files_of(artifact)
    new = stored(tmp_path, "new")
    (saved,) = save_engines(artifact, [new])
    assert saved == StoredEngine(new.entry, artifact / new.entry.file)
    assert saved.path.read_bytes() == new.path.read_bytes()
    assert keys(artifact) == [("first", ""), ("new", "")]
    after = files_of(artifact)
    added = {f"engines/{OP}/new.engine", f"engines/{OP}/new.json"}
    assert after.keys() == before.keys() | added
    assert [name for name in before if before[name] != after[name]] == ["manifest.json"]
    assert json.loads(after[f"engines/{OP}/new.json"]) == manifests.entry_to_json(new.entry)
    old, now = load_artifact(artifact), json.loads(after["manifest.json"])
    assert now["created"] == json.loads(before["manifest.json"])["created"] == old.created
    check_output(artifact, overwrite=True)  # nothing lies there that the manifest does not list


def test_what_is_there_is_skipped(artifact, tmp_path):
    before = files_of(artifact)
    assert save_engines(artifact, [stored(tmp_path, "first", b"another build")]) == ()
    assert save_engines(artifact, []) == ()
    assert files_of(artifact) == before
    new = stored(tmp_path, "new")
    assert len(save_engines(artifact, [new, new])) == 1
    assert len(save_engines(artifact, [new, stored(tmp_path, "newer")])) == 1
    assert [key for key, _ in keys(artifact)] == ["first", "new", "newer"]


def test_another_build_of_a_shared_engine_does_not_replace_it(shared, tmp_path):
    before = engines_of(shared, "serve")
    files = files_of(shared)
    again = stored(tmp_path, "first", b"another build")
    (taken,) = save_engines(shared, [again], "predict")
    assert taken.path.read_bytes() == before["first"][1]
    assert manifests.hash_file(taken.path).sha256 == taken.entry.sha256
    assert engines_of(shared, "serve") == engines_of(shared, "predict") == before
    assert before["first"][0] == ""
    after = files_of(shared)
    assert [name for name in after if after[name] != files.get(name)] == ["manifest.json"]
    assert save_engines(shared, [again], "predict") == save_engines(shared, [again], "serve") == ()


def test_a_damaged_shared_engine_is_replaced_for_all(shared, tmp_path):
    save_engines(shared, [stored(tmp_path, "first")], "predict")
    path = shared / "engines" / OP / "first.engine"
    path.unlink()
    again = stored(tmp_path, "first", b"another build")
    assert len(save_engines(shared, [again, stored(tmp_path, "new")], "predict")) == 2
    assert engines_of(shared, "serve") == {"first": ("", b"another build")}
    assert engines_of(shared, "predict").keys() == {"first", "new"}
    assert engines_of(shared, "predict")["first"] == ("", b"another build")


def test_an_entry_that_another_build_has_overtaken_is_put_right(shared, tmp_path):
    save_engines(shared, [stored(tmp_path, "first")], "predict")
    path = shared / "manifest.json"
    data = json.loads(path.read_text())
    data["engines"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(data))
    assert "not listed" in engines_of(shared, "serve")["first"][0]
    assert len(save_engines(shared, [stored(tmp_path, "first", b"another build")], "serve")) == 1
    assert engines_of(shared, "serve") == engines_of(shared, "predict")
    assert engines_of(shared, "serve")["first"][0] == ""


@pytest.mark.parametrize("damage", ["engine", "sidecar", "gone"])
def test_a_damaged_engine_is_replaced(artifact, tmp_path, damage):
    path = artifact / "engines" / OP / ("first.json" if damage == "sidecar" else "first.engine")
    path.unlink()
    if damage != "gone":
        path.write_bytes(b"?" * 500)
    assert keys(artifact)[0][1]
    again = stored(tmp_path, "first", b"another build", problem="it was damaged")
    assert len(save_engines(artifact, [again])) == 1
    assert keys(artifact) == [("first", "")]
    assert load_artifact(artifact).engine_path(again.entry).read_bytes() == b"another build"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "TRTEngineOp_007"}, "has no engine node TRTEngineOp_007"),
        ({"segment_hash": "6" * 64}, f"the segment of {OP} is not the one that engine new was built of"),
        ({"sha256": "0" * 64}, f"engine {OP} has changed since it was built"),
    ],
)
def test_engines_that_do_not_belong_are_refused(artifact, tmp_path, change, message):
    before = files_of(artifact)
    with pytest.raises(ArtifactError, match=message):
        save_engines(artifact, [stored(tmp_path, "good"), stored(tmp_path, "new", **change)])
    assert files_of(artifact) == before
    assert not [path for path in artifact.iterdir() if path.name.startswith(".")]


def test_no_artifact(tmp_path):
    for engines in ([stored(tmp_path, "new")], []):
        with pytest.raises(ArtifactError, match="no such artifact"):
            save_engines(tmp_path / "nothing", engines)


class StopError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("fails", range(5))
def test_whatever_fails_the_artifact_is_what_it_was(artifact, tmp_path, monkeypatch, fails):
    """The n-th rename fails: of engines, sidecars, and last the manifest."""
    before, renames = files_of(artifact), []
    replace = type(artifact).replace

    def failing(self, target):
        renames.append(target)
        if len(renames) == fails + 1:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(type(artifact), "replace", failing)
    with pytest.raises(ArtifactError, match=r"cannot write the artifact .*No space left on device"):
        save_engines(artifact, [stored(tmp_path, "a"), stored(tmp_path, "b")])
    monkeypatch.undo()
    assert files_of(artifact) == before
    assert len(save_engines(artifact, [stored(tmp_path, "a")])) == 1


@pytest.mark.parametrize("fails", range(5))
def test_a_crash_leaves_a_valid_artifact(artifact, tmp_path, monkeypatch, fails):
    renames, replace = [], type(artifact).replace

    def stopping(self, target):
        renames.append(target)
        if len(renames) == fails + 1:
            raise StopError
        return replace(self, target)

    monkeypatch.setattr(type(artifact), "replace", stopping)
    monkeypatch.setattr(saving, "_remove", lambda root, placed: None)  # a crash tidies nothing
    with pytest.raises(StopError):
        save_engines(artifact, [stored(tmp_path, "a"), stored(tmp_path, "b")])
    monkeypatch.undo()
    assert keys(artifact) == [("first", "")]
    save_engines(artifact, [stored(tmp_path, "a"), stored(tmp_path, "b")])
    assert keys(artifact) == [("first", ""), ("a", ""), ("b", "")]


def test_a_manifest_that_changes_meanwhile_is_read_again(artifact, tmp_path, monkeypatch):
    """A process without the lock adds an engine at the last moment: nothing of it is lost."""
    prepare, done = saving._prepare, []

    def meanwhile(scratch, added):
        records = prepare(scratch, added)
        if not done:
            done.append(True)
            path = artifact / "manifest.json"
            data = json.loads(path.read_text())
            path.write_text(json.dumps({**data, "params": {"precision_mode": "changed"}}))
        return records

    monkeypatch.setattr(saving, "_prepare", meanwhile)
    assert len(save_engines(artifact, [stored(tmp_path, "new")])) == 1
    assert keys(artifact) == [("first", ""), ("new", "")]
    assert load_artifact(artifact).params == {"precision_mode": "changed"}


def test_one_that_changes_all_the_time_is_told(artifact, tmp_path, monkeypatch):
    prepare, count = saving._prepare, []

    def meanwhile(scratch, added):
        count.append(True)
        path = artifact / "manifest.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "created": str(len(count))}))
        return prepare(scratch, added)

    monkeypatch.setattr(saving, "_prepare", meanwhile)
    with pytest.raises(ArtifactError, match="changed again and again by another process"):
        save_engines(artifact, [stored(tmp_path, "new")])
    assert keys(artifact) == [("first", "")]
    check_output(artifact, overwrite=True)


def test_threads_that_save_at_once(artifact, tmp_path):
    engines = [stored(tmp_path, f"k{number}") for number in range(8)]
    start, wrong = threading.Barrier(4), []

    def work(own):
        start.wait(30)
        try:
            save_engines(artifact, own)
        except ArtifactError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(engines[n : n + 5],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [error for error in wrong if "again and again" not in str(error)]
    found = keys(artifact)
    assert all(not problem for _, problem in found)
    saved = {key for key, _ in found}
    assert len(found) == len(saved)
    lost = [n for n in range(4) if not {e.entry.key for e in engines[n : n + 5]} <= saved]
    assert len(lost) == len(wrong)


def test_two_processes_that_save_at_once(artifact, tmp_path):
    script = textwrap.dedent(
        """
        import sys, pathlib
        sys.path.insert(0, sys.argv[3])
        from test_artifact_engines import stored
        from rewriter.artifact.engines import save_engines
        name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
        own = folder / name
        own.mkdir()
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(5):
            save_engines(folder / "out", [stored(own, f"{name}{number}"), stored(own, f"both{number}", b"same")])
        """
    )
    here = __file__.rpartition("/")[0]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, name, str(tmp_path), here],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("left", "right")
    ]  # fmt: skip
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    wanted = {"first"} | {f"{name}{n}" for name in ("left", "right", "both") for n in range(5)}
    found = keys(artifact)
    assert {key for key, _ in found} == wanted
    assert all(not problem for _, problem in found)
    check_output(artifact, overwrite=True)


def with_params(tmp_path, recipe="FP32", targets=("SM89",), ranges=None):
    first = part_of("serve", stored(tmp_path, "first"))
    params = {"recipe": {"mode": recipe}, "targets": list(targets)}
    return save_artifact(
        tmp_path / "out", dataclasses.replace(first, params=params, ranges=ranges), part_of("other"), overwrite=True
    )


@pytest.mark.parametrize(
    ("known", "expected"),
    [(["SM89"], ["SM89", "SM80", "SM120"]), (["SM120", "SM80"], ["SM120", "SM80"]), ([], [])],
)
def test_the_targets_of_the_signature_grow_with_its_engines(tmp_path, known, expected):
    artifact = with_params(tmp_path, targets=known)
    save_engines(artifact, [stored(tmp_path, "new", targets=("SM80", "SM120"))])
    assert load_artifact(artifact).params == {"recipe": {"mode": "FP32"}, "targets": expected}
    assert load_artifact(artifact, signature="other").params == {"precision_mode": "FP32"}


def test_a_replaced_engine_keeps_its_place(artifact, tmp_path):
    save_engines(artifact, [stored(tmp_path, "second")])
    (artifact / "engines" / OP / "first.engine").unlink()
    save_engines(artifact, [stored(tmp_path, "third"), stored(tmp_path, "first")])
    assert keys(artifact) == [("first", ""), ("second", ""), ("third", "")]


@pytest.mark.parametrize(
    "other", [{"recipe": "FP16"}, {"ranges": RangeTable({"x": TensorRange(0, 1)}, "minmax", 1)}], ids=str
)
def test_engines_of_what_was_replaced_meanwhile_are_refused(tmp_path, other):
    read = load_artifact(with_params(tmp_path))
    artifact = with_params(tmp_path, **other)
    before = files_of(artifact)
    with pytest.raises(ArtifactError, match="replaced while engines were built for it, and its recipe or calibration"):
        save_engines(artifact, [stored(tmp_path, "new")], built_from=read)
    assert files_of(artifact) == before
    assert len(save_engines(artifact, [stored(tmp_path, "new")], built_from=load_artifact(artifact))) == 1
