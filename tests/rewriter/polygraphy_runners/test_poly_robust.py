"""Whatever is missing or broken, `polygraphy` itself runs: in processes of their own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("polygraphy")
#: Runs polygraphy's command where the modules of the first argument are not installed.
MISSING = """
import sys
for name in filter(None, sys.argv.pop(1).split(",")):
    sys.modules[name] = None
from polygraphy.tools import main
sys.exit(main())
"""
FP16 = ("--onnxrt", "--trt-rewriter", "--trt-rewriter-precision", "FP16")
OPTIONAL = ("tensorflow", "tf_keras", "keras", "tf2onnx", "tensorrt", "tensorrt_rtx", "torch", "cuda", "matplotlib")


def polygraphy_command(*arguments, missing=(), path=None):
    environment = {**os.environ, "POLYGRAPHY_INTERNAL_CORRECTNESS_CHECKS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", MISSING, ",".join(missing), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def broken(tmp_path):
    """A folder of packages whose import fails."""

    def make(*names, error="RuntimeError('broken on purpose')"):
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(f"raise {error}\n")
        return tmp_path

    return make


def test_none_of_the_optional_packages_is_needed(model):
    status, text = polygraphy_command("run", model, *FP16, "--atol", "1e-2", missing=OPTIONAL)
    assert status == 0, text
    assert "no TensorRT is installed here" in text
    assert "Failed to load plugin" not in text


@pytest.mark.parametrize("error", ["ImportError('libnvinfer.so.10: no such file')", "OSError('bad ELF')"])
def test_broken_packages_do_not_break_other_runs(model, broken, error):
    path = broken("tensorflow", "tensorrt", "tensorrt_rtx", "tf2onnx", "matplotlib", error=error)
    status, text = polygraphy_command("run", model, "--onnxrt", path=path)
    assert status == 0, text
    assert "Failed to load plugin" not in text


def test_a_broken_tensorrt_is_one_line(model, broken):
    status, text = polygraphy_command(
        "run", model, "--trt-rewriter", "--trt-rewriter-backend", "tensorrt_rtx", path=broken("tensorrt_rtx")
    )
    assert status == 1
    lines = [line for line in text.splitlines() if line.startswith("[!]")]
    assert len(lines) == 1
    assert "broken on purpose" in lines[0]
    assert "Traceback" not in text


def test_a_missing_onnx_runtime_is_one_line(model):
    status, text = polygraphy_command("run", model, "--trt-rewriter", missing=("onnxruntime",))
    assert status == 1
    assert "needs ONNX Runtime: pip install 'trt-rewriter[cpu]'" in text
    assert "Traceback" not in text


def test_a_missing_tensorflow_is_one_line(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    status, text = polygraphy_command("run", tmp_path, "--trt-rewriter-tf", missing=("tensorflow",))
    assert status == 1
    assert "pip install 'trt-rewriter[tf]'" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("missing", ["rewriter", "onnx", "rewriter.commands.options", "polygraphy.tools.args.base"])
def test_a_plugin_that_cannot_be_loaded_is_a_warning(model, missing, tmp_path):
    if missing == "polygraphy.tools.args.base":  # another polygraphy: without it nothing of polygraphy itself runs
        (tmp_path / "sitecustomize.py").write_text(
            "import rewriter.polygraphy_runners.talk as talk\n"
            "real = talk.importlib.import_module\n"
            "def without(name):\n"
            f"    if name == {missing!r}: raise ModuleNotFoundError(name, name=name)\n"
            "    return real(name)\n"
            "talk.importlib = type('Fake', (), {'import_module': staticmethod(without)})\n"
        )
        status, text = polygraphy_command("run", model, "--onnxrt", path=tmp_path)
    else:
        status, text = polygraphy_command("run", model, "--onnxrt", missing=(missing,))
    assert status == 0, text
    assert "Failed to load plugin: trt-rewriter" in text


def test_other_tools_run_as_before(model):
    status, text = polygraphy_command("inspect", "model", model)
    assert status == 0, text
    assert "trt-rewriter" not in text


def test_polygraphys_own_checks_are_content(model, artifact, batches):
    status, text = polygraphy_command("run", model, *FP16, "--data-loader-script", batches, "--atol", "1e-2")
    assert status == 0, text
    status, text = polygraphy_command("run", artifact, "--trt-rewriter", "--data-loader-script", batches)
    assert status == 0, text
