"""Inputs and outputs as JSON and as npz: what goes through unchanged, and what is refused with a clear line."""

import io
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.errors import ConversionError, InputError
from rewriter.export.ray.wire import ABOUT, JSON, NPZ, checked, decode, encode, from_npz, to_npz
from rewriter.source import Signature

DTYPE_NAMES = ["bool", "int8", "uint64", "float16", "float32", "float64", "complex64", "<U3"]
NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "float4_e2m1fn"]


def same(back, array):
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(
    st.dictionaries(
        st.sampled_from(["x", "file", "allow_pickle", "a/b:0", "self"]),
        st.sampled_from(DTYPE_NAMES).flatmap(
            lambda name: arrays_of.arrays(
                name,
                arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0),
                elements=None if name[0] != "<" else st.sampled_from(["", "é", "abc"]),
            )
        ),
    )
)
def test_npz_gives_every_bit_back(arrays):
    back = from_npz(to_npz(arrays))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        same(back[name], array.astype(back[name].dtype) if array.dtype.kind == "U" else array)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_npz_keeps_dtypes_that_numpy_lacks(name, shape):
    array = np.full(shape, 1, np.dtype(getattr(ml_dtypes, name)))
    same(from_npz(to_npz({"x": array, "y": np.float32(2)}))["x"], array)
    assert json.loads(encode({"x": array}, JSON))["outputs"]["x"] == array.astype(np.float32).tolist()


@pytest.mark.parametrize(("code", "name"), [(TensorProto.BFLOAT16, "bfloat16"), (TensorProto.FLOAT16, "float16")])
def test_json_lists_become_what_the_signature_wants(code, name):
    signature = Signature((TensorSpec("x", code, ("batch", 2)),), ())
    found = checked(signature, decode(b'{"inputs": {"x": [[1, 2.5]]}}', JSON))["x"]
    assert (found.dtype.name, found.astype(np.float32).tolist()) == (name, [[1, 2.5]])


@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (np.array([np.nan]), JSON, "NaN or infinite values, which JSON cannot hold: ask with Content-Type"),
        (np.array([np.inf], ml_dtypes.bfloat16), JSON, "NaN or infinite values"),
        (np.array([1j]), JSON, "'y' is complex, which JSON cannot hold: ask with Content-Type"),
        (np.array([b"\xff"], object), JSON, "'y' holds bytes that are no UTF-8 text: ask by handle"),
        (np.array(["\udcff"], object), NPZ, "'y' holds bytes that are no UTF-8 text"),
        (np.array([b"a\0"], object), NPZ, "'y' has a string that ends in a NUL"),
    ],
)
def test_what_has_no_words_is_refused(array, kind, words):
    with pytest.raises(ConversionError, match=words):
        encode({"y": array}, kind)


def test_strings_of_any_kind():
    arrays = {"s": np.array([b"x", "y\0z"], object), "b": np.array([[b"ab"]]), "none": np.array([], object)}
    wanted = {"s": ["x", "y\0z"], "b": [["ab"]], "none": []}
    assert {name: array.tolist() for name, array in from_npz(to_npz(arrays)).items()} == wanted
    assert json.loads(encode(arrays, JSON))["outputs"] == wanted
    assert json.loads(encode({"s": np.array(["a\0"], object)}, JSON))["outputs"] == {"s": ["a\0"]}


@pytest.mark.parametrize("value", [1, 2.5, True, "text", [[1, 2.5]], (1, 2), []])
def test_values_of_python_stay_without_a_dtype(value):
    """So that a list is converted to what the signature wants, over HTTP as elsewhere."""
    back = from_npz(to_npz({"x": value, "y": np.ones(2)}))
    assert back["x"] == (list(value) if isinstance(value, tuple) else value)
    assert isinstance(back["y"], np.ndarray)


def test_objects_that_are_no_strings_are_named():
    for value, kind in ((None, "NoneType"), ({"a": 1}, "dict"), (np.array(["a", 2.5], object), "float")):
        with pytest.raises(InputError, match=f"'x' holds a {kind}: give numbers or strings"):
            to_npz({"x": value})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_bytes_are_an_input_error(save):
    """Whatever zipfile, zlib and numpy raise of them: the client would ask again after an HTTP 500."""
    file = io.BytesIO()
    save(file, x=np.arange(40.0), y=np.array(["a", "b"]))
    good = file.getvalue()
    refused = []
    for place in range(len(good)):
        for value in (0, 1, 97, 255):
            damaged = bytearray(good)
            damaged[place] = value
            try:
                from_npz(bytes(damaged))
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > len(good)
    assert not any("\n" in text for text in refused)


def test_lists_of_arrays_and_numpy_scalars_are_arrays():
    back = from_npz(to_npz({"x": [np.ones(2, np.float32)] * 2, "s": [b"ab"], "n": np.float64(2)}))
    assert (back["x"].dtype, back["x"].shape, back["s"].tolist(), back["n"].shape) == (np.float32, (2, 2), ["ab"], ())


@pytest.mark.parametrize(
    "dtypes", ['{"x": "finfo"}', '{"x": "no"}', "[", "7", '{"x": 3}', '{"x": "bfloat16"}', '{"z": "int4"}']
)
def test_names_of_dtypes_are_checked(dtypes):
    body = to_npz({"x": np.zeros(3, np.uint8), ABOUT: np.array(f'{{"dtypes": {dtypes}}}')})
    with pytest.raises(InputError, match="no npz file of plain arrays"):
        from_npz(body)


@pytest.mark.parametrize(("body", "kind"), [(b"{", JSON), (b"[]", JSON), (b"{}", JSON), (b"PK", NPZ), (b"", NPZ)])
def test_other_bodies_are_refused(body, kind):
    with pytest.raises(InputError, match="the request's body"):
        decode(body, kind)


def test_the_form_is_said_by_the_content_type():
    arrays = {"a": np.arange(3)}
    assert json.loads(encode(arrays, JSON)) == {"outputs": {"a": [0, 1, 2]}}
    for kind in ("application/json; charset=utf-8", "application/x-www-form-urlencoded"):  # the latter is curl's
        assert decode(b'{"inputs": {"a": [1]}}', kind) == {"a": [1]}
    assert decode(to_npz(arrays), NPZ)["a"].tolist() == [0, 1, 2]
