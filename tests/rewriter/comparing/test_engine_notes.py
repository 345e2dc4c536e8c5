"""Notes about engines that are not there, cannot be used, or are not made for the shapes."""

import dataclasses

import numpy as np
import pytest

from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.comparing.data import made_up
from rewriter.comparing.engine_notes import shape_notes, state_notes
from rewriter.errors import InvalidParameterError
from tests.rewriter.comparing.bisection.bisection_models import make_artifact, parse

MODEL = "g (float[a, b] x) => (float[a, b] y) { h = Tanh(x) y = Exp(h) }"
PROFILE = {"x": InputProfile((1, 4), (8, 16), (8, 32))}


@pytest.fixture
def artifact(tmp_path):
    return make_artifact(parse(MODEL), tmp_path / "out", "FP32", ["n_h", "n_y"])


def entry(problem="", profiles=(PROFILE,)):
    return EngineEntry("TRTEngineOp_000", "key", 1, "0", "tensorrt_rtx", "1", profiles=profiles, problem=problem)


def test_missing_and_unusable_engines(artifact):
    (note,) = state_notes(artifact)
    assert note.startswith("no engine is built for 1 of 1 engine node(s) (TRTEngineOp_000)")
    broken = dataclasses.replace(artifact, engines=(entry("its file is truncated"),))
    assert state_notes(broken) == ["1 engine(s) cannot be used (TRTEngineOp_000): its file is truncated"]
    assert state_notes(dataclasses.replace(artifact, engines=(entry(),))) == []


@pytest.mark.parametrize(
    ("engines", "shape", "told"),
    [
        ((entry(),), (8, 32), False),
        ((entry(),), (9, 32), True),
        ((entry(), entry(profiles=({"x": InputProfile((9, 1), (9, 9), (9, 99))},))), (9, 32), False),
        ((entry(profiles=()),), (9, 32), False),
        ((entry(profiles=({"h": InputProfile((1, 4), (8, 16), (8, 32))},)),), (9, 32), False),
        ((entry("broken"),), (9, 32), False),
    ],
)
def test_shapes_that_no_profile_takes(artifact, engines, shape, told):
    notes = shape_notes(dataclasses.replace(artifact, engines=engines), [{"x": shape}, {"x": shape}])
    wanted = "no engine of TRTEngineOp_000 is built for x 9x32: TensorRT would not use one there"
    assert notes == ([wanted] if told else [])


def test_open_dimensions_take_what_the_engines_are_tuned_for(artifact):
    with pytest.raises(InvalidParameterError, match="dimension 1"):
        made_up(artifact.signature, {}, ())
    with pytest.raises(InvalidParameterError, match="dimension 1"):
        made_up(artifact.signature, {}, (), (entry(profiles=()),))
    (sample,) = made_up(artifact.signature, {}, (), (entry(),))()
    assert np.shape(sample["x"]) == (8, 16)
