"""The cleaning pipeline on random models: same results, honest reports, determinism, stability."""

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

from passes.base import verify
from passes.canonicalize import Canonicalize
from passes.model import Model, from_proto, load
from passes.pipeline import default_pipeline
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
