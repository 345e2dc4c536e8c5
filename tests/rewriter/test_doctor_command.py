"""`trt-rewriter doctor OUT`: what becomes of each engine on this machine."""

import dataclasses
import types

import onnx
import pytest

from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.segments import TensorSpec
from passes.splice import EngineAttributes, splice
from passes.support import SupportMap, Verdict
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.artifact.manifest import EngineEntry
from rewriter.cli import main
from rewriter.commands import doctor
from rewriter.runtime import device
from rewriter.source import Signature

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
g (float[2] x) => (float[2] y) { [a] a1 = Relu(x) [b] b1 = Abs(a1) [s] s1 = Sin(b1) [c] y = Neg(s1) }"""
FIRST, SECOND = "TRTEngineOp_000", "TRTEngineOp_001"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The machine itself is looked at in the tests of the command line."""
    monkeypatch.setattr(doctor, "_try_out", lambda console: ([], False))
    monkeypatch.setattr(device, "missing_gpu", lambda: "no GPU")


@pytest.fixture
def artifact(tmp_path):
    """Two engine nodes, the first with two engines."""
    model = from_proto(onnx.parser.parse_model(TEXT))
    support = SupportMap.of(
        Verdict(n.name, n.op_type, n.op_type != "Sin", reason="no Sin") for n in model.proto.graph.node
    )
    spec = [TensorSpec(name, onnx.TensorProto.FLOAT, (2,)) for name in "xy"]
    hashes = {FIRST: "00", SECOND: "11"}
    found = propose(model, support, PartitionOptions(1))
    engines = []
    for key, target, version in (("aaaaaaaaaa", "SM80", "1.4.0.76"), ("bbbbbbbbbb", "SM120", "1.7.1.116")):
        path = tmp_path / key
        path.write_bytes(key.encode())
        record = manifests.hash_file(path)
        entry = EngineEntry(FIRST, key, record.size, record.sha256, "tensorrt_rtx", version, (target,))
        engines.append((dataclasses.replace(entry, segment_hash=hashes[FIRST]), path))
    part = ArtifactPart(
        model=splice(model, found, {op: EngineAttributes(text, 1) for op, text in hashes.items()}),
        signature=Signature((spec[0],), (spec[1],), "serve"),
        params={},
        report={},
        engines=engines,
    )
    return save_artifact(tmp_path / "out", part)


def told(capsys, *arguments):
    assert main(["doctor", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[next(i for i, line in enumerate(lines) if "signature" in line) :]


def test_without_a_gpu_all_is_native_and_says_why(artifact, capsys):
    assert told(capsys, artifact) == [
        f"{artifact}, signature 'serve': runs on cpu",
        f"  {FIRST}",
        "    aaaaaaaa tensorrt_rtx 1.4.0.76, SM80: not used: no GPU",
        "    bbbbbbbb tensorrt_rtx 1.7.1.116, SM120: not used: no GPU",
        "  engine nodes on TensorRT: 0 of 2; all run natively",
    ]


def test_a_damaged_engine_is_named(artifact, capsys):
    path = artifact / load_artifact(artifact).engines[1].file
    path.unlink()
    lines = told(capsys, artifact)
    assert lines[3].startswith(
        f"    bbbbbbbb tensorrt_rtx 1.7.1.116, SM120: not used: engines/{FIRST}/bbbbbbbbbb.engine"
    )


def test_with_a_gpu_each_engine_says_what_became_of_it(artifact, capsys, monkeypatch):
    chosen = {
        FIRST: {"engines": {"aaaaaaaaaa": "tensorrt_rtx 1.4.0.76: built for SM80"}, "others": {"bbbbbbbbbb": "no"}}
    }
    calls = []

    class Function:
        engines = load_artifact(artifact).engines

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            calls.append("closed")

        def stats(self):
            return {"provider": "cuda", "engines_chosen": chosen, "engine_nodes": 2}

    def load(path, **options):
        calls.append(types.SimpleNamespace(path=path, **options))
        return Function()

    monkeypatch.setattr("rewriter.runtime.loading.load", load)
    assert told(capsys, artifact, "--device", 1) == [
        f"{artifact}, signature 'serve': runs on cuda",
        f"  {FIRST}",
        "    aaaaaaaa tensorrt_rtx 1.4.0.76, SM80: USED: built for SM80",
        "    bbbbbbbb tensorrt_rtx 1.7.1.116, SM120: not used: no",
        "  engine nodes on TensorRT: 1 of 2; the others run natively",
    ]
    (call, closed) = calls
    assert closed == "closed"
    assert (call.path, call.device, call.strict, call.allow_build_at_runtime) == (artifact, 1, False, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["gone"], "no such artifact: gone"), (["--device", "1"], "--device is the GPU to load an artifact on: give OUT")],
)
def test_errors_are_one_line(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"trt-rewriter: {words}")


def test_inspect_tells_what_this_machine_would_choose(artifact, capsys, monkeypatch):
    from rewriter.commands import inspect
    from rewriter.runtime import judging

    monkeypatch.setattr("rewriter.reports.summary.print_report", lambda *arguments, **options: None)
    monkeypatch.setattr(judging, "installed_version", lambda flavour: "1.4.0.76")
    monkeypatch.setattr(device, "installed_compute_capabilities", lambda: ((8, 9),))

    def lines():
        inspect._print_artifact(load_artifact(artifact), types.SimpleNamespace(source="m.onnx"), detailed=False)
        return capsys.readouterr().out.splitlines()[3:-1]

    first, second, native = lines()
    assert first.endswith("10 B, tensorrt_rtx 1.4.0.76, SM80")
    assert second.endswith("10 B, tensorrt_rtx 1.7.1.116, SM120")
    assert native == "  no engine is used on this machine: no GPU"
    monkeypatch.setattr(device, "missing_gpu", lambda: "")
    first, second = lines()
    assert first.endswith("SM80  first choice here: built for SM80, which is older than this GPU, SM89")
    assert "SM120  never here: it was built by tensorrt_rtx 1.7.1.116" in second
