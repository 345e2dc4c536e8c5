"""Imports that fail: a package that is not there, and one that is there and broken."""

import re
import sys

import numpy as np
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


FAIL = "[ONNXRuntimeError] : 1 : FAIL : "
ADD = FAIL + "Non-zero status code returned while running Add node. Name:'sum' Status Message: "
SOURCE = "/onnxruntime_src/onnxruntime/core/providers/cpu/math/element_wise_ops.h:583 "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ADD + "no reason", "Add node 'sum': no reason"),
        (ADD.replace("sum", "") + "no reason", "Add node: no reason"),
        (ADD.replace("sum", "it's: 'odd'") + "no reason", "Add node \"it's: 'odd'\": no reason"),
        (
            ADD + SOURCE + "void onnxruntime::BroadcastIterator::Append(ptrdiff_t, ptrdiff_t) axis == 1 || axis == "
            "largest was false. Attempting to broadcast an axis by a dimension other than 1. 2 by 3\n",
            "Add node 'sum': Attempting to broadcast an axis by a dimension other than 1. 2 by 3",
        ),
        (ADD + SOURCE + "void onnxruntime::F() x == 1 was false. ", "Add node 'sum': x == 1 was false."),
        (
            ADD + SOURCE + "virtual OrtValue* onnxruntime::OpKernelContext::OutputMLValue(int, const onnxruntime::"
            "TensorShape&) [ONNXRuntimeError] : 1 : FAIL : tensor.cc:57 CalculateTensorStorageSize Tensor shape.Size() "
            "must be >= 0\n",
            "Add node 'sum': Tensor shape.Size() must be >= 0",
        ),
        (ADD + "matmul_helper.h:59 Compute dimension mismatch", "Add node 'sum': dimension mismatch"),
        (
            ADD + r"D:\a\_work\core\x.cc:7 onnxruntime::A<T>::operator()(std::function<void(int)>) const reason (7)",
            "Add node 'sum': reason (7)",
        ),
        (
            FAIL + "/onnxruntime_src/x/cuda_call.cc:129 std::conditional_t<THRW, void, Status> onnxruntime::CudaCall("
            "ERRTYPE, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure 2: out of memory ; "
            "GPU=0 ; hostname=box ; file=/onnxruntime_src/a.cc ; line=38 ; expr=cudaMalloc(&p, size)",
            "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc(&p, size)",
        ),
        (
            "[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. No Op registered for Nope",
            "This is an invalid model. No Op registered for Nope",
        ),
        ("[ONNXRuntimeError] : 3 : NO_SUCHFILE : /a/b.cc:7 not today's form", "not today's form"),
        ("[ONNXRuntimeError] : 1 : FAIL : ", "[ONNXRuntimeError] : 1 : FAIL :"),
        ("/a/b.cc:7 another package", "/a/b.cc:7 another package"),
    ],
)
def test_onnx_runtimes_errors_without_codes_and_source_paths(text, said):
    assert first_line(RuntimeError(text)) == said


def test_what_onnx_runtime_says_today():
    """The words of the installed version, not those noted down above."""
    import onnxruntime
    from onnx import parser

    head = '<ir_version: 10, opset_import: ["" : 18]> g'
    model = parser.parse_model(f"{head} (float[N,3] x, float[M,3] y) => (float[N,3] z) {{ z = Add(x, y) }}")
    model.graph.node[0].name = "sum"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        session.run(None, {"x": np.ones((2, 3), np.float32), "y": np.ones((3, 3), np.float32)})
    said = first_line(caught.value)
    assert said.startswith("Add node 'sum': ")
    assert not re.search(r"ONNXRuntimeError|onnxruntime|\.(h|cc):\d", said)
