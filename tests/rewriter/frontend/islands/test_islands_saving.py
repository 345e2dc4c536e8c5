"""SavedModels of islands: where they lie, what is in them, and what is refused."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rewriter.errors import ExportError
from rewriter.frontend import load_source
from rewriter.frontend.islands import saving
from tests.rewriter.frontend.islands import island_models

pytestmark = pytest.mark.tensorflow

FRESH = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
words = loaded.signatures["serving_default"](input_0=tf.constant(["the cat", "mat on"]))
print([words[name].numpy().tolist() for name in sorted(words)])
"""


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def digests(folder):
    return {name: hashlib.sha256(data).hexdigest() for name, data in files(folder).items()}


@pytest.mark.parametrize("name", ["classifier", "branches"])
def test_equal_models_give_equal_files(tf, name, islands, tmp_path):
    found = []
    for _ in range(2):
        module = getattr(island_models, name)(tf)
        source = load_source(module.call, verify=False, island_folder=tmp_path)
        found.append([digests(attributes.saved_model) for _, attributes in islands(source)])
    assert found[0] == found[1]


def test_nothing_of_this_machine_is_in_it(tf, islands, tmp_path):
    module = island_models.branches(tf)
    source = load_source(module.call, verify=False, island_folder=tmp_path)
    for _, attributes in islands(source):
        assert Path(attributes.saved_model).is_relative_to(tmp_path)
        for name, data in files(attributes.saved_model).items():
            for word in (b"/tmp", b"/home", str(tmp_path).encode(), str(Path.cwd()).encode(), b"site-packages"):
                assert word not in data, (name, word)


def test_it_can_be_loaded_in_another_process(tf, islands, tmp_path):
    module = island_models.classifier(tf)
    source = load_source(module.call, verify=False, island_folder=tmp_path)
    ((node, attributes),) = islands(source)
    assert attributes.input_names == ("input_0",)
    assert attributes.output_names == tuple(f"output_{i}" for i in range(len(node.output)))
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, attributes.saved_model], capture_output=True, text=True, check=True, timeout=120
    )
    here = tf.saved_model.load(attributes.saved_model).signatures["serving_default"]
    result = here(input_0=tf.constant(["the cat", "mat on"]))
    assert answer.stdout.strip() == str([result[name].numpy().tolist() for name in sorted(result)])


def test_two_conversions_do_not_share_a_folder(tf, islands, tmp_path):
    module = island_models.parallel(tf)
    folders = set()
    for parent in (tmp_path, tmp_path, None):
        source = load_source(module.call, verify=False, island_folder=parent)
        folders |= {attributes.saved_model for _, attributes in islands(source)}
    assert len(folders) == 3
    assert all((Path(folder) / "saved_model.pb").is_file() for folder in folders)


def test_everything_in_it_runs_on_the_host(tf, islands):
    from tensorflow.core.protobuf import saved_model_pb2

    module = island_models.branches(tf)
    ((_, attributes),) = islands(load_source(module.call, verify=False))
    proto = saved_model_pb2.SavedModel.FromString((Path(attributes.saved_model) / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    work = [n for f in functions if f.signature.name.startswith("island_") for n in f.node_def]
    assert work
    assert {node.device for node in work} == {"/device:CPU:0"}


def test_an_assertion_in_an_island_still_asserts(tf, run):
    module = island_models.checked(tf)
    source = load_source(module.call)
    with pytest.raises(Exception, match="too long"):
        run(source, text=np.array([b"a" * 200], dtype=object))


@pytest.mark.parametrize("temporary", [False, True])
@pytest.mark.parametrize(
    "stage",
    [
        *(f"islands.{name}" for name in ("saving.settle", "road.onnx_dtype", "road.insert", "road.Crossing")),
        *(f"tensorflow.{name}" for name in ("set_types", "shorten", "attached", "verify")),
    ],
)
def test_nothing_is_left_of_a_conversion_that_fails(tf, tmp_path, monkeypatch, stage, temporary):
    def fail(*args, **options):
        raise ExportError("broken")

    monkeypatch.setattr(f"rewriter.frontend.{stage}", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module = island_models.parallel(tf)
    with pytest.raises(ExportError, match="broken"):
        load_source(module.call, island_folder=None if temporary else tmp_path)
    assert list(tmp_path.glob("*islands*")) == []
    assert not any(folder.is_relative_to(tmp_path) for folder in saving._TEMPORARY)


def test_a_temporary_folder_ends_with_the_process_that_made_it(tf):
    code = (
        "import os, sys\n"
        "from rewriter.frontend.islands.saving import new_folder\n"
        "folder = new_folder(None)\n"
        "if os.fork() == 0: sys.exit(0)\n"
        "os.wait()\n"
        "print(folder.is_dir(), folder)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    kept, _, path = answer.stdout.strip().partition(" ")
    assert kept == "True"
    assert not Path(path).exists()


def test_python_code_is_refused(tf):
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
    def function(x):
        doubled = tf.ensure_shape(tf.numpy_function(lambda a: a * 2, [x], tf.float32), [None, 4])
        return doubled @ dense

    with pytest.raises(ExportError, match=r"runs Python code \(PyFunc .*\).*tf.numpy_function by TensorFlow ops"):
        load_source(function)


def test_tables_that_change_are_refused(tf):
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
    def function(x):
        with tf.control_dependencies([table.insert(x, x + 1)]):
            return tf.one_hot(table.lookup(x), 4) @ dense

    with pytest.raises(ExportError, match=r"changes a lookup table while it runs .LookupTableInsertV2"):
        load_source(function)


def test_a_mutable_table_that_is_only_read_is_kept(tf, run):
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, -1.0)
    table.insert(["a", "b"], [0.25, 4.0])
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.string, name="x")])
    def function(x):
        return {"y": table.lookup(x) @ dense}

    source = load_source(function)
    values = np.array([["a", "b", "c", "a"]], dtype=object)
    np.testing.assert_allclose(run(source, x=values)["y"], function(tf.constant(values))["y"].numpy(), rtol=1e-6)


def test_a_model_without_other_work_is_refused(tf):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def function(text):
        return tf.strings.regex_replace(text, "a", "b")

    with pytest.raises(ExportError, match=r"all work of .* would stay in TensorFlow.*StaticRegexReplace") as caught:
        load_source(function)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is ExportError


def test_a_model_of_one_unsupported_operator_is_refused(tf):
    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
    def function(x):
        return tf.math.log1p(x)

    with pytest.raises(ExportError, match=r"all work of .* would stay in TensorFlow.*Log1p") as caught:
        load_source(function)
    assert type(caught.value) is ExportError


def test_without_islands_the_message_says_how_to_have_them(tf):
    module = island_models.sandwich(tf)
    with pytest.raises(ExportError, match=r"no word for: .*MatrixInverse.*tensorflow_islands=True.*--no-tens"):
        load_source(module.call, islands=False)


def test_operators_can_be_kept(tf, islands):
    module = island_models.sandwich(tf)
    source = load_source(module.call, keep_in_tensorflow=["Tanh", "Erf"])
    found = {reason for _, attributes in islands(source) for reason in attributes.reasons}
    assert "Tanh: named in keep_in_tensorflow" in found
    assert any("keep_in_tensorflow names Erf" in note for note in source.notes)


def test_a_known_error_within_the_tolerance_is_exported(tf, islands):
    dense = tf.constant(island_models.weights(3, 3))

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32)])
    def function(x):
        return tf.image.resize(x, (13, 13), method="bicubic") @ dense

    assert len(islands(load_source(function))) == 1
    assert not islands(load_source(function, tolerance=2e-2))


def test_what_the_exporter_fails_on_goes_to_tensorflow(tf, islands):
    dense = tf.constant(island_models.weights(8, 3))

    @tf.function(input_signature=[tf.TensorSpec([2, 8], tf.float32, name="x")])
    def function(x):
        y = x @ tf.transpose(x) @ x
        return {"y": tf.quantization.fake_quant_with_min_max_vars(y, tf.reduce_min(y), tf.reduce_max(y)) @ dense}

    source = load_source(function)
    ((_, attributes),) = islands(source)
    assert attributes.reasons == ("FakeQuantWithMinMaxVars: the converter to ONNX has no way to write it here",)


def test_a_loop_that_the_exporter_gives_up_on_goes_to_tensorflow(tf, islands, run):
    dense = tf.constant(island_models.weights(8, 8))

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, name="x")])
    def function(x):
        return {"y": tf.scan(lambda a, row: a * 0.5 + row, x @ dense)}

    source = load_source(function)
    ((_, attributes),) = islands(source)
    assert "StatelessWhile" in attributes.ops
    x = island_models.weights(5, 8, seed=7)
    np.testing.assert_allclose(run(source, x=x)["y"], function(tf.constant(x))["y"].numpy(), rtol=1e-5, atol=1e-6)


def test_a_bfloat16_model_computes_its_islands_in_float32_too(tf, islands):
    dense = tf.Variable(tf.cast(island_models.weights(9, 9), tf.bfloat16))

    @tf.function(input_signature=[tf.TensorSpec([None, 9], tf.bfloat16, name="x")])
    def function(x):
        square = tf.reshape(tf.cast(x @ dense, tf.float32), [-1, 3, 3]) + 4.0 * tf.eye(3)
        return {"y": tf.cast(tf.reshape(tf.linalg.inv(square), [-1, 9]), tf.bfloat16) @ dense}

    source = load_source(function)
    assert len(islands(source)) == 1
    assert source.signature.outputs[0].dtype == 1
