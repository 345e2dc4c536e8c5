import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("TRT_REWRITER_RAY_PYTHON", "")
ROOT = Path(__file__).parents[4]

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
def ray_script(tmp_path):
    """Runs a script of this folder with the interpreter that has Ray; returns what it wrote to its last argument.

    A network namespace of its own keeps Ray on the loopback interface, where that is allowed; the user's settings of
    Ray are left alone.
    """
    if not PYTHON:
        pytest.skip("TRT_REWRITER_RAY_PYTHON names no interpreter that has Ray")

    def run(script, *arguments, timeout=240):
        home, result, log = (tmp_path / name for name in ("home", "result.json", "log.txt"))
        home.mkdir()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = isolated([PYTHON, str(Path(__file__).with_name(script)), *map(str, arguments), str(result)])
        with log.open("wb") as file:
            try:
                code = subprocess.run(
                    command, stdout=file, stderr=file, timeout=timeout, env=environment, cwd=tmp_path, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"none within {timeout} s"
        if code != 0:
            pytest.fail(f"{script}: exit code {code}\n{log.read_text('utf-8', 'replace')[-20000:]}", pytrace=False)
        return json.loads(result.read_text())

    return run
