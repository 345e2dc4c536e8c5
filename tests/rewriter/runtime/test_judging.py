"""Which engines a machine would choose, told without loading any."""

import dataclasses
from pathlib import Path

import pytest

from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import MissingDependencyError
from rewriter.runtime import device, judging
from rewriter.runtime.judging import judged
from rewriter.runtime.slot_values import StoredEngine


def stored(key, *targets, version="1.7.1", op="E0", problem=""):
    entry = EngineEntry(op, key, 1, "0" * 64, "tensorrt_rtx", version, targets, problem=problem)
    return StoredEngine(entry, Path(key))


def installed(flavour):
    return "1.7.1"


def test_the_places_of_each_node_are_told():
    engines = [
        stored("a", "SM120"), stored("b", "SM80"), stored("c", "SM89"), stored("d"), stored("e", "SM75"),
        stored("f", "SM89", version="1.4.0"), stored("g", "SM89", problem="it is torn"), stored("a", "SM80", op="E1"),
    ]  # fmt: skip
    assert judged(engines, [(8, 9), (8, 9)], installed) == {
        "engines/E0/c.engine": "first choice here: built for this GPU, SM89",
        "engines/E0/d.engine": "second choice here: built for the GPU of the machine that built it",
        "engines/E0/b.engine": "third choice here: built for SM80, which is older than this GPU, SM89",
        "engines/E0/e.engine": "4th choice here: built for SM75, which is older than this GPU, SM89",
        "engines/E0/a.engine": "5th choice here: built for SM120, which is newer than this GPU, SM89",
        "engines/E0/f.engine": "never here: it was built by tensorrt_rtx 1.4.0, and engines run with that version "
        "only; installed is 1.7.1",
        "engines/E1/a.engine": "first choice here: built for SM80, which is older than this GPU, SM89",
    }


def test_different_gpus_are_told_apart():
    engines = [stored("a", "SM89"), stored("b", "SM120")]
    assert judged(engines, [(12, 0), (8, 9)], installed) == {
        "engines/E0/a.engine": "first choice on SM89: built for this GPU, SM89; second choice on SM120: built for "
        "SM89, which is older than this GPU, SM120",
        "engines/E0/b.engine": "second choice on SM89: built for SM120, which is newer than this GPU, SM89; first "
        "choice on SM120: built for this GPU, SM120",
    }


def test_the_machine_is_asked(monkeypatch):
    monkeypatch.setattr(device, "installed_compute_capabilities", lambda: ((9, 0),))
    monkeypatch.setattr(device, "missing_gpu", lambda: "")

    def missing(flavour):
        raise MissingDependencyError(f"{flavour} is not there")

    monkeypatch.setattr(judging, "installed_version", missing)
    assert judged([stored("a", "SM80")]) == {
        "engines/E0/a.engine": "never here: it needs tensorrt_rtx 1.7.1: tensorrt_rtx is not there"
    }
    monkeypatch.setattr(device, "missing_gpu", lambda: "no GPU")
    assert judged([stored("a", "SM80")]) == {}


@pytest.mark.rtx
def test_the_installed_version_is_that_of_new_engines(rtx):
    assert judging.installed_version("tensorrt_rtx") == rtx.version
    entry = dataclasses.replace(stored("a", "SM80").entry, version=rtx.version)
    told = judged([StoredEngine(entry, Path("a"))], [(8, 0)])
    assert told == {"engines/E0/a.engine": "first choice here: built for this GPU, SM80"}
