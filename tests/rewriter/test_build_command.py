"""`trt-rewriter build`: its options reach `build_engines`, its words and its exit status reach the user."""

import json
import types

import pytest

from rewriter import cli, extending
from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import ArtifactError
from rewriter.extending import AddedEngine, Extended, MissingEngine
from rewriter.progress import ProgressEvent

ENTRY = EngineEntry("TRTEngineOp_000", "k1", 1500, "0", "tensorrt_rtx", "1.7.1", ("SM80",))
CLASSIC = EngineEntry("TRTEngineOp_001", "k2", 800, "0", "tensorrt", "10.9")
FAILED = MissingEngine("serve", "TRTEngineOp_001", "tensorrt_rtx", "1.7.1", ("SM80",), "workspace", "needs 9 GB")
DEFAULTS = {
    "targets": (),
    "backends": ("auto",),
    "together": False,
    "shapes": None,
    "signatures": None,
    "jobs": None,
    "engine_cache_dir": None,
    "engine_cache_max_bytes": None,
}


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """What `build_engines` was called with; it answers `answer`, or raises it."""
    monkeypatch.setitem(cli.COMMANDS, "build", "add engines")

    state = types.SimpleNamespace(calls=[], answer=Extended(tmp_path / "out", (AddedEngine("serve", ENTRY, 1.25),)))

    def build_engines(path, *, progress, **options):
        state.calls.append((path, options))
        if progress is not None:
            progress(ProgressEvent("build", 1, 1, seconds=1.5))
        if isinstance(state.answer, Exception):
            raise state.answer
        return state.answer

    monkeypatch.setattr(extending, "build_engines", build_engines)
    return state


def test_defaults_and_words(builds, tmp_path, capsys):
    assert cli.main(["build", "OUT"]) == 0
    assert builds.calls == [("OUT", DEFAULTS)]
    assert capsys.readouterr().out.splitlines() == [
        "  build          1.50 s   compile the engines with TensorRT",
        "  TRTEngineOp_000: tensorrt_rtx 1.7.1, SM80, 1.5 kB, 1.25 s",
        f"{tmp_path / 'out'}: 1 engine added, 0 there already",
    ]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--targets", "sm80,8.9"], {"targets": ("sm80", "8.9")}),
        (["--backends", "tensorrt_rtx, tensorrt"], {"backends": ("tensorrt_rtx", "tensorrt")}),
        (["--together", "--jobs", "3"], {"together": True, "jobs": 3}),
        (["--signature", "a", "--signature", "b,c"], {"signatures": ["a", "b", "c"]}),
        (["--signature", "*"], {"signatures": None}),
        (["--signature", ""], {"signatures": []}),
        (["--shapes", "x:1x4,8x4", "--shapes", "n:scalar"], {"shapes": {"x": ((1, 4), (8, 4)), "n": ((),)}}),
        (
            ["--engine-cache-dir", "c", "--engine-cache-max-bytes", "9"],
            {"engine_cache_dir": "c", "engine_cache_max_bytes": 9},
        ),
    ],
)
def test_options(builds, words, options):
    assert cli.main(["build", "OUT", *words]) == 0
    assert builds.calls == [("OUT", {**DEFAULTS, **options})]


def test_failures_are_told_and_make_the_status_1(builds, tmp_path, capsys):
    refused = MissingEngine("embed", "", "tensorrt_rtx", "1.7.1", ("SM75",), "target", "too old")
    builds.answer = Extended(
        tmp_path / "out",
        (AddedEngine("serve", ENTRY, 1.25),),
        (AddedEngine("embed", CLASSIC),),
        (FAILED, refused),
        ("TRTEngineOp_002 was left out: no shapes",),
    )
    assert cli.main(["build", "OUT"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  serve: TRTEngineOp_000: tensorrt_rtx 1.7.1, SM80, 1.5 kB, 1.25 s",
        "  embed: TRTEngineOp_001: tensorrt 10.9, 800 B, there already",
        "no engine: serve: TRTEngineOp_001: tensorrt_rtx 1.7.1 SM80 (workspace): needs 9 GB",
        "no engine: embed: tensorrt_rtx 1.7.1 SM75 (target): too old",
        "note: TRTEngineOp_002 was left out: no shapes",
        f"{tmp_path / 'out'}: 1 engine added, 1 there already, 2 could not be built",
    ]


def test_json_is_all_that_is_printed(builds, capsys):
    builds.answer = Extended(builds.answer.path, builds.answer.added, failures=(FAILED,), seconds=1.23456)
    assert cli.main(["build", "OUT", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(json.dumps(builds.answer.to_json()))
    assert (data["seconds"], data["present"], data["notes"]) == (1.235, [], [])
    assert data["added"][0] == {
        "signature": "serve",
        "op": "TRTEngineOp_000",
        "key": "k1",
        "backend": "tensorrt_rtx",
        "version": "1.7.1",
        "targets": ["SM80"],
        "size": 1500,
        "seconds": 1.25,
    }
    assert data["failures"][0]["reason"] == "needs 9 GB"


def test_an_error_is_one_line(builds, capsys):
    builds.answer = ArtifactError("no such artifact: OUT")
    assert cli.main(["build", "OUT"]) == 2
    assert capsys.readouterr().err == "trt-rewriter: no such artifact: OUT\n"


@pytest.mark.parametrize("words", [["--jobs", "many"], ["--together", "yes", "no"], []])
def test_usage(builds, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", *(["OUT"] if words else []), *words])
    assert ended.value.code == 2
    assert builds.calls == []


def test_bad_shapes_are_told_before_any_work(builds, capsys):
    assert cli.main(["build", "OUT", "--shapes", "x"]) == 2
    assert "write NAME:DIMxDIM" in capsys.readouterr().err
    assert builds.calls == []
