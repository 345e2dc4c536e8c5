"""`export_triton`: files, versions, and what is refused."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter import load
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.export.triton import contents, export_triton, repository
from rewriter.export.triton.config import config_text, shape_notes
from rewriter.export.triton.kserve import service_name
from rewriter.export.triton.plans import plan_content
from rewriter.export.triton.repository import versions_of
from rewriter.export.triton.shapes import Batching
from rewriter.source import Signature


def resaved(artifact, folder, change):
    """The artifact with a changed output, saved again."""
    old = load_artifact(artifact)
    outputs = (dataclasses.replace(old.signature.outputs[0], **change),)
    signature = dataclasses.replace(old.signature, outputs=outputs)
    return save_artifact(folder, ArtifactPart(old.model, signature, {}, {}))


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_python_flavour(dense, tmp_path):
    options = {"kind": "cpu", "instances": 2, "max_queue_delay_us": 50, "threads": 3}
    done = export_triton(dense, tmp_path / "new" / "repo", **options)
    assert (done.name, done.version, done.max_batch_size) == ("dense", 1, 8)
    assert done.files == (
        "dense.inferenceservice.yaml",
        "dense/1/artifact/manifest.json",
        "dense/1/artifact/model.onnx",
        "dense/1/artifact/model.onnx.data",
        "dense/1/artifact/report.json",
        "dense/1/model.py",
        "dense/config.pbtxt",
    )
    assert tree(done.repository.parent) == sorted(
        ["repo", *(f"repo/{f}" for f in done.files), "repo/dense", "repo/dense/1", "repo/dense/1/artifact"]
    )
    text = (done.repository / "dense/config.pbtxt").read_text()
    assert 'backend: "python"\n' in text
    assert "max_queue_delay_microseconds: 50\n" in text
    assert 'key: "threads"\n  value {\n    string_value: "3"\n' in text
    assert "  count: 2\n  kind: KIND_CPU\n" in text
    image = np.ones((3, 4), np.float32)
    with load(done.folder / "artifact") as copy, load(dense) as function:
        np.testing.assert_array_equal(copy(image)["out"], function(image)["out"])


def test_the_next_version(dense, tmp_path):
    repository = tmp_path / "repo"
    export_triton(dense, repository)
    same = export_triton(dense, repository)
    assert same.version == 2
    assert not (repository / "dense/config.pbtxt.old").exists()
    (repository / "dense" / "7").mkdir()
    changed = export_triton(dense, repository, flavour="onnxruntime")
    assert changed.version == 8
    assert "the settings before this version are in dense/config.pbtxt.old" in changed.notes
    assert 'backend: "python"' in (repository / "dense/config.pbtxt.old").read_text()
    assert versions_of(repository / "dense") == [1, 2, 7, 8]


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_changes_nothing(dense, tmp_path, monkeypatch, existing):
    if existing:
        export_triton(dense, tmp_path / "repo")
    before = tree(tmp_path)

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(contents, "link_or_copy", fail)
    with pytest.raises(ArtifactError, match=r"cannot write the model repository .*No space"):
        export_triton(dense, tmp_path / "repo")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("existing", [False, True])
def test_settings_that_cannot_be_written_take_their_version_with_them(dense, tmp_path, monkeypatch, existing):
    if existing:
        export_triton(dense, tmp_path / "repo")
    before = tree(tmp_path)

    def fail(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository, "_write_text", fail)
    with pytest.raises(ArtifactError, match=r"cannot write the model repository .*No space"):
        export_triton(dense, tmp_path / "repo", max_batch_size=4)
    assert [path for path in tree(tmp_path) if not path.endswith(".old")] == before


def test_onnxruntime_flavour_is_complete_in_itself(with_engines, tmp_path):
    artifact = with_engines({})
    done = export_triton(artifact, tmp_path / "repo", name="m", flavour="onnxruntime")
    image = np.ones((3, 4), np.float32)
    session = onnxruntime.InferenceSession(done.folder / "model.onnx", providers=["CPUExecutionProvider"])
    with load(artifact, provider="cpu") as function:
        np.testing.assert_array_equal(session.run(["y"], {"x": image})[0], function(image)["out"])
    text = (done.repository / "m/config.pbtxt").read_text()
    assert 'name: "x"' in text
    assert 'name: "y"' in text
    assert any("no engine" in note for note in done.notes)


def test_plans_by_compute_capability(with_engines, tmp_path):
    artifact = with_engines({"targets": ("SM89",)}, {"targets": ("SM90", "SM120")})
    done = export_triton(artifact, tmp_path / "repo", name="m", flavour="tensorrt_plan")
    assert (done.folder / "model.plan").read_bytes().startswith(b"engine 0")
    assert (done.folder / "sm90.plan").read_bytes().startswith(b"engine 1")
    assert plan_content(load_artifact(artifact)).plans == {
        "8.9": "model.plan",
        "9.0": "sm90.plan",
        "12.0": "sm90.plan",
    }
    text = (done.repository / "m/config.pbtxt").read_text()
    assert 'backend: "tensorrt"' in text
    assert 'name: "inner_x"' in text  # a plan's tensors have the names of the segment
    assert "max_batch_size: 16" in text
    assert "preferred_batch_size: [ 4 ]" in text


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ([], "has no engine that can be used; build one first"),
        ([{"backend": "tensorrt_rtx"}], "are of tensorrt_rtx, which Triton's TensorRT backend cannot load"),
        ([{}, {"profiles": ()}], "have different profiles"),
    ],
)
def test_what_is_no_plan_is_refused(with_engines, tmp_path, engines, words):
    with pytest.raises(InvalidParameterError, match=words):
        export_triton(with_engines(*engines), tmp_path / "repo", flavour="tensorrt_plan")
    assert not (tmp_path / "repo").exists()


def test_all_plans_are_of_one_version(with_engines, tmp_path):
    engines = [("10.9.0", "SM89"), ("10.13.2", "SM80"), ("10.13.2", "SM120"), ("10.9.0", "SM120")]
    artifact = with_engines(*({"version": version, "targets": (target,)} for version, target in engines))
    newest = export_triton(artifact, tmp_path / "repo", name="newest", flavour="tensorrt_plan")
    older = export_triton(artifact, tmp_path / "repo", name="older", flavour="tensorrt_plan", engine_version="10.9.0")
    for done, first, second in ((newest, 1, 2), (older, 0, 3)):
        assert (done.folder / "model.plan").read_bytes().startswith(b"engine %d" % first)
        assert (done.folder / "sm120.plan").read_bytes().startswith(b"engine %d" % second)
        assert len(list(done.folder.iterdir())) == 2
    assert newest.notes == (
        "Triton's container must have TensorRT 10.13.2, with which the plan was built",
        "the engines of TensorRT 10.9.0 are left out: all plans of a server are of one version, here 10.13.2; choose "
        "another with engine_version=... (--engine-version)",
        "one plan for each compute capability: 8.0 (model.plan), 12.0 (sm120.plan); any other GPU is given model.plan",
    )
    with pytest.raises(InvalidParameterError, match=r"no engine of TensorRT 10\.1; it has those of 10\.9\.0, 10\.13"):
        export_triton(artifact, tmp_path / "repo", name="none", flavour="tensorrt_plan", engine_version="10.1")
    assert tree(tmp_path / "repo")[0] == "newest"
    assert not (tmp_path / "repo" / "none").exists()


def test_an_engine_for_an_unknown_gpu_is_for_all_others(with_engines, tmp_path):
    artifact = with_engines({"targets": ("SM89",)}, {}, {"targets": ("SM89",)})
    done = export_triton(artifact, tmp_path / "repo", name="m", flavour="tensorrt_plan")
    assert (done.folder / "model.plan").read_bytes().startswith(b"engine 1")
    assert (done.folder / "sm89.plan").read_bytes().startswith(b"engine 0")
    assert "1 further engine for the same GPUs left out: the first is taken" in done.notes


def test_a_damaged_engine_is_told_and_is_no_plan(with_engines, tmp_path):
    artifact = with_engines({"targets": ("SM89",)}, {"targets": ("SM120",)})
    damaged = load_artifact(artifact).engine_path(load_artifact(artifact).engines[0])
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    plan = export_triton(artifact, tmp_path / "repo", name="plan", flavour="tensorrt_plan")
    assert [path.name for path in plan.folder.iterdir()] == ["model.plan"]
    assert (plan.folder / "model.plan").read_bytes().startswith(b"engine 1")
    whole = export_triton(artifact, tmp_path / "repo", name="whole")
    for done in (plan, whole):
        assert any(note.startswith("engine TRTEngineOp_000 cannot be used: ") for note in done.notes)
    with load(whole.folder / "artifact", provider="cpu") as function:
        assert function(np.ones((2, 4), np.float32))["out"].shape == (2, 300)


def test_a_graph_around_the_engine_is_no_plan(dense, tmp_path):
    with pytest.raises(InvalidParameterError, match=r"not one engine as a whole \(MatMul is outside"):
        export_triton(dense, tmp_path / "repo", flavour="tensorrt_plan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": TensorProto.COMPLEX64}, "Triton has no data type for 'out', which is COMPLEX64"),
        ({"dtype": TensorProto.FLOAT8E4M3FN}, "Triton has no data type for 'out', which is FLOAT8E4M3FN"),
        ({"dtype": TensorProto.BFLOAT16}, "'out' is BF16, which Triton's python backend cannot"),
        ({"shape": None}, "how many dimensions 'out' has"),
        ({"shape": (0, 3)}, "'out' is always empty"),
    ],
)
def test_what_triton_has_no_word_for(dense, tmp_path, change, words):
    artifact = resaved(dense, tmp_path / "changed", change)
    with pytest.raises(InvalidParameterError, match=words):
        export_triton(artifact, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flavour": "jax"}, "flavour must be one of python, onnxruntime, tensorrt_plan"),
        ({"name": "a/b"}, "the model cannot have the name 'a/b'"),
        ({"name": ".a"}, "the model cannot have the name '.a'"),
        ({"kind": "tpu"}, "kind must be one of auto, cpu, gpu, model"),
        ({"instances": 0}, "instances must be a number from 1"),
        ({"instances": 2**31}, "instances must be a number from 1 to 2147483647"),
        ({"max_batch_size": 2**31}, "max_batch_size must be a whole number of at least 0 and at most 2147483647"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us must be a number from 0"),
        ({"gpus": [0]}, "gpus need kind='gpu'"),
        ({"gpus": [-1], "kind": "gpu"}, "gpus must be numbers from 0"),
        ({"gpus": [1, 1], "kind": "gpu"}, "each of them once"),
        ({"flavour": "onnxruntime", "strict": True}, "strict is for flavour='python'"),
        ({"flavour": "onnxruntime", "threads": 2}, "threads is for flavour='python', not 'onnxruntime'"),
        ({"threads": 0}, "threads must be a number from 1, not 0"),
        ({"engine_version": "10.9.0"}, "engine_version is for flavour='tensorrt_plan', not 'python'"),
        ({"signature": "other"}, "has no signature 'other'"),
    ],
)
def test_options_that_are_not_allowed(dense, tmp_path, options, words):
    with pytest.raises(InvalidParameterError, match=words):
        export_triton(dense, tmp_path / "repo", **options)
    assert not (tmp_path / "repo").exists()


def test_places_that_are_not_allowed(dense, tmp_path):
    with pytest.raises(ArtifactError, match="no such artifact"):
        export_triton(tmp_path / "missing", tmp_path / "repo")
    with pytest.raises(ArtifactError, match="lies in the artifact"):
        export_triton(dense, dense / "repo")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        export_triton(dense, tmp_path / "file")
    other = tmp_path / "repo" / "dense"
    other.mkdir(parents=True)
    (other / "letter.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is no model of Triton"):
        export_triton(dense, tmp_path / "repo")
    assert tree(other) == ["letter.txt"]
    (tmp_path / "repo" / "a.inferenceservice.yaml").mkdir()
    with pytest.raises(ArtifactError, match="yaml is a folder, where a file has to be"):
        export_triton(dense, tmp_path / "repo", name="a")
    assert not (tmp_path / "repo" / "a").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ResNet_50", "resnet-50"), ("50x", "model-50x"), ("a" * 80, "a" * 63), ("__", "model")],
)
def test_names_for_kubernetes(name, expected):
    assert service_name(name) == expected


def test_kserve_gets_what_is_given(dense, tmp_path):
    given = {"storage_uri": "s3://bucket/repo", "image": "registry/triton:1"}
    done = export_triton(dense, tmp_path / "repo", **given)
    text = (done.repository / "dense.inferenceservice.yaml").read_text()
    assert '      storageUri: "s3://bucket/repo"\n      image: "registry/triton:1"\n' in text
    assert 'nvidia.com/gpu: "1"' in text
    export_triton(dense, tmp_path / "repo", kind="cpu")
    text = (done.repository / "dense.inferenceservice.yaml").read_text()
    assert "      # image: one of Triton in which trt-rewriter is installed\n" in text
    assert "nvidia.com/gpu" not in text


def test_what_has_no_dimensions():
    scalar, vector = (TensorSpec("k", TensorProto.INT64, shape) for shape in ((), ("batch",)))
    many, none = Batching(4), Batching(0)
    assert shape_notes(Signature((vector,), ()), none) == shape_notes(Signature((scalar,), ()), many) == ()
    assert shape_notes(Signature((vector,), ()), many)[0].startswith("Triton's clients see 'k' as [batch, 1]")
    assert shape_notes(Signature((scalar,), ()), none) == ("Triton's clients see 'k' as [1], where a call has []",)
    text = config_text("m", "python", Signature((vector,), ()), Batching(4), [])
    assert "  dims: [ 1 ]\n  reshape {\n    shape: []\n  }\n" in text
    text = config_text("m", "python", Signature((scalar,), ()), Batching(0), [])
    assert "  dims: [ 1 ]\n}\n" in text
    assert "reshape" not in text  # Triton refuses an empty one in a model without a batch
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    with pytest.raises(InvalidParameterError, match="'k' has no dimensions"):
        config_text("m", "onnxruntime", Signature((scalar,), ()), Batching(0), [])
