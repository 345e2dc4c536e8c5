"""Conversions that share an engine cache, with real TensorRT-RTX."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from rewriter.backends.base import BuildFailure
from rewriter.commands.options import add_conversion_options, conversion_arguments
from rewriter.converter import Converter
from rewriter.errors import InvalidParameterError
from rewriter.reports.report import CacheStats, Report
from rewriter.reports.summary import cache_line, render_summary
from rewriter.runtime.loading import load

pytestmark = pytest.mark.rtx


def small(prefix="", weight=0.0, alpha=0.1, graph_input="x"):
    """Conv-LeakyRelu-Add-Sigmoid: one segment."""
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    kernel[1, 2, 0, 0] += np.float32(weight)
    n = lambda name: prefix + name  # noqa: E731 - a shorthand
    nodes = [
        h.make_node("Conv", [graph_input, n("w")], [n("c")], n("conv"), pads=[1, 1, 1, 1]),
        h.make_node("LeakyRelu", [n("c")], [n("r")], n("relu"), alpha=alpha),
        h.make_node("Add", [n("r"), n("one")], [n("a")], n("add")),
        h.make_node("Sigmoid", [n("a")], ["y"], n("out")),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info(graph_input, T.FLOAT, ["batch", 3, 8, 8])],
        [h.make_tensor_value_info("y", T.FLOAT, ["batch", 4, 8, 8])],
        [numpy_helper.from_array(kernel, n("w")), numpy_helper.from_array(np.float32([1.5]), n("one"))],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)


class Counting:
    """The real backend, with its builds counted; it may say that it is another version or builds for other GPUs."""

    def __init__(self, inner, version=None, targets=None, fail=None):
        self._inner = inner
        self.version = version or inner.version
        self.flavour = inner.flavour
        self.default_targets = targets or inner.default_targets
        self.fail = fail
        self.builds = 0

    def parse(self, model):
        return self._inner.parse(model)

    def build(self, model, *args, **kwargs):
        self.builds += 1
        if self.fail and any(node.op_type == self.fail for node in model.proto.graph.node):
            return BuildFailure("unsupported", f"no kernel for {self.fail}", (f"Error: no kernel for {self.fail}",))
        return self._inner.build(model, *args, **kwargs)

    def close(self):
        raise AssertionError("whoever opened the backend closes it")


def convert(rtx, folder, model=None, batches=(1, 4), save=None, name="x", backend=None, **options):
    """Converts and builds; returns (cache stats, builds, report)."""
    backend = backend or Counting(rtx)
    feeds = [{name: np.zeros((batch, 3, 8, 8), np.float32)} for batch in batches]
    with Converter(
        model=model or small(), backend=backend, engine_cache_dir=folder, progress=False, **options
    ) as converter:
        converter.convert()
        converter.build(lambda: iter(feeds))
        if save:
            converter.save(save)
        return converter.report.cache, backend.builds, converter.report


@pytest.fixture(scope="module")
def filled(rtx, tmp_path_factory):
    """A cache folder that holds the engine of `small()`; tests that use it store elsewhere or add."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    stats, builds, report = convert(rtx, folder)
    assert (stats.hits, stats.misses, stats.stored, builds) == (0, 1, 1, 1)
    assert report.engines[0].built
    return folder


def entries(folder):
    return sorted(path for path in folder.iterdir() if path.name != "failures")


def test_the_second_conversion_builds_nothing(rtx, filled, tmp_path):
    stats, builds, report = convert(rtx, filled, save=tmp_path / "out")
    assert (stats.hits, stats.misses, builds) == (1, 0, 0)
    assert report.engines[0].built
    assert report.engines[0].layers > 0
    sidecar = json.loads((filled / convert_key(rtx) / "entry.json").read_text())
    assert stats.seconds_saved == sidecar["seconds"]
    assert sidecar["facts"]["version"] == rtx.version
    with load(tmp_path / "out") as loaded:
        (entry,) = loaded.engines
        assert entry.usable
        assert entry.sha256 == sidecar["sha256"]
    assert Report.from_dict(json.loads(report.to_json())).cache == stats
    assert "Engine cache: 1 hit (" in render_summary(report)
    assert str(filled) not in (tmp_path / "out" / "manifest.json").read_text()


def test_the_engine_outlives_the_cache(rtx, filled, tmp_path):
    """What a hit hands out is a file of the conversion: the cache may be emptied before it is saved."""
    folder = tmp_path / "cache"
    convert(rtx, folder)
    with Converter(model=small(), backend=rtx, engine_cache_dir=folder, progress=False) as converter:
        converter.convert()
        converter.build(lambda: iter([{"x": np.zeros((b, 3, 8, 8), np.float32)} for b in (1, 4)]))
        assert converter.report.cache.hits == 1
        for entry in entries(folder):
            for path in entry.iterdir():
                path.unlink()
        converter.save(tmp_path / "out")
    with load(tmp_path / "out") as loaded:
        assert loaded.engines[0].usable


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("weight", {"model": small(weight=1e-6)}),
        ("attribute", {"model": small(alpha=0.2)}),
        ("binding", {"model": small(graph_input="image"), "name": "image"}),
        ("shape", {"batches": (1, 5)}),
        ("strategy", {"dynamic_shape_profile_strategy": "Optimal"}),
        ("workspace", {"max_workspace_size_bytes": 1 << 28}),
        ("FP16", {"precision_mode": "FP16"}),
        ("TF32", {"precision_mode": "TF32"}),
    ],
)
def test_what_reaches_the_builder_is_in_the_key(rtx, filled, tmp_path, what, change):
    stats, builds, _ = convert(rtx, filled, **change)
    assert stats.hits == 0, what
    assert builds >= 1


@pytest.mark.parametrize("change", [{"version": "1.7.1.999"}, {"targets": ("SM89",)}])
def test_version_and_targets_are_in_the_key(rtx, filled, change):
    stats, builds, _ = convert(rtx, filled, backend=Counting(rtx, **change))
    assert (stats.hits, builds) == (0, 1)


def test_the_gpu_is_in_the_key_when_engines_are_bound_to_it(rtx, tmp_path, monkeypatch):
    from rewriter.building import segment_builder as building

    counts = []
    for gpu in ("NVIDIA H100", "NVIDIA L4", "NVIDIA H100"):
        backend = Counting(rtx)
        backend.default_targets = ()
        monkeypatch.setattr(building, "installed_gpu_names", lambda gpu=gpu: (gpu,))
        counts.append(convert(rtx, tmp_path / "cache", backend=backend)[0].hits)
    assert counts == [0, 0, 1]


def test_code_that_calls_the_builder_is_in_the_key(rtx, filled, monkeypatch):
    from rewriter.building import segment_builder as building

    monkeypatch.setattr(building, "_builder_code", lambda: "another")
    assert convert(rtx, filled)[0].hits == 0


def test_names_inside_a_segment_are_not(rtx, filled):
    stats, builds, _ = convert(rtx, filled, model=small(prefix="other_"))
    assert (stats.hits, builds) == (1, 0)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda e: os.truncate(e / "engine", 1000), "size differs"),
        (lambda e: (e / "engine").write_bytes(b""), "size differs"),
        (lambda e: (e / "engine").write_bytes(bytes((e / "engine").stat().st_size)), "sha256 differs"),
        (lambda e: (e / "entry.json").write_text('{"format": "mine"}'), "unknown format"),
    ],
)
def test_a_damaged_entry_is_built_again(rtx, filled, tmp_path, damage, reason):
    convert(rtx, filled)
    before = {path.name for path in entries(filled)}
    damage(filled / convert_key(rtx))
    stats, builds, report = convert(rtx, filled)
    assert (stats.hits, stats.misses, stats.stored, builds) == (0, 1, 1, 1)
    assert stats.damaged == {reason: 1}
    assert report.engines[0].built
    assert {path.name for path in entries(filled)} == before
    assert convert(rtx, filled)[0].hits == 1


def convert_key(rtx):
    """The key of `small()`, as a conversion makes it."""
    with Converter(model=small(), backend=rtx, progress=False) as converter:
        converter.convert()
        converter.build(lambda: iter([{"x": np.zeros((b, 3, 8, 8), np.float32)} for b in (1, 4)]))
        (build,) = next(iter(converter._tracks.values())).conversion.result.builds.values()
        return build.key


def test_a_folder_that_takes_nothing_fails_no_conversion(rtx, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rewriter.building.cache.tempfile", SimpleNamespace(mkdtemp=refuse))
    stats, builds, report = convert(rtx, tmp_path / "cache")
    assert report.engines[0].built
    assert builds == 1
    assert stats == CacheStats(misses=1, refused={"cannot store: Permission denied": 1})
    assert cache_line(stats) == "Engine cache: 0 hits, 1 miss, 1 refused (cannot store: Permission denied)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_read(rtx, filled):
    filled.chmod(0o500)
    try:
        assert convert(rtx, filled)[0].hits == 1
        stats, builds, _ = convert(rtx, filled, batches=(2, 6))
        assert builds == 1
        assert stats.refused == {"cannot store: Permission denied": 1}
    finally:
        filled.chmod(0o700)


def test_failed_builds_are_remembered_apart(rtx, tmp_path):
    folder = tmp_path / "cache"
    reports, counts = [], []
    for _ in range(2):
        stats, builds, report = convert(
            rtx, folder, backend=Counting(rtx, fail="LeakyRelu"), minimum_segment_size=1, batches=(2,)
        )
        reports.append(report)
        counts.append((stats.known_failures, builds))
    assert counts[0][0] == 0
    assert counts[1][0] == 1
    assert counts[1][1] < counts[0][1]
    assert [v.op_type for v in reports[1].native] == ["LeakyRelu"]
    assert reports[0].native == reports[1].native
    assert [f.reason for f in reports[0].failures] == [f.reason for f in reports[1].failures]
    assert all(e.built for e in reports[1].engines)
    assert (folder / "failures").is_dir()
    # Other node names: the log of the failure speaks of nodes that are not there.
    model = small(prefix="other_")
    other = convert(rtx, folder, model, backend=Counting(rtx, fail="LeakyRelu"), minimum_segment_size=1, batches=(2,))
    assert other[0].known_failures == 0


def test_the_option_reaches_the_converter(tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    add_conversion_options(parser)
    assert conversion_arguments(parser.parse_args([]))["engine_cache_dir"] is None
    assert conversion_arguments(parser.parse_args([]))["engine_cache_max_bytes"] is None
    given = conversion_arguments(
        parser.parse_args(["--engine-cache-dir", str(tmp_path), "--engine-cache-max-bytes", "7"])
    )
    assert (given["engine_cache_dir"], given["engine_cache_max_bytes"]) == (str(tmp_path), 7)


def test_wrong_folders_are_refused(rtx, tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", "", 7):
        with pytest.raises(InvalidParameterError, match="engine_cache_dir must be"):
            Converter(model=small(), backend=rtx, engine_cache_dir=wrong)


def test_wrong_caps_are_refused(rtx, tmp_path):
    for wrong in (0, -1, True, 1.5, "8GiB"):
        with pytest.raises(InvalidParameterError, match="engine_cache_max_bytes must be an integer of at least 1"):
            Converter(model=small(), backend=rtx, engine_cache_dir=tmp_path, engine_cache_max_bytes=wrong)
    with pytest.raises(InvalidParameterError, match="engine_cache_max_bytes needs engine_cache_dir"):
        Converter(model=small(), backend=rtx, engine_cache_max_bytes=1 << 30)


SCRIPT = """
import json, sys
import numpy as np
from rewriter import Converter
with Converter(model=sys.argv[1], engine_cache_dir=sys.argv[2], backend="tensorrt_rtx", progress=False) as converter:
    converter.convert()
    converter.build(lambda: iter([{"x": np.zeros((n, 8), np.float32)} for n in (1, 4)]))
    cache = converter.report.cache
    names = [s.tensor for e in converter.report.engines for s in (*e.inputs, *e.outputs)]
    print(json.dumps([cache.hits, cache.misses, len(converter.report.engines), names]))
"""


@pytest.mark.tensorflow
def test_exports_of_one_saved_model_in_two_processes_hit(tmp_path):
    """The names of an export are the same in every process, so bindings do not hinder a hit."""
    import tensorflow as tf

    class Net(tf.Module):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.first = tf.Variable(rng.standard_normal((8, 16)).astype(np.float32))
            self.second = tf.Variable(rng.standard_normal((16, 4)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")])
        def __call__(self, x):
            hidden = tf.nn.relu(x @ self.first)
            return {"y": tf.nn.softmax(hidden @ self.second), "z": tf.tanh(hidden) * 2.0 + 1.0}

    net = Net()
    tf.saved_model.save(net, str(tmp_path / "model"), signatures=net.__call__)
    answers = []
    for seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), str(tmp_path / "cache")],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert answer.returncode == 0, answer.stderr
        answers.append(json.loads(answer.stdout.splitlines()[-1]))
    (hits, misses, engines, names), (hits2, misses2, engines2, names2) = answers
    assert engines >= 1
    assert (hits, misses) == (0, engines)
    assert (hits2, misses2) == (engines2, 0)
    assert names == names2


def test_the_least_recently_used_engine_goes_first(rtx, tmp_path):
    """With real engines: the cap holds two of three."""
    folder = tmp_path / "cache"
    convert(rtx, folder, batches=(1,))
    (first,) = entries(folder)
    size = sum(path.stat().st_size for path in first.iterdir())
    convert(rtx, folder, batches=(2,))
    (second,) = set(entries(folder)) - {first}
    os.utime(first / "entry.json", (1, 1))
    os.utime(second / "entry.json", (2, 2))
    assert convert(rtx, folder, batches=(1,))[0].hits == 1  # used again
    stats, _, _ = convert(rtx, folder, batches=(3,), engine_cache_max_bytes=int(size * 2.5))
    assert (stats.stored, stats.removed) == (1, 1)
    assert first in entries(folder)
    assert second not in entries(folder)
    assert len(entries(folder)) == 2


def test_models_are_checked(tmp_path):
    onnx.checker.check_model(small(), full_check=True)
