"""Arrays from and to .npz files."""

import numpy as np
import pytest

from rewriter.commands.npz import read_npz, write_npz
from rewriter.errors import InputError


def objects(*items, shape=(-1,)):
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


@pytest.mark.parametrize(
    ("strings", "read"),
    [
        (objects("a", "ü日"), np.array(["a", "ü日"])),
        (objects(b"a", "\u00fc".encode()), np.array(["a", "\u00fc"])),
        (np.array([b"ab", b""]), np.array(["ab", ""])),
        (objects("a\0b", "\ufffd"), np.array(["a\0b", "\ufffd"])),
        (objects(shape=(0, 3)), np.empty((0, 3), "U1")),
        (objects("one", shape=()), np.array("one")),
    ],
)
def test_strings_come_back_as_text(tmp_path, strings, read):
    path = str(tmp_path / "out")
    write_npz(path, {"s": strings, "x": np.float32(2), "file": np.ones((1, 2), order="F")})
    found = read_npz(path)
    assert list(found) == ["s", "x", "file"]
    assert found["s"].dtype.kind == "U"
    assert (found["s"].shape, found["s"].tolist()) == (read.shape, read.tolist())
    assert (found["x"].dtype, found["x"].shape, float(found["x"])) == (np.float32, (), 2.0)


@pytest.mark.parametrize("strings", [objects("a", b"\xff\xd8"), objects("\udcff"), objects("end\0")])
def test_strings_that_an_npz_cannot_keep_are_told_and_the_rest_is_written(tmp_path, strings):
    path = str(tmp_path / "out.npz")
    with pytest.raises(InputError, match=r"out.npz' lacks 'image': strings that are no UTF-8 text"):
        write_npz(path, {"image": strings, "x": np.ones(2)})
    assert {name: array.tolist() for name, array in read_npz(path).items()} == {"x": [1, 1]}


def test_pickled_strings_are_refused_with_advice(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.ones(2), words=objects("a"))
    with pytest.raises(InputError, match=r"array 'words' of .*in.npz' holds Python .*words=numpy.array\(.*dtype=str"):
        read_npz(str(path))


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot write the outputs to"):
        write_npz(str(tmp_path / "gone" / "out.npz"), {"x": np.ones(2)})
