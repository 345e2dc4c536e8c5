"""TensorFlow once a session, and an original model of each kind."""

import os
import warnings

import pytest


@pytest.fixture(scope="session")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow")


@pytest.fixture
def run():
    """Runs a SourceModel natively on inputs by public name; returns outputs by public name."""
    from rewriter.runtime.native import NativeSession

    def call(source, **inputs):
        session = NativeSession(source.model)
        results = session.run({spec.tensor: inputs[spec.name] for spec in source.signature.inputs})
        return {spec.name: results[spec.tensor] for spec in source.signature.outputs}

    return call
