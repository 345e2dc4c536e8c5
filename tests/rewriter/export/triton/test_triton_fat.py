"""Artifacts with engines for several GPUs, built apart and merged, in Triton's repositories."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from rewriter import Converter, load
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
from rewriter.errors import InvalidParameterError
from rewriter.export.triton import export_triton
from rewriter.merging import merge

pytestmark = pytest.mark.rtx
TARGETS = ("SM80", "SM89", "SM120")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One artifact for each target, of one model, each converted by itself."""
    folder = tmp_path_factory.mktemp("built")
    proto = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 64] image) => (float[batch, 32] out) { t = MatMul(image, w)  u = Relu(t)  out = Tanh(u) }
        """
    )
    weights = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(proto, folder / "model.onnx")
    for target in TARGETS:
        options = {"backend": "tensorrt_rtx", "targets": (target,), "minimum_segment_size": 1}
        with Converter(model=str(folder / "model.onnx"), **options) as converter:
            converter.convert()
            converter.build(converter.sample_input_fn({"image": [(1, 64), (8, 64)]}))
            converter.save(folder / target)
    return [folder / target for target in TARGETS]


def as_tensorrt(artifact, folder, version):
    """The same, with engines that say that plain TensorRT built them: that one builds on a GPU only."""
    old = load_artifact(artifact)
    engines = [
        (dataclasses.replace(entry, backend="tensorrt", version=version), old.engine_path(entry))
        for entry in old.engines
    ]
    part = ArtifactPart(old.model, old.signature, old.params, old.report, engines=engines)
    return save_artifact(folder, part)


def test_the_python_flavour_takes_all_engines_with_it(built, tmp_path):
    merged = merge(built, tmp_path / "fat").path
    done = export_triton(merged, tmp_path / "repo", kind="cpu")
    copy = load_artifact(done.folder / "artifact")
    assert [(entry.targets, entry.usable) for entry in copy.engines] == [((target,), True) for target in TARGETS]
    assert done.max_batch_size == 8
    image = np.ones((3, 64), np.float32)
    with load(copy.path, provider="cpu") as function, load(built[0], provider="cpu") as first:
        np.testing.assert_array_equal(function(image)["out"], first(image)["out"])
    with pytest.raises(InvalidParameterError, match="are of tensorrt_rtx, which Triton's TensorRT backend cannot load"):
        export_triton(merged, tmp_path / "repo", name="plan", flavour="tensorrt_plan")


def test_a_plan_for_each_compute_capability(built, tmp_path):
    parts = [as_tensorrt(path, tmp_path / path.name, "10.13.2") for path in built]
    done = export_triton(merge(parts, tmp_path / "fat").path, tmp_path / "repo", flavour="tensorrt_plan")
    text = (done.repository / "fat/config.pbtxt").read_text()
    for number, file, path in zip(
        ("8.0", "8.9", "12.0"), ("model.plan", "sm89.plan", "sm120.plan"), parts, strict=True
    ):
        assert f'cc_model_filenames {{\n  key: "{number}"\n  value: "{file}"\n}}' in text
        (engine,) = path.rglob("*.engine")
        assert (done.folder / file).read_bytes() == engine.read_bytes()
    assert done.max_batch_size == 8
    assert done.notes[1:] == (
        "one plan for each compute capability: 8.0 (model.plan), 8.9 (sm89.plan), 12.0 (sm120.plan); any other GPU is "
        "given model.plan",
    )


def test_versions_are_never_mixed(built, tmp_path):
    versions = ("10.13.2", "10.9.0", "10.13.2")
    parts = [as_tensorrt(path, tmp_path / path.name, version) for path, version in zip(built, versions, strict=True)]
    merged = merge(parts, tmp_path / "fat").path
    newest = export_triton(merged, tmp_path / "repo", flavour="tensorrt_plan")
    older = export_triton(merged, tmp_path / "repo", flavour="tensorrt_plan", engine_version="10.9.0")
    names = [sorted(path.name for path in done.folder.iterdir()) for done in (newest, older)]
    assert names == [["model.plan", "sm120.plan"], ["model.plan"]]
    (engine,) = parts[1].rglob("*.engine")
    assert (older.folder / "model.plan").read_bytes() == engine.read_bytes()
    assert "the plan is for compute capability 8.9 only" in older.notes
    assert any(note.startswith("the engines of TensorRT 10.9.0 are left out") for note in newest.notes)
