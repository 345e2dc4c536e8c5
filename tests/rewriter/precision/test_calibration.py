"""Calibration: ranges equal to ONNX Runtime's calibrators, streamed; what is refused, and range tables in files."""

import contextlib
import io
import json
import logging

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from passes import model as models
from passes.infer_shapes import InferShapes
from passes.precision.ranges import RangeTable, TensorRange
from rewriter.errors import ArtifactError, ConversionError, InputError, InvalidParameterError, SourceError
from rewriter.precision.calibration import (
    METHODS,
    calibrate,
    check_method,
    fetchable,
    read_ranges,
    suspicious,
    write_ranges,
)
from rewriter.precision.counts import BINS
from rewriter.precision.histogram import FINE, Histogram
from rewriter.precision.thresholds import divergences_of, entropy_range, percentile_range

NET = """
<ir_version: 10, opset_import: ["": 18]>
g (float[N, 16] x) => (float[N, 8] y)
{
    h = MatMul(x, w1)
    r = Relu(h)
    s = Sigmoid(h)
    both = Mul(r, s)
    y = MatMul(both, w2)
}
"""
TENSORS = ["x", "h", "r", "s", "both", "y"]


def _model(text, **weights):
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return InferShapes().run(models.from_proto(proto)).model


@pytest.fixture(scope="module")
def net():
    random = np.random.default_rng(3)
    w1, w2 = random.standard_normal((16, 64), np.float32), random.standard_normal((64, 8), np.float32)
    return _model(NET, w1=w1, w2=w2)


def _batches(count=5, rows=300, grow=1.0, seed=0):
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((rows, 16), np.float32) * np.float32(grow**i)} for i in range(count)]


class _Reader:
    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


def _one_shot(model, feeds, method, folder, **options):
    """What ONNX Runtime's own calibrator says when it sees all samples at once: name -> (lowest, highest)."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    path = folder / "model.onnx"
    onnx.save(models.to_proto(model), path)
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            path,
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod[method],
            extra_options=options,
        )
        calibrator.collect_data(_Reader(feeds))
        found = calibrator.compute_data()
    return {name: tuple(float(np.squeeze(bound)) for bound in data.range_value) for name, data in found.items()}


KINDS = st.sampled_from(["normal", "laplace", "relu", "cauchy", "uniform"])
ORT_OPTIONS = {
    "minmax": ("MinMax", {}),
    "percentile": ("Percentile", {"num_bins": BINS, "percentile": 99.99, "symmetric": True}),
}


class TestAgainstOnnxRuntime:
    @pytest.mark.parametrize("method", ORT_OPTIONS)
    def test_ranges_are_those_of_the_one_shot_calibrator(self, net, method, tmp_path):
        feeds = _batches()
        ort = _one_shot(net, feeds, ORT_OPTIONS[method][0], tmp_path, **ORT_OPTIONS[method][1])
        table = calibrate(net, TENSORS, iter(feeds), method=method, percentile=99.99)
        assert sorted(ort) == sorted(TENSORS)
        for name, (low, high) in ort.items():
            amax = max(abs(low), abs(high))
            # Another grid than one laid through all values at once can move a bound by a bin.
            bin_width = 0.0 if method == "minmax" else max(abs(v) for v in _extremes(net, feeds)[name]) / BINS
            assert table.ranges[name].amax == pytest.approx(amax, rel=1e-5, abs=1.01 * bin_width), name
            assert table.ranges[name].minimum == pytest.approx(low, rel=1e-5, abs=1.01 * bin_width), name

    def test_the_default_entropy_of_onnx_runtime_is_its_min_max(self, net, tmp_path):
        feeds = _batches(2)
        entropy = _one_shot(net, feeds, "Entropy", tmp_path)
        extremes = _one_shot(net, feeds, "MinMax", tmp_path)
        for name, (low, high) in extremes.items():
            assert max(map(abs, entropy[name])) == pytest.approx(max(abs(low), abs(high)), rel=0.02), name

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), kind=KINDS)
    def test_percentiles_of_equal_counts_are_equal(self, seed, kind):
        from onnxruntime.quantization.calibrate import HistogramCollector

        values = _draw(kind, seed, 3000)
        with contextlib.redirect_stdout(io.StringIO()):
            collector = HistogramCollector("percentile", True, 256, 32, 99.0, "same")
            collector.collect({"t": values})
            expected = [float(v) for v in collector.compute_percentile()["t"][:2]]
        counts, edges = collector.histogram_dict["t"][:2]
        low, high = float(values.min()), float(values.max())
        if expected[1] == edges[0]:  # ours is never nothing
            expected = [max(-float(edges[1]), low), min(float(edges[1]), high)]
        assert percentile_range(counts, edges, low, high, 99.0) == pytest.approx(expected)


def _counted(values):
    values = np.asarray(values, np.float32)
    histogram = Histogram()
    histogram.add(values, float(values.min()), float(values.max()))
    return histogram


def _entropy(values, bins=BINS, levels=128):
    return max(map(abs, entropy_range(_counted(values), bins, levels)))


#: Where the divergence alone would throw nearly all values away, and where it may not throw anything away.
UNCUT = {
    "one-sided": lambda r, n: r.uniform(0.5, 1, n),
    "sigmoid": lambda r, n: 1 / (1 + np.exp(-r.standard_normal(n))),
    "far from zero": lambda r, n: r.normal(10, 1, n),
    "whole": lambda r, n: r.integers(-3, 4, n),
    "pixels": lambda r, n: r.integers(0, 256, n),
    "bernoulli": lambda r, n: r.integers(0, 2, n),
    "one-hot": lambda r, n: np.arange(n) % 1000 == 0,
    "constant": lambda r, n: np.full(n, 5.0),
    "softmax": lambda r, n: (e := np.exp(6 * r.standard_normal((n // 1000, 1000)))) / e.sum(1, keepdims=True),
}


class TestEntropy:
    @settings(max_examples=12, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), kind=KINDS)
    def test_the_quick_form_is_the_rule(self, seed, kind):
        values = _draw(kind, seed, 2000)
        counts, _ = np.histogram(np.abs(values), 100, range=(0, float(np.abs(values).max())))
        ends = np.arange(16, 101)
        bins = counts.astype(float)
        bins[0] = bins[1]
        found = dict(zip(ends.tolist(), divergences_of(bins, ends, 16).tolist(), strict=True))
        expected = _divergences(counts, 16)
        assert {end: found[end] for end in expected} == pytest.approx(expected, abs=1e-9)
        # What lies beyond the bins counts as if there were bins for it.
        inside = divergences_of(bins[:60], np.arange(16, 61), 16, int(bins[60:].sum()))
        assert inside == pytest.approx(divergences_of(bins, np.arange(16, 61), 16), abs=1e-9)

    @pytest.mark.parametrize("size", [2000, 60_000])
    @pytest.mark.parametrize("kind", UNCUT)
    def test_values_on_few_points_or_far_from_zero_are_kept(self, kind, size):
        values = UNCUT[kind](np.random.default_rng(0), size).astype(np.float32).reshape(-1)
        assert _entropy(values) > 0.95 * values.max()

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        kind=st.sampled_from(["normal", "laplace", "relu", "cauchy", "uniform", "lognormal", *UNCUT]),
        size=st.sampled_from([1000, 2000, 20_000]),
        pieces=st.integers(1, 3),
    )
    def test_at_most_one_percent_of_the_nonzero_values_is_lost(self, seed, kind, size, pieces):
        random = np.random.default_rng(seed)
        if kind in UNCUT:
            values = UNCUT[kind](random, size).astype(np.float32).reshape(-1)
        elif kind == "lognormal":
            values = random.lognormal(0, 3, size).astype(np.float32)
        else:
            values = _draw(kind, seed, size)
        histogram = Histogram()
        for part in np.array_split(values, pieces):
            histogram.add(part, float(part.min()), float(part.max()))
        low, high = entropy_range(histogram, BINS, 128)
        lost = (values < low - 1e-6 * abs(low)) | (values > high + 1e-6 * abs(high))
        assert np.count_nonzero(lost) <= 0.01 * np.count_nonzero(values)

    def test_heavy_tails_and_outliers_are_cut(self):
        random = np.random.default_rng(0)
        lone = random.standard_normal(100_000)
        lone[7] = 1000
        assert 4 < _entropy(lone) < 20
        for tail in (random.standard_t(3, 100_000), random.lognormal(0, 2, 100_000)):
            assert _entropy(tail) < 0.5 * np.abs(tail).max()

    def test_relu_keeps_most_of_its_range(self):
        values = _draw("relu", 0, 400_000)
        assert _entropy(values) > 0.85 * values.max()

    def test_uniform_values_are_not_cut(self):
        values = _draw("uniform", 0, 100_000)
        assert _entropy(values) > 0.99 * values.max()


def _divergences(counts, levels):
    """The rule written out, candidate by candidate: end -> divergence."""
    bins = counts.astype(float)
    bins[0] = bins[1]
    found = {}
    for end in range(levels, bins.size + 1):
        level = np.arange(end) * levels // end
        quantised = np.zeros(end)
        for number in range(levels):
            used = (level == number) & (bins[:end] > 0)
            if used.any():
                quantised[used] = bins[:end][used].mean()
        true = bins[:end].copy()
        if not true.any():
            continue
        true[np.flatnonzero(true)[-1]] += bins[end:].sum()
        p, q = true / true.sum(), quantised / quantised.sum()
        found[end] = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
    return found


def _draw(kind, seed, size):
    random = np.random.default_rng(seed)
    values = {
        "normal": lambda: random.standard_normal(size),
        "laplace": lambda: random.laplace(size=size),
        "relu": lambda: np.maximum(random.standard_normal(size), 0),
        "cauchy": lambda: random.standard_cauchy(size),
        "uniform": lambda: random.uniform(-1, 3, size),
    }[kind]()
    return values.astype(np.float32)


def _extremes(model, feeds):
    return {n: (r.minimum, r.maximum) for n, r in calibrate(model, TENSORS, feeds, method="minmax").ranges.items()}


class TestHistogram:
    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        kind=KINDS,
        pieces=st.integers(1, 7),
        growth=st.sampled_from([1.0, 1.7, 1e5, 1e-5]),
    )
    def test_no_value_is_lost_and_none_moves_further_than_a_bin(self, seed, kind, pieces, growth):
        parts = [_draw(kind, seed + i, 500) * np.float32(growth**i) for i in range(pieces)]
        parts = [part[np.isfinite(part)] for part in parts]
        histogram = Histogram()
        for part in parts:
            histogram.add(part, float(part.min()), float(part.max()))
        values = np.concatenate(parts)
        counts, edges = histogram.absolute(64)
        assert counts.sum() == values.size == histogram.total
        assert histogram.amax == np.abs(values).max()
        assert edges[-1] == np.float32(histogram.amax)
        exact = np.histogram(np.abs(values), edges.astype(np.float64))[0]
        fine = 2 * histogram.amax / FINE  # the grid may reach up to twice as far as the values
        for i in range(65):
            near = np.count_nonzero(np.abs(np.abs(values) - edges[i].astype(np.float64)) <= fine)
            assert abs(int(counts[:i].sum()) - int(exact[:i].sum())) <= near

    def test_growth_costs_no_memory(self):
        histogram = Histogram()
        for size in (0.0, 1e-40, 1e-20, 1.0, 1e20, 3e38):
            histogram.add(np.full(3, size, np.float32), size, size)
        counts, edges = histogram.absolute(8)
        assert counts.tolist() == [15, 0, 0, 0, 0, 0, 0, 3]
        assert np.isfinite(edges).all()

    def test_an_array_that_is_larger_than_a_chunk(self):
        values = np.linspace(-1, 1, 300_001, dtype=np.float32)
        histogram = Histogram()
        histogram.add(values, -1.0, 1.0)
        assert abs(np.diff(histogram.absolute(10)[0])).max() <= 60


class TestRanges:
    @pytest.mark.parametrize("method", METHODS)
    def test_the_order_does_not_matter_at_all(self, net, method):
        feeds = _batches(6, grow=1.5)
        first, *others = (
            calibrate(net, TENSORS, each, method=method) for each in (feeds, feeds[::-1], feeds[3:] + feeds[:3])
        )
        assert all(other == first for other in others)

    @pytest.mark.parametrize("method", METHODS)
    def test_pieces_matter_no_more_than_they_do_to_onnx_runtime(self, net, method):
        feeds = _batches(6, grow=1.5)
        whole = [{"x": np.concatenate([feed["x"] for feed in feeds])}]
        tables = [calibrate(net, TENSORS, each, method=method) for each in (feeds, whole)]
        assert tables[0].ranges["x"] == tables[1].ranges["x"]
        for name in TENSORS:
            amax = [table.ranges[name].amax for table in tables]
            assert amax[0] == pytest.approx(amax[1], rel=1e-6), name

    def test_outliers_are_cut_by_all_but_minmax(self, net):
        feeds = _batches(2, rows=3000)
        feeds[1]["x"][7, 3] = 1000.0
        amax = {m: calibrate(net, ["x"], feeds, method=m, percentile=99.9).ranges["x"].amax for m in METHODS}
        assert amax["minmax"] == 1000.0
        assert amax["percentile"] < 10
        assert amax["entropy"] < 500

    def test_what_the_table_says_of_itself(self, net):
        for method, label in (("minmax", "minmax"), ("entropy", "entropy"), ("percentile", "percentile 99.5")):
            table = calibrate(net, ["h"], _batches(2, 10), method=method, percentile=99.5)
            assert (table.method, table.samples, list(table.ranges)) == (label, 2, ["h"])

    @pytest.mark.parametrize("method", METHODS)
    def test_always_zero(self, method):
        model = _model('<ir_version: 10, opset_import: ["": 18]> g (float[4] x) => (float[4] y) { y = Relu(x) }')
        table = calibrate(model, ["x", "y"], [{"x": -np.ones(4, np.float32)}] * 2, method=method)
        assert table.ranges["y"] == TensorRange(0.0, 0.0)
        assert table.ranges["x"].amax == pytest.approx(1.0, rel=1e-3)

    def test_always_zero_is_suspicious(self, caplog):
        model = _model('<ir_version: 10, opset_import: ["": 18]> g (float[4] x) => (float[4] y) { y = Relu(x) }')
        with caplog.at_level(logging.WARNING):
            table = calibrate(model, ["x", "y"], [{"x": -np.ones(4, np.float32)}] * 2)
        (told,) = suspicious(table)
        assert told.startswith(
            "tensor 'y' was 0 in all 2 calibration input batches, so any other value is clipped to -1..1"
        )
        assert told in caplog.text
        assert suspicious(RangeTable()) == []

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("value", [5.0, -5.0])
    def test_always_the_same(self, method, value, tmp_path):
        model = _model('<ir_version: 10, opset_import: ["": 18]> g (float[4] x) => (float[4] y) { y = Neg(x) }')
        table = calibrate(model, ["x", "y"], [{"x": np.full(4, value, np.float32)}], method=method)
        for found in table.ranges.values():
            assert found.minimum <= found.maximum
            assert found.amax == pytest.approx(5.0, rel=1e-3)
        write_ranges(table, tmp_path / "x.json")
        assert read_ranges(tmp_path / "x.json") == table

    def test_mostly_zero_keeps_a_range_worth_having(self):
        values = np.zeros(100_000, np.float32)
        values[0] = 1.0
        histogram = Histogram()
        histogram.add(values, 0.0, 1.0)
        assert percentile_range(*histogram.absolute(BINS), 0.0, 1.0, 99.0)[1] == pytest.approx(1 / BINS)
        assert percentile_range(*histogram.absolute(BINS), 0.0, 1.0, 100.0)[1] == 1.0

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
    def test_other_floating_point_types(self, method, dtype):
        model = _model(
            f'<ir_version: 10, opset_import: ["": 18]> g (float[N] x) => (float[N] z) '
            f"{{ a = Cast<to={getattr(onnx.TensorProto, dtype.upper())}>(x) b = Identity(a) z = Cast<to=1>(b) }}"
        )
        table = calibrate(model, ["b"], [{"x": np.array([-1.5, 0.5], np.float32)}], method=method, percentile=100)
        assert table.ranges["b"].amax == 1.5

    @pytest.mark.parametrize("method", METHODS)
    def test_half_inputs(self, method):
        model = _model('<ir_version: 10, opset_import: ["": 18]> g (float16[N] x) => (float16[N] y) { y = Neg(x) }')
        table = calibrate(model, ["x"], [{"x": np.array([-2, 1], np.float16)}], method=method, percentile=100)
        assert table.ranges["x"].amax == 2.0


MASKED = """
<ir_version: 10, opset_import: ["": 18]>
g (float[N] x) => (float[N] y)
{
    y = Log(x)
    z = Neg(y)
}
"""


def test_the_residual_beside_a_convolution():
    """What INT8 asks of a residual network: ONNX Runtime would fuse the value away."""
    model = _model(
        """
        <ir_version: 10, opset_import: ["": 18]>
        g (float[N, 256, 4, 4] x) => (float[N, 256, 4, 4] y)
        {
            a = Conv(x, v, c)
            b = Conv(x, w, d)
            s = Add(a, b)
            y = Relu(s)
        }
        """,
        **{name: np.ones((256, 256, 1, 1), np.float32) for name in "vw"},
        **{name: np.ones(256, np.float32) for name in "cd"},
    )
    table = calibrate(model, ["x", "a"], [{"x": np.ones((2, 256, 4, 4), np.float32)}], method="minmax")
    assert table.ranges["a"] == TensorRange(257.0, 257.0)


class TestOddValues:
    @pytest.mark.parametrize("method", METHODS)
    def test_nan_names_tensor_and_sample(self, method):
        feeds = [{"x": np.array([1, 2, 3], np.float32)}, {"x": np.array([1, -2, 3], np.float32)}]
        with pytest.raises(ConversionError, match=r"calibration sample 1: tensor 'y' has NaN in 1 of 3 elements"):
            calibrate(_model(MASKED), ["x", "y"], feeds, method=method)

    @pytest.mark.parametrize("method", METHODS)
    def test_nan_in_an_input(self, method):
        with pytest.raises(ConversionError, match="sample 0: tensor 'x' has NaN"):
            calibrate(_model(MASKED), ["x"], [{"x": np.array([1, np.nan], np.float32)}], method=method)

    @pytest.mark.parametrize("method", METHODS)
    def test_infinities_are_left_out_and_logged(self, method, caplog):
        feeds = [{"x": np.array(x, np.float32)} for x in ([1, 0, np.e], [0, np.e**2, 1], [1, 1, np.e])]
        with caplog.at_level(logging.WARNING):
            table = calibrate(_model(MASKED), ["y", "z"], feeds, method=method, percentile=100)
        assert np.isfinite([table.ranges["y"].minimum, table.ranges["y"].maximum]).all()
        assert table.ranges["y"].maximum == pytest.approx(2.0)
        assert table.ranges["z"].minimum == pytest.approx(-2.0)
        assert "2 infinite values of tensor 'y' are left out" in caplog.text

    @pytest.mark.parametrize("method", METHODS)
    def test_a_sum_that_overflows_is_no_infinity(self, method):
        feeds = [{"x": np.full(4, 3e38, np.float32)}]
        model = _model('<ir_version: 10, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Neg(x) }')
        assert calibrate(model, ["y"], feeds, method=method).ranges["y"].minimum == pytest.approx(-3e38, rel=1e-3)

    @pytest.mark.parametrize("method", METHODS)
    def test_nothing_seen_is_missing_and_logged(self, method, caplog):
        empty = {"x": np.zeros(0, np.float32)}
        with caplog.at_level(logging.WARNING):
            table = calibrate(_model(MASKED), ["x", "y"], [empty, empty], method=method)
        assert table.missing(["x", "y"]) == ("x", "y")
        assert "no range for 'x', 'y': all calibration input batches are empty" in caplog.text
        assert suspicious(table, ["x", "y"])[0].startswith("tensor 'x' has no range")
        table = calibrate(_model(MASKED), ["x", "y"], [empty, {"x": np.ones(2, np.float32)}], method=method)
        assert table.ranges["x"].maximum == pytest.approx(1.0, rel=1e-3)


def test_a_tensor_without_finite_values_is_told_apart_from_empty_batches(caplog):
    with caplog.at_level(logging.WARNING):
        calibrate(_model(MASKED), ["x", "y"], [{"x": np.zeros(3, np.float32)}, {"x": np.zeros(0, np.float32)}])
    assert "no range for 'y': no calibration input batch gave a finite value" in caplog.text
    assert "calibration input batch 1 gave no value to 2 of 2 tensors: is it empty?" in caplog.text


class TestRefused:
    @pytest.mark.parametrize("method", METHODS)
    def test_no_samples(self, net, method):
        with pytest.raises(InputError, match="calibration inputs are empty"):
            calibrate(net, ["h"], iter(()), method=method)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_sample_that_fails_is_named(self, net, method):
        feeds = [*_batches(2), {"x": np.zeros((3, 5), np.float32)}]
        with pytest.raises(ConversionError, match=r"calibration sample 2: the native model fails .* x \[3, 5\]"):
            calibrate(net, ["h", "x"], feeds, method=method)

    def test_errors_of_the_iterable_pass_through(self, net):
        def broken():
            yield _batches(1)[0]
            raise InputError("sample 1: no good")

        with pytest.raises(InputError, match="no good"):
            calibrate(net, ["h"], broken())

    def test_unknown_and_constant_tensors(self, net):
        with pytest.raises(InvalidParameterError, match=r"'w1', 'nothing' cannot be calibrated"):
            calibrate(net, ["w1", "h", "nothing"], _batches(1))

    @pytest.mark.parametrize(
        ("method", "percentile"),
        [("max", 99), ("Entropy", 99), ("percentile", 0), ("percentile", 101), ("entropy", "x"), ("minmax", True)],
    )
    def test_parameters(self, net, method, percentile):
        with pytest.raises(InvalidParameterError, match=r"method 'max|method 'Entropy|percentile must"):
            calibrate(net, ["h"], _batches(1), method=method, percentile=percentile)
        with pytest.raises(InvalidParameterError):
            check_method(method, percentile)

    def test_a_model_that_onnx_runtime_refuses(self):
        model = _model(
            '<ir_version: 10, opset_import: ["": 18, "odd": 1]> g (float[2] x) => (float[2] y) { y = odd.No(x) }'
        )
        with pytest.raises(SourceError, match="ONNX Runtime refuses the model"):
            calibrate(model, ["y"], [{"x": np.zeros(2, np.float32)}])


def test_fetchable():
    model = _model(
        """
        <ir_version: 10, opset_import: ["": 18]>
        g (float[2] x, bool flag, int64[2] i) => (float[2] y)
        <float[2] w = {1, 2}, float[2] inner>
        {
            c = Constant<value = float[2] {3, 4}>()
            h = Add(x, w)
            n = Neg(i)
            y = If (flag) <then_branch = then () => (float[2] inner) { inner = Add(h, c) },
                           else_branch = other () => (float[2] outer) { outer = Identity(h) }>
        }
        """
    )
    assert fetchable(model) == {"x", "h", "y"}


def test_progress_and_laziness(net):
    seen, made = [], []

    def feeds():
        for feed in _batches(3, 4):
            made.append(len(seen))
            yield feed

    calibrate(net, ["h"], feeds(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, None), (2, None), (3, None)]
    assert made == [0, 1, 2], "one sample at a time"
    seen.clear()
    calibrate(net, ["h"], _batches(2, 4), method="minmax", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


class TestFiles:
    def test_round_trip(self, tmp_path):
        table = RangeTable({"a/b:0": TensorRange(-0.1, 1e-9), "ä": TensorRange(0.0, 3e38)}, "entropy", 7)
        write_ranges(table, tmp_path / "calibration.json")
        assert read_ranges(tmp_path / "calibration.json") == table

    def test_missing_and_unwritable(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"none\.json' cannot be read: No such file"):
            read_ranges(tmp_path / "none.json")
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_ranges(tmp_path)
        with pytest.raises(ArtifactError, match="cannot be written: No such file"):
            write_ranges(RangeTable(), tmp_path / "none" / "x.json")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda data: data.update(schema_version=2), "schema 2 is not 1"),
            (lambda data: data.update(format="x"), "no range table"),
            (lambda data: data["ranges"].update(a=[2, 1]), "range of 'a' is no range"),
            (lambda data: data["ranges"].update(a=[1]), "cannot be used"),
            (lambda data: data.pop("method"), "misspells a field"),
        ],
    )
    def test_not_a_table(self, tmp_path, change, match):
        data = json.loads(RangeTable({"a": TensorRange(0, 1)}).to_json())
        change(data)
        (tmp_path / "x.json").write_text(json.dumps(data), "utf-8")
        with pytest.raises(ArtifactError, match=match):
            read_ranges(tmp_path / "x.json")

    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[]", b"[" * 100_000])
    def test_damaged(self, tmp_path, content):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ArtifactError, match="calibrate again"):
            read_ranges(tmp_path / "x.json")
