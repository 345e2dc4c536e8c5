"""From samples to the profiles of real engines: strategies, explicit shapes, static engines, shape tensors."""

import json

import numpy as np
import onnx
import pytest

from rewriter.converter import Converter
from rewriter.errors import ConverterStateError, InputError, InvalidParameterError
from rewriter.params import ConversionParams, supported_profile_strategies

pytestmark = pytest.mark.rtx

#: Two inputs with batches of their own, an input that holds a shape, and two segments: NonZero cuts them, and what it
#: gives has a size that only a run tells.
TEXT = """
<ir_version: 10, opset_import: ["": 20]>
g (float[N, 4] x, float[M, 4] w, int64[2] size) => (float[A, B] y, float[2, K] z)
{
    a = Relu(x)
    b = Neg(w)
    c = Concat<axis = 0>(a, b)
    d = Exp(c)
    y = Reshape(d, size)
    e = NonZero(c)
    f = Cast<to = 1>(e)
    g0 = Relu(f)
    z = Neg(g0)
}
"""
SETS = ((1, 1), (4, 2), (4, 2), (2, 6))


def sample(n, m):
    x = np.ones((n, 4), np.float32)
    return {"x": x, "w": np.ones((m, 4), np.float32), "size": np.array([2, (n + m) * 2], np.int64)}


def samples(sets=SETS):
    return lambda: (sample(n, m) for n, m in sets)


def manifest_profiles(rtx, tmp_path, input_fn, text=TEXT, **options):
    """Converts, builds, saves; per engine the profiles in the manifest, as {input: (min, opt, max)}."""
    model = onnx.parser.parse_model(text) if isinstance(text, str) else text
    options.setdefault("minimum_segment_size", 2)
    with Converter(model=model, backend=rtx, progress=False, **options) as converter:
        converter.convert()
        if callable(input_fn):
            converter.build(input_fn)
        elif input_fn is not None:
            converter.build(converter.sample_input_fn(input_fn))
        assert all(engine.built for engine in converter.report.engines), converter.report.engines
        folder = converter.save(tmp_path / "out")
    engines = json.loads((folder / "manifest.json").read_text())["engines"]
    return [[{name: triple(item) for name, item in p.items()} for p in engine["profiles"]] for engine in engines]


def triple(item):
    return tuple(tuple(item[key]) for key in ("min", "opt", "max"))


def exact(*dims):
    return (dims, dims, dims)


def engine_of(found, name):
    """The profiles of the engine that reads `name`."""
    return next(profiles for profiles in found if name in profiles[0])


def test_range_spans_every_dimension(rtx, tmp_path):
    found = engine_of(manifest_profiles(rtx, tmp_path, samples()), "x")
    assert found == [
        {
            "x": ((1, 4), (4, 4), (4, 4)),
            "w": ((1, 4), (2, 4), (6, 4)),
            "size": ((2, 4), (2, 12), (2, 16)),
        }
    ]


def test_optimal_is_exact_for_every_set(rtx, tmp_path):
    found = engine_of(manifest_profiles(rtx, tmp_path, samples(), dynamic_shape_profile_strategy="Optimal"), "x")
    assert found == [
        {"x": exact(n, 4), "w": exact(m, 4), "size": exact(2, (n + m) * 2)} for n, m in ((1, 1), (4, 2), (2, 6))
    ]


def test_range_and_optimal_has_both(rtx, tmp_path):
    found = engine_of(manifest_profiles(rtx, tmp_path, samples(), dynamic_shape_profile_strategy="Range+Optimal"), "x")
    assert found[0]["x"] == ((1, 4), (4, 4), (4, 4))
    assert [p["x"] for p in found[1:]] == [exact(1, 4), exact(4, 4), exact(2, 4)]


@pytest.mark.parametrize(
    "options",
    [{"dynamic_shape_profile_strategy": "ImplicitBatchModeCompatible"}, {"use_dynamic_shape": False}],
)
def test_implicit_batch_begins_at_one_and_fixes_the_rest(rtx, tmp_path, options):
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N, L] x) => (float[N, L] y) {a = Relu(x) y = Neg(a)}'
    shapes = ((4, 5), (8, 5), (2, 7))
    found = manifest_profiles(rtx, tmp_path, lambda: (np.ones(shape, np.float32) for shape in shapes), text, **options)
    assert found == [[{"x": ((1, 5), (8, 5), (8, 5))}, {"x": ((1, 7), (2, 7), (2, 7))}]]


@pytest.mark.parametrize("use_dynamic_shape", [None, True])
def test_dynamic_shapes_are_the_default(rtx, tmp_path, use_dynamic_shape):
    found = manifest_profiles(rtx, tmp_path, samples(((2, 1), (3, 1))), use_dynamic_shape=use_dynamic_shape)
    assert engine_of(found, "x")[0]["x"] == ((2, 4), (3, 4), (3, 4))


def test_three_shapes_are_minimum_optimum_and_maximum(rtx, tmp_path):
    """Exactly as given for the inputs; inside, what the native model has at these shapes."""
    text = TEXT.replace(", int64[2] size", "").replace("float[A, B] y", "float[C, 4] y")
    text = text.replace("y = Reshape(d, size)", "y = Relu(d)")
    found = manifest_profiles(rtx, tmp_path, {"x": [(1, 4), (3, 4), (9, 4)], "w": [(2, 4)]}, text)
    assert engine_of(found, "x") == [{"x": ((1, 4), (3, 4), (9, 4)), "w": exact(2, 4)}]
    inner = next(profiles for profiles in found if "x" not in profiles[0])
    ((low, best, high),) = inner[0].values()
    assert low[1] <= best[1] <= high[1]
    assert low[0] == high[0] == 2


def test_two_shapes_are_tuned_for_the_largest(rtx, tmp_path):
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N, 4] x) => (float[N, 4] y) {a = Relu(x) y = Neg(a)}'
    found = manifest_profiles(rtx, tmp_path, {"x": [(8, 4), (1, 4)]}, text)
    assert found == [[{"x": ((1, 4), (8, 4), (8, 4))}]]


@pytest.mark.parametrize("strategy", supported_profile_strategies())
def test_static_engines_cover_all_batches(rtx, tmp_path, strategy):
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N, 4] x) => (float[N, 4] y) {a = Relu(x) y = Neg(a)}'
    params = ConversionParams(is_dynamic_op=False, max_batch_size=8, minimum_segment_size=2)
    with Converter(
        model=onnx.parser.parse_model(text),
        backend=rtx,
        progress=False,
        conversion_params=params,
        dynamic_shape_profile_strategy=strategy,
    ) as converter:
        converter.convert()
        (build,) = next(iter(converter._tracks.values())).conversion.result.builds.values()
    (profile,) = build.profiles
    assert (profile["x"].minimum, profile["x"].optimum, profile["x"].maximum) == ((1, 4), (8, 4), (8, 4))


def test_static_engines_need_fixed_dimensions(rtx):
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N, L] x) => (float[N, L] y) {a = Relu(x) y = Neg(a)}'
    params = ConversionParams(is_dynamic_op=False, max_batch_size=8)
    with (
        Converter(
            model=onnx.parser.parse_model(text), backend=rtx, progress=False, conversion_params=params
        ) as converter,
        pytest.raises(InvalidParameterError, match=r"is_dynamic_op=False needs fixed shapes, but dimension 1 \(L\)"),
    ):
        converter.convert()


def test_a_bad_sample_is_told_although_nothing_runs(rtx):
    with Converter(model=onnx.parser.parse_model(TEXT), backend=rtx, progress=False) as converter:
        with pytest.raises(ConverterStateError):
            converter.sample_input_fn({})
        converter.convert()
        with pytest.raises(InputError, match=r"sample 1: input 'w' has shape \[1, 5\]"):
            converter.build(lambda: iter([sample(1, 1), {**sample(1, 1), "w": np.ones((1, 5), np.float32)}]))
