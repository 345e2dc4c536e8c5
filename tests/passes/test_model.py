"""Weights beside the graph: detaching, files, stubs."""

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.model import (
    ALIGNMENT,
    Model,
    from_proto,
    is_stub,
    load,
    make_stub,
    save,
    save_all,
    spool,
    stow,
    stubs_as_inputs,
    to_proto,
    without_weights,
)  # fmt: skip

BIG = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)


def proto_with(**arrays):
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 18]>
        g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }""")
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


@pytest.mark.parametrize(
    ("dtype", "count", "detached"),
    [
        (TensorProto.FLOAT, 255, False),
        (TensorProto.FLOAT, 256, True),
        (TensorProto.BFLOAT16, 512, True),
        (TensorProto.FLOAT8E4M3FN, 1024, True),
        (TensorProto.INT64, 8191, False),
        (TensorProto.INT64, 8192, True),
        (TensorProto.BOOL, 1 << 17, False),
        (TensorProto.INT4, 1 << 12, False),
    ],
)
def test_only_large_tensors_are_taken_out(dtype, count, detached):
    array = np.ones(count).astype(helper.tensor_dtype_to_np_dtype(dtype))
    proto = proto_with(w=array)
    before = proto.SerializeToString()
    model = from_proto(proto)
    assert proto.SerializeToString() == before
    assert is_stub(model.proto.graph.initializer[0]) == detached == ("w" in model.weights)
    if detached:
        assert model.weights["w"].dtype == array.dtype
        assert not model.weights["w"].flags.writeable
    back = to_proto(model).graph.initializer[0]
    assert numpy_helper.to_array(back).tobytes() == array.tobytes()
    assert (back.data_type, list(back.dims)) == (dtype, [count])


def test_strings_stay_inline():
    model = from_proto(proto_with(w=np.array(["word"] * 5000, object)))
    assert not model.weights


def test_file_and_back(tmp_path):
    bfloat16 = np.ones(1000).astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    model = from_proto(proto_with(w=BIG, v=bfloat16, small=np.ones(2, np.float32)))
    save(model, tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    offsets = [
        int(entry.value)
        for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == 2
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    again = load(tmp_path / "m.onnx")
    assert isinstance(again.weights["w"], np.memmap)
    for name, array in model.weights.items():
        assert again.weights[name].tobytes() == array.tobytes()
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)


def test_a_model_without_weights_has_no_data_file(tmp_path):
    save(from_proto(proto_with(w=np.ones(2, np.float32))), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_spooled_weights_are_mapped(tmp_path):
    model = spool(from_proto(proto_with(w=BIG)), tmp_path / "weights")
    assert isinstance(model.weights["w"], np.memmap)
    np.testing.assert_array_equal(model.weights["w"], BIG)
    empty = from_proto(proto_with())
    assert spool(empty, tmp_path / "none") is empty


def external(proto, location, **entries):
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto


@pytest.mark.parametrize(
    ("location", "error", "message"),
    [
        ("../secret", ValueError, "points outside"),
        ("/etc/passwd", ValueError, "points outside"),
        ("gone", FileNotFoundError, "'gone', which is missing"),
        ("short", ValueError, "which is shorter"),
    ],
)
def test_bad_locations(tmp_path, location, error, message):
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(error, match=message):
        from_proto(external(proto_with(w=BIG), location), tmp_path)


def test_external_data_without_a_folder():
    with pytest.raises(ValueError, match="has no folder"):
        from_proto(external(proto_with(w=BIG), "data"))


def test_external_tensors_in_bodies_attributes_and_functions_are_read(tmp_path):
    (tmp_path / "data").write_bytes(BIG.tobytes())

    def away(name):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=BIG.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data")
        return tensor

    value = helper.make_tensor_value_info("u", TensorProto.FLOAT, [64, 64])
    body = helper.make_graph([helper.make_node("Neg", ["w"], ["u"])], "b", [], [value], [away("w")])
    other = helper.make_graph([helper.make_node("Constant", [], ["u"], value=away(""))], "e", [], [value])
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])
    function = helper.make_function("f", "F", ["c"], ["y"], [node], [helper.make_opsetid("", 18)])
    graph = helper.make_graph([node], "g", [flag], [result])
    proto = helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 18)])
    model = from_proto(proto, tmp_path)
    for branches in (model.proto.graph.node[0].attribute, model.proto.functions[0].node[0].attribute):
        by_name = {a.name: a.g for a in branches}
        inner = by_name["then_branch"].initializer[0]
        assert inner.name == "w"
        np.testing.assert_array_equal(numpy_helper.to_array(inner), BIG)
        np.testing.assert_array_equal(numpy_helper.to_array(by_name["else_branch"].node[0].attribute[0].t), BIG)


def test_dropping_initializers_drops_weights():
    model = from_proto(proto_with(w=BIG, v=BIG))
    proto = model.copy_proto()
    del proto.graph.initializer[1]
    assert list(model.with_proto(proto).weights) == ["w"]
    assert list(model.weights) == ["w", "v"]


def test_stubs_as_inputs():
    proto = stubs_as_inputs(from_proto(proto_with(w=BIG, small=np.ones(2, np.float32))))
    assert [i.name for i in proto.graph.input] == ["x", "w"]
    assert [t.name for t in proto.graph.initializer] == ["small"]
    onnx.checker.check_model(proto, full_check=True)


def test_stow():
    weights = {}
    small = numpy_helper.from_array(np.ones(2, np.float32), "s")
    stub = make_stub("t", TensorProto.FLOAT, [1 << 20])
    assert stow(small, weights) is small
    assert stow(stub, weights) is stub
    assert is_stub(stow(numpy_helper.from_array(BIG, "w"), weights))
    assert list(weights) == ["w"]


def test_beyond_two_gigabytes_no_weight_is_copied():
    huge = np.broadcast_to(np.float32(0), (1 << 15, 1 << 15))
    proto = proto_with()
    proto.graph.initializer.append(make_stub("w", TensorProto.FLOAT, huge.shape))
    model = Model(proto, {"w": huge})
    assert len(stubs_as_inputs(model).SerializeToString()) < 1000
    assert model.with_proto(model.copy_proto()).weights["w"] is huge


def test_without_weights_is_what_their_stubs_give():
    proto = proto_with(w=BIG, small=np.ones(2, np.float32), shape=np.arange(300), half=BIG.astype(np.float16))
    assert without_weights(proto) == stubs_as_inputs(from_proto(proto))
    assert without_weights(from_proto(proto).proto) == stubs_as_inputs(from_proto(proto))


def test_save_all_tells_the_hash_of_the_data_file(tmp_path):
    model = from_proto(proto_with(w=BIG, v=BIG[::2, ::2] + 1))
    told = save_all({"a.onnx": model, "b.onnx": model}, tmp_path, "weights")
    assert told == {"weights": hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()}
    assert save_all({"c.onnx": from_proto(proto_with())}, tmp_path, "none") == {}
