"""One skip rule for what a machine lacks, and TensorFlow kept quiet."""

import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests run on the CPU wherever they are; those of the GPU ask for it: CUDA_VISIBLE_DEVICES=0 python -m pytest -m gpu
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
_GPU = shutil.which("nvidia-smi") is not None and os.environ["CUDA_VISIBLE_DEVICES"] not in ("", "-1")

#: marker -> (is it there?, reason of the skip)
NEEDS = {
    "tensorflow": (importlib.util.find_spec("tensorflow") is not None, "TensorFlow is not installed: the [tf] extra"),
    "rtx": (importlib.util.find_spec("tensorrt_rtx") is not None, "TensorRT-RTX is not installed: the [rtx] extra"),
    "gpu": (_GPU, "no NVIDIA GPU on this machine, or CUDA_VISIBLE_DEVICES=0 is not set"),
}


def pytest_collection_modifyitems(items):
    for item in items:
        for marker, (present, reason) in NEEDS.items():
            if not present and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def benchmark_module():
    """Imports a module of benchmarks/ by name; they import each other, so that their folder is on the path."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="session")
def rtx():
    """TensorRT-RTX in a child process, shared by the whole session; for tests that are marked `rtx`."""
    from rewriter.backends import open_backend

    with open_backend("tensorrt_rtx") as backend:
        yield backend
