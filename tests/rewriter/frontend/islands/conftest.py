"""What the tests of islands share."""

import numpy as np
import pytest


@pytest.fixture
def run():
    """Runs a SourceModel on inputs by public name, islands in TensorFlow; returns outputs by public name."""
    from rewriter.runtime.native import open_native

    def call(source, **inputs):
        session = open_native(source.model)
        results = session.run({spec.tensor: np.asarray(inputs[spec.name]) for spec in source.signature.inputs})
        return {spec.name: results[spec.tensor] for spec in source.signature.outputs}

    return call


@pytest.fixture
def islands():
    """The island nodes of a SourceModel with their attributes."""
    from passes.island_node import island_nodes, read_island

    return lambda source: [(node, read_island(node)) for node in island_nodes(source.model.proto)]
