"""Fixtures of the GPU runtime: the doubles, since no GPU is needed for them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load_double(name):
    """A module of this folder: pytest's importlib mode puts no folder on the path."""
    full = f"gpu_doubles.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def fake_cuda():
    """The module of the GPU's double: ``fake_cuda.FakeCuda()``, ``with fake_cuda.opened() as cuda``."""
    return load_double("fake_cuda")


@pytest.fixture
def cuda(fake_cuda):
    """An open double; the test fails when something is left in it, or was written out of bounds."""
    with fake_cuda.opened() as opened:
        yield opened


@pytest.fixture(scope="session")
def fake_trt():
    """The module of TensorRT's double: `fake_trt.FakeTrt(cuda)`, `fake_trt.write_engine(path, model, profiles)`."""
    return load_double("fake_trt")


@pytest.fixture
def trt(fake_trt, cuda):
    """TensorRT's double; the test fails when it was used wrongly, or an engine or context was left open."""
    module = fake_trt.FakeTrt(cuda)
    yield module
    module.finish()


@pytest.fixture(scope="session", name="load_double")
def _load_double():
    """Loads another module of this folder by its name."""
    return load_double
