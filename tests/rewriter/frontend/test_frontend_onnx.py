"""ONNX sources: read, checked, never copied, and without TensorFlow."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.errors import SourceError
from rewriter.frontend import load_source


def small(weight=None):
    weight = np.ones((4, 300), np.float32) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mul")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 300])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_proto():
    source = load_source(small())
    assert [(s.name, s.dtype, s.shape) for s in source.signature.inputs] == [("x", 1, ("n", 4))]
    assert [(s.name, s.shape) for s in source.signature.outputs] == [("y", ("n", 300))]
    assert source.verification is None
    assert source.model.weights["w"].shape == (4, 300)
    assert source.origin == "ONNX model net"


def test_initializers_listed_as_inputs_are_no_inputs():
    proto = small()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 300]))
    assert [s.name for s in load_source(proto).signature.inputs] == ["x"]


def test_file_with_external_data_is_memory_mapped(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    source = load_source(path)
    assert isinstance(source.model.weights["w"], np.memmap)
    assert source.origin == f"ONNX file {path}"
    (tmp_path / "net.data").unlink()
    with pytest.raises(
        SourceError, match=r"is incomplete: .*'net.data', which is missing; copy the data file beside it"
    ):
        load_source(path)


def test_external_data_that_is_cut_off(tmp_path):
    onnx.save(small(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    (tmp_path / "net.data").write_bytes(b"short")
    with pytest.raises(SourceError, match=r"cannot be read: .*which is shorter"):
        load_source(tmp_path / "net.onnx")


def test_proto_with_external_data_has_no_folder(tmp_path):
    onnx.save(small(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    proto = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    with pytest.raises(SourceError, match="pass its path"):
        load_source(proto)


@pytest.mark.parametrize("content", [b"\xff\xff\xff garbage", b"", b"\x08"])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"damaged|empty") as caught:
        load_source(path)
    assert "\n" not in str(caught.value)


def test_cut_off_file(tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(small().SerializeToString()[:500])
    with pytest.raises(SourceError):
        load_source(path)


def test_invalid_graph():
    proto = small()
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(SourceError, match=r"is not valid: .*nowhere"):
        load_source(proto)


def test_sequences_cannot_cross_the_boundary():
    proto = small()
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["s"], name="seq"))
    proto.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    with pytest.raises(SourceError, match=r"'s' of kind sequence: only dense tensors"):
        load_source(proto)


def test_no_tensorflow_is_imported_or_needed(tmp_path):
    onnx.save(small(), tmp_path / "net.onnx")
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tf2onnx', 'keras', 'tf_keras', 'onnxruntime', 'tensorrt_rtx'):\n"
        "    sys.modules[name] = None\n"
        "from rewriter.frontend import load_source\n"
        "print(load_source(sys.argv[1]).signature.outputs[0].name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net.onnx")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "y"
