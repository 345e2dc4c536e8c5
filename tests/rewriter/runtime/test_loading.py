"""Which executor runs a model, with what, and what is said where it cannot be the GPU."""

import dataclasses
import shutil

import numpy as np
import pytest
from onnx import parser

from passes.precision.recipe import Recipe
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.converter import Converter
from rewriter.errors import ArtifactError, ConversionError, InvalidParameterError
from rewriter.runtime.loading import Runnable, load, make_function
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.slots import StoredEngine

PARAMS = {"maximum_cached_engines": 3, "cache_full": "evict", "recipe": Recipe.of("FP16").to_json()}


@pytest.fixture
def saved(spliced, entry, tmp_path):
    """An artifact with one engine."""
    source = tmp_path / "e"
    source.write_bytes(b"vtrt")
    record = manifests.hash_file(source)
    entry = dataclasses.replace(entry, size=record.size, sha256=record.sha256)
    model, signature = spliced
    engines = [(entry, source)]
    return save_artifact(tmp_path / "out", ArtifactPart(model, signature, PARAMS, {}, engines))


@pytest.fixture
def stored(entry, tmp_path):
    path = tmp_path / "scratch" / "e.engine"
    path.parent.mkdir()
    path.write_bytes(b"vtrt")
    return StoredEngine(entry, path)


def test_a_gpu_gets_all_there_is_to_know(saved, gpu, pair):
    cache = {"engine_cache_dir": "cache", "engine_cache_max_bytes": 1 << 20}
    with load(saved, cuda_graph=False, stream=7, device=1, wait_for_builds=True, **cache) as function:
        assert function.provider == "cuda"
        function(*pair())
    (opened,) = gpu.opened
    (engine,) = opened.engines
    assert (engine.entry.op, engine.path.read_bytes()) == ("TRTEngineOp_000", b"vtrt")
    options = opened.options
    assert (str(options.engine_cache_dir), options.engine_cache_max_bytes) == ("cache", 1 << 20)
    assert (options.cuda_graph, options.stream, options.device, options.wait_for_builds) == (False, 7, 1, True)
    assert (options.maximum_cached_engines, options.cache_full, options.allow_build_at_runtime) == (3, "evict", True)
    assert opened.recipe == Recipe.of("FP16")
    assert opened.folder == saved / "runtime_cache"
    assert opened.params["cache_full"] == "evict"
    assert gpu.made[0].closed == 1


def test_what_the_caller_says_goes_before_what_the_artifact_says(saved, gpu):
    load(saved, allow_build_at_runtime=False, maximum_cached_engines=9, cache_full="native").close()
    options = gpu.opened[0].options
    assert (options.allow_build_at_runtime, options.maximum_cached_engines, options.cache_full) == (False, 9, "native")


@pytest.mark.parametrize("options", [{"provider": "cpu"}, {"execution": "native"}, {"execution": "emulate"}])
def test_the_gpu_is_left_alone_where_it_is_not_wanted(saved, gpu, pair, options):
    with load(saved, **options) as function:
        function(*pair())
        assert function.provider == "cpu"
    assert gpu.opened == []


def test_a_gpu_that_cannot_be_used_has_its_reason(saved, gpu, pair):
    gpu.refuse = "the package cuda-bindings is missing"
    with load(saved) as function:
        function(*pair())
        assert function.stats()["fallbacks"] == {"the package cuda-bindings is missing": 1}
        assert function.stats()["provider"] == "cpu"
    with pytest.raises(ConversionError, match="provider 'cuda' cannot be used: the package cuda-bindings is missing"):
        load(saved, provider="cuda")
    with pytest.raises(ConversionError, match=r"strict: 1 engine node would not run on TensorRT.*cuda-bindings"):
        load(saved, strict=True)


def test_without_a_gpu_the_one_of_the_gpu_is_not_asked(saved, gpu, no_gpu, pair):
    with load(saved) as function:
        function(*pair())
        assert function.stats()["fallbacks"] == {"no GPU": 1}
    with pytest.raises(ConversionError, match="provider 'cuda' cannot be used: no GPU; use provider='auto' or 'cpu'"):
        load(saved, provider="cuda")
    assert gpu.opened == []


def test_options_are_checked_before_the_artifact_is_read(tmp_path):
    with pytest.raises(InvalidParameterError, match="one of auto, cpu, cuda"):
        load(tmp_path, provider="gpu")
    with pytest.raises(ArtifactError):
        load(tmp_path)


@pytest.mark.parametrize(("recipe", "words"), [(None, "does not hold its recipe"), ({"mode": "FP7"}, "FP7")])
def test_an_unknown_recipe_matters_to_emulation_only(spliced, tmp_path, no_gpu, pair, recipe, words):
    model, signature = spliced
    params = {} if recipe is None else {"recipe": {**PARAMS["recipe"], **recipe}}
    saved = save_artifact(tmp_path / "out", ArtifactPart(model, signature, params, {}))
    with load(saved) as function:
        function(*pair())
    with pytest.raises(ArtifactError, match=f"cannot be emulated: .*{words}.*convert the model again"):
        load(saved, execution="emulate")


def test_lazy_opens_the_gpu_at_the_first_call(spliced, stored, gpu, pair):
    function = make_function(Runnable(*spliced, (stored,)), lazy=True)
    assert "not opened yet" in repr(function)
    assert function.stats()["provider"] == "auto"
    assert gpu.opened == []
    function(*pair())
    function(*pair())
    assert function.provider == "cuda"
    assert "cuda" in repr(function)
    assert len(gpu.opened) == 1
    function.close()
    assert (function.provider, function.stats()["provider"]) == ("cuda", "cuda")


def test_a_lazy_function_that_is_never_called_opens_nothing(spliced, gpu):
    with make_function(Runnable(*spliced), lazy=True):
        pass
    assert gpu.opened == []


def test_lazy_tells_of_a_gpu_that_cannot_be_used_at_the_first_call(spliced, gpu, pair):
    gpu.refuse = "no TensorRT"
    function = make_function(Runnable(*spliced), RuntimeOptions(provider="cuda"), lazy=True)
    with pytest.raises(ConversionError, match="no TensorRT"):
        function(*pair())
    gpu.refuse = ""
    assert function(*pair())["product"].shape == (2, 300)


@pytest.mark.parametrize("linkable", [True, False])
def test_kept_engines_outlive_the_folder_they_came_from(spliced, stored, gpu, monkeypatch, linkable):
    if not linkable:

        def refuse(*paths):
            raise OSError("another file system")

        monkeypatch.setattr("os.link", refuse)
    function = make_function(Runnable(*spliced, (stored,)), lazy=True, keep_engines=True)
    stored.path.unlink()
    assert function.provider == "cuda"
    (engine,) = gpu.opened[0].engines
    assert engine.path.read_bytes() == b"vtrt"
    assert engine.entry is stored.entry
    function.close()
    assert not engine.path.parent.exists()


def test_a_forked_copy_leaves_kept_engines_to_its_parent(spliced, stored, gpu, monkeypatch):
    function = make_function(Runnable(*spliced, (stored,)), lazy=True, keep_engines=True)
    assert function.provider == "cuda"
    (engine,) = gpu.opened[0].engines
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: -1)
        function.close()
    assert engine.path.is_file()
    shutil.rmtree(engine.path.parent)


def test_engines_are_not_kept_where_nothing_will_use_them(spliced, stored, no_gpu):
    function = make_function(Runnable(*spliced, (stored,)), lazy=True, keep_engines=True)
    stored.path.unlink()
    assert function.provider == "cpu"


def test_loaded_again_it_computes_the_same(saved, gpu, pair, spliced):
    x, y = pair(5)
    with load(saved) as on_gpu, make_function(Runnable(*spliced), RuntimeOptions(provider="cpu")) as on_cpu:
        for name, array in on_gpu(x, y).items():
            np.testing.assert_array_equal(array, on_cpu(x, y)[name])


@pytest.mark.rtx
def test_a_converters_function_uses_what_has_been_built(rtx, gpu):
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    g (float[batch, 4] x) => (float[batch, 4] y) { a = Relu(x) b = Neg(a) y = Exp(b) }
    """
    x = np.ones((2, 4), np.float32)
    params = {"maximum_cached_engines": 2, "cache_full": "evict"}
    with Converter(model=parser.parse_model(text), backend=rtx, progress=False, **params) as converter:
        early = converter.convert()
        converter.build(lambda: [x])
        late = converter.function()
        plain = converter.function("native")
    # The converter's folder is gone by now; the functions open the GPU at their first call.
    assert (early.engines, gpu.opened) == ((), [])
    for function in (early, late, plain):
        np.testing.assert_allclose(function(x)["y"], np.full((2, 4), np.exp(-1), np.float32), rtol=1e-6)
    assert [(function.provider, len(function.engines)) for function in (early, late, plain)] == [
        ("cuda", 0),
        ("cuda", 1),
        ("cpu", 1),
    ]
    first, second = gpu.opened
    assert first.engines == ()
    assert second.engines[0].path.stat().st_size == second.engines[0].entry.size > 0
    assert (second.options.maximum_cached_engines, second.options.cache_full) == (2, "evict")
    assert (second.recipe.mode, second.folder) == ("FP32", None)
    assert late.warmup()["shapes"] == 1  # the shape that was built for
    late.close()
    assert not second.engines[0].path.exists()
