"""Models with island nodes in ONNX Runtime and TensorFlow."""

import importlib.machinery
import json
import sys
import threading
import types

import numpy as np
import pytest

from rewriter.errors import ConverterStateError, InputError, MissingDependencyError, SourceError
from rewriter.frontend import noise
from rewriter.runtime import tensorflow_island
from rewriter.runtime.native import NativeSession, open_native
from rewriter.runtime.sectioned import SectionedSession
from rewriter.runtime.sections import Route
from rewriter.runtime.tensorflow_island import TensorFlowIsland, import_tensorflow

from . import island_models as im

pytestmark = pytest.mark.tensorflow
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    import tensorflow as tf

    root = tmp_path_factory.mktemp("islands")
    floats, strings = tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([None], tf.string)
    im.save_island(root / "print", lambda x: (tf.strings.as_string(x, precision=1), x * 2), floats)
    im.save_island(
        root / "parse", lambda s, y: tf.strings.to_number(s) + y, tf.TensorSpec([None, 3], tf.string), floats
    )
    im.save_island(root / "bytes", lambda s: tf.io.decode_raw(s, tf.uint8, fixed_length=4), strings)
    im.save_island(root / "cut", lambda s: tf.strings.substr(s, 0, 2), strings)
    im.save_island(root / "scalar", lambda s: tf.strings.join(["<", s, ">"]), tf.TensorSpec([], tf.string))
    im.save_island(root / "half", lambda x: tf.cast(x, tf.bfloat16) + tf.constant(1, tf.bfloat16), floats)
    return root


def chain(folders, *extra):
    text = """g (float[N,3] x) => (float[N,3] out, string[N,3] s) <float[1] one={1.0}> {
        y = Add(x, one)
        z = Mul(b, y)
        out = Relu(c) }"""
    islands = [
        im.island(0, ["y"], ["s", "b"], folders / "print", ["AsString", "Mul"]),
        im.island(1, ["s", "z"], ["c"], folders / "parse", ["StringToNumber"]),
    ]
    return im.model(text, [*islands, *extra], [("b", im.FLOAT, ["N", 3]), ("c", im.FLOAT, ["N", 3])])


def test_a_chain_of_islands(folders):
    session = open_native(chain(folders))
    assert isinstance(session, SectionedSession)
    assert (session.input_names, session.output_names) == (("x",), ("out", "s"))
    found = session.run({"x": X})
    y = X + 1
    np.testing.assert_allclose(found["out"], y + 2 * y * y)
    assert found["s"].tolist() == [["1.0", "2.0", "3.0"], ["4.0", "5.0", "6.0"]]


def test_a_model_without_islands_is_one_session():
    model = im.model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    assert isinstance(open_native(model), NativeSession)


def test_inner_values_can_be_asked_for(folders):
    model = chain(folders)
    proto = model.copy_proto()
    for name, dtype in (("y", im.FLOAT), ("b", im.FLOAT), ("z", im.FLOAT), ("c", im.FLOAT)):
        proto.graph.output.add(name=name).type.tensor_type.elem_type = dtype
    session = open_native(model.with_proto(proto), ["c", "b", "y", "z"])
    found = session.run({"x": X})
    assert list(found) == ["c", "b", "y", "z"]
    np.testing.assert_array_equal(found["y"], X + 1)
    np.testing.assert_array_equal(found["b"], 2 * (X + 1))
    np.testing.assert_array_equal(found["z"], found["b"] * found["y"])


def test_bytes_that_are_no_text_reach_the_island_and_the_caller_unchanged(folders, caplog):
    islands = [im.island(0, ["s"], ["t"], folders / "cut"), im.island(1, ["t"], ["raw"], folders / "bytes")]
    model = im.model(
        "g (string[N] s) => (string[N] t, uint8[N,4] raw, string[N] u) { u = Identity(t) }",
        islands,
        [("raw", 2, ["N", 4])],
    )
    given = np.empty(2, object)
    given[:] = ["\u00e9!!", b"\xff\xfe\x00".decode("utf-8", "surrogateescape")]
    session = open_native(model)
    found = session.run({"s": given})
    session.run({"s": given})
    [warning] = caplog.messages
    assert warning.startswith("strings of 't' hold bytes that are not UTF-8 text")
    assert found["t"].tolist() == ["\u00e9", "\udcff\udcfe"]
    assert found["raw"].tolist() == [[0xC3, 0xA9, 0, 0], [0xFF, 0xFE, 0, 0]]
    assert found["u"].tolist() == ["\u00e9", "\ufffd\ufffd"]  # through ONNX Runtime


def test_bytes_that_are_no_text_are_refused_where_onnx_runtime_reads_them(folders):
    model = im.model(
        "g (string[N] s) => (string[N] t, string[N] u) { u = Identity(s) }",
        [im.island(0, ["s"], ["t"], folders / "cut")],
    )
    with pytest.raises(InputError, match="input 's' holds bytes that are not UTF-8 text"):
        open_native(model).run({"s": np.array(["\udcff"], object)})


@pytest.mark.parametrize("shape", [(0,), (1,)])
def test_arrays_of_strings_without_elements(folders, shape):
    model = im.model("g (string[N] s) => (string[N] t) { }", [im.island(0, ["s"], ["t"], folders / "cut")])
    found = open_native(model).run({"s": np.full(shape, "abc", object)})["t"]
    assert (found.shape, found.dtype, found.tolist()) == (shape, object, ["ab"] * shape[0])


def test_scalars_of_strings_and_constants_of_an_island(folders):
    model = im.model('g () => (string t) <string c = {"a"}> { }', [im.island(0, ["c"], ["t"], folders / "scalar")])
    assert open_native(model).run({})["t"].tolist() == "<a>"


def test_dtypes_that_numpy_lacks(folders):
    text = "g (float[N,3] x) => (bfloat16[N,3] h, float[N,3] y) { y = Cast<to=1>(h) }"
    found = open_native(im.model(text, [im.island(0, ["x"], ["h"], folders / "half")])).run({"x": X})
    assert found["h"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(found["y"], X + 1)


def test_another_dtype_than_declared_is_an_error(folders):
    text = "g (float[N,3] x) => (float16[N,3] h) { }"
    session = open_native(im.model(text, [im.island(0, ["x"], ["h"], folders / "half", ["Cast"])]))
    with pytest.raises(RuntimeError, match=r"'TFIsland_000' \(Cast\): its output 'h' is bfloat16, .* FLOAT16"):
        session.run({"x": X})


def test_another_dtype_than_the_island_takes_is_an_error(folders):
    text = "g (double[N,3] x) => (bfloat16[N,3] h) { }"
    session = open_native(im.model(text, [im.island(0, ["x"], ["h"], folders / "half")]))
    with pytest.raises(RuntimeError, match="its input 'x' is float64, but the SavedModel takes float32"):
        session.run({"x": X.astype(np.float64)})


def test_a_failure_names_the_island(folders):
    text = "g (string[N,3] s, float[N,3] x) => (float[N,3] y) { }"
    session = open_native(im.model(text, [im.island(0, ["s", "x"], ["y"], folders / "parse", ["StringToNumber"])]))
    with pytest.raises(
        RuntimeError, match=r"TensorFlow island 'TFIsland_000' \(StringToNumber\): .*not correctly convert"
    ):
        session.run({"s": np.full((2, 3), "a", object), "x": X})


def test_a_missing_input_is_told(folders):
    with pytest.raises(ValueError, match="no value was given for the input 'x'"):
        open_native(chain(folders)).run({})


def test_a_folder_that_is_gone(folders, tmp_path):
    model = im.model("g (float[N,3] x) => (float[N,3] y) { }", [im.island(0, ["x"], ["y"], tmp_path / "gone")])
    with pytest.raises(SourceError, match="TensorFlow island 'TFIsland_000' is not at"):
        open_native(model)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "saved_model.pb").write_bytes(b"no proto")
    with pytest.raises(SourceError, match="cannot be loaded"):
        open_native(model)


def test_a_folder_with_another_island(folders):
    model = im.model("g (float[N,3] x) => (float[N,3] y) { }", [im.island(0, ["x"], ["y"], folders / "parse")])
    with pytest.raises(SourceError, match="is not that of TensorFlow island 'TFIsland_000': 'input_1' is in one"):
        open_native(model)


def test_without_tensorflow_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingDependencyError, match=r"'TFIsland_000' \(AsString, Mul\), which stays in .*\[tf\]"):
        open_native(chain(folders))


def test_an_island_counts_and_closes(folders):
    [step] = Route.of(chain(folders), ["b"]).islands
    assert step.outputs == ("", "b")
    island = TensorFlowIsland(step, lazy=True)
    assert island.stats()["calls"] == 0
    assert list(island.run({"y": X})) == ["b"]
    stats = island.stats()
    assert (stats["ops"], stats["reasons"], stats["calls"]) == (["AsString", "Mul"], ["no word for it"], 1)
    assert stats["seconds"] > 0
    island.close()
    island.close()
    with pytest.raises(ConverterStateError, match="closed"):
        island.run({"y": X})


def test_calls_side_by_side(folders):
    session = open_native(chain(folders), threads=1)
    found = {}

    def work(number):
        x = np.full((1 + number % 3, 3), number, np.float32)
        for _ in range(5):
            found[number] = session.run({"x": x})["out"]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, out in found.items():
        np.testing.assert_array_equal(out, np.full((1 + number % 3, 3), (number + 1) + 2 * (number + 1) ** 2))


def test_one_record_for_all_sections(folders, tmp_path):
    session = open_native(chain(folders), optimize=False, profile=tmp_path / "trace")
    for _ in range(3):
        session.run({"x": X})
    events = json.loads(session.end_profiling().read_text())
    names = [e["name"] for e in events if e["name"] == "model_run" or e["name"].endswith("_kernel_time")]
    assert sum(name == "model_run" for name in names) == 3
    first = names[: names.index("model_run")]
    assert len(first) == 3  # Add, Mul and Relu of three sections, in one run


def test_a_saved_model_is_in_memory_once(folders):
    model = im.model("g (float[N,3] x) => (bfloat16[N,3] y) { }", [im.island(0, ["x"], ["y"], folders / "half")])
    first, second = (TensorFlowIsland(Route.of(model, ["y"]).islands[0]) for _ in range(2))
    assert first._ready()._model is second._ready()._model
    first.close()
    assert second.run({"x": X})["y"].shape == X.shape


def test_loading_waits_for_no_conversion(folders, monkeypatch):
    monkeypatch.setattr(tensorflow_island, "_IN_MEMORY", {})  # so that it is loaded here
    [step] = Route.of(chain(folders), ["b"]).islands
    found = []
    loader = threading.Thread(target=lambda: found.append(TensorFlowIsland(step).run({"y": X})), daemon=True)
    with noise.LOCK:  # as a conversion in another thread holds it
        loader.start()
        loader.join(30)
        assert found
    loader.join()


class FakeTensorFlow(types.ModuleType):
    """Notes what is done to the GPUs of TensorFlow."""

    def __init__(self, error=None):
        super().__init__("tensorflow")
        self.done = []
        self.error = error
        self.config = types.SimpleNamespace(
            set_visible_devices=lambda devices, kind: self._note("hide", devices, kind),
            get_visible_devices=lambda kind: ["gpu:0", "gpu:1"],
            experimental=types.SimpleNamespace(set_memory_growth=lambda device, on: self._note("grow", device, on)),
        )

    def _note(self, *what):
        if self.error is not None:
            raise self.error
        self.done.append(what)


def test_gpus_are_hidden_from_a_tensorflow_that_nobody_else_uses(monkeypatch):
    fake = FakeTensorFlow()

    class Finder:
        def find_spec(self, name, path=None, target=None):
            return importlib.machinery.ModuleSpec(name, self) if name == "tensorflow" else None

        def create_module(self, spec):
            return fake

        def exec_module(self, module):
            pass

    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert import_tensorflow("a test") is fake
    assert fake.done == [("hide", [], "GPU")]
    sys.modules.pop("tensorflow")


def test_a_tensorflow_that_is_in_use_keeps_its_gpus_but_takes_only_what_it_needs(monkeypatch):
    fake = FakeTensorFlow()
    monkeypatch.setitem(sys.modules, "tensorflow", fake)
    import_tensorflow("a test")
    assert fake.done == [("grow", "gpu:0", True), ("grow", "gpu:1", True)]


@pytest.mark.parametrize("error", [RuntimeError("initialised"), ValueError("virtual devices")])
def test_a_tensorflow_that_is_running_is_left_as_it_is(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "tensorflow", FakeTensorFlow(error))
    import_tensorflow("a test")
