"""Imports that fail: a package that is not there, and one that is there and broken."""

import sys

import pytest

from rewriter.errors import MissingDependencyError
from rewriter.runtime.native import import_onnxruntime
from rewriter.runtime.other_errors import first_line, import_failure

MISSING = "working needs The Package: pip install 'trt-rewriter[extra]'"
BROKEN = "working needs The Package, which is installed but cannot be loaded: "


def told(error):
    return str(import_failure(error, "package", "The Package", "extra", "working"))


def traceback_as_text():
    """As TensorFlow does it: the text of a traceback is the text of a new error."""
    error = ImportError("Traceback (most recent call last):\n  File ...\nImportError: libcuda.so.1")
    error.__context__ = ImportError("libcuda.so.1: cannot open shared object file")
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'package'", name="package"), MISSING),
        (ModuleNotFoundError("No module named 'package.core'", name="package.core"), BROKEN),
        (ModuleNotFoundError("No module named 'other'", name="other"), BROKEN + "No module named 'other'"),
        (ImportError("libx.so.1: cannot open\nsecond line"), BROKEN + "libx.so.1: cannot open"),
        (ImportError(), BROKEN + "ImportError"),
        (traceback_as_text(), BROKEN + "libcuda.so.1: cannot open shared object file"),
        (ImportError("Traceback (most recent call last):"), BROKEN + "Traceback (most recent call last):"),
    ],
)
def test_missing_and_broken_packages_are_told_apart(error, said):
    assert told(error).startswith(said)
    assert "\n" not in told(error)


def test_an_onnx_runtime_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingDependencyError, match=r"running models natively needs ONNX Runtime: pip install"
    ) as caught:
        import_onnxruntime()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_an_onnx_runtime_that_is_broken(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libonnxruntime.so.1: undefined symbol: x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        import_onnxruntime()
    assert str(caught.value) == (
        "running models natively needs ONNX Runtime, which is installed but cannot be loaded: "
        "libonnxruntime.so.1: undefined symbol: x"
    )


def test_first_line():
    assert first_line(ValueError(" a\nb")) == "a"
    assert first_line(ValueError("")) == "ValueError"
