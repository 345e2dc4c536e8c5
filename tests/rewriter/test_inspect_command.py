"""`trt-rewriter inspect`: pictures and the non-conversion report of a saved artifact."""

import numpy as np
import onnx
import pytest

from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.segments import TensorSpec
from passes.splice import EngineAttributes, splice
from passes.support import SupportMap, Verdict
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
from rewriter.cli import main
from rewriter.reports.report import EngineReport, Report
from rewriter.source import Signature

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
g (float[2] x) => (float[2] y) { [a] a1 = Relu(x) [b] b1 = Abs(a1) [s] y = Sin(b1) }"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    model = from_proto(onnx.parser.parse_model(TEXT))
    support = SupportMap.of(
        Verdict(n.name, n.op_type, n.op_type != "Sin", reason="no Sin") for n in model.proto.graph.node
    )
    found = propose(model, support, PartitionOptions(1))
    engine = EngineReport("TRTEngineOp_000", (), 2, {"Relu": 1, "Abs": 1}, (), (), "FP32", True)
    report = Report("model.onnx", (engine,), found.native, 2 / 3, 2 / 3, 3, {}, (), {}, (), {}, {})
    spec = [TensorSpec(name, onnx.TensorProto.FLOAT, (2,)) for name in "xy"]
    part = ArtifactPart(
        model=splice(model, found, {"TRTEngineOp_000": EngineAttributes("00", 1)}),
        signature=Signature((spec[0],), (spec[1],), "serving_default"),
        params={},
        report=report.to_dict(),
    )
    return str(save_artifact(tmp_path_factory.mktemp("inspect") / "out", part))


def test_pictures_are_written_and_nothing_is_printed(artifact, tmp_path, capsys):
    for name, start in (("g.svg", "<svg "), ("g.dot", "digraph ")):
        assert main(["inspect", artifact, "--picture", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text("utf-8").startswith(start)
    assert capsys.readouterr().out == ""
    assert ">Relu<" in (tmp_path / "g.svg").read_text("utf-8")
    assert main(["inspect", artifact, "--no-expand-engines", "--picture", str(tmp_path / "g.svg")]) == 0
    assert ">Relu<" not in (tmp_path / "g.svg").read_text("utf-8")


def test_the_page_is_written_and_nothing_is_printed(artifact, tmp_path, capsys):
    path = tmp_path / "report.html"
    assert main(["inspect", artifact, "--html", str(path)]) == 0
    assert capsys.readouterr().out == ""
    page = path.read_text("utf-8")
    assert "Conversion of out" in page
    assert "no Sin" in page
    assert main(["inspect", artifact, "--html", str(path), "--signature", "serving_default", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")
    assert path.read_text("utf-8") == page


def test_the_page_shows_all_signatures_or_the_one_asked_for(artifact, tmp_path):
    first = load_artifact(artifact)
    parts = [
        ArtifactPart(first.model, Signature(first.signature.inputs, first.signature.outputs, name), {}, first.report)
        for name in ("one", "two", "three")
    ]
    out = str(save_artifact(tmp_path / "three", *parts))
    path = tmp_path / "report.html"
    for options, count in (([], 3), (["--signature", "two"], 1)):
        assert main(["inspect", out, "--html", str(path), *options]) == 0
        page = path.read_text("utf-8")
        assert page.count('class="signature"') == count
        assert (">two</button>" in page) == (count == 3)


def test_the_nonconversion_report_is_printed_and_written(artifact, tmp_path, capsys):
    assert main(["inspect", artifact, "--nonconversion"]) == 0
    printed = capsys.readouterr().out
    assert "Sin: 1 node\n        1x  parser: no Sin" in printed
    assert "Engines" not in printed
    assert main(["inspect", artifact, "--nonconversion", str(tmp_path / "r.csv")]) == 0
    assert capsys.readouterr().out == printed
    assert (tmp_path / "r.csv").read_text() == "OP Name|Reason|Count\nSin|parser: no Sin|1\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", "/none/at/all.html"], "'/none/at/all.html': there is no such folder"),
        (["--html", "a.html", "--signature", "other"], "other"),
        (["--picture", "/none/at/all.svg"], "'/none/at/all.svg': there is no such folder"),
        (["--nonconversion", "/none/at/all.csv"], "'/none/at/all.csv': there is no such folder"),
        (["--expand-engines"], "give --picture"),
        (["--json", "--nonconversion"], "give one of them"),
        (["--signature", "other"], "other"),
    ],
)
def test_errors_are_one_line(artifact, options, message, capsys):
    assert main(["inspect", artifact, *options]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_without_options_it_prints_as_before(artifact, capsys):
    assert main(["inspect", artifact]) == 0
    printed = capsys.readouterr().out
    assert "TRTEngineOp_000" in printed
    assert str(np.round(2 / 3 * 100, 1)) in printed
