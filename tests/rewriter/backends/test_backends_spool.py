from __future__ import annotations

import gc

import numpy as np
import pytest

from passes import model as model_module
from rewriter.backends.spool import WeightPlaces
from rewriter.backends.worker import map_weights


def model_of(arrays, make_model):
    """A model whose weights are `arrays`, all as stubs."""
    empty = make_model([], {}, {}, infer=False)
    proto = empty.copy_proto()
    for name, array in arrays.items():
        proto.graph.initializer.append(model_module.make_stub(name, 1, array.shape))
    return model_module.Model(proto, arrays)


def bytes_at(weight):
    import ctypes

    return ctypes.string_at(weight.address, weight.nbytes)


def test_maps_are_used_in_place_and_everything_reads_back(tmp_path, make_model):
    rng = np.random.default_rng(0)
    plain = rng.random((7, 11), np.float32)
    spooled = model_module.spool(model_of({"a": plain, "b": plain + 1}, make_model), tmp_path / "w.bin").weights
    arrays = {
        "plain": plain,
        "transposed": plain.T,
        "mapped": spooled["b"],
        "view": spooled["b"][2:5],  # its `offset` is that of the whole map
    }
    places = WeightPlaces()
    told = places.of(model_of(arrays, make_model))
    maps, weights = map_weights(told)
    assert {w.name: bytes_at(w) for w in weights} == {n: np.ascontiguousarray(a).tobytes() for n, a in arrays.items()}
    files = {p["name"]: p["file"] for p in told}
    assert files["mapped"] == str(tmp_path / "w.bin")
    assert files["view"] != files["mapped"]
    del maps
    places.close()


def test_an_array_is_written_once_and_its_file_dies_with_it(make_model):
    from pathlib import Path

    places = WeightPlaces()
    array = np.ones((3, 4), np.float32)
    first = places.of(model_of({"a": array}, make_model))[0]["file"]
    again = places.of(model_of({"other": array}, make_model))[0]["file"]
    assert first == again
    assert Path(first).is_file()
    del array
    gc.collect()
    assert not Path(first).exists()
    places.close()
    places.close()


def test_a_writable_map_is_not_trusted(tmp_path, make_model):
    array = np.memmap(tmp_path / "w.bin", np.float32, "w+", shape=(4,))
    places = WeightPlaces()
    assert places.of(model_of({"a": array}, make_model))[0]["file"] != str(tmp_path / "w.bin")
    places.close()


def test_a_short_file_is_refused_before_it_can_kill_the_process(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"\0" * 10)
    with pytest.raises(ValueError, match="'a' needs 8 bytes at 4"):
        map_weights([{"name": "a", "file": str(tmp_path / "w.bin"), "offset": 4, "nbytes": 8}])
