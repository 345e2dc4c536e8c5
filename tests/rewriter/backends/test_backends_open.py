from __future__ import annotations

import importlib.util

import pytest

from rewriter import backends
from rewriter.errors import InvalidParameterError, MissingDependencyError


def pretend(monkeypatch, installed, gpu):
    monkeypatch.setattr(backends, "_installed", lambda name: name in installed)
    monkeypatch.setattr(backends, "has_gpu", lambda: gpu)


@pytest.mark.parametrize(
    ("installed", "gpu", "expected"),
    [
        (("tensorrt", "tensorrt_rtx"), True, "tensorrt"),
        (("tensorrt", "tensorrt_rtx"), False, "tensorrt_rtx"),
        (("tensorrt_rtx",), True, "tensorrt_rtx"),
        (("tensorrt",), True, "tensorrt"),
    ],
)
def test_auto_prefers_classic_tensorrt_only_where_it_can_build(monkeypatch, installed, gpu, expected):
    pretend(monkeypatch, installed, gpu)
    with backends.open_backend() as backend:
        assert backend.flavour == expected


@pytest.mark.parametrize(
    ("installed", "hint"), [((), "needs TensorRT:"), (("tensorrt",), "only on a machine with a GPU")]
)
def test_auto_without_a_usable_package_says_what_to_install(monkeypatch, installed, hint):
    pretend(monkeypatch, installed, False)
    with pytest.raises(MissingDependencyError, match=hint) as caught:
        backends.open_backend()
    assert "pip install 'trt-rewriter[rtx]'" in str(caught.value)
    assert "pip install 'trt-rewriter[trt]'" in str(caught.value)


def test_a_missing_package_by_name_names_its_extra(monkeypatch):
    pretend(monkeypatch, (), True)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trt-rewriter\[trt\]'"):
        backends.open_backend("tensorrt")


@pytest.mark.parametrize("name", ["rtx", "", "TensorRT", "AUTO"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(InvalidParameterError, match="auto, tensorrt, tensorrt_rtx"):
        backends.open_backend(name)


def test_installed_backends_agrees_with_the_import_system():
    expected = tuple(n for n in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(n))
    assert backends.installed_backends() == expected


def test_a_target_that_is_none_is_refused_without_starting_anything(monkeypatch):
    pretend(monkeypatch, ("tensorrt_rtx",), False)
    with pytest.raises(InvalidParameterError, match="ampere"):
        backends.open_backend("tensorrt_rtx", ["ampere"])
