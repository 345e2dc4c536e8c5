"""Ray itself, in processes of an environment that has it: see `ray_script`."""

import pytest

pytestmark = pytest.mark.serving


@pytest.fixture
def live(ray_script, rows, whole):
    """Runs a script of this folder with two artifacts; returns what it wrote."""
    return lambda script: ray_script(script, rows, whole)


def test_one_node(live):
    found = live("live_node.py")
    check_answers(found["serve"])
    waiting = [[[2.0 * i + 1] * 3] for i in range(3)]
    assert found["composed"] == {"total": 18.0, "waiting": waiting}
    assert found["scaled"] == 2
    assert ["must be within the inclusive range" in text for text in found["restarted"]["refused"]] == [True] * 3
    assert found["restarted"]["good"] == [30.0]
    refused, why = found["unreadable"]
    assert "Failed to update the deployments" in refused
    assert "gone (on node " in why.splitlines()[-1]
    assert why.endswith("each node needs the artifact under this path)")
    assert found["data"] == {"ids": True, "right": True, "sums": True}


def check_answers(served):
    assert served["equal"]
    assert served["async"] == [[[3.0, 5.0, 7.0]]] * 3
    assert [each["failed"] + each["retries"] for each in served["clients"]] == [0, 0, 0]
    assert [text.endswith("dimension 1 must be 3") for text in served["refused"]] == [True, True]
    assert served["json"] == [200, {"outputs": {"y0": [[3.0, 5.0, 7.0]]}}]
    assert served["wrong"] == [400, {"error": "unknown input 'nothing': the signature has 'x0'"}]
    assert served["curl"] in (None, served["json"][1])
    stats = served["stats"]
    assert (stats["requests"], stats["failed"]) == (50, 2)
    assert max(int(size) for size in stats["batches"]) > 3  # no single request has more rows
    assert sum(stats["batches"].values()) < 48
    assert stats["warmup"]["runs"] == 2
    assert stats["function"]["engines_chosen"] == {}
    assert stats["replica"]
    assert stats["node"]


def test_three_nodes(live):
    """A replica is killed, a node removed, another one added, all under load; then an actor of a pool is killed."""
    found = live("live_cluster.py")
    served = found["serve"]
    assert (served["wrong"], served["lost"]) == (0, [])
    sure, once = served["clients"][:2], served["clients"][2:]
    assert [each["failed"] for each in sure] == [0, 0]
    assert served["answered"] == sum(each["requests"] for each in sure)
    assert served["lost_by_once"]["start"] == 0
    assert max(served["lost_by_once"].values()) <= len(once)  # one request of each client may be on its way
    assert found["data"] == {"killed": True, "once": True, "right": True}
