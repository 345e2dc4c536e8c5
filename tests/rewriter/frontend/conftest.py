"""TensorFlow takes seconds to import: once a session, and without its own import warnings becoming errors."""

import os
import warnings

import numpy as np
import pytest


def _import(name):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.fixture(scope="session")
def tf():
    return _import("tensorflow")


@pytest.fixture(scope="session")
def keras(tf):
    return _import("keras")


@pytest.fixture(scope="session")
def tf_keras(tf):
    return _import("tf_keras")


@pytest.fixture(scope="session")
def cnn(keras):
    """image -> {logits, emb}: outputs deliberately not in alphabetical order."""
    keras.utils.set_random_seed(7)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu")(x)
    emb = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, {"logits": keras.layers.Dense(5)(emb), "emb": emb}, name="cnn")


@pytest.fixture(scope="session")
def cnn_saved(cnn, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "cnn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cnn.export(str(path), verbose=False)
    return path


@pytest.fixture
def run():
    """Runs a SourceModel natively on inputs by public name; returns outputs by public name."""
    from rewriter.runtime.native import NativeSession

    def call(source, **inputs):
        session = NativeSession(source.model)
        feeds = {spec.tensor: np.asarray(inputs[spec.name]) for spec in source.signature.inputs}
        results = session.run(feeds)
        return {spec.name: results[spec.tensor] for spec in source.signature.outputs}

    return call


@pytest.fixture
def ops():
    """Multiset of op types of a SourceModel's main graph."""
    from collections import Counter

    return lambda source: Counter(node.op_type for node in source.model.proto.graph.node)
