"""A small model in its forms, and `polygraphy` called in this process."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

MODEL = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch, 8] x) => (float[batch, 5] logits, float[batch, 5] probabilities)
{
    product = MatMul(x, w)
    shifted = Add(product, bias)
    logits = Tanh(shifted)
    probabilities = Softmax<axis: int = -1>(logits)
}
"""


def make_model():
    proto = parser.parse_model(MODEL)
    random = np.random.default_rng(0)
    for name, shape in (("w", (8, 5)), ("bias", (5,))):
        proto.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    return proto


@pytest.fixture(scope="session")
def polygraphy():
    return pytest.importorskip("polygraphy")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(make_model(), path)
    return str(path)


@pytest.fixture(scope="session")
def artifact(model, tmp_path_factory, polygraphy):
    """The model in FP16, converted without any TensorRT."""
    from rewriter import Converter
    from rewriter.polygraphy_runners.standin import TakesAll

    path = tmp_path_factory.mktemp("artifact") / "out"
    with Converter(model=model, precision_mode="FP16", backend=TakesAll()) as converter:
        converter.convert()
        converter.save(path)
    return str(path)


@pytest.fixture
def batches(tmp_path):
    """A data loader script that yields batches of 1, 2 and 5."""
    path = tmp_path / "data.py"
    path.write_text(
        "import numpy as np\n"
        "def load_data():\n"
        "    for batch in (1, 2, 5):\n"
        "        yield {'x': np.linspace(-1, 1, batch * 8, dtype=np.float32).reshape(batch, 8)}\n"
    )
    return str(path)


@pytest.fixture
def command(polygraphy, capsys):
    """Calls `polygraphy run`; returns its exit status and what it printed. Messages that come once come again."""
    from polygraphy.logger import G_LOGGER
    from polygraphy.tools import main

    def call(*arguments):
        G_LOGGER.once_logged.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # polygraphy's own divisions by zero
            try:
                status = main(["run", *map(str, arguments)])
            except SystemExit as end:
                status = end.code
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call
