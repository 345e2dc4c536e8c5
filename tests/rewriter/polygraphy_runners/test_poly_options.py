"""The plugin's options: those of `trt-rewriter convert`, and what they become."""

import argparse
import types
from importlib.metadata import EntryPoint

import pytest

from rewriter.commands import convert
from rewriter.errors import InvalidParameterError
from rewriter.polygraphy_runners import plugin
from rewriter.polygraphy_runners.conversion import ConvertModel
from rewriter.polygraphy_runners.options import Option, given_values, runner_options

#: What `trt-rewriter convert` has and a comparison run has no use for, with the parameter names of the others.
NOT_HERE = {
    *("--output", "--dry-run", "--json", "--overwrite", "--no-engines", "--help"),
    "--no-build-at-runtime",
}


def parse(*arguments):
    options = runner_options()
    parser = argparse.ArgumentParser()
    for option in options:
        parser.add_argument(*option.flags, **option.keywords)
    return given_values(options, vars(parser.parse_args(arguments)))


def test_every_option_of_convert_is_here():
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    wanted = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    wanted = {flag for flag in wanted - NOT_HERE if flag != "--no-is-dynamic-op"}
    found = {flag for option in runner_options() for flag in option.flags}
    assert {f"--trt-rewriter-{flag[2:]}" for flag in wanted} <= found
    own = found - {f"--trt-rewriter-{flag[2:]}" for flag in wanted}
    names = ("artifact", "execution", "provider", "strict", "build", "precision")
    assert own == {f"--trt-rewriter-{name}" for name in names}


def test_defaults_say_nothing():
    assert parse() == {}


def test_values_have_the_names_of_parameters():
    found = parse(
        *("--trt-rewriter-precision", "fp16", "--trt-rewriter-minimum-segment-size", "5"),
        *("--trt-rewriter-op-denylist", "Conv, MatMul", "--trt-rewriter-node-denylist", "a$"),
        *("--trt-rewriter-keep-nodes", "b", "--trt-rewriter-keep-nodes", "c", "--trt-rewriter-keep-ops", "Softmax"),
        *("--no-trt-rewriter-is-dynamic-op", "--trt-rewriter-max-workspace-size-bytes", "4096"),
        *("--trt-rewriter-no-calibration", "--trt-rewriter-no-tensorflow-islands", "--trt-rewriter-tags", "serve,gpu"),
        *("--trt-rewriter-graph-inputs", "x:0,y:0", "--trt-rewriter-shapes", "x:1x8,4x8", "--trt-rewriter-strict"),
        *(
            "--trt-rewriter-backend",
            "none",
            "--trt-rewriter-float-type",
            "bf16",
            "--trt-rewriter-engine-cache-dir",
            "d",
        ),
    )
    assert found == {
        "precision_mode": "fp16",
        "minimum_segment_size": 5,
        "op_denylist": ["Conv", "MatMul"],
        "node_denylist": ["a$"],
        "keep_nodes": ["b", "c"],
        "keep_ops": ["Softmax"],
        "is_dynamic_op": False,
        "max_workspace_size_bytes": 4096,
        "use_calibration": False,
        "tensorflow_islands": False,
        "tags": ["serve", "gpu"],
        "inputs": ["x:0", "y:0"],
        "shapes": {"x": [(1, 8), (4, 8)]},
        "strict": True,
        "backend": "none",
        "float_type": "BF16",
        "engine_cache_dir": "d",
    }
    ConvertModel("model.onnx", **found)  # takes them all


def test_every_option_is_a_parameter_of_the_loader():
    values = {
        option.name: True if option.keywords.get("action") == "store_true" else "x" for option in runner_options()
    }
    values.update(trt_rewriter_shapes=["x:1"], trt_rewriter_build="always", trt_rewriter_jobs=2)
    found = given_values(runner_options(), values)
    del found["artifact"]
    ConvertModel("model.onnx", **found)


def test_an_artifact_is_loaded_and_a_model_converted(artifact, model):
    assert plugin.call(model, {"precision_mode": "FP16"}) == (
        "ConvertModel",
        {"source": model, "precision_mode": "FP16"},
    )
    expected = ("LoadArtifact", {"path": artifact, "strict": True})
    assert plugin.call(artifact, {"strict": True}) == expected
    assert plugin.call(f"{artifact}/model.onnx", {"strict": True}) == expected
    assert plugin.call(model, {"artifact": artifact, "strict": True}) == expected
    with pytest.raises(InvalidParameterError, match="leave --trt-rewriter-minimum-segment-size out"):
        plugin.call(artifact, {"minimum_segment_size": 3})
    with pytest.raises(InvalidParameterError, match="leave --trt-rewriter-graph-inputs, --trt-rewriter-no-calibration"):
        plugin.call(artifact, {"inputs": ["x"], "use_calibration": False})


def test_ranges_are_looked_for_only_where_none_are_given():
    assert plugin._needs_ranges({"precision_mode": "int8"})
    assert not plugin._needs_ranges({"precision_mode": "FP16"})
    assert not plugin._needs_ranges({})
    for name in ("calibration", "calibration_inputs", "use_calibration"):
        assert not plugin._needs_ranges({"precision_mode": "FP8", name: "x"})


def test_an_option_that_another_plugin_took_is_left_out(polygraphy, monkeypatch):
    said = []
    monkeypatch.setattr(plugin, "warn", said.append)
    parser = argparse.ArgumentParser()
    parser.add_argument("--trt-rewriter-a")
    options = tuple(Option((f"--trt-rewriter-{n}",), {"dest": n, "default": 3}) for n in "ab")
    plugin.add_options(parser, options)
    assert parser.parse_args(["--trt-rewriter-b", "1"]).b == "1"
    assert len(said) == 1
    assert "--trt-rewriter-a is left out" in said[0]


def test_the_entry_point_gives_two_groups(polygraphy):
    from polygraphy.tools.args.base import BaseRunnerArgs

    entry = EntryPoint("trt-rewriter", "rewriter.polygraphy_runners.plugin:argument_groups", "polygraphy.run.plugins")
    groups = entry.load()()
    assert all(isinstance(group, BaseRunnerArgs) for group in groups)
    assert [group.get_name_opt()[1] for group in groups] == ["trt-rewriter", "trt-rewriter-tf"]
    assert types.SimpleNamespace(**{type(group).__name__: group for group in groups}).TrtRewriterArgs.__doc__


def test_help_shows_the_options(command):
    status, text = command("--help")
    assert status == 0
    words = " ".join(text.split())
    for part in (
        "--trt-rewriter-precision",
        "Run inference using trt-rewriter.",
        "--trt-rewriter-tf",
        "--model-type keras",
    ):
        assert part in words
