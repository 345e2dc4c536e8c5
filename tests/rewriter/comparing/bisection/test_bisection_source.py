"""source -> native for ONNX sources: the node by names that both have, and the pass that is to blame."""

import json

import numpy as np
import onnx
import pytest

from passes.base import Change, PassResult
from passes.fold_constants import FoldConstants
from rewriter.comparing.bisection import bisect
from rewriter.comparing.bisection.report import OUTDATED
from rewriter.errors import ConversionError
from rewriter.frontend.reference import Reference, open_reference
from tests.rewriter.comparing.bisection.bisection_models import make_artifact, parse

X = np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)
MODEL = """g (float[batch, 8] x) => (float[batch, 8] y, float[batch, 8] z) {
    a = Tanh(x) k = Add(one, one) b = Mul(a, k) c = Sin(b) y = Tanh(c) z = Neg(a) }"""


def make(one=1.0, text=MODEL):
    return parse(text, one=np.float32(one))


@pytest.fixture
def source(tmp_path):
    onnx.save(make(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def search(artifact, source, **more):
    return bisect(artifact, [X], 1e-4, reference="source", result="native", source=source, **more)


def test_the_same_model_is_within_the_tolerance(source, tmp_path):
    found = search(make_artifact(make(), tmp_path / "out", "FP32", ["n_a"]), source)
    assert (found.reference, found.result, found.outputs) == ("source", "native", {})


def test_a_node_that_computes_something_else_is_found(source, tmp_path, monkeypatch):
    right = FoldConstants.run

    def wrong(self, model):
        result = right(self, model)
        proto = result.model.copy_proto()
        next(node for node in proto.graph.node if node.op_type == "Sin").op_type = "Cos"
        return PassResult(result.model.with_proto(proto), (Change("fold", "c", "wrongly"),))

    other = make(text=MODEL.replace("Sin(b)", "Cos(b)"))
    artifact = make_artifact(other, tmp_path / "out", "FP32", ["n_a", "n_b"])
    artifact.params["passes"] = {"given": True}
    with monkeypatch.context() as patched:
        patched.setattr(FoldConstants, "run", wrong)
        found = search(artifact, open_reference(source))
    assert (found.node, found.op_type, found.value) == ("n_c", "Cos", "c")
    assert set(found.outputs) == {"y"}
    assert found.own > 0.1
    assert any("chosen by a RewriterConfig" in note for note in found.notes)
    assert "first segment" not in found.text()
    assert search(artifact, open_reference(source)).cause == OUTDATED


def test_an_artifact_of_another_training_is_told_without_a_node_or_an_option(source, tmp_path):
    found = search(make_artifact(make(2.0), tmp_path / "out", "FP32", ["n_a"]), source)
    assert set(found.outputs) == {"y"}
    assert found.cause == OUTDATED
    assert (found.found, found.option, found.excluded) == (False, "", ())
    assert "convert it again" in found.text()
    assert found.to_dict()["cause"] == OUTDATED


def test_the_pass_to_blame_is_named_with_what_leaves_it_out(source, tmp_path, monkeypatch):
    right = FoldConstants.run

    def wrong(self, model):
        result = right(self, model)
        proto = result.model.copy_proto()
        for tensor in proto.graph.initializer:
            if tensor.name == "k":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(5), "k"))
        return PassResult(result.model.with_proto(proto), result.changes or (Change("fold", "k", "wrongly"),))

    monkeypatch.setattr(FoldConstants, "run", wrong)
    found = search(make_artifact(make(2.5), tmp_path / "out", "FP32", ["n_a"]), source)
    assert found.value in ("k", "b")
    assert found.excluded == ("fold_constants",)
    assert found.option == "--rewriter-config-template rewriter_config.json"
    assert any(json.dumps({"constant_folding": "OFF"}) in note for note in found.notes)
    assert found.passed


def test_lower_precision_is_searched_where_the_export_is_right(source, tmp_path):
    artifact = make_artifact(make(), tmp_path / "out", "FP16", ["n_a", "n_b", "n_c"])
    found = bisect(artifact, [X], 1e-6, reference="source", result="emulated", source=source)
    assert (found.reference, found.result) == ("native", "emulated")
    assert found.node == "n_a"
    other = make_artifact(make(2.0), tmp_path / "other", "FP16", ["n_a", "n_b", "n_c"])
    found = bisect(other, [X], 1e-2, reference="source", result="emulated", source=source)
    assert (found.reference, found.result) == ("source", "native")


def test_another_model_or_one_that_cannot_be_looked_into_is_told(source, tmp_path):
    artifact = make_artifact(make(2.0), tmp_path / "out", "FP32", ["n_a"])
    blind = Reference("a function", ("x",), open_reference(source).run)
    with pytest.raises(ConversionError, match="give the path of the model"):
        search(artifact, blind)
    with pytest.raises(ConversionError, match="has no output 'y'"):
        search(artifact, Reference("a function", ("x",), lambda inputs: {}))
