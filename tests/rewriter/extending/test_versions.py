"""An artifact made with one version of TensorRT-RTX and extended with another, each in its own environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rewriter import load
from rewriter.artifact import load_artifact
from rewriter.extending import build_engines
from rewriter.merging import merge
from rewriter.runtime.choosing import order
from rewriter.runtime.slot_values import StoredEngine

from . import small_models

pytestmark = pytest.mark.rtx
ROOT = Path(__file__).parents[3]
#: Runs `build_engines` in the other environment, and says what came of it.
SCRIPT = """
import json, sys
from rewriter.extending import build_engines
path, options = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps(build_engines(path, backends=["tensorrt_rtx"], progress=False, **options).to_json()))
"""
VERSION = "from rewriter.backends import open_backend\nwith open_backend('tensorrt_rtx') as b: print(b.version)"


def in_other(python, script, *words):
    found = subprocess.run(
        [python, "-c", script, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def other(rtx):
    """(Python, version) of an environment with another TensorRT-RTX."""
    given = os.environ.get("TRT_REWRITER_RTX_PYTHON")
    folders = [ROOT / name for name in (".venv", ".venv-rtx14")]
    found = [str(folder / "bin" / "python") for folder in folders if folder.resolve() != Path(sys.prefix).resolve()]
    for python in [given] if given else found:
        if not Path(python).exists():
            continue
        version = in_other(python, VERSION).strip()
        if version != rtx.version:
            return python, version
    pytest.skip(f"only one TensorRT-RTX is here, {rtx.version}: name a Python with another in TRT_REWRITER_RTX_PYTHON")


def facts(entries):
    return sorted((entry.op, entry.version, *entry.targets) for entry in entries)


@pytest.mark.parametrize("precision", ["FP32", "FP16"])
def test_made_here_and_extended_there(artifact, rtx, other, tmp_path, precision):
    python, version = other
    path = artifact(precision_mode=precision)
    told = json.loads(in_other(python, SCRIPT, path, json.dumps({"targets": ["SM80", "SM89"]})))
    assert (told["failures"], told["present"]) == ([], [])
    assert {engine["version"] for engine in told["added"]} == {version}
    loaded = load_artifact(path)
    ops = ["TRTEngineOp_000", "TRTEngineOp_001"]
    expected = [(op, v, t) for op in ops for v, t in ((rtx.version, "SM89"), (version, "SM80"), (version, "SM89"))]
    assert facts(loaded.engines) == sorted(expected)
    assert all(entry.usable and entry.precision == loaded.engines[0].precision for entry in loaded.engines)
    assert loaded.engines[0].profiles == next(e for e in loaded.engines if e.version == version).profiles
    own = [StoredEngine(e, loaded.engine_path(e)) for e in loaded.engines if e.op == ops[0]]
    for installed in (rtx.version, version):
        first, *rest = order(own, (8, 9), lambda _, installed=installed: installed)
        assert (first.stored.entry.version, first.stored.entry.targets) == (installed, ("SM89",))
        assert [item.problem != "" for item in rest] == [i.stored.entry.version != installed for i in rest]
    done = build_engines(path, targets=["SM80", "SM89"], backends=[rtx])
    assert {(i.entry.version, i.entry.targets) for i in done.added} == {(rtx.version, ("SM80",))}
    again = json.loads(in_other(python, SCRIPT, path, json.dumps({"targets": ["SM80", "SM89"]})))
    assert (again["added"], len(again["present"])) == ([], 4)
    merged = merge([path, artifact("plain", precision_mode=precision)], tmp_path / "merged")
    assert facts(load_artifact(merged.path).engines) == facts(load_artifact(path).engines)
    with load(path, provider="cpu") as function:
        image = next(small_models.images(2)())
        assert np.isfinite(function(image)["scores"]).all()


def test_made_there_and_extended_here(rtx, other, tmp_path):
    python, version = other
    path = tmp_path / "out"
    script = (
        "import sys\nfrom tests.rewriter.extending import small_models\n"
        "small_models.convert(sys.argv[1], None, targets=['SM89'])"
    )
    in_other(python, script, path)
    done = build_engines(path, targets=["SM89", "SM120"], backends=[rtx])
    assert (done.failures, done.present) == ((), ())
    loaded = load_artifact(path)
    assert {(e.version, e.targets) for e in loaded.engines} == {
        (version, ("SM89",)), (rtx.version, ("SM89",)), (rtx.version, ("SM120",)),
    }  # fmt: skip
    assert all(entry.usable for entry in loaded.engines)
    assert loaded.params["targets"] == ["SM89", "SM120"]
