"""The plugin of `polygraphy run`: `--trt-rewriter` (a conversion, or an artifact), `--trt-rewriter-tf` (the source).

polygraphy calls `argument_groups` at the start of every command and shows what it raises as a warning; so all that may
be missing or broken is met there, and not later, when it would end polygraphy itself.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.polygraphy_runners.options import PREFIX, Option, given_values, runner_options, spelled
from rewriter.polygraphy_runners.talk import import_polygraphy, one_line_errors, refusal, warn

_HERE = "rewriter.polygraphy_runners"
#: Parameters that an artifact takes, too.
_OF_ARTIFACTS = ("execution", "provider", "strict", "signature")
#: Parameters that the source in TensorFlow takes, too.
_OF_SOURCES = ("signature", "tags", "inputs", "outputs")
_QUANTIZED = ("INT8", "FP8")


def argument_groups() -> list[Any]:
    """The groups of options that `polygraphy run` gets; the entry point `polygraphy.run.plugins`.

    Raises:
        MissingDependencyError: this polygraphy lacks what the plugin needs.
    """
    converted, source = _groups()
    return [converted(), source()]


def model_of_artifact(path: Path) -> Path | None:
    """The artifact that a path means: the folder itself, or that of the `model.onnx` in it; None for other models."""
    from rewriter.artifact import is_artifact

    for folder in (path, path.parent if path.name == "model.onnx" else path):
        if folder.is_dir() and is_artifact(folder):
            return folder
    return None


def call(model: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the options mean: a loader and its arguments.

    Args:
        model: path of the model on the command line.
        values: as `given_values` gives them.

    Returns:
        ("LoadArtifact" or "ConvertModel", its keyword arguments with the path as `path` or `source`).

    Raises:
        InvalidParameterError: options of a conversion beside an artifact, or that do not go together.
    """
    from rewriter.polygraphy_runners.conversion import ConvertModel

    given = dict(values)
    asked = given.pop("artifact", None)
    artifact = Path(asked) if asked else model_of_artifact(Path(model))
    if artifact is None:
        ConvertModel(model, **given)  # what it refuses is told now, and not by a script that polygraphy runs
        return "ConvertModel", {"source": model, **given}
    other = [name for name in given if name not in _OF_ARTIFACTS]
    if other:
        raise InvalidParameterError(
            f"{artifact} is converted already: leave {spelled(other)} out, or give the source model"
        )
    return "LoadArtifact", {"path": str(artifact), **given}


def add_options(group: Any, options: Iterable[Option]) -> tuple[Option, ...]:
    """Adds the options to polygraphy's parser; one that another plugin has taken is left out, with a warning.

    Returns:
        Those that were added. Parsed arguments have them only where they were written, so that a default that was
        written can be told from one that was not.
    """
    added = []
    for option in options:
        try:
            group.add_argument(*option.flags, **{**option.keywords, "default": argparse.SUPPRESS})
        except argparse.ArgumentError as error:
            warn(f"the option {option.flags[0]} is left out: {error}")
        else:
            added.append(option)
    return tuple(added)


def check_selected(options: Iterable[Option], arguments: argparse.Namespace) -> None:
    """Refuses options of a runner that was not asked for: polygraphy would leave it out, and call the rest PASSED.

    Args:
        options: those that `add_options` added.
        arguments: what polygraphy's parser made of the command line.

    Raises:
        InvalidParameterError: `--trt-rewriter` is missing; the message names the option that needs it.
    """
    runners = getattr(arguments, "runners", None)
    if runners is None or PREFIX in runners:
        return
    used = _OF_SOURCES if f"{PREFIX}-tf" in runners else ()
    written = (option for option in options if hasattr(arguments, option.name) and option.parameter not in used)
    first = next(written, None)
    if first is not None:
        raise InvalidParameterError(
            f"{first.flags[0]} is an option of the runner --{PREFIX}, which is not asked for: add --{PREFIX}"
        )


def check_runners(model: str, runners: Iterable[str]) -> None:
    """Refuses polygraphy's own runners beside a folder, which it takes for a checkpoint of TensorFlow 1.

    Args:
        model: path of the model on the command line.
        runners: options that select runners, as "onnxrt".

    Raises:
        InvalidParameterError: one of them cannot read the model; the message says what to give instead.
    """
    others = [f"--{name}" for name in runners if not name.startswith(PREFIX)]
    path = Path(model)
    if not others or not path.is_dir():
        return
    if model_of_artifact(path) is not None:
        raise InvalidParameterError(
            f"{others[0]} cannot read {model}, which is an artifact: give {path / 'model.onnx'} (--{PREFIX} runs its "
            f"artifact), or the source model and --{PREFIX}-artifact {model}"
        )
    raise InvalidParameterError(
        f"{others[0]} cannot read {model}, which is a folder: run a SavedModel with --{PREFIX}-tf and --{PREFIX}"
    )


def add_converted_runner(group: Any, script: Any) -> None:
    """Writes the runner of `--trt-rewriter` into polygraphy's script.

    Raises:
        PolygraphyException: the options do not go together.
    """
    arguments = import_polygraphy("polygraphy.tools.args")
    write = import_polygraphy("polygraphy.tools.script").make_invocable
    model = group.arg_groups[arguments.ModelArgs].path
    try:
        check_runners(model, group.arg_groups[arguments.RunnerSelectArgs].runners.keys())
        loader, keywords = call(model, given_values(group.options, group.values))
    except ConversionError as error:
        raise refusal(str(error)) from error
    first = keywords.pop("path" if loader == "LoadArtifact" else "source")
    if loader == "ConvertModel":
        first = _onnx_loader(group, script) or first
        if _needs_ranges(keywords):
            keywords["calibration_inputs"] = _data_loader(group, script)
    script.add_import(imports=["TrtRewriterRunner", loader], frm=_HERE)
    name = script.add_loader(write(loader, first, **keywords), "trt_rewriter_model")
    script.add_runner(write("TrtRewriterRunner", name))


def add_source_runner(group: Any, converted: type, script: Any) -> None:
    """Writes the runner of `--trt-rewriter-tf` into polygraphy's script.

    Raises:
        PolygraphyException: the options do not go together.
    """
    write = import_polygraphy("polygraphy.tools.script").make_invocable
    model = group.arg_groups[import_polygraphy("polygraphy.tools.args").ModelArgs].path
    options = group.arg_groups[converted]
    try:
        values = given_values(options.options, options.values)
        if model_of_artifact(Path(model)) is not None:
            raise InvalidParameterError(
                f"--{PREFIX}-tf runs a model of TensorFlow, and {model} is an artifact: give the SavedModel, and the "
                f"artifact as --{PREFIX}-artifact {model}"
            )
    except ConversionError as error:
        raise refusal(str(error)) from error
    script.add_import(imports=["SavedModelRunner"], frm=_HERE)
    keywords = {name: values[name] for name in _OF_SOURCES if name in values}
    script.add_runner(write("SavedModelRunner", model, **keywords))


def _needs_ranges(keywords: Mapping[str, Any]) -> bool:
    """True when a conversion needs calibration inputs that were not given."""
    quantized = str(keywords.get("precision_mode")).upper() in _QUANTIZED
    given = any(name in keywords for name in ("calibration", "calibration_inputs", "use_calibration"))
    return quantized and not given


def _data_loader(group: Any, script: Any) -> Any:
    """The data of the run itself, which is what polygraphy's own INT8 calibrates with."""
    tools = import_polygraphy("polygraphy.tools.script")
    data = group.arg_groups[import_polygraphy("polygraphy.tools.args").DataLoaderArgs]
    if data.is_using_random_data():
        warn(
            "ranges are calibrated with made-up inputs, which says little: give typical ones "
            f"(--{PREFIX}-calibration-inputs, --data-loader-script, --load-inputs)"
        )
    loader = data.add_to_script(script)
    if loader:
        return loader
    script.add_import(imports=["DataLoader"], frm="polygraphy.comparator")
    return tools.inline(tools.safe("DataLoader()"))


def _onnx_loader(group: Any, script: Any) -> Any:
    """The loader of polygraphy's options where they change the model (`--onnx-outputs` ...); else None."""
    arguments = import_polygraphy("polygraphy.tools.args")
    model_type = group.arg_groups[arguments.ModelArgs].model_type
    loader = group.arg_groups[arguments.OnnxLoadArgs]
    if model_type is None or not model_type.is_onnx() or not loader.must_use_onnx_loader():
        return None
    return loader.add_to_script(script)


@functools.cache
def _groups() -> tuple[Any, Any]:
    """The two classes of option groups, made for the polygraphy that is installed."""
    base = import_polygraphy("polygraphy.tools.args.base").BaseRunnerArgs
    import_polygraphy("polygraphy.tools.args")
    import_polygraphy("polygraphy.tools.script")
    available = runner_options()

    class TrtRewriterArgs(base):  # type: ignore[misc, valid-type]
        """TensorRT Rewriter: converting models with trt-rewriter, and running them.

        Depends on:

            - ModelArgs
            - OnnxLoadArgs
            - DataLoaderArgs
        """

        options = available

        def get_name_opt_impl(self) -> tuple[str, str]:
            return "trt-rewriter", PREFIX

        def get_extra_help_text_impl(self) -> str:
            return (
                "The model is converted (a SavedModel, .onnx; with --model-type keras also .keras and .h5, with "
                "--model-type frozen .pb), or is an artifact of trt-rewriter."
            )

        def add_parser_args_impl(self) -> None:
            self.added = add_options(self.group, available)

        def parse_impl(self, args: argparse.Namespace) -> None:
            with one_line_errors():
                check_selected(self.added, args)
            self.values = {o.name: getattr(args, o.name, o.default) for o in available}

        def add_to_script_impl(self, script: Any) -> None:
            add_converted_runner(self, script)

    class SourceArgs(base):  # type: ignore[misc, valid-type]
        """TensorFlow 2 Inference: running the source of a conversion in TensorFlow 2.

        Depends on:

            - ModelArgs
            - TrtRewriterArgs: for its signature, tags, graph inputs and outputs
        """

        def get_name_opt_impl(self) -> tuple[str, str]:
            return "TensorFlow 2", f"{PREFIX}-tf"

        def get_extra_help_text_impl(self) -> str:
            return (
                "The model is the source of a conversion (a SavedModel; with --model-type keras also .keras and .h5, "
                "with --model-type frozen .pb); it runs on the CPU."
            )

        def add_to_script_impl(self, script: Any) -> None:
            add_source_runner(self, TrtRewriterArgs, script)

    return TrtRewriterArgs, SourceArgs
