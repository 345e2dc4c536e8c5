"""Artifacts of one model united: equal models only, every engine once, and nothing half written."""

import dataclasses
import json
import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from passes import model as models
from passes.engine_node import read_engines
from passes.island_node import island_nodes, read_island
from passes.precision.ranges import RangeTable
from passes.segments import TensorSpec
from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.commands import merge as command
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.merging import merge
from rewriter.source import Signature

OP = "TRTEngineOp_000"
HASH = "5" * 64


def spliced(segment_hash=HASH, precision="FP32", native="Neg", weight=1.0, op=OP):
    proto = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 20, "trt_rewriter": 1]>
        g (float[batch, 1024] x) => (float[batch, 1024] y)
        {{
            a = trt_rewriter.{op} <segment_hash: string = "{segment_hash}", data_inputs: int = 1,
                precision: string = "{precision}", profiles: string = "[]", backend: string = "",
                backend_version: string = ""> (x)
            b = {native}(a)
            y = Add(b, w)
        }}
        <domain: "trt_rewriter", opset_import: ["": 20]>
        {op} (x) => (y)
        {{
            a = Relu(x)
            y = Neg(a)
        }}
        """
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.full(1024, weight, np.float32), "w"))
    return models.from_proto(proto)


def engine(folder, key, target="SM89", **more):
    path = folder / f"{key}.scratch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{folder.name} {key}".encode() * 50)
    record = manifests.hash_file(path)
    profile = {"x": InputProfile((1, 1024), (2, 1024), (8, 1024))}
    entry = EngineEntry(
        OP, key, record.size, record.sha256, "tensorrt_rtx", "1.7.1", (target,), (profile,), "FP32", HASH
    )
    return dataclasses.replace(entry, **more), path


def part_of(engines=(), name="serve", model=None, **more):
    spec = TensorSpec("x", 1, ("batch", 1024))
    targets = [target for entry, _ in engines for target in entry.targets]
    return ArtifactPart(
        **{
            "model": model or spliced(),
            "signature": Signature((spec,), (dataclasses.replace(spec, name="y", tensor="y"),), name),
            "params": {"targets": targets, "recipe": {"mode": "FP32"}},
            "report": {"source": targets},
            "engines": engines,
            **more,
        }
    )


@pytest.fixture
def save(tmp_path):
    """Writes an artifact called `name` in the test's folder."""

    def made(name, *keys, target="SM89", **more):
        engines = [engine(tmp_path / f"{name}.built", key, target) for key in keys]
        return save_artifact(tmp_path / name, part_of(engines, **more))

    return made


def refusal(first, other, tmp_path):
    """What merging two artifacts says; nothing is written."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError) as raised:
        merge([first, other], tmp_path / "out")
    text = str(raised.value)
    assert str(first) in text
    assert str(other) in text
    assert "\n" not in text
    assert sorted(tmp_path.iterdir()) == before
    return text


def test_engines_are_united(save, tmp_path):
    first, second = save("a", "k1", "k2"), save("b", "k3", target="SM120")
    merged = merge([first, second], tmp_path / "out")
    loaded = load_artifact(merged.path)
    assert merged.path == tmp_path / "out"
    assert [(e.entry.key, e.source, e.signature) for e in merged.engines] == [
        ("k1", first, "serve"), ("k2", first, "serve"), ("k3", second, "serve"),
    ]  # fmt: skip
    assert tuple(e.entry for e in merged.engines) == loaded.engines
    for item in merged.engines:
        assert loaded.engine_path(item.entry).read_bytes() == (item.source / item.entry.file).read_bytes()
    assert loaded.params == {"targets": ["SM89", "SM120"], "recipe": {"mode": "FP32"}}
    assert loaded.report == load_artifact(first).report
    assert loaded.versions == load_artifact(first).versions
    np.testing.assert_array_equal(loaded.model.weights["w"], np.ones(1024, np.float32))
    assert merged.notes == (f"report and calibration are those of {first}",)


def test_the_node_names_all_engines(save, tmp_path):
    merged = merge([save("a", "k1"), save("b", "k2", target="SM120")], tmp_path / "out")
    ((_, attributes, op),) = read_engines(onnx.load(merged.path / "model.onnx"))
    entries = [item.entry for item in merged.engines]
    assert op == OP
    assert attributes.engine_files == tuple(entry.file for entry in entries)
    assert attributes.engine_sha256 == tuple(entry.sha256 for entry in entries)
    assert attributes.targets == ("SM89", "SM120")
    assert (attributes.backend, attributes.backend_version) == ("tensorrt_rtx", "1.7.1")
    assert len(json.loads(attributes.profiles)) == 1
    assert attributes.segment_hash == HASH


def test_equal_engines_are_there_once(save, tmp_path):
    first, second = save("a", "k1"), save("b", "k1", "k2")
    merged = merge([first, second], tmp_path / "out")
    assert [(item.entry.key, item.source) for item in merged.engines] == [("k1", first), ("k2", second)]
    assert f"equal engines are kept once, which leaves out 1 of {second}" in merged.notes


def test_a_merged_artifact_is_merged_again(save, tmp_path):
    both = merge([save("a", "k1"), save("b", "k2", target="SM120")], tmp_path / "both").path
    merged = merge([both, save("c", "k3", target="SM80")], tmp_path / "out")
    assert [item.entry.key for item in merged.engines] == ["k1", "k2", "k3"]
    assert load_artifact(merged.path).params["targets"] == ["SM89", "SM120", "SM80"]


def test_one_without_engines_gets_those_of_the_other(save, tmp_path):
    merged = merge([save("a"), save("b", "k1")], tmp_path / "out")
    assert [item.entry.key for item in merged.engines] == ["k1"]


def test_the_output_may_replace_an_input(save, tmp_path):
    first, second = save("a", "k1"), save("b", "k2")
    with pytest.raises(ArtifactError, match="overwrite"):
        merge([first, second], first)
    assert [entry.key for entry in load_artifact(first).engines] == ["k1"]
    merged = merge([first, second], first, overwrite=True)
    assert merged.path == first
    assert [entry.key for entry in load_artifact(first).engines] == ["k1", "k2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.built", "b", "b.built"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"segment_hash": "6" * 64}, f"the segment of {OP} is not the same"),
        ({"precision": "FP16"}, f"{OP} is FP32 in one and FP16 in the other"),
        ({"native": "Abs"}, "their graphs differ outside of the engines"),
        ({"weight": 2.0}, "the weight 'w' is not the same"),
        ({"op": "TRTEngineOp_001"}, f"only one of them {OP}"),
    ],
)
def test_another_model_is_refused(save, tmp_path, model, words):
    assert words in refusal(save("a"), save("b", model=spliced(**model)), tmp_path)


def test_weights_are_compared_to_the_bit(save, tmp_path):
    same = [save(name, model=spliced(weight=np.nan)) for name in ("a", "b")]
    merge(same, tmp_path / "merged")
    zeros = [save(name, model=spliced(weight=weight)) for name, weight in (("c", 0.0), ("d", -0.0))]
    assert "the weight 'w'" in refusal(*zeros, tmp_path)


def test_another_signature_is_refused(save, tmp_path):
    spec = TensorSpec("x", 1, ("batch", 1024))
    other = Signature((spec,), (dataclasses.replace(spec, name="z", tensor="y"),), "serve")
    assert "have other inputs or outputs" in refusal(save("a"), save("b", signature=other), tmp_path)


def test_other_names_of_signatures_are_refused(tmp_path):
    first = save_artifact(tmp_path / "a", part_of(name="serve"))
    other = save_artifact(tmp_path / "b", part_of(name="predict"), part_of(name="more"))
    text = refusal(first, other, tmp_path)
    assert "the first has the signatures 'serve', the other 'predict', 'more'" in text


def test_another_recipe_is_refused(save, tmp_path):
    params = {"targets": [], "recipe": {"mode": "INT8"}}
    assert "their recipes differ" in refusal(save("a"), save("b", params=params), tmp_path)


def test_what_may_differ_is_noted(save, tmp_path):
    ranges = RangeTable.from_json(RangeTable().to_json())
    params = {"targets": [], "recipe": {"mode": "FP32"}, "cache_full": "evict"}
    first, second = save("a", "k1"), save("b", "k2", params=params, ranges=ranges)
    merged = merge([first, second], tmp_path / "out")
    assert merged.notes[1:] == (
        f"parameter cache_full of {second} differs: that of {first} is kept",
        f"calibration of {second} differs: that of {first} is kept",
    )
    assert load_artifact(merged.path).ranges is None


def test_several_signatures_are_merged_by_name(tmp_path):
    def save(name, target, keys):
        parts = [part_of([engine(tmp_path / f"{name}.built", f"{target}.{key}", target)], name=key) for key in keys]
        return save_artifact(tmp_path / name, *parts)

    first, second = save("a", "SM89", ("serve", "predict")), save("b", "SM120", ("predict", "serve"))
    merged = merge([first, second], tmp_path / "out")
    for key in ("serve", "predict"):
        loaded = load_artifact(merged.path, signature=key)
        assert loaded.signatures == ("serve", "predict")
        assert [entry.key for entry in loaded.engines] == [f"SM89.{key}", f"SM120.{key}"]
        assert all(entry.usable for entry in loaded.engines)


def damage(artifact, number=0, content=b"x"):
    path = artifact / load_artifact(artifact).engines[number].file
    path.unlink()
    if content:
        path.write_bytes(content)
    return load_artifact(artifact).engines[number].problem


def test_a_damaged_engine_is_left_out_and_told(save, tmp_path):
    first, second = save("a", "k1", "k2"), save("b", "k3", target="SM120")
    problem = damage(first, 1)
    merged = merge([first, second], tmp_path / "out")
    assert [item.entry.key for item in merged.engines] == ["k1", "k3"]
    assert [(item.entry.key, item.source, item.entry.problem) for item in merged.damaged] == [("k2", first, problem)]
    assert merged.notes[1:] == (f"{first}: {problem}: it is left out",)
    assert merged.to_json()["damaged"][0]["problem"] == problem
    assert [entry.usable for entry in load_artifact(merged.path).engines] == [True, True]


def test_a_damaged_engine_is_taken_from_another_artifact_that_has_it(save, tmp_path):
    first, second = save("a", "k1"), save("b", "k1", "k2")
    problem = damage(first, content=b"")
    merged = merge([first, second], tmp_path / "out")
    assert [(item.entry.key, item.source) for item in merged.engines] == [("k1", second), ("k2", second)]
    assert merged.notes[1:] == (f"{first}: {problem}: that of {second} is taken",)


def test_merging_heals_an_artifact_in_place(save, tmp_path):
    first, second = save("a", "k1", "k2"), save("b", "k1")
    damage(first)
    merge([first, second], first, overwrite=True)
    assert sorted((entry.key, entry.usable) for entry in load_artifact(first).engines) == [("k1", True), ("k2", True)]


def test_only_damaged_engines_are_refused(save, tmp_path):
    first, second = save("a", "k1"), save("b", "k2")
    problem = damage(first)
    damage(second)
    with pytest.raises(ArtifactError, match=f"{first} cannot be merged: all 2 engines of these artifacts are damaged"):
        merge([first, second], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert merge([first, second, save("c", "k3")], tmp_path / "out").notes[1] == f"{first}: {problem}: it is left out"


def ranged(tmp_path, name, key, top, room=None, **facts):
    entry, path = engine(tmp_path / f"{name}.built", key, facts.pop("target", "SM89"))
    profile = {"x": InputProfile((1, 1024), (2, 1024), (top, 1024))}
    params = {"recipe": {"mode": "FP32"}, **({} if room is None else {"maximum_cached_engines": room})}
    entry = dataclasses.replace(entry, profiles=(profile,), **facts)
    return save_artifact(tmp_path / name, part_of([(entry, path)], params=params))


@pytest.mark.parametrize(
    ("tops", "rooms", "facts", "found"),
    [
        ((8, 8), (None, None), {}, None), ((8, 16), (None, None), {}, 2), ((8, 16), (3, 1), {}, 3),
        ((8, 16), (1, 5), {}, 2), ((8, 16), (None, None), {"version": "1.4.0"}, None), ((8, 16, 8), (1, 1, 1), {}, 2),
        ((8, 16), (None, None), {"target": "SM120"}, 2),
    ],
)  # fmt: skip
def test_engines_with_different_profiles_fit_in_memory_together(tmp_path, tops, rooms, facts, found):
    sources = [
        ranged(tmp_path, f"a{i}", f"k{i}", top, room, **(dict(facts) if i else {}))
        for i, (top, room) in enumerate(zip(tops, rooms, strict=True))
    ]
    merged = merge(sources, tmp_path / "out")
    assert load_artifact(merged.path).params.get("maximum_cached_engines") == (rooms[0] if found is None else found)
    said = [note for note in merged.notes if note.startswith("maximum_cached_engines is")]
    assert bool(said) == (found is not None and found != rooms[0])
    assert not said or not any("parameter maximum_cached_engines" in note for note in merged.notes)


@pytest.mark.parametrize(
    ("names", "words"),
    [((), "at least two"), (("a",), "at least two"), (("a", "a"), "given twice"), (("a", "./a/../a"), "given twice")],
)
def test_too_few_artifacts_are_refused(save, tmp_path, names, words):
    save("a")
    with pytest.raises(InvalidParameterError, match=words):
        merge([tmp_path / name for name in names], tmp_path / "out")


@pytest.mark.parametrize(
    ("artifacts", "overwrite", "words"),
    [
        ("a", False, "needs a list"),
        (None, False, "needs a list"),
        (("a", "b"), "no", "overwrite must be True or False"),
    ],
)
def test_bad_arguments(tmp_path, artifacts, overwrite, words):
    with pytest.raises(InvalidParameterError, match=words):
        merge(artifacts, tmp_path / "out", overwrite=overwrite)


def test_a_missing_artifact_is_named(save, tmp_path):
    with pytest.raises(ArtifactError, match=r"no such artifact: .*gone"):
        merge([save("a"), tmp_path / "gone"], tmp_path / "out")


def island_model(folder):
    proto = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 20, "trt_rewriter.tensorflow": 1]>
        g (float[2] x) => (float[2] y)
        {{ y = trt_rewriter.tensorflow.TFIsland_000 <saved_model: string = "{folder}", input_names: strings = ["x"],
               output_names: strings = ["y"]> (x) }}
        """
    )
    return models.from_proto(proto)


def test_parts_in_tensorflow_must_have_equal_files(tmp_path):
    def save(name, content):
        folder = tmp_path / "sources" / name
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(content)
        spec = TensorSpec("x", 1, (2,))
        signature = Signature((spec,), (dataclasses.replace(spec, name="y", tensor="y"),))
        return save_artifact(tmp_path / name, part_of(model=island_model(folder), signature=signature))

    first, same, other = save("a", b"1"), save("b", b"1"), save("c", b"2")
    assert "TFIsland_000, which stays in TensorFlow, has other files (saved_model.pb)" in refusal(
        first, other, tmp_path
    )
    for path in same.rglob("*.pb"):
        os.utime(path, (1, 1))  # when it was written does not matter
    loaded = load_artifact(merge([first, same], tmp_path / "out").path)
    (node,) = island_nodes(loaded.model.proto)
    assert read_island(node).saved_model.startswith(str(tmp_path / "out"))


def command_output(capsys, *argv):
    import argparse

    arguments = argparse.ArgumentParser()
    command.add_arguments(arguments)
    assert command.run(arguments.parse_args([str(item) for item in argv])) == 0
    return capsys.readouterr().out


def test_the_command_tells_what_came_from_where(save, tmp_path, capsys):
    first, second = save("a", "k1"), save("b", "k2", target="SM120")
    lines = command_output(capsys, first, second, "-o", tmp_path / "out").splitlines()
    size = load_artifact(second).engines[0].size
    assert lines == [
        f"  {OP}: tensorrt_rtx 1.7.1, SM89, {size} B, from {first}",
        f"  {OP}: tensorrt_rtx 1.7.1, SM120, {size} B, from {second}",
        f"note: report and calibration are those of {first}",
        f"wrote {tmp_path / 'out'}: 2 engines of 2 artifacts",
    ]
    data = json.loads(command_output(capsys, first, second, "-o", tmp_path / "out", "--overwrite", "--json"))
    assert data["path"] == str(tmp_path / "out")
    assert data["sources"] == [str(first), str(second)]
    assert [(e["key"], e["targets"]) for e in data["engines"]] == [("k1", ["SM89"]), ("k2", ["SM120"])]


@pytest.mark.rtx
def test_real_engines_for_two_gpus(tmp_path):
    from rewriter import Converter, load

    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 17]> g (float[4, 8] x) => (float[4, 8] y)'
        "{ a = Mul(x, x) b = Add(a, x) y = Relu(b) }"
    )
    made = []
    for target in ("SM89", "SM120"):
        converter = Converter(model=model, backend="tensorrt_rtx", targets=(target,), minimum_segment_size=1)
        converter.convert()
        converter.build()
        made.append(tmp_path / target)
        converter.save(made[-1])
    merged = merge(made, tmp_path / "out")
    assert [item.entry.targets for item in merged.engines] == [("SM89",), ("SM120",)]
    assert merged.notes == (f"report and calibration are those of {made[0]}",)
    feeds = {"x": np.arange(32, dtype=np.float32).reshape(4, 8) - 9}
    with load(merged.path, provider="cpu") as function:
        np.testing.assert_array_equal(function.run(feeds)["y"], np.maximum(feeds["x"] ** 2 + feeds["x"], 0))
        stats = function.stats()
    keys = [item.entry.key for item in merged.engines]
    assert stats["engines_chosen"] == {
        OP: {"engines": {}, "others": dict.fromkeys(keys, "provider 'cpu' was asked for")}
    }
    assert stats["engines"] == 2
    assert stats["fallbacks"] == {"provider 'cpu' was asked for": 1}
