"""`trt-rewriter inspect`: pictures and the non-conversion report of a saved artifact."""

import numpy as np
import onnx
import pytest

from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.segments import TensorSpec
from passes.splice import EngineAttributes, splice
from passes.support import SupportMap, Verdict
from rewriter.artifact import ArtifactPart, save_artifact
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
        (["--picture", "/none/at/all.svg"], "cannot be written to /none/at/all.svg"),
        (["--nonconversion", "/none/at/all.csv"], "cannot be written to /none/at/all.csv"),
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
