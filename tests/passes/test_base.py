"""Pipeline and verification: who is blamed, what is recorded."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from passes.base import Change, PassError, PassResult, Pipeline, count_by_rule, verify
from passes.graph.editing import Namer, finish
from passes.model import Model, from_proto, make_stub


def parsed(text):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\n{text}')


MODEL = "g (float[2] x) => (float[2] y) { [n] y = Neg(x) }"


@dataclasses.dataclass(frozen=True)
class Replace:
    """Test pass: puts another graph in."""

    text: str
    name: str = "replace"

    def run(self, model):
        return finish(model, parsed(self.text), {}, [Change("replace", "g", "test")])


@dataclasses.dataclass(frozen=True)
class Nothing:
    name: str = "nothing"

    def run(self, model):
        return PassResult(model)


def test_records_and_hook():
    seen = []
    two = "g (float[2] x) => (float[2] y) { [n] a = Neg(x) [m] y = Abs(a) }"
    model, records = Pipeline((Nothing(), Replace(two))).run(
        from_proto(parsed(MODEL)), hook=lambda record, result: seen.append((record, result))
    )
    assert [record.name for record in records] == ["nothing", "replace"]
    assert [(record.nodes_before, record.nodes_after) for record in records] == [(1, 1), (1, 2)]
    assert records[1].options == repr(Replace(two))
    assert [record for record, _ in seen] == list(records)
    assert seen[-1][1] is model
    assert count_by_rule(records[1].changes) == {"replace": 1}


def test_the_pass_that_broke_the_graph_is_named():
    with pytest.raises(PassError, match=r"the graph is invalid after replace: .*nowhere"):
        Pipeline((Replace("g (float[2] x) => (float[2] y) { y = Neg(nowhere) }"),)).run(from_proto(parsed(MODEL)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[2] x) => (float[2] y) { [n] a = Neg(x) [n] y = Abs(a) }", "node name 'n' is not unique"),
        ("g (float[2] x) => (float[2] y) { y = Neg(x) }", "node name '' is not unique"),
        (
            """g (float[2] x, bool b) => (float[2] y) {
            [i] y = If(b) <then_branch = t () => (float[2] u) { [j] u = Neg(x) },
                           else_branch = e () => (float[2] u) { [k] u = Abs(x) }> }""",
            "value name 'u' is not unique",
        ),
    ],
)
def test_canonical_form_is_checked_where_asked(text, message):
    model = Model(parsed(text))
    verify(model, "test")
    with pytest.raises(PassError, match=f"not canonical after test: {message}"):
        verify(model, "test", canonical=True)


def test_functions_are_not_canonical():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 18, "f" : 1]>
        g (float[2] x) => (float[2] y) { [n] y = f.twice(x) }
        <domain: "f", opset_import: ["" : 18]> twice (a) => (o) { o = Add(a, a) }""")
    verify(Model(proto), "test")
    with pytest.raises(PassError, match="model-local functions"):
        verify(Model(proto), "test", canonical=True)


def test_stubs_need_weights():
    proto = parsed("g (float[2] x) => (float[2] y) { y = Add(x, w) }")
    proto.graph.initializer.append(make_stub("w", TensorProto.FLOAT, [2]))
    verify(Model(proto, {"w": np.ones(2, np.float32)}), "test")
    with pytest.raises(PassError, match="no data for the weights w"):
        verify(Model(proto), "test")


def test_outputs_may_lack_rank_or_type():
    proto = parsed("g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Abs(x) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.output[1].ClearField("type")
    before = proto.SerializeToString()
    verify(Model(proto), "test")
    assert proto.SerializeToString() == before


def test_unrecorded_changes_are_a_fault_of_the_pass():
    model = from_proto(parsed(MODEL))
    changed = model.copy_proto()
    changed.graph.node[0].name = "other"
    with pytest.raises(PassError, match="without recording it"):
        finish(model, changed, {}, [])
    assert finish(model, model.copy_proto(), {}, [Change("r", "t", "undone again")]).changes == ()


def test_finish_keeps_the_weights_that_are_still_named():
    proto = parsed("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    model = from_proto(proto)
    changed = model.copy_proto()
    changed.graph.node[0].input[1] = changed.graph.initializer[0].name = "v"
    result = finish(model, changed, {"v": model.weights["w"]}, [Change("rename", "v", "test")])
    assert list(result.model.weights) == ["v"]


def test_namer():
    namer = Namer(["a", "a__1", "b"])
    assert [namer.fresh(name) for name in ("a", "a", "c", "c", "b", "")] == ["a__2", "a__3", "c", "c__1", "b__1", "__1"]
