"""Ray itself, in processes of an environment that has it: TRT_REWRITER_RAY_PYTHON names its interpreter.

A network namespace of its own keeps Ray on the loopback interface, where that is allowed; the user's settings of Ray
are left alone.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("TRT_REWRITER_RAY_PYTHON", "")
ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.skipif(not PYTHON, reason="TRT_REWRITER_RAY_PYTHON names no interpreter that has Ray")


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
def live(tmp_path, rows, whole):
    """Runs a script of this folder; returns what it wrote."""

    def run(script, timeout=240):
        home, result = tmp_path / "home", tmp_path / "result.json"
        home.mkdir()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = isolated([PYTHON, str(Path(__file__).with_name(script)), str(rows), str(whole), str(result)])
        log = tmp_path / "log.txt"
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


def test_one_node(live):
    found = live("live_node.py")
    served = found["serve"]
    assert served["equal"]
    assert served["stats"]["failed"] == 2
    assert max(int(size) for size in served["stats"]["batches"]) > 3  # no single request has more rows
    assert sum(served["stats"]["batches"].values()) < 48
    assert served["stats"]["warmup"]["runs"] == 2
    assert [each["failed"] + each["retries"] for each in served["clients"]] == [0, 0, 0]
    assert [text.endswith("dimension 1 must be 3") for text in served["refused"]] == [True, True]
    assert served["json"] == [200, {"outputs": {"y0": [[3.0, 5.0, 7.0]]}}]
    assert served["wrong"] == [400, {"error": "unknown input 'nothing': the signature has 'x0'"}]
    assert served["get"] > 48
    assert found["data"] == {"ids": True, "right": True, "sums": True}


def test_three_nodes(live):
    """A replica is killed, a node removed, another one added, all under load; then an actor of a pool is killed."""
    found = live("live_cluster.py")
    served = found["serve"]
    assert (served["wrong"], served["lost"]) == (0, [])
    assert served["answered"] == sum(each["requests"] for each in served["clients"])
    assert [each["failed"] for each in served["clients"]] == [0, 0, 0, 0]
    assert found["data"] == {"killed": True, "once": True, "right": True}
