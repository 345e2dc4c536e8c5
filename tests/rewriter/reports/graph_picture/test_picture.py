"""Pictures: contents, DOT and SVG of small spliced models."""

from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper

from passes.extract import Extractor
from passes.graph_index import iter_scopes
from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island
from passes.model import Model, from_proto
from passes.partition import PartitionOptions, propose
from passes.splice import EngineAttributes, splice
from passes.support import SupportMap, Verdict
from rewriter.errors import ArtifactError
from rewriter.reports.graph_picture import graph_picture
from rewriter.reports.making import NOT_BUILT
from rewriter.reports.report import EngineReport, Report

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
g (float[N] x, bool c) => (float[N] y) <float[N] a1, float[N] s1, float[N] b1, int64[N] k, float[1] w = {2}> {
  [a] a1 = Relu(x) [two] a2 = Abs(a1) [s] s1 = Sin(a2) [b] b1 = Mul(s1, w) [k] k = Cast<to = 7>(b1)
  [k2] k2 = Cast<to = 1>(k)
  [if] y = If (c) <
    then_branch = t () => (float[N] t2) { [t1] t1 = Relu(k2) [t2] t2 = Sin(t1) },
    else_branch = e () => (float[N] e1) { [e1] e1 = Neg(b1) }
  >
}"""


def parse():
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.node[0].name = "one/a"
    return from_proto(proto)


def convert(model, bad=("Sin", "If"), minimum=1):
    """(spliced model, report) of a mock conversion; the first engine is built, the second failed."""
    verdicts = SupportMap.of(
        Verdict(n.name, n.op_type, n.op_type not in bad and not n.domain, reason=f'no <{n.op_type}> & "more"')
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )
    found = propose(model, verdicts, PartitionOptions(minimum))
    reasons = ("", "unsupported: it failed", NOT_BUILT)
    engines = []
    for number, segment in enumerate(found.segments):
        nodes = Extractor(model).extract(segment).model.proto.graph.node
        counts = {op: sum(n.op_type == op for n in nodes) for op in dict.fromkeys(n.op_type for n in nodes)}
        reason = reasons[min(number, 2)]
        engines.append(
            EngineReport(segment.name, segment.scope, len(nodes), counts, (), (), "FP16", not reason, reason)
        )
    attributes = {s.name: EngineAttributes("00", len(s.inputs)) for s in found.segments}
    total = sum(len(graph.node) for _, graph in iter_scopes(model.proto))
    report = Report("model <x>", tuple(engines), found.native, 0.5, 0.2, total, {}, (), {}, (), {}, {})
    return splice(model, found, attributes), report


@pytest.fixture(scope="module")
def parts():
    return convert(parse())


def boxes(picture, panel=0):
    return {box.label: box for box in picture.content.panels[panel].boxes}


def test_engines_are_one_box_each(parts):
    picture = graph_picture(*parts, expand_engines=False)
    assert [p.title for p in picture.content.panels] == ["", "if/else_branch", "if/then_branch"]
    found = boxes(picture)
    assert list(found) == ["x", "c", "TRTEngineOp_000", "Sin", "TRTEngineOp_001", "If", "y"]
    engine = found["TRTEngineOp_000"]
    assert (engine.kind, engine.detail, engine.engine) == ("engine", "2 nodes, FP16", 0)
    assert "Relu, Abs" in engine.tooltip
    assert "unsupported: it failed" in found["TRTEngineOp_001"].tooltip
    assert 'native (parser): no <Sin> & "more"' in found["Sin"].tooltip
    assert "gives s1: float32 [N]" in found["Sin"].tooltip
    assert [e.ready for e in picture.content.engines] == [True, False, False, False]


def test_engines_node_by_node_have_their_colour(parts):
    picture = graph_picture(*parts)
    found = {box.tooltip.split()[1]: box for box in picture.content.panels[0].boxes}
    assert (found["'one/a'"].kind, found["'one/a'"].engine, found["'one/a'"].detail) == ("member", 0, "a")
    assert found["'two'"].engine == 0
    assert found["'b'"].engine == found["'k'"].engine == 1
    assert found["'s'"].kind == "native"
    assert graph_picture(*parts, expand_engines=True) == picture


def test_lines_have_dtypes_and_bodies_what_they_read_from_outside(parts):
    picture = graph_picture(*parts, expand_engines=True)
    main = picture.content.panels[0]
    names = [box.label for box in main.boxes]
    found = {(names[line.source], names[line.target]): line for line in main.lines}
    assert found["Mul", "Cast"].dtype == "float32"
    assert found["Cast", "Cast"].dtype == "int64"
    assert found["Cast", "Cast"].tooltip == "k: int64 [N]"
    assert ("Mul", "If") in found
    inner = boxes(picture, 1)
    assert inner["b1"].kind == "input"
    assert "from outside" in inner["b1"].tooltip


def test_svg_is_xml_with_a_title_for_every_box_and_line(parts):
    for expanded in (True, False):
        picture = graph_picture(*parts, expand_engines=expanded)
        root = ElementTree.fromstring(picture.svg())  # noqa: S314 - our own text
        space = "{http://www.w3.org/2000/svg}"
        titles = [t.text for t in root.iter(f"{space}title")]
        count = sum(len(p.boxes) + len(p.lines) for p in picture.content.panels)
        assert len(titles) == count + 1
        assert 'native (parser): no <Sin> & "more"' in "\n".join(titles)
        texts = [t.text for t in root.iter(f"{space}text")]
        assert "model <x>" in texts
        assert "inside if/then_branch" in texts
        assert "TRTEngineOp_001: 3 nodes, FP16, no engine" in texts
        assert "dashed: runs natively, it has no engine" in texts
        assert {"float32", "bool"} <= set(texts)


def test_dot_has_clusters_colours_and_tooltips(parts):
    text = graph_picture(*parts, expand_engines=True).dot()
    assert text.startswith("digraph model {")
    assert text.count("{") == text.count("}")
    assert "subgraph cluster_p0e0 {" in text
    assert 'label="TRTEngineOp_001\\n3 nodes, FP16, no engine"; style="rounded,dashed"' in text
    assert 'no <Sin> & \\"more\\"' in text
    assert 'tooltip="k: int64 [N]"' in text
    assert 'label="inside if/then_branch"' in text
    assert 'label="TRTEngineOp_000\\n2 nodes, FP16"' in graph_picture(*parts, expand_engines=False).dot()


def test_an_island_has_a_colour_of_its_own():
    node = make_island("TFIsland_000", ("x",), ("y",), IslandAttributes("/f", ("x",), ("y",), ("Foo x2",), ("no Foo",)))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["y"], ["z"], name="r")],
        "g",
        [value("x", TensorProto.STRING, [1])],
        [value("z", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ISLAND_DOMAIN, 1)]
    picture = graph_picture(*convert(Model(helper.make_model(graph, opset_imports=opsets))))
    box = boxes(picture)["TensorFlow"]
    assert (box.kind, box.detail) == ("tensorflow", "Foo x2")
    assert "no Foo" in box.tooltip
    assert "#ff9f43" in picture.svg()


def test_large_models_are_not_expanded():
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(200)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("v0", 1, [2])], [value("v200", 1, [2])])
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    picture = graph_picture(*convert(model))
    assert list(boxes(picture)) == ["v0", "TRTEngineOp_000", "v200"]
    assert boxes(picture)["TRTEngineOp_000"].detail == "200 nodes, FP16"
    assert len(picture.svg()) < 6000


def test_of_a_cleaned_model_engines_are_one_colour(parts):
    picture = graph_picture(parse(), parts[1])
    assert len(picture.content.engines) == 1
    found = boxes(picture)
    assert (found["Mul"].kind, found["Sin"].kind) == ("member", "native")


def test_files_are_written_by_their_ending(parts, tmp_path):
    picture = graph_picture(*parts)
    picture.write(tmp_path / "g.SVG")
    picture.write(tmp_path / "g.anything")
    assert (tmp_path / "g.SVG").read_text("utf-8") == picture.svg()
    assert (tmp_path / "g.anything").read_text("utf-8") == picture.dot()
    with pytest.raises(ArtifactError, match=r"picture of the graph cannot be written to .*none"):
        picture.write(tmp_path / "none" / "g.svg")


def test_the_same_conversion_gives_the_same_picture(parts):
    assert graph_picture(*parts).svg() == graph_picture(*parts).svg()
