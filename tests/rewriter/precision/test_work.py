"""What calibration has to look at: of converters, artifacts and models, always under the same names."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from passes.precision.ranges import RangeTable
from rewriter import Converter
from rewriter.errors import ConversionError
from rewriter.precision.calibration import calibrate
from rewriter.precision.work import work_for_artifact, work_for_source

#: A convolution with a residual, an attention block (which INT8 leaves alone), and a nonlinearity of no interest.
NET = """
<ir_version: 10, opset_import: ["": 21]>
net (float[batch, 8, 6, 6] image) => (float[batch, 8, 6, 6] sum, float[batch, 8, 6, 6] mixed)
{
    a = Conv<pads = [1, 1, 1, 1]>(image, w)
    r = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(r, w)
    sum = Add(c, image)
    scores = MatMul(sum, r)
    p = Softmax<axis = -1>(scores)
    mixed = MatMul(p, c)
}
"""


@pytest.fixture(scope="module")
def net():
    proto = parser.parse_model(NET)
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


def batches():
    random = np.random.default_rng(1)
    return [random.standard_normal((2, 8, 6, 6), np.float32) for _ in range(3)]


def test_all_that_both_formats_may_ask_for(net):
    work = work_for_source(net)
    assert work.tensors == ("image", "r", "sum", "p", "c")
    assert (work.method, work.percentile) == ("percentile", 99.999)


def test_what_is_no_model(tmp_path):
    with pytest.raises(ConversionError):
        work_for_source(tmp_path / "none.onnx")


@pytest.mark.rtx
@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_artifacts_and_models_give_what_a_converter_asks_for(net, tmp_path, rtx, mode):
    if rtx.version.startswith("1.4.") and mode == "INT8":
        pytest.skip("TensorRT-RTX 1.4 has no INT8 convolution, so nothing of this network is calibrated")
    onnx.save(net, tmp_path / "net.onnx")
    options = {"model": str(tmp_path / "net.onnx"), "minimum_segment_size": 1, "backend": rtx}
    with Converter(**options, precision_mode=mode) as converter:
        converter.convert(calibration_input_fn=batches)
        converter.calibrate()
        folder = converter.save(tmp_path / "quantised")
    expected = RangeTable.from_json((folder / "calibration.json").read_text())
    with Converter(**options, precision_mode="FP16") as converter:
        converter.convert()
        plain = converter.save(tmp_path / "plain")
    for work in (work_for_artifact(plain), work_for_artifact(folder), work_for_source(tmp_path / "net.onnx")):
        feeds = [{work.signature.inputs[0].tensor: batch} for batch in batches()]
        table = calibrate(work.model, work.tensors, feeds)
        assert set(expected.ranges) <= set(table.ranges)
        assert {name: table.ranges[name] for name in expected.ranges} == dict(expected.ranges)
        with Converter(**options, precision_mode=mode, calibration=table) as converter:
            converter.convert()
            converter.calibrate()
            assert converter.report.precision.calibration["tensors"] >= len(expected.ranges)
