"""Artifacts of unusual graphs are extended, too: bodies of control flow, parts in TensorFlow, "what if" segments."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from passes.model import to_proto
from rewriter import Converter, load
from rewriter.artifact import load_artifact
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.extending import build_engines

pytestmark = pytest.mark.rtx
BRANCHES = """
<ir_version: 10, opset_import: ["": 20]>
branches (float[batch, 8] x, bool c) => (float[batch, 8] y)
{
    a = Relu(x)
    b = Mul(a, x)
    y = If (c) <
        then_branch = t () => (float[batch, 8] t8) {
            t1 = Sigmoid(b) t2 = Mul(t1, b) t3 = Add(t2, t1) t4 = Tanh(t3)
            t5 = Unique(t4) t6 = Size(t5) t7 = Cast <to = 1> (t6) t8 = Mul(t4, t7)
        },
        else_branch = e () => (float[batch, 8] e8) {
            e1 = Exp(b) e2 = Mul(e1, b) e3 = Add(e2, e1) e4 = Abs(e3)
            e5 = Unique(e4) e6 = Size(e5) e7 = Cast <to = 1> (e6) e8 = Mul(e4, e7)
        }
    >
}
"""


def sample(batch, condition):
    return {"x": np.random.default_rng(batch).random((batch, 8), np.float32), "c": np.array(condition)}


def both_ways():
    return iter([sample(2, True), sample(5, True), sample(3, False)])


def saved(path, rtx, model, *, engines=True, input_fn=None, **options):
    converter = Converter(model=model, backend=rtx, **options)
    converter.convert()
    if engines:
        converter.build(input_fn)
    return converter.save(path, save_gpu_specific_engines=engines)


def targets_of(path):
    return {(entry.op, *entry.targets) for entry in load_artifact(path).engines}


def test_engines_inside_branches(rtx, tmp_path):
    model = parser.parse_model(BRANCHES)
    path = saved(tmp_path / "out", rtx, model, input_fn=both_ways, minimum_segment_size=4)
    old = load_artifact(path)
    ops = sorted({entry.op for entry in old.engines})
    assert len(ops) == 2  # one a branch
    done = build_engines(path, targets=["SM75", "SM80"], backends=[rtx])
    assert sorted((item.entry.op, *item.entry.targets) for item in done.added) == [(op, "SM75") for op in ops]
    loaded = load_artifact(path)
    for op in ops:
        own = [entry for entry in loaded.engines if entry.op == op]
        assert [entry.profiles for entry in own] == [own[0].profiles] * 2
    bare = saved(tmp_path / "bare", rtx, model, engines=False, minimum_segment_size=4)
    done = build_engines(bare, targets=["SM80"], backends=[rtx], input_fn=both_ways)
    assert [item.entry.profiles for item in done.added] == [entry.profiles for entry in old.engines]
    with load(path, provider="cpu") as function, load(bare, provider="cpu") as other:
        np.testing.assert_array_equal(function(sample(2, True))["y"], other(sample(2, True))["y"])


def test_a_branch_that_no_sample_enters_is_told(rtx, tmp_path):
    path = saved(tmp_path / "out", rtx, parser.parse_model(BRANCHES), engines=False, minimum_segment_size=4)
    done = build_engines(path, targets=["SM80"], backends=[rtx], input_fn=lambda: [sample(2, True)])
    assert len(done.added) == 1
    (failure,) = done.failures
    assert (failure.kind, failure.targets) == ("profile", ("SM80",))
    assert failure.reason == "no shapes were seen: its branch or loop body was not entered by any sample input"
    assert failure.op not in {entry.op for entry in load_artifact(path).engines}
    again = build_engines(path, targets=["SM89"], backends=[rtx])
    assert (len(again.added), again.failures) == (1, ())
    assert again.notes[0].startswith(f"{failure.op} was left out: no engine is there to take the shapes from")


FAKES = """
<ir_version: 10, opset_import: ["": 20]>
fakes (float[batch, 8] x) => (float[many] y)
{
    a = Relu(x)
    b = Abs(a)
    c = Mul(b, a)
    u = Unique(c)
    d = Mul(u, u)
    y = Neg(d)
}
"""


def test_what_if_segments_get_no_engine(rtx, tmp_path):
    model = parser.parse_model(FAKES)
    path = saved(tmp_path / "out", rtx, model, engines=False, op_fakelist=["Unique"])
    with pytest.raises(ArtifactError, match=r"no engine node that may have an engine: there is nothing to build; TRT"):
        build_engines(path, backends=[rtx], shapes={"x": [(2, 8)]})


def test_an_artifact_without_engine_nodes(rtx, tmp_path):
    model = parser.parse_model(FAKES)
    path = saved(tmp_path / "out", rtx, model, engines=False, minimum_segment_size=50)
    with pytest.raises(ArtifactError, match=r"has no engine node that may have an engine: there is nothing to build$"):
        build_engines(path, backends=[rtx], targets=["SM80"])


@pytest.mark.tensorflow
def test_parts_that_stay_in_tensorflow(rtx, tmp_path):
    import tensorflow as tf

    from tests.rewriter.runtime import island_models as im

    folder = tmp_path / "island"
    im.save_island(folder, lambda x: (tf.concat([tf.sort(x), -x], axis=0),), tf.TensorSpec([None, 8], tf.float32))
    proto = to_proto(
        im.model(
            """g (float[N,8] x) => (float[M,8] out) <float[1] u={0}, float[1] v={0}> {
                p = MatMul(x, u)
                q = Relu(p)
                y = Add(q, x)
                r = MatMul(b, v)
                t = Relu(r)
                out = Tanh(t)
            }""",
            [im.island(0, ["y"], ["b"], folder, ["Sort"])],
            [("b", im.FLOAT, ["M", 8])],
        )
    )
    del proto.graph.initializer[:]
    weights = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
    proto.graph.initializer.extend(numpy_helper.from_array(array, n) for n, array in zip("uv", weights, strict=True))
    path = saved(tmp_path / "out", rtx, proto, engines=False)
    done = build_engines(path, targets=["SM80", "SM89"], backends=[rtx], shapes={"x": [(2, 8), (5, 8)]})
    behind = [item.entry for item in done.added if item.entry.op == "TRTEngineOp_001"]
    assert [(e.profiles[0]["b"].minimum, e.profiles[0]["b"].maximum) for e in behind] == [((4, 8), (10, 8))] * 2
    assert build_engines(path, targets=["SM120"], backends=[rtx]).failures == ()
    assert targets_of(path) == {(f"TRTEngineOp_00{n}", t) for n in (0, 1) for t in ("SM80", "SM89", "SM120")}
    with load(path, provider="cpu") as function:
        assert function(x=np.ones((3, 8), np.float32))["out"].shape == (6, 8)


def test_inputs_of_unknown_size_need_shapes(rtx, tmp_path):
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> wide (float[batch, width] x) => (float[batch, width] y)'
        "{ a = Relu(x) b = Mul(a, x) y = Neg(b) }"
    )
    path = saved(tmp_path / "out", rtx, model, engines=False)
    with pytest.raises(InvalidParameterError, match="give those that engines must cover"):
        build_engines(path, backends=[rtx])
    done = build_engines(path, backends=[rtx], shapes={"x": (2, 5)})
    assert done.added[0].entry.profiles[0]["x"].maximum == (2, 5)
