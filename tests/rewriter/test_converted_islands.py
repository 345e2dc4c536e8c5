"""Models with islands through the whole conversion, with real builds."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from passes.model import to_proto
from rewriter import ConversionParams, Converter
from rewriter.errors import ArtifactError
from rewriter.runtime.loading import load

pytestmark = [pytest.mark.tensorflow, pytest.mark.rtx]


def island_models():
    """The helper beside the tests of the runtime."""
    name = "island_models_of_runtime"
    if name not in sys.modules:
        path = Path(__file__).parent / "runtime" / "island_models.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((8, 8)).astype(np.float32) / 3 for name in "uvw"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An ONNX model whose middle sorts the rows' tokens in TensorFlow, and gives twice as many rows as there were."""
    import tensorflow as tf

    im = island_models()
    folder = tmp_path_factory.mktemp("islands") / "double"

    def double(x):
        return tf.strings.as_string(x[:, 0], precision=1), tf.concat([tf.sort(x), -x], axis=0)

    im.save_island(folder, double, tf.TensorSpec([None, 8], tf.float32))
    proto = to_proto(
        im.model(
            """g (float[N,8] x) => (float[M,8] out, string[N] s, float[N,8] early)
               <float[1] u={0}, float[1] v={0}, float[1] w={0}> {
                p = MatMul(x, u)
                q = Relu(p)
                y = Add(q, x)
                early = Tanh(y)
                r = MatMul(b, v)
                t = Relu(r)
                k = MatMul(t, w)
                out = Tanh(k)
            }""",
            [im.island(0, ["y"], ["s", "b"], folder, ["AsString", "Sort"])],
            [("b", im.FLOAT, ["M", 8])],
        )
    )
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    return proto


def reference(x):
    y = np.maximum(x @ WEIGHTS["u"], 0) + x
    b = np.concatenate([np.sort(y), -y])
    out = np.tanh(np.maximum(b @ WEIGHTS["v"], 0) @ WEIGHTS["w"])
    return {"out": out, "early": np.tanh(y), "s": y[:, 0]}


def batch(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)


def check(function, x, tolerance):
    found, expected = function(x=x), reference(x)
    for name in ("out", "early"):
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance)
    np.testing.assert_allclose([float(s) for s in found["s"]], expected["s"], atol=0.1)


def convert(source, rtx, **params):
    return Converter(model=source, conversion_params=ConversionParams(minimum_segment_size=1, **params), backend=rtx)


def test_engines_before_and_behind_an_island(source, rtx, tmp_path):
    converter = convert(source, rtx, precision_mode="FP16")
    converter.convert()
    converter.build(lambda: iter([{"x": batch(2)}, {"x": batch(5)}]))
    report = converter.report
    assert [(e.name, e.built) for e in report.engines] == [("TRTEngineOp_000", True), ("TRTEngineOp_001", True)]
    [front] = report.engines[0].profiles
    [behind] = report.engines[1].profiles
    assert (front["x"]["min"], front["x"]["max"]) == ([2, 8], [5, 8])
    assert (behind["b"]["min"], behind["b"]["max"]) == ([4, 8], [10, 8])  # twice the rows: seen behind the island
    [island] = [v for v in report.native if v.node == "TFIsland_000"]
    assert "AsString" in island.reason
    out = tmp_path / "out"
    converter.save(out)
    for options, tolerance in (({"provider": "cpu"}, 1e-5), ({"execution": "emulate"}, 5e-3)):
        with load(out, **options) as function:
            check(function, batch(3), tolerance)
            assert function.stats()["tensorflow"]["TFIsland_000"]["ops"] == ["AsString", "Sort"]


def test_what_lies_in_an_artifact_is_checked(source, rtx, tmp_path):
    converter = convert(source, rtx)
    converter.convert()
    out = converter.save(tmp_path / "out")
    extra = out / "tensorflow/TFIsland_000/assets.txt"
    extra.write_text("x")
    with pytest.raises(ArtifactError, match="TFIsland_000"):
        load(out, provider="cpu")
    extra.unlink()
    saved_model = out / "tensorflow/TFIsland_000/saved_model.pb"
    data = saved_model.read_bytes()
    saved_model.unlink()
    saved_model.write_bytes(data[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"saved_model\.pb"):
        load(out, provider="cpu")


def test_int8_calibrates_what_lies_behind_an_island(source, rtx, tmp_path):
    converter = convert(source, rtx, precision_mode="INT8", use_calibration=True)
    converter.convert(calibration_input_fn=lambda: iter([{"x": batch(8, seed)} for seed in range(4)]))
    converter.build(lambda: iter([{"x": batch(4)}]))
    assert all(engine.built for engine in converter.report.engines)
    out = tmp_path / "out"
    converter.save(out)
    with load(out, execution="emulate") as function:
        check(function, batch(6, 9), 0.1)


def test_the_converted_function_runs_when_the_converter_is_gone(source, rtx):
    converter = convert(source, rtx)
    function = converter.convert()
    del converter
    check(function, batch(2), 1e-5)
    function.close()
