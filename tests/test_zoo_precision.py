"""Real networks in every precision, built by real TensorRT-RTX and emulated; larger: benchmarks/precision_table.py."""

import itertools

import numpy as np
import pytest

from rewriter import Converter, PrecisionOptions, load

#: Mode -> (precision mode, options, largest rms difference from native, relative to the rms of the output). Random
#: weights amplify rounding, so these bounds tell broken from sound; trained networks are judged by the benchmark.
MODES = {
    "FP16": ("FP16", {}, 2e-2),
    "BF16": ("BF16", {}, 2e-1),
    "INT8": ("INT8", {}, 2e-1),
    "FP8": ("FP8", {}, 4e-1),
    "INT4": ("FP16", {"int4_block": 16}, 3e-1),
}
#: Name -> (benchmark_module, builder, arguments) of benchmarks/, at sizes that a test can afford.
NETWORKS = {
    "ResNet50": ("_zoo_keras", "application", ("ResNet50", 64)),
    "MobileNetV3Small": ("_zoo_keras", "application", ("MobileNetV3Small", 64)),
    "ConvNeXtTiny": ("_zoo_keras", "application", ("ConvNeXtTiny", 64)),
    "bert_like": ("_zoo_keras", "transformer", (False,)),
    "lstm": ("_zoo_keras", "recurrent", ("lstm",)),
    "unet": ("_zoo_keras", "unet", ()),
}


def exported(model):
    """The model as ONNX, exported once for all modes."""
    from passes.model import to_proto
    from rewriter.frontend import load_source

    return to_proto(load_source(model, verify=False).model)


def check(rtx, proto, samples, mode, folder, *, trained=False):
    """Converts to one mode, builds, saves, emulates; returns the report."""
    precision_mode, options, bound = MODES[mode]
    quantizes = precision_mode in ("INT8", "FP8")
    with Converter(
        model=proto,
        backend=rtx,
        progress=False,
        precision_mode=precision_mode,
        precision=PrecisionOptions(**options),
        use_calibration=not trained,
    ) as converter:
        converter.convert((lambda: iter(samples)) if quantizes and not trained else None)
        converter.build(lambda: iter(samples))
        converter.save(folder)
        report = converter.report
    old = rtx.version.startswith("1.4.")  # builds nothing quantised without a GPU, and says so
    for engine in report.engines:
        assert engine.built or (old and "on a machine with a GPU" in engine.reason), engine.reason
    if not old:
        assert report.built_coverage == 1.0
        assert not report.precision.kept
    lowest = next(iter(report.engines[0].arithmetic))
    assert lowest == {"INT4": "INT4 weights"}.get(mode, precision_mode) or mode == "INT4" or old
    native, emulated = load(folder), load(folder, execution="emulate")
    for (name, expected), actual in zip(native(**samples[-1]).items(), emulated(**samples[-1]).values(), strict=True):
        difference = np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
        assert 0 < difference < bound, (name, difference)
    return report


@pytest.mark.tensorflow
@pytest.mark.rtx
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_every_precision(benchmark_module, rtx, tmp_path, name):
    home, builder, arguments = NETWORKS[name]
    zoo = benchmark_module("zoo")
    network = getattr(benchmark_module(home), builder)(zoo.Job(name, tmp_path), *arguments)
    proto, samples = exported(network.model), [dict(sample) for sample in network.samples]
    sizes = {}
    for mode in MODES:
        report = check(rtx, proto, samples, mode, tmp_path / mode)
        sizes[mode] = sum(engine.size for engine in report.engines)
    if name == "ResNet50" and not rtx.version.startswith("1.4."):
        assert sizes["INT8"] < 0.75 * sizes["FP16"]


@pytest.mark.tensorflow
@pytest.mark.rtx
@pytest.mark.parametrize("activations", [(0.0, 6.0), (-1.0, 1.0)])
def test_a_quantisation_aware_network_in_every_precision(rtx, tmp_path, activations):
    import tensorflow as tf

    from tests.rewriter.frontend.qat_models import QatSettings, conv_net

    proto = exported(conv_net(tf, QatSettings(activations=activations)))
    rng = np.random.default_rng(0)
    name = proto.graph.input[0].name
    samples = [{name: rng.uniform(-1, 1, (batch, 16, 16, 3)).astype(np.float32)} for batch in (1, 4)]
    for mode, trained in itertools.product(("FP16", "BF16", "INT8", "FP8"), (True, False)):
        if trained and mode not in ("INT8", "FP8"):
            continue
        check(rtx, proto, samples, mode, tmp_path / f"{mode}{trained}", trained=trained)
