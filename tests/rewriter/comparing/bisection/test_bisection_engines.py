"""native -> tensorrt, with a runner whose engines compute in ONNX Runtime and are wrong where a test says so."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from passes.extract import Extractor
from rewriter.comparing.bisection import bisect
from rewriter.comparing.bisection.gpu import open_gpu_runner
from rewriter.comparing.bisection.sides import ModelSide
from rewriter.comparing.bisection.subject import Subject
from rewriter.errors import ConversionError
from rewriter.runtime.options import RuntimeOptions
from tests.rewriter.comparing.bisection.bisection_models import make_artifact, parse

X = np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)


@dataclasses.dataclass
class FakeRunner:
    """Engines that add something to the results of some nodes: node -> how much."""

    subject: Subject
    wrong: dict
    refused: tuple = ()
    builds: list = dataclasses.field(default_factory=list)

    notes = ()

    @property
    def values(self):
        inside = {name for names in self.subject.segments.values() for name in names}
        return ModelSide(self.broken(self.subject.native, inside), "fake")

    def engine(self, op):
        names = self.subject.segments[op]
        return self.run(Extractor(self.subject.native).extract_nodes((), names, op, hashed=False))

    def build(self, part, sets):
        self.builds.append(part.segment.nodes)
        assert sets
        assert all(set(found) == set(part.segment.inputs) for found in sets)
        if part.segment.nodes[-1] in self.refused:
            raise ConversionError("no kernel")
        return self.run(part)

    def split(self, op, parts):
        inside = {name for other, names in self.subject.segments.items() if other != op for name in names}
        inside.update(name for part, _ in parts for name in part.segment.nodes)
        return ModelSide(self.broken(self.subject.native, inside), "fake")

    def run(self, part):
        return ModelSide(self.broken(part.model, part.segment.nodes), "fake").open(part.segment.outputs)

    def broken(self, model, inside):
        proto = model.copy_proto()
        for node in list(proto.graph.node):
            if node.name in self.wrong and node.name in inside:
                place = list(proto.graph.node).index(node)
                name = node.output[0]
                node.output[0] = f"{name}_right"
                constant = helper.make_tensor("shift", 1, [], [self.wrong[node.name]])
                added = (
                    helper.make_node("Constant", [], [f"{name}_shift"], f"{name}_constant", value=constant),
                    helper.make_node("Add", [f"{name}_right", f"{name}_shift"], [name], f"{name}_add"),
                )
                for extra in reversed(added):
                    proto.graph.node.insert(place + 1, extra)
        return model.with_proto(proto)


CHAIN = """g (float[batch, 8] x) => (float[batch, 8] y) {
    a = Tanh(x) b = Sin(a) c = Neg(b) d = LeakyRelu(c) e = Elu(d)
    n = Exp(e) f = Neg(n) h = Sin(f) i = Neg(h) y = Tanh(i) }"""
CUTS = (["n_a", "n_b", "n_c", "n_d", "n_e"], ["n_f", "n_h", "n_i", "n_y"])


def chain(folder, wrong, *cuts, **more):
    artifact = make_artifact(parse(CHAIN), folder, "FP32", *(cuts or CUTS))
    subject = Subject.of(artifact, [X, X[:2]], 1e-3)
    runner = FakeRunner(subject, wrong, **more)
    return runner, bisect(artifact, [X, X[:2]], 1e-3, result="tensorrt", engines=runner)


def test_engines_that_are_right_need_no_search(tmp_path):
    runner, found = chain(tmp_path / "out", {})
    assert not found.outputs
    assert not runner.builds


@pytest.mark.parametrize("guilty", ["n_a", "n_c", "n_e", "n_f", "n_i", "n_y"])
def test_the_node_is_found_by_engines_of_the_first_nodes(tmp_path, guilty):
    runner, found = chain(tmp_path / "out", {guilty: 0.3})
    assert (found.segment, found.node) == (f"TRTEngineOp_{int(guilty not in CUTS[0]):03d}", guilty)
    assert found.own > 0.1
    assert not found.accumulated
    assert found.before < 1e-3 < found.difference
    assert found.option == f"--node-denylist '^{guilty}$'"
    assert (found.passed, found.verified) == (True, pytest.approx(0, abs=1e-6))
    assert len(runner.builds) <= 3
    assert "fuses such an engine otherwise" in found.text()


def test_of_several_engines_the_first_is_searched(tmp_path):
    runner, found = chain(tmp_path / "out", {"n_b": 0.3, "n_h": 0.3})
    assert (found.segment, found.node) == ("TRTEngineOp_000", "n_b")
    assert found.passed is False  # the other engine is still wrong
    assert all(set(nodes) <= set(CUTS[0]) for nodes in runner.builds)


def test_nodes_without_an_engine_of_their_own_are_told(tmp_path):
    _, found = chain(tmp_path / "out", {"n_c": 0.3}, refused=("n_b", "n_c", "n_d"))
    assert found.node == "n_e"
    assert any("it may also be one of 'n_b', 'n_c', 'n_d'" in n and "no kernel" in n for n in found.notes)
    assert found.passed is False  # the node before it is still in an engine


def test_what_adds_up_names_the_engine_that_brings_most(tmp_path):
    # Each engine is within the tolerance by itself; together with the Exp between they are not.
    runner, found = chain(tmp_path / "out", {"n_c": 6e-4, "n_h": 5e-4})
    assert found.accumulated
    assert found.contribution.own < 1e-3
    assert (found.contribution.segment, found.contribution.node) in {
        ("TRTEngineOp_000", "n_c"),
        ("TRTEngineOp_001", "n_h"),
    }
    assert found.option == f"--node-denylist '^{found.contribution.node}$'"
    assert found.verified < max(found.outputs.values())
    assert runner.builds


def test_a_native_node_between_engines_magnifies(tmp_path):
    text = "g (float[batch, 8] x) => (float[batch, 8] y) { a = Tanh(x) b = Tanh(x) c = Sub(a, b) y = Add(c, e) }"
    proto = parse(text, e=np.float32(1e-6))
    artifact = make_artifact(proto, tmp_path / "out", "FP32", ["n_a"])
    runner = FakeRunner(Subject.of(artifact, [X], 1e-2), {"n_a": 1e-4})
    found = bisect(artifact, [X], 1e-2, result="tensorrt", engines=runner)
    assert (found.segment, found.node) == (None, "n_c")
    assert (found.contribution.segment, found.contribution.node) == ("TRTEngineOp_000", "n_a")
    assert any("magnifies" in note for note in found.notes)
    assert found.passed


def test_emulation_tells_whether_it_is_the_precision(tmp_path):
    text = "g (float[batch, 8] x) => (float[batch, 8] y) { a = Tanh(x) b = Mul(a, big) c = Mul(b, b) y = Div(c, h) }"
    proto = parse(text, big=np.float32(1000), h=np.float32(5e4))
    artifact = make_artifact(proto, tmp_path / "out", "FP16", ["n_a", "n_b", "n_c", "n_y"])
    runner = FakeRunner(Subject.of(artifact, [X], 1e-2), {"n_c": 1e6})
    found = bisect(artifact, [X], 1e-2, result="tensorrt", engines=runner)
    assert found.node == "n_c"
    assert any("--keep-nodes '^n_c$' may do" in note for note in found.notes)


@pytest.mark.parametrize(("guilty", "where"), [("n_e", "1 node(s) before it"), ("n_b", "1 node(s) behind it")])
def test_emulation_tells_of_the_precision_of_a_neighbour(tmp_path, guilty, where):
    # c overflows in float16; a fused kernel holds it, and goes wrong elsewhere.
    text = """g (float[batch, 8] x) => (float[batch, 8] y) {
        a = Tanh(x) b = Mul(a, big) c = Mul(b, b) e = Div(c, most) f = Relu(e) y = Tanh(f) }"""
    proto = parse(text, big=np.float32(1000), most=np.float32(6e4))
    artifact = make_artifact(proto, tmp_path / "out", "FP16", ["n_a", "n_b", "n_c", "n_e", "n_f", "n_y"])
    runner = FakeRunner(Subject.of(artifact, [X], 5e-3), {guilty: 1e3})
    found = bisect(artifact, [X], 5e-3, result="tensorrt", engines=runner)
    assert (found.node, found.option) == (guilty, f"--node-denylist '^{guilty}$'")
    (note,) = [note for note in found.notes if "--keep-nodes" in note]
    assert f"{where}, at 'n_c' (" in note
    assert "^n_c$" in note
    assert "(in emulation it leaves " in note


@pytest.mark.parametrize("precision", ["FP16", "FP32"])
def test_an_engine_that_is_wrong_where_emulation_is_right_is_no_matter_of_precision(tmp_path, precision):
    artifact = make_artifact(parse(CHAIN), tmp_path / "out", precision, *CUTS)
    runner = FakeRunner(Subject.of(artifact, [X], 5e-2), {"n_c": 0.5})
    found = bisect(artifact, [X], 5e-2, result="tensorrt", engines=runner)
    assert found.node == "n_c"
    assert not any("precision" in note for note in found.notes)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_node_of_any_cut_is_found(data, tmp_path_factory):
    names = [node.name for node in parse(CHAIN).graph.node]
    cut = data.draw(st.integers(1, len(names)))
    guilty = data.draw(st.sampled_from(names))
    cuts = [part for part in (names[:cut], names[cut:]) if part]
    _, found = chain(tmp_path_factory.mktemp("a") / "out", {guilty: 0.5}, *cuts)
    assert found.node == guilty
    assert found.passed


#: No engine runs here: each falls back to its native segment, and all else of the runner is used.
NATIVELY = RuntimeOptions(provider="cpu", strict=False, allow_build_at_runtime=False)


def test_the_runner_of_the_gpu_gives_the_values_of_all_boundaries(tmp_path):
    artifact = make_artifact(parse(CHAIN), tmp_path / "out", "FP32", *CUTS)
    subject = Subject.of(artifact, [X], 1e-3)
    with open_gpu_runner(subject, NATIVELY, NATIVELY) as runner:
        found = runner.values.open(["e", "n", "y"])({"x": X})
        assert set(found) == {"e", "n", "y"}
        again = runner.engine("TRTEngineOp_001")({"n": found["n"]})
        np.testing.assert_allclose(again["y"], found["y"], rtol=1e-6)
    found = bisect_with(subject, NATIVELY)
    assert not found.outputs
    assert any("ran natively, so its engine was not looked at" in note for note in found.notes)


def bisect_with(subject, options):
    from rewriter.comparing.bisection.engines import bisect_engines

    with open_gpu_runner(subject, options, options) as runner:
        return bisect_engines(subject, runner)


def test_an_engine_that_cannot_run_by_itself_is_told(tmp_path):
    artifact = make_artifact(parse(CHAIN), tmp_path / "out", "FP32", *CUTS)

    class Refusing(FakeRunner):
        def engine(self, op):
            raise ConversionError("its shapes are outside")

    found = bisect(
        artifact, [X], 1e-3, result="tensorrt", engines=Refusing(Subject.of(artifact, [X], 1e-3), {"n_b": 1})
    )
    assert (found.segment, found.node, found.own, found.option) == ("TRTEngineOp_000", "", None, "")
    assert "TRTEngineOp_000 cannot be run by itself: its shapes are outside" in found.notes


def test_without_a_gpu_there_is_no_search(tmp_path):
    artifact = make_artifact(parse(CHAIN), tmp_path / "out", "FP32", *CUTS)
    with pytest.raises(ConversionError, match="provider 'cuda' cannot be used"):
        bisect(artifact, [X], 1e-3, result="tensorrt")


@pytest.mark.rtx
def test_parts_are_built_by_tensorrt(tmp_path):
    from rewriter.comparing.bisection.engines import _Search

    artifact = make_artifact(parse(CHAIN), tmp_path / "out", "FP16", *CUTS)
    subject = Subject.of(artifact, [X, X[:2]], 1e-3)
    with open_gpu_runner(subject, NATIVELY, NATIVELY) as runner:
        search = _Search(subject, ModelSide(subject.native, "native"), runner)
        part = search._extract(["n_a", "n_b"], "TRTEngineOp_prefix")
        made = runner._built(part, search._sets(part))
        assert made.path.stat().st_size > 0
        assert made.entry.precision == "FP16"
        assert made.entry.profiles[0]["x"].maximum == (3, 8)
        side = runner.split("TRTEngineOp_000", [(part, search._sets(part))])
        assert set(side.open(["y"])({"x": X})) == {"y"}
