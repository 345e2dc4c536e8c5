"""Artifacts of several signatures: one folder, shared weights and engines, each signature read by its name."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from passes import model as models
from passes.engine_node import EngineAttributes, read_engines, write_attributes
from passes.precision.ranges import RangeTable, TensorRange
from passes.segments import TensorSpec
from rewriter.artifact import ArtifactPart, EngineEntry, load_artifact, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.errors import ArtifactError, InvalidParameterError

WEIGHT = np.arange(4096, dtype=np.float32).reshape(64, 64)


def part(name, operator, *more, engines=(), ranges=None):
    """A signature whose model multiplies by the shared weight, and by its own ones, and applies `operator`."""
    text = f'<ir_version: 10, opset_import: ["": 20]> {name} (float[n,64] x) => (float[n,64] y) {{'
    value = "x"
    for number in range(1 + len(more)):
        text += f"v{number} = MatMul({value}, w{number}) "
        value = f"v{number}"
    proto = parser.parse_model(text + f"y = {operator}({value}) }}")
    for number, array in enumerate((WEIGHT, *more)):
        proto.graph.initializer.append(numpy_helper.from_array(array, f"w{number}"))
    x, y = TensorSpec("x", 1, ("n", 64)), TensorSpec("y", 1, ("n", 64))
    signature = manifests.Signature((x,), (y,), name)
    return ArtifactPart(models.from_proto(proto), signature, {"of": name}, {"name": name}, engines, ranges)


@pytest.fixture
def engine(tmp_path):
    def make(key, op="TRTEngineOp_000", content=b"engine"):
        path = tmp_path / f"{key}{op}.engine"
        path.write_bytes(content)
        record = manifests.hash_file(path)
        return EngineEntry(op, key, record.size, record.sha256, "tensorrt_rtx", "1.7.1"), path

    return make


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_each_signature_comes_back_by_its_name(out):
    table = RangeTable({"x": TensorRange(-1.0, 1.0)}, "minmax", 1)
    save_artifact(out, part("serve", "Relu"), part("embed", "Neg", ranges=table))
    first, second = load_artifact(out), load_artifact(out, signature="embed")
    assert (first.signature.name, second.signature.name) == ("serve", "embed")
    assert first.signatures == second.signatures == ("serve", "embed")
    assert (first.params, second.params) == ({"of": "serve"}, {"of": "embed"})
    assert (first.report, second.report) == ({"name": "serve"}, {"name": "embed"})
    assert (first.ranges, second.ranges) == (None, table)
    assert [a.model.proto.graph.node[-1].op_type for a in (first, second)] == ["Relu", "Neg"]


def test_equal_weights_lie_on_the_disk_once(out):
    own = np.ones((64, 64), np.float32)
    save_artifact(out, part("serve", "Relu"), part("embed", "Neg", own))
    assert (out / "model.onnx.data").stat().st_size == 2 * WEIGHT.nbytes
    loaded = load_artifact(out, signature="embed").model.weights
    np.testing.assert_array_equal(loaded["w0"], WEIGHT)
    np.testing.assert_array_equal(loaded["w1"], own)


@pytest.mark.parametrize("file", ["model.onnx", "model.1.onnx"])
def test_any_onnx_runtime_reads_each_model(out, file):
    save_artifact(out, part("serve", "Relu"), part("embed", "Neg"))
    session = onnxruntime.InferenceSession(str(out / file), providers=["CPUExecutionProvider"])
    x = np.eye(1, 64, dtype=np.float32)
    expected = np.maximum(x @ WEIGHT, 0) if file == "model.onnx" else -(x @ WEIGHT)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected)


def test_signatures_share_equal_engines_and_keep_their_own(out, engine):
    shared, own = engine("aaaa"), engine("bbbb")
    save_artifact(out, part("serve", "Relu", engines=[shared]), part("embed", "Neg", engines=[shared, own]))
    assert [e.key for e in load_artifact(out).engines] == ["aaaa"]
    assert [(e.key, e.usable) for e in load_artifact(out, signature="embed").engines] == [
        ("aaaa", True),
        ("bbbb", True),
    ]
    assert len(list(out.glob("engines/*/*.engine"))) == 2


def test_an_engine_that_was_built_twice_is_saved_once(out, engine, tmp_path):
    one, two = engine("aaaa"), engine("aaaa2", content=b"other bytes")
    two = dataclasses.replace(two[0], key="aaaa"), two[1]
    own = engine("bbbb")
    save_artifact(out, part("serve", "Relu", engines=[one]), part("embed", "Neg", engines=[two, own]))
    first, second = load_artifact(out), load_artifact(out, signature="embed")
    assert [(e.key, e.problem) for e in second.engines] == [("aaaa", ""), ("bbbb", "")]
    assert second.engines[0] == first.engines[0] == one[0]
    assert second.engine_path(second.engines[0]).read_bytes() == b"engine"


def test_the_model_names_the_engine_that_is_saved(out, engine):
    one, two = engine("aaaa"), engine("other", content=b"other bytes")
    two = dataclasses.replace(two[0], key="aaaa"), two[1]
    file = one[0].file

    def spliced(entry):
        attributes = EngineAttributes("", 1, engine_files=(file,), engine_sha256=(entry.sha256,))
        node = helper.make_node("TRTEngineOp_000", ["v0"], ["y"], domain="trt_rewriter")
        write_attributes(node, attributes)
        made = part("serve", "Relu")
        proto = made.model.copy_proto()
        proto.graph.node[-1].CopyFrom(node)
        proto.opset_import.append(helper.make_opsetid("trt_rewriter", 1))
        return dataclasses.replace(made, model=made.model.with_proto(proto))

    serve = dataclasses.replace(spliced(one[0]), engines=[one])
    embed = dataclasses.replace(spliced(two[0]), engines=[two], signature=part("embed", "Relu").signature)
    save_artifact(out, serve, embed)
    for name in ("serve", "embed"):
        ((_, attributes, _),) = read_engines(load_artifact(out, signature=name).model.proto)
        assert attributes.engine_sha256 == (one[0].sha256,)


def test_engines_of_one_key_and_other_segments_are_refused(out, engine):
    one = engine("aaaa")
    two = dataclasses.replace(one[0], segment_hash="6" * 64), one[1]
    with pytest.raises(ArtifactError, match="two segments have one key, aaaa"):
        save_artifact(out, part("serve", "Relu", engines=[one]), part("embed", "Neg", engines=[two]))
    assert not out.exists()


def test_an_unknown_signature_names_those_there_are(out):
    save_artifact(out, part("serve", "Relu"), part("embed", "Neg"))
    with pytest.raises(InvalidParameterError, match="no signature 'train'; it has: 'serve', 'embed'"):
        load_artifact(out, signature="train")


def test_two_signatures_of_one_name_are_refused(out):
    with pytest.raises(ArtifactError, match="have one name: serve, serve"):
        save_artifact(out, part("serve", "Relu"), part("serve", "Neg"))
    assert not out.exists()


def test_a_damaged_second_model_is_told(out):
    save_artifact(out, part("serve", "Relu"), part("embed", "Neg"))
    (out / "model.1.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model\.1\.onnx is damaged"):
        load_artifact(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "../model.onnx"}, "unsafe path"),
        ({"report": "/etc/passwd"}, "unsafe path"),
        ({"model": "other.onnx"}, "does not list other.onnx"),
        ({"signature": None}, "is damaged"),
    ],
)
def test_a_manifest_that_points_elsewhere_is_refused(out, change, message):
    save_artifact(out, part("serve", "Relu"), part("embed", "Neg"))
    path = out / "manifest.json"
    data = json.loads(path.read_text())
    data["more_signatures"][0].update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(out, signature="embed")


def test_an_artifact_of_one_signature_is_written_as_before(out):
    save_artifact(out, part("serve", "Relu"))
    data = json.loads((out / "manifest.json").read_text())
    assert "more_signatures" not in data
    assert sorted(data["files"]) == ["model.onnx", "model.onnx.data", "report.json"]
    assert load_artifact(out).signatures == ("serve",)


def test_weights_of_one_name_and_other_content_are_kept_apart(out):
    other = dataclasses.replace(part("embed", "Neg"), model=_with_weight(part("embed", "Neg").model, WEIGHT * 2))
    save_artifact(out, part("serve", "Relu"), other)
    np.testing.assert_array_equal(load_artifact(out).model.weights["w0"], WEIGHT)
    np.testing.assert_array_equal(load_artifact(out, signature="embed").model.weights["w0"], WEIGHT * 2)


def _with_weight(model, array):
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    assert helper.tensor_dtype_to_np_dtype(proto.graph.initializer[0].data_type) == array.dtype
    return models.Model(proto, {"w0": array})
