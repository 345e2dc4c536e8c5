import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PYTHON = os.environ.get("TRT_REWRITER_RAY_PYTHON", "")
ROOT = Path(__file__).parents[4]
#: The user's own settings of Ray are left alone; Serve looks often, so that tests wait little.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.05",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.2",
}

_spec = importlib.util.spec_from_file_location("ray_models", Path(__file__).with_name("ray_models.py"))
_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_models)


@pytest.fixture(scope="session")
def ray_models():
    return _models


@pytest.fixture
def rows(tmp_path):
    return _models.save_rows(tmp_path / "rows")


@pytest.fixture
def whole(tmp_path):
    return _models.save_whole(tmp_path / "whole")


def isolated(command):
    """The command in a network namespace where only loopback is up, or as it is where none may be made."""
    probe = ["unshare", "-n", "true"]
    if (
        not (shutil.which("unshare") and shutil.which("ip"))
        or subprocess.run(probe, capture_output=True, check=False).returncode
    ):
        return command
    return ["unshare", "-n", "bash", "-c", 'ip link set lo up; exec "$@"', "bash", *command]


@pytest.fixture
def short_folder():
    """A folder whose name leaves room for the sockets in it: they have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def ray_python(tmp_path, short_folder):
    """Runs the interpreter that has Ray with some arguments in `tmp_path`; a failure shows the log.

    A network namespace of its own keeps Ray on the loopback interface, where that is allowed; the user's settings of
    Ray are left alone, and no cluster that runs here is found.
    """
    if not PYTHON:
        pytest.skip("TRT_REWRITER_RAY_PYTHON names no interpreter that has Ray")

    def run(*arguments, timeout=480):
        home, log = tmp_path / "home", tmp_path / "log.txt"
        home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]])
        own = {"HOME": str(home), "RAY_TMPDIR": short_folder, "PYTHONPATH": str(ROOT), "PATH": path}
        environment = {**kept, **SETTINGS, **own}
        command = isolated([PYTHON, *map(str, arguments)])
        with log.open("wb") as file:
            try:
                code = subprocess.run(
                    command, stdout=file, stderr=file, timeout=timeout, env=environment, cwd=tmp_path, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"none within {timeout} s"
        if code != 0:
            text = log.read_text("utf-8", "replace")[-20000:]
            pytest.fail(f"{Path(arguments[0]).name}: exit code {code}\n{text}", pytrace=False)

    return run


@pytest.fixture
def ray_script(tmp_path, ray_python):
    """Runs a script of this folder with the interpreter that has Ray; returns what it wrote to its last argument."""

    def run(script, *arguments, timeout=480):
        result = tmp_path / "result.json"
        ray_python(Path(__file__).with_name(script), *arguments, result, timeout=timeout)
        return json.loads(result.read_text())

    return run
