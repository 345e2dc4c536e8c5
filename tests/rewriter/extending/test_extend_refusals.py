"""What `build_engines` refuses, before any work and in one line."""

import json

import numpy as np
import pytest

from rewriter.errors import ArtifactError, InputError, InvalidParameterError, MissingDependencyError
from rewriter.extending import build_engines

from . import small_models
from .small_models import IMAGE, files_of

pytestmark = pytest.mark.rtx


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"targets": "sm80"}, InvalidParameterError, "targets must be a list"),
        ({"targets": ["turing"]}, InvalidParameterError, "not a compute capability"),
        ({"targets": ["SM99"]}, InvalidParameterError, "cannot build for SM99; it knows"),
        ({"together": "yes"}, InvalidParameterError, "together"),
        ({"backends": "auto"}, InvalidParameterError, "backends must be a list"),
        ({"backends": []}, InvalidParameterError, "backends names none"),
        ({"backends": ["rtx"]}, InvalidParameterError, "backend='rtx' is not known"),
        ({"jobs": 0}, InvalidParameterError, "jobs must be an integer of at least 1"),
        ({"signatures": ["other"]}, InvalidParameterError, "has no signature 'other'"),
        ({"signatures": []}, InvalidParameterError, "signatures names none"),
        ({"shapes": {"x": (1, 3, 8, 8)}}, InvalidParameterError, "shapes name the input 'x'"),
        ({"shapes": {"image": (1, 3, 9, 8)}}, InvalidParameterError, "does not fit input 'image'"),
        ({"shapes": IMAGE, "input_fn": small_models.images(1)}, InvalidParameterError, "give one of them"),
        (
            {"input_fn": {"other": small_models.images(1)}},
            InvalidParameterError,
            "input_fn names the signature 'other'",
        ),
        ({"input_fn": 3}, InvalidParameterError, "input_fn"),
        ({"input_fn": lambda: [np.zeros((2, 3), np.float32)]}, InputError, "sample 0"),
        ({"input_fn": list}, InvalidParameterError, "yielded no inputs"),
        ({"engine_cache_dir": ""}, InvalidParameterError, "engine_cache_dir"),
    ],
)
def test_bad_arguments(artifact, arguments, error, words):
    path = artifact()
    before = files_of(path)
    with pytest.raises(error, match=words) as raised:
        build_engines(path, **{"backends": ["tensorrt_rtx"], **arguments})
    assert "\n" not in str(raised.value)
    assert files_of(path) == before


def test_bad_artifacts(artifact, tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match="no such artifact"):
        build_engines(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="is not an artifact"):
        build_engines(tmp_path / "empty")
    path = artifact()
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    del manifest["params"]["recipe"]
    (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactError, match="cannot be extended: it does not hold its recipe: convert the model again"):
        build_engines(path, targets=["SM80"], backends=["tensorrt_rtx"])
    monkeypatch.setattr("rewriter.extending.extend.os.access", lambda *_: False)
    with pytest.raises(ArtifactError, match=r"cannot write the artifact .*: permission denied"):
        build_engines(path)


def test_a_package_that_is_missing_is_told_before_any_work(artifact, monkeypatch):
    monkeypatch.setattr("rewriter.backends._installed", lambda name: name != "tensorrt")
    monkeypatch.setattr("rewriter.extending.extend.read_source", None)
    with pytest.raises(MissingDependencyError, match=r"needs tensorrt: pip install 'trt-rewriter\[trt\]'"):
        build_engines(artifact(), backends=["tensorrt_rtx", "tensorrt"])
