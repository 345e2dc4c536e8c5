"""One small network through every front end: names, order, dtypes, shapes and accuracy of what comes out.

The network: image [?, 8, 8, 3] -> {"logits": [?, 5], "emb": [?, 4]}, in each kind's own way of naming results.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from passes.model import to_proto
from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow
IMAGE = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
FLOAT = TensorProto.FLOAT


@dataclasses.dataclass(frozen=True)
class World:
    """What the rows of the table make their sources from."""

    tf: Any
    keras: Any
    tf_keras: Any
    path: Any

    def network(self, package: Any = None, depthwise: bool = False) -> Any:
        k = package or self.keras
        k.utils.set_random_seed(7)
        image = k.Input((8, 8, 3), name="image")
        x = k.layers.Conv2D(4, 3, padding="same", use_bias=False, activation="relu")(image)
        if depthwise:
            x = k.layers.DepthwiseConv2D(3, padding="same")(x)
        emb = k.layers.GlobalAveragePooling2D(name="pooled")(x)
        return k.Model(image, {"logits": k.layers.Dense(5, name="head")(emb), "emb": emb}, name="cnn")

    def file(self, model: Any, suffix: str) -> Any:
        path = self.path / f"cnn{suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save(path)
        return path

    def exported(self) -> Any:
        self.network().export(str(self.path / "m"), verbose=False)
        return self.path / "m"

    def function(self) -> Any:
        """A tf.function that calls the network; `model` on it is the network, which owns the weights."""
        model = self.network()
        call = lambda image: model(image, training=False)  # noqa: E731
        function = self.tf.function(call, input_signature=[self.tf.TensorSpec([None, 8, 8, 3], name="image")])
        function.model = model
        return function

    def module(self) -> Any:
        tf = self.tf
        module = tf.Module()
        module.both = self.function()
        module.model = module.both.model
        spec = [tf.TensorSpec([None, 3], name="row")]
        module.double = tf.function(lambda row: row * 2.0, input_signature=spec)
        return module

    def module_saved(self) -> Any:
        module = self.module()
        signatures = {"both": module.both, "double": module.double}
        self.tf.saved_model.save(module, str(self.path / "module"), signatures=signatures)
        return self.path / "module"

    def graph_def(self) -> Any:
        """The frozen graph, and the names of its outputs: logits, then emb."""
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        frozen = convert_variables_to_constants_v2(self.function().get_concrete_function())
        outputs = [t.name for t in frozen.outputs]
        return frozen.graph.as_graph_def(), outputs

    def tf1(self) -> Any:
        v1 = self.tf.compat.v1
        definition, outputs = self.graph_def()
        with v1.Graph().as_default() as graph, v1.Session() as session, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            v1.import_graph_def(definition, name="")
            logits, emb = (graph.get_tensor_by_name(name) for name in outputs)
            image = graph.get_tensor_by_name("image:0")
            builder = v1.saved_model.Builder(str(self.path / "tf1"))
            of = v1.saved_model.predict_signature_def({"image": image}, {"logits": logits, "emb": emb})
            builder.add_meta_graph_and_variables(session, ["serve", "gpu"], {"serving_default": of})
            builder.save()
        return self.path / "tf1"


@dataclasses.dataclass(frozen=True)
class Row:
    """A front end.

    Attributes:
        make: the source, or (source, options of `load_source`).
        outputs: public names, in order.
        origin: how the origin starts.
        seeded: its weights are those that Keras 3 draws, so its results are too.
    """

    make: Callable[[World], Any]
    outputs: tuple[str, ...]
    origin: str
    seeded: bool = True


def _graph_object(world: World) -> Any:
    definition, outputs = world.graph_def()
    return definition, {"inputs": ["image:0"], "outputs": outputs}


def _graph_file(world: World, text: bool) -> Any:
    definition, outputs = world.graph_def()
    name = "g.pbtxt" if text else "g.pb"
    world.tf.io.write_graph(definition, str(world.path), name, as_text=text)
    return world.path / name, {"outputs": outputs}


DICTIONARY = ("logits", "emb")  # as the model's author wrote them
SORTED = ("emb", "logits")  # as TensorFlow flattens dictionaries
GRAPH = ("Identity", "Identity_1")  # as the nodes are called
ROWS = {
    "Keras 3 object": Row(lambda w: w.network(), DICTIONARY, "Keras model cnn"),
    "Keras 3 .keras": Row(lambda w: w.file(w.network(), ".keras"), DICTIONARY, "Keras file"),
    "Keras 3 .h5": Row(lambda w: w.file(w.network(), ".h5"), DICTIONARY, "Keras file"),
    "Keras 3 .h5 with DepthwiseConv2D": Row(
        lambda w: w.file(w.network(depthwise=True), ".h5"), DICTIONARY, "Keras file", False
    ),
    "Keras 3 export()": Row(lambda w: w.exported(), SORTED, "SavedModel"),
    "loaded SavedModel": Row(lambda w: w.tf.saved_model.load(str(w.exported())), SORTED, "loaded SavedModel"),
    "tf-keras object": Row(lambda w: w.network(w.tf_keras), ("pooled", "head"), "tf-keras model cnn", False),
    "tf-keras .h5": Row(lambda w: w.file(w.network(w.tf_keras), ".h5"), ("pooled", "head"), "tf-keras file", False),
    "tf-keras .h5 with DepthwiseConv2D": Row(
        lambda w: w.file(w.network(w.tf_keras, depthwise=True), ".h5"), ("pooled", "head"), "tf-keras file", False
    ),
    "tf-keras .keras": Row(
        lambda w: w.file(w.network(w.tf_keras), ".keras"), ("pooled", "head"), "tf-keras file", False
    ),
    "tf-keras SavedModel": Row(lambda w: w.file(w.network(w.tf_keras), ""), ("head", "pooled"), "SavedModel", False),
    "tf.function": Row(lambda w: w.function(), DICTIONARY, "tf.function <lambda>"),
    "ConcreteFunction": Row(lambda w: w.function().get_concrete_function(), DICTIONARY, "ConcreteFunction"),
    "tf.Module": Row(lambda w: (w.module(), {"signature_key": "both"}), DICTIONARY, "tf.Module Module, function both"),
    "tf.Module SavedModel": Row(lambda w: (w.module_saved(), {"signature_key": "both"}), SORTED, "SavedModel"),
    "GraphDef": Row(_graph_object, GRAPH, "GraphDef"),
    "GraphDef .pb": Row(lambda w: _graph_file(w, text=False), GRAPH, "GraphDef file"),
    "GraphDef .pbtxt": Row(lambda w: _graph_file(w, text=True), GRAPH, "GraphDef file"),
    "TF1 SavedModel": Row(lambda w: (w.tf1(), {"tags": "serve,gpu"}), SORTED, "SavedModel"),
    "ONNX": Row(lambda w: to_proto(load_source(w.network()).model), DICTIONARY, "ONNX model"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matrix(row, tf, keras, tf_keras, tmp_path, run):
    world = World(tf, keras, tf_keras, tmp_path)
    made = row.make(world)
    source, options = made if isinstance(made, tuple) else (made, {})
    found = load_source(source, **options)
    assert [(s.name, s.dtype, s.shape) for s in found.signature.inputs] == [("image", FLOAT, ("batch", 8, 8, 3))]
    assert tuple(s.name for s in found.signature.outputs) == row.outputs
    sizes = {s.name: s.shape for s in found.signature.outputs}
    assert sorted(sizes.values(), key=str) == [("batch", 4), ("batch", 5)]
    assert all(s.dtype == FLOAT for s in found.signature.outputs)
    assert found.origin.startswith(row.origin)
    if found.verification is not None:
        assert found.verification.worst < 1e-5
        assert set(found.verification.max_rel_diff) == set(row.outputs)
    if row.seeded:
        by_size = {array.shape[1]: array for array in run(found, image=IMAGE).values()}
        wanted = world.network()(IMAGE, training=False)
        np.testing.assert_allclose(by_size[5], wanted["logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(by_size[4], wanted["emb"], rtol=1e-4, atol=1e-5)
