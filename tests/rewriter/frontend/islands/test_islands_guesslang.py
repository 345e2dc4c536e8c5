"""A real text classifier: the SavedModel of the guesslang package, whose own pins conflict with today's TensorFlow."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow

TEXTS = [
    b"def f(x):\n    return x + 1\n",
    'int main() { printf("\u00e9"); }'.encode(),
    b"",
    b"SELECT * FROM t WHERE a = 1;",
    b"#include <stdio.h>\nint main(void) { return 0; }" * 40,
]


@pytest.fixture(scope="module")
def folder():
    found = importlib.util.find_spec("guesslang")
    if found is None:
        pytest.skip("guesslang is not installed")
    return Path(found.submodule_search_locations[0]) / "data" / "model"


@pytest.mark.parametrize("key", ["serving_default", "classification", "predict"])
def test_every_signature_computes_what_tensorflow_computes(tf, folder, key, run, islands):
    source = load_source(folder, signature_key=key)
    assert len(islands(source)) == 1
    reference = tf.saved_model.load(str(folder)).signatures[key]
    (spec,) = source.signature.inputs
    for batch in (TEXTS, TEXTS[:1], [b""], [b"x"] * 3):
        want = reference(tf.constant(batch))
        got = run(source, **{spec.name: np.array(batch, dtype=object)})
        assert got.keys() == want.keys()
        for name, tensor in want.items():
            value = tensor.numpy()
            if value.dtype.kind == "f":
                np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)
            else:
                assert [str(v) for v in got[name].ravel()] == [
                    v.decode() if isinstance(v, bytes) else str(v) for v in value.ravel()
                ]
