"""`threads=` reaches every session of ONNX Runtime that computes on the CPU."""

import numpy as np
import onnxruntime
import pytest

from passes.precision.recipe import Recipe
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.runtime.loading import load
from rewriter.runtime.native import session_options

SPINNING = "session.intra_op.allow_spinning"


def said(options):
    """(threads, whether they may spin): the key is absent where nothing was said."""
    try:
        return options.intra_op_num_threads, options.get_session_config_entry(SPINNING)
    except RuntimeError:
        return options.intra_op_num_threads, ""


@pytest.fixture
def opened(monkeypatch):
    """What the sessions that are made meanwhile are told."""
    found, make = [], onnxruntime.InferenceSession

    def session(model, options, **more):
        found.append(said(options))
        return make(model, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return found


@pytest.mark.parametrize(("threads", "found"), [(0, (0, "")), (3, (3, "0"))])
def test_threads_that_were_said_sleep_while_they_wait(threads, found):
    assert said(session_options(threads)) == found


@pytest.mark.parametrize("execution", ["native", "emulate", "auto"])
@pytest.mark.parametrize(("given", "found"), [({}, (0, "")), ({"threads": 2}, (2, "0"))])
def test_a_loaded_artifact(spliced, tmp_path, no_gpu, pair, opened, execution, given, found):
    params = {"recipe": Recipe.of("FP16").to_json()}
    saved = save_artifact(tmp_path / "out", ArtifactPart(*spliced, params, {}))
    with load(saved, execution=execution, **given) as function:
        function(*pair())
    assert opened == [found]


def test_a_gpu_is_told(spliced, tmp_path, gpu):
    saved = save_artifact(tmp_path / "out", ArtifactPart(*spliced, {}, {}))
    load(saved, threads=np.int64(2)).close()
    assert gpu.opened[0].options.threads == 2
