"""What an engine's entry says of the GPU that it is for."""

import types

import pytest

from rewriter.building import entries


@pytest.mark.parametrize(
    ("targets", "gpus", "found"),
    [
        (("SM80", "SM89"), [(9, 0)], ("SM80", "SM89")),
        ((), [(8, 9)], ("SM89",)),
        ((), [(12, 0), (12, 0)], ("SM120",)),
        ((), [(8, 9), (9, 0)], ()),  # it is not known which of them TensorRT built on
        ((), [(0, 0)], ()),
        ((), [], ()),
    ],
)
def test_without_targets_it_is_the_gpu_that_is_here(monkeypatch, targets, gpus, found):
    monkeypatch.setattr(entries, "installed_compute_capabilities", lambda: tuple(gpus))
    assert entries.built_for(types.SimpleNamespace(targets=targets)) == found
