"""Ray itself, in processes of an environment that has it: see `ray_script`."""

import pytest

pytestmark = pytest.mark.serving


@pytest.fixture
def live(ray_script, rows, whole):
    """Runs a script of this folder with two artifacts; returns what it wrote."""
    return lambda script, timeout=240: ray_script(script, rows, whole, timeout=timeout)


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
