"""Calibration on a cluster of three nodes: actors are killed and a node is removed on the way."""

import pytest

pytestmark = pytest.mark.serving


def test_a_cluster_finds_the_ranges_of_one_machine(ray_script, ray_models, tmp_path):
    model = ray_models.save_network(tmp_path / "network.onnx")
    artifact = ray_models.save_network_artifact(tmp_path / "artifact")
    found = ray_script("live_calibration.py", model, artifact)
    names = ("percentile", "entropy", "minmax", "killed", "node removed")
    assert found["equal"] == dict.fromkeys(names, True)
    assert found["killed"] == ["333", "40"]
    assert found["nodes"] == 1
    rows = 600
    assert found["values"] == [{"x": 16 * rows, "r": 64 * rows, "k": 8 * rows}] * 5  # none lost, none counted twice
    assert (found["samples"], found["done"][-1]) == (rows // 8, rows // 8)
    assert found["done"] == sorted(found["done"])
    refused = found["refused"]
    assert refused["nan"].startswith(
        "ConversionError: calibration sample 9 (rows 72 to 79): tensor 'x' has NaN in 16 of 128 elements"
    )
    assert refused["column"] == "InputError: the dataset has no column 'x' (it has features): say columns="
    assert refused["empty"].startswith("InputError: the calibration inputs are empty")
    assert "InputError: calibration sample" in refused["dtype"]
    assert "input 'x' has dtype float64, expected float32" in refused["dtype"]
