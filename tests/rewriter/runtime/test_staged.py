"""Converted functions of models with islands, on the CPU and with TensorFlow itself."""

import concurrent.futures
import dataclasses
import shutil
import sys

import numpy as np
import pytest

from passes.base import PassError
from passes.engine_node import EngineAttributes
from passes.extract import Extractor
from passes.infer_shapes import InferShapes
from passes.island_node import ISLAND_DOMAIN, with_folders
from passes.partition import PartitionOptions, propose
from passes.precision.recipe import Recipe
from passes.segments import TensorSpec
from passes.splice import splice
from passes.support import SupportMap, Verdict
from rewriter.artifact.islands import saved_models
from rewriter.errors import ConversionError, ConverterStateError, InvalidParameterError, MissingDependencyError
from rewriter.runtime.executor import Execution
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.loading import Runnable, make_function
from rewriter.runtime.native import open_native
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.sections import Route
from rewriter.runtime.staged import StagedExecutor
from rewriter.runtime.stats import merged
from rewriter.source import Signature

from . import island_models as im

pytestmark = pytest.mark.tensorflow
TEXT = """g (string[N] text, float[N,3] x) => (float[N,3] out, string[N] label, int64[N] size, float[N,3] side)
    <float[3] scale = {0.1, 0.2, 0.3}> {
        a = Relu(x)
        b = Mul(a, scale)
        side = Neg(b)
        c = Add(v, b)
        d = Tanh(c)
        out = Mul(d, scale)
    }"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    import tensorflow as tf

    root = tmp_path_factory.mktemp("islands")
    text, floats = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 3], tf.float32)

    def embed(s, b):
        size = tf.strings.length(s)
        return tf.cast(size, tf.float32)[:, None] + b, tf.cast(size, tf.int64)

    def label(x):
        return tf.gather(tf.constant(["zero", "one", "two"]), tf.argmax(x, axis=1))

    im.save_island(root / "embed", embed, text, floats)
    im.save_island(root / "label", label, floats)
    return root


@pytest.fixture
def runnable(folders):
    """A spliced model: an island with two inputs in the middle, and one at the end."""
    islands = [
        im.island(0, ["text", "b"], ["v", "size"], folders / "embed", ["StringLength"]),
        im.island(1, ["out"], ["label"], folders / "label", ["ArgMax"]),
    ]
    infos = [("v", im.FLOAT, ["N", 3])]
    model = InferShapes().run(im.model(TEXT, islands, infos)).model
    named = model.copy_proto()
    for number, node in enumerate(named.graph.node):
        node.name = node.name or f"node_{number}"
    model = model.with_proto(named)
    verdicts = SupportMap.of(
        Verdict(n.name, n.op_type, n.domain != ISLAND_DOMAIN, "tensorflow", "no") for n in model.proto.graph.node
    )
    found = propose(model, verdicts, PartitionOptions(1))
    extractor = Extractor(model)
    marks = {s.name: EngineAttributes(extractor.extract(s).content_hash, len(s.inputs), "FP16") for s in found.segments}
    batch = ("N", 3)
    signature = Signature(
        (TensorSpec("text", im.STRING, ("N",)), TensorSpec("x", im.FLOAT, batch)),
        (
            TensorSpec("out", im.FLOAT, batch),
            TensorSpec("label", im.STRING, ("N",)),
            TensorSpec("size", im.INT64, ("N",)),
            TensorSpec("side", im.FLOAT, batch),
        ),
    )
    return Runnable(splice(model, found, marks), signature, recipe=Recipe.of("FP16"))


SCALE = np.float32([0.1, 0.2, 0.3])


def reference(text, x):
    b = np.maximum(x, 0) * SCALE
    size = np.array([len(t.encode()) for t in text])
    out = np.tanh(size[:, None] + 2 * b) * SCALE
    return {"out": out, "size": size, "side": -b, "label": [["zero", "one", "two"][i] for i in out.argmax(1)]}


def inputs(rows=2, seed=0):
    rng = np.random.default_rng(seed)
    words = ["", "a", "\u00e9\u00e9", "word"]
    return {"text": [words[(seed + i) % 4] for i in range(rows)], "x": rng.standard_normal((rows, 3), np.float32)}


def check(function, given, rtol=1e-5):
    found = function(**given)
    expected = reference(**given)
    for name in ("out", "side"):
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=rtol)
    assert found["size"].tolist() == expected["size"].tolist()
    assert found["label"].tolist() == expected["label"]


def test_a_function_of_sections_and_islands(runnable, no_gpu):
    with make_function(runnable) as function:
        check(function, inputs())
        check(function, inputs(5, 3))
        stats = function.stats()
    assert stats["provider"] == "cpu"
    assert (stats["calls"], stats["native_calls"], stats["sections"]) == (2, 2, 2)
    assert stats["fallbacks"] == {"no engine has been built for it": 2 * stats["engine_nodes"]}
    assert {name: (s["ops"], s["reasons"], s["calls"]) for name, s in stats["tensorflow"].items()} == {
        "TFIsland_000": (["StringLength"], ["no word for it"], 2),
        "TFIsland_001": (["ArgMax"], ["no word for it"], 2),
    }


def test_emulation_rounds_in_every_section(runnable):
    with make_function(runnable, RuntimeOptions(execution="emulate")) as function:
        given = inputs(4, 1)
        check(function, given, rtol=2e-3)
        side = function(**given)["side"]
        assert not np.array_equal(side, reference(**given)["side"])
        assert function.stats()["fallbacks"] == {}


def test_what_is_lazy_is_loaded_by_the_first_call(runnable, no_gpu, folders, monkeypatch):
    function = make_function(runnable, lazy=True)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingDependencyError, match=r"\[tf\]"):
        function(**inputs())
    monkeypatch.undo()
    check(function, inputs())
    function.close()


def test_without_tensorflow_loading_says_so(runnable, no_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingDependencyError, match=r"'TFIsland_000' \(StringLength\), which stays .*\[tf\]"):
        make_function(runnable)


def test_closed_is_closed(runnable, no_gpu):
    function = make_function(runnable)
    check(function, inputs())
    function.close()
    function.close()
    with pytest.raises(ConverterStateError):
        function(**inputs())
    assert function.stats()["tensorflow"]["TFIsland_000"]["calls"] == 1


def test_an_executor_that_is_closed(runnable, no_gpu):
    executor = make_function(runnable)._ready()
    executor.close()
    executor.close()
    assert executor.built_engines() == ()
    executor.wait_for_builds()
    with pytest.raises(ConverterStateError, match="closed"):
        executor.run({"text": np.array(["a"], object), "x": np.zeros((1, 3), np.float32)})


def test_outputs_cannot_stay_where_no_device_is(runnable, no_gpu):
    with make_function(runnable) as function, pytest.raises(InvalidParameterError, match="needs a GPU"):
        function.run(inputs(), device_outputs=True)
    executor = make_function(runnable)._ready()
    with pytest.raises(InvalidParameterError, match="outputs can stay on the device only"):
        executor.run({}, on_device=True)


def test_a_failing_island_is_told_with_the_inputs(runnable, no_gpu):
    with make_function(runnable) as function:
        given = {**inputs(2), "text": ["a", "b", "c"]}  # three sizes, two rows
        with pytest.raises(
            ConversionError, match=r"dimension 'N' is 3 .*; the model failed on the inputs .*TFIsland_000"
        ):
            function(**given)


def test_kept_islands_outlive_their_folders(runnable, no_gpu, folders, tmp_path):
    for op, folder in saved_models(runnable.model):
        shutil.copytree(folder, tmp_path / op)
    moved = with_folders(runnable.model, {op: str(tmp_path / op) for op, _ in saved_models(runnable.model)})
    function = make_function(dataclasses.replace(runnable, model=moved), lazy=True, keep_engines=True)
    for op, _ in saved_models(moved):
        shutil.rmtree(tmp_path / op)
    check(function, inputs())
    function.close()


def test_a_section_that_cannot_be_opened_closes_the_others(runnable):
    route = Route.of(runnable.model, runnable.outputs)
    closed = []

    class Part:
        provider = "cpu"

        def close(self):
            closed.append(self)

    def open_section(section):
        if section.name == "section_001":
            raise PassError("no")
        return Part()

    with pytest.raises(PassError):
        StagedExecutor(route, open_section)
    assert len(closed) == 1


def test_warm_up(runnable, no_gpu):
    with make_function(runnable) as function:
        ready = function.warmup({"text": [(2,)], "x": [(2, 3)]})
        assert ready["runs"] == 1
        assert function.stats()["tensorflow"]["TFIsland_000"]["calls"] == 1


def test_tensors_of_tensorflow_go_in_and_come_out(runnable, no_gpu):
    import tensorflow as tf

    with make_function(runnable) as function:
        given = inputs(3)
        found = function(text=tf.constant(given["text"]), x=tf.constant(given["x"]))
        assert found["label"].dtype == tf.string
        np.testing.assert_allclose(found["out"].numpy(), reference(**given)["out"], rtol=1e-5)


def test_as_a_function_of_tensorflow(runnable, no_gpu):
    import tensorflow as tf

    with make_function(runnable) as function:
        call = function.as_tf_function()
        given = inputs(3)
        found = call(text=tf.constant(given["text"]), x=tf.constant(given["x"]))
        assert [t.decode() for t in found["label"].numpy()] == reference(**given)["label"]
        data = tf.data.Dataset.from_tensors({"text": given["text"], "x": given["x"]}).map(call)
        [batch] = list(data.as_numpy_iterator())
        np.testing.assert_allclose(batch["out"], reference(**given)["out"], rtol=1e-5)


def test_threads(runnable, no_gpu):
    with make_function(runnable) as function:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: [check(function, inputs(1 + n % 3, n)) for _ in range(5)], range(6)))
        assert function.stats()["tensorflow"]["TFIsland_001"]["calls"] == 30


def test_counters_are_added_up():
    parts = [
        {"steps": 2, "slots": {"a": {"builds": 1}}, "no_plan": {"x": 1, "y": 2}, "name": "a"},
        {"steps": 3, "slots": {"b": {"builds": 2}}, "no_plan": {"x": 4}, "name": "b"},
        {},
    ]
    assert merged(parts) == {
        "steps": 5,
        "slots": {"a": {"builds": 1}, "b": {"builds": 2}},
        "no_plan": {"x": 5, "y": 2},
        "name": "b",
    }
    assert merged([]) == {}


class Strict:
    """A section on a GPU whose engine is missing at first: running it is an error, and has the engine built."""

    provider = "cuda"

    def __init__(self, section):
        self.section = open_native(section.model, section.outputs)
        self.wanted = self.there = False

    def run(self, feeds, *, on_device=False):
        self.wanted = True
        if not self.there:
            raise ConversionError("strict: an engine was not used")
        return Execution(self.section.run(feeds), 1)

    def wait_for_builds(self):
        self.there = self.wanted

    def stats(self):
        return {"plans": int(self.there)}

    def built_engines(self):
        return ()

    def close(self):
        pass


def test_a_strict_warm_up_builds_section_by_section(runnable):
    executor = StagedExecutor(Route.of(runnable.model, runnable.outputs), Strict)
    with ConvertedFunction(executor, runnable.signature, options=RuntimeOptions(strict=True)) as function:
        ready = function.warmup({"text": [(2,)], "x": [(2, 3)]})
        assert (ready["plans"], ready["fallbacks"]) == (2, {})
        check(function, inputs())
