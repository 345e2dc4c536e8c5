"""The demonstration model as committed: small, clean, right, and with its cut in the middle."""

import subprocess
import sys

import numpy as np
import pytest

from rewriter.demo import digits_path, load_digits_test


def test_files_are_small_and_complete():
    files = [f for f in digits_path().rglob("*") if f.is_file()]
    assert {f.name for f in files} >= {"saved_model.pb", "variables.index"}
    assert sum(f.stat().st_size for f in files) < 500_000
    assert digits_path().with_name("digits_test.npz").stat().st_size < 50_000


def test_no_path_of_the_machine_that_made_it_is_inside():
    for file in digits_path().rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            for trace in (b"/home/", b"/tmp/", b"/usr/", b"/root/", b"site-packages", b".py\x12", b"C:\\"):
                assert trace not in data, (file.name, trace)


def test_the_test_set():
    images, labels = load_digits_test()
    assert images.shape == (360, 8, 8)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 16
    assert labels.shape == (360,)
    assert labels.dtype == np.int64
    assert set(labels) == set(range(10))


def test_reading_it_imports_no_tensorflow():
    code = (
        "import sys; from rewriter.demo import digits_path, load_digits_test; load_digits_test(); digits_path();"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.tensorflow
def test_the_model_reads_digits_and_falls_in_two_parts():
    """Everything before the XOR and everything after it is more than an engine's minimum."""
    import tensorflow as tf

    function = tf.saved_model.load(str(digits_path())).signatures["serving_default"]
    images, labels = load_digits_test()
    outputs = function(image=tf.constant(images))
    assert set(outputs) == {"probabilities", "digit"}
    assert outputs["digit"].dtype == tf.int64
    digits = outputs["digit"].numpy()
    assert np.mean(digits == labels) >= 0.97
    np.testing.assert_array_equal(outputs["probabilities"].numpy().argmax(axis=1), digits)
    np.testing.assert_allclose(outputs["probabilities"].numpy().sum(axis=1), 1.0, rtol=1e-5)
    nodes = [n for f in function.graph.as_graph_def().library.function for n in f.node_def]
    assert sum(n.op == "BitwiseXor" for n in nodes) == 1
