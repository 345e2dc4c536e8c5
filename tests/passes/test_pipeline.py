"""The cleaning pipeline on random models: same results, honest reports, determinism, stability."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from passes.base import Change, PassResult, verify
from passes.cancel_transposes import CancelTransposes
from passes.canonicalize import Canonicalize
from passes.common_subexpressions import CommonSubexpressions
from passes.fold_constants import FoldConstants
from passes.model import Model, from_proto, load
from passes.pipeline import OPTIONAL_PASSES, REQUIRED_PASSES, SelectedPipeline, default_pipeline
from passes.testing import assert_close, random_feeds, random_model
from rewriter.runtime.native import NativeSession, evaluate


def same_results(before, after, feeds):
    expected = NativeSession(Model(before), optimize=False, threads=1).run(feeds)
    assert_close(NativeSession(after, optimize=False, threads=1).run(feeds), expected)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), nodes=st.integers(1, 40), native=st.booleans(), batch=st.integers(1, 3))
def test_random_models_compute_the_same(seed, nodes, native, batch):
    proto = random_model(seed, nodes)
    model = from_proto(proto)
    before = model.proto.SerializeToString(deterministic=True)
    stages = []
    cleaned, records = default_pipeline(evaluate if native else None).run(
        model, hook=lambda record, result: stages.append(result.proto.SerializeToString(deterministic=True))
    )
    assert model.proto.SerializeToString(deterministic=True) == before
    for record, old, new in zip(records, [before, *stages], stages, strict=False):
        assert bool(record.changes) == (old != new), record.name
    verify(cleaned, "pipeline", canonical=True)
    assert Canonicalize().run(cleaned).model is cleaned
    same_results(proto, cleaned, random_feeds(proto, seed % 1000, {"N": batch}))


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_result_does_not_depend_on_the_hash_seed(hash_seed):
    script = (
        "import hashlib\n"
        "from passes.model import from_proto\n"
        "from passes.pipeline import default_pipeline\n"
        "from passes.testing import random_model\n"
        "model, records = default_pipeline().run(from_proto(random_model(7, 2000)))\n"
        "text = repr([record.changes for record in records]).encode()\n"
        "data = model.proto.SerializeToString(deterministic=True) + repr(sorted(model.weights)).encode() + text\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    model, records = default_pipeline().run(from_proto(random_model(7, 2000)))
    text = repr([record.changes for record in records]).encode()
    data = model.proto.SerializeToString(deterministic=True) + repr(sorted(model.weights)).encode() + text
    assert run.stdout.strip() == hashlib.sha256(data).hexdigest()
    assert len(model.proto.graph.node) > 1000


def test_a_second_run_changes_nothing():
    once, _ = default_pipeline().run(from_proto(random_model(3, 60)))
    again, records = default_pipeline().run(once)
    assert again is once
    assert not any(record.changes for record in records)


def test_ten_thousand_nodes():
    # 10 000 nodes in a chain, every third an Identity: nothing recursive, nothing quadratic may stand in the way.
    count = 10_000
    nodes = [helper.make_node("Relu" if i % 3 else "Identity", [f"v{i}"], [f"v{i + 1}"], f"n{i}") for i in range(count)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "chain", [value("v0", 1, ["N", 4])], [value(f"v{count}", 1, ["N", 4])])
    model, _ = default_pipeline().run(Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])))
    relus = count - (count + 2) // 3
    assert len(model.proto.graph.node) == relus
    assert len(model.proto.graph.value_info) == relus - 1


def test_weights_in_a_file_go_through(tmp_path):
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
        g (float[N,64] x, bool b) => (float[N,64] y) {
            t = Transpose(w) h = MatMul(x, t)
            y = If(b) <then_branch = th () => (float[N,64] u) { u = MatMul(h, v) },
                       else_branch = el () => (float[N,64] r) { r = Neg(h) }> }""")
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("w", "v")}
    proto.graph.initializer.append(numpy_helper.from_array(arrays["w"], "w"))
    proto.graph.node[2].attribute[0].g.initializer.append(numpy_helper.from_array(arrays["v"], "v"))
    stored = onnx.ModelProto()
    stored.CopyFrom(proto)
    onnx.save(stored, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    model, _ = default_pipeline().run(load(tmp_path / "m.onnx"))
    assert sorted(model.weights) == ["t", "v"]
    for flag in (True, False):
        same_results(proto, model, {"x": np.ones((2, 64), np.float32), "b": np.array(flag)})


def test_all_constant_model_becomes_initializers():
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
        g (float[2] x) => (float[2] y) { c = Constant<value_floats=[1.0, 2.0]>() y = Neg(c) }""")
    model, _ = default_pipeline().run(from_proto(proto))
    assert not model.proto.graph.node
    assert [t.name for t in model.proto.graph.initializer] == ["y"]
    same_results(proto, model, {"x": np.ones(2, np.float32)})


OPTIONAL = (FoldConstants(evaluate), CommonSubexpressions(), CancelTransposes())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(1, 40),
    chosen=st.lists(st.sampled_from(OPTIONAL), max_size=4),
    rounds=st.integers(1, 3),
)
def test_any_choice_of_passes_computes_the_same(seed, nodes, chosen, rounds):
    proto = random_model(seed, nodes)
    cleaned, records = SelectedPipeline(tuple(chosen), rounds).run(from_proto(proto))
    verify(cleaned, "pipeline", canonical=True)
    assert Canonicalize().run(cleaned).model is cleaned
    assert [r.name for r in records][-3:] == ["legalize", "canonicalize", "infer_shapes"]
    same_results(proto, cleaned, random_feeds(proto, seed % 1000, {"N": 2}))


@pytest.mark.parametrize("seed", range(5))
def test_the_default_list_can_be_chosen(seed):
    model = from_proto(random_model(seed, 60))
    default = default_pipeline().run(model)[0].proto
    chosen = SelectedPipeline((FoldConstants(),)).run(model)[0].proto
    assert chosen.SerializeToString(deterministic=True) == default.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class Rename:
    """Finds something so many times."""

    times: int
    name: str = "rename"

    def run(self, model):
        done = model.proto.graph.doc_string.count("x")
        if done == self.times:
            return PassResult(model)
        proto = model.copy_proto()
        proto.graph.doc_string += "x"
        return PassResult(model.with_proto(proto), (Change("rename", "graph", "once more"),))


@pytest.mark.parametrize(("times", "rounds", "runs"), [(0, 3, 1), (1, 3, 2), (9, 3, 3), (9, 1, 1)])
def test_rounds_end_when_nothing_is_found(times, rounds, runs):
    records = SelectedPipeline((Rename(times),), rounds).run(from_proto(random_model(0, 5)))[1]
    assert [r.name for r in records].count("rename") == runs


def test_small_graphs_skip_the_optional_passes_and_say_so():
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
        g (float[2] x) => (float[2] y) { a = Identity(x) b = Relu(a) c = Relu(a) y = Add(b, c) }""")
    seen = []
    small = SelectedPipeline((CommonSubexpressions(),), 1, 4)
    model, records = small.run(from_proto(proto), lambda record, _: seen.append(record))
    assert len(model.proto.graph.node) == 3
    skipped = next(r for r in records if r.name == "common_subexpressions")
    assert (skipped.options, skipped.changes) == ("skipped: the graph has 3 nodes and min_graph_nodes is 4", ())
    assert seen == list(records)
    for minimum in (3, -1):
        assert (
            len(SelectedPipeline((CommonSubexpressions(),), 1, minimum).run(from_proto(proto))[0].proto.graph.node) == 2
        )


def test_every_pass_is_required_or_optional():
    assert {step.name for step in default_pipeline().passes} <= {*REQUIRED_PASSES, *OPTIONAL_PASSES}
    assert {kind().name: kind for kind in OPTIONAL_PASSES.values()} == dict(OPTIONAL_PASSES)
