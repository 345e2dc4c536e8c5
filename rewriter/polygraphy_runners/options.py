"""The options of the plugin: those of `trt-rewriter convert` with a prefix, and what a comparison run adds.

Rules:
    1. `--minimum-segment-size` of `trt-rewriter convert` is `--trt-rewriter-minimum-segment-size` here, with the same
       values and defaults; `--precision-mode` is also `--trt-rewriter-precision`.
    2. Only what differs from its default reaches the generated script.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

from rewriter.polygraphy_runners.execution import BUILD_RULES, EXECUTIONS, PROVIDERS

PREFIX = "trt-rewriter"
#: How the names of the parsed arguments begin.
_DEST = "trt_rewriter_"
#: Builds at run time belong to artifacts: here engines are built before the runs.
_LEFT_OUT = ("--no-build-at-runtime",)
#: Options of `trt-rewriter convert` whose parameter is called otherwise.
_RENAMED = {"graph_inputs": "inputs", "graph_outputs": "outputs"}
#: Values that are lists, written with commas.
_LISTS = (*("targets", "op_denylist", "op_fakelist", "keep_ops", "keep_in_tensorflow"), *("tags", "inputs", "outputs"))
#: Switches that say no: option -> parameter that becomes False.
_NEGATIVE = {"no_calibration": "use_calibration", "no_tensorflow_islands": "tensorflow_islands"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: its flags, what argparse is told of it, and its default."""

    flags: tuple[str, ...]
    keywords: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What it is called in the parsed arguments."""
        return str(self.keywords["dest"])

    @property
    def default(self) -> Any:
        """Its value where it is not given."""
        return self.keywords["default"]

    @property
    def parameter(self) -> str:
        """What `ConvertModel` or `LoadArtifact` calls it."""
        name = self.name.removeprefix(_DEST)
        return _NEGATIVE.get(name) or _RENAMED.get(name, name)


class _Collector:
    """Stands in for an argparse parser, and notes what is added to it."""

    def __init__(self) -> None:
        self.options: list[Option] = []

    def add_argument(self, *flags: str, **keywords: Any) -> None:
        if not flags[0].startswith("-") or flags[0] in _LEFT_OUT:
            return  # the source is polygraphy's own argument
        given = tuple(f"--{PREFIX}-{flag.lstrip('-')}" for flag in flags if flag.startswith("--"))
        if flags[0] == "--precision-mode":
            given = (f"--{PREFIX}-precision", *given)
        if flags[0] == "--backend":
            keywords["choices"] = (*keywords["choices"], "none")
            keywords["help"] += "; none: ask no TensorRT, and take every node to be in an engine"
        switch = keywords.get("action") == "store_true"
        keywords.setdefault("default", False if switch else None)
        keywords["dest"] = _dest(flags[0])
        self.options.append(Option(given, keywords))

    def add_argument_group(self, *_title: str, **_keywords: Any) -> _Collector:
        return self


def _dest(flag: str) -> str:
    return _DEST + flag.lstrip("-").replace("-", "_")


def runner_options() -> tuple[Option, ...]:
    """All options of `--trt-rewriter`."""
    from rewriter.commands.options import add_conversion_options
    from rewriter.commands.precision_options import add_accuracy_options
    from rewriter.commands.source_options import add_source_options

    collector = _Collector()
    add = collector.add_argument
    add("--artifact", metavar="OUT", help="run this artifact instead of converting the model")
    add(
        "--execution",
        choices=EXECUTIONS,
        default="auto",
        help="native: no engine; emulate: what the engines would compute, on the CPU; default auto: engines where "
        "there is a GPU, else emulate",
    )
    add("--provider", choices=PROVIDERS, default="auto", help="where the converted model runs (default auto)")
    add("--strict", action="store_true", help="fail where an engine is not used")
    add(
        "--build",
        choices=BUILD_RULES,
        default="auto",
        help="engines are built for the shapes of the inputs: where they run (auto), on any machine, never",
    )
    add(
        "--shapes",
        action="append",
        metavar="NAME:SHAPE[,SHAPE...]",
        help="shapes that the engines must cover, as image:1x8x8x3,4x8x8x3,8x8x8x3; default: those of the inputs",
    )
    add("--jobs", type=int, metavar="N", help="engines built at the same time, at most (default: as convert has it)")
    parser = cast(argparse.ArgumentParser, collector)
    add_conversion_options(parser)
    add_accuracy_options(parser)
    add_source_options(parser)
    return tuple(collector.options)


def given_values(options: tuple[Option, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """What was said, by the names of `ConvertModel`'s parameters; defaults are left out.

    Args:
        options: as `runner_options` gives them.
        values: the parsed arguments by their names.

    Raises:
        InvalidParameterError: shapes are written otherwise than NAME:DIMxDIM.
    """
    found: dict[str, Any] = {}
    for option in options:
        value = values.get(option.name, option.default)
        if value == option.default or value in ([], None):
            continue
        name = option.parameter
        if name in _NEGATIVE.values():
            found[name] = False
        elif name == "shapes":
            from rewriter.commands.options import parse_shapes

            found[name] = {key: list(shapes) for key, shapes in parse_shapes(value).items()}
        elif name in _LISTS:
            found[name] = _words(value)
        else:
            found[name] = list(value) if isinstance(value, (list, tuple)) else value
    return found


def spelled(parameters: Iterable[str]) -> str:
    """The options that set these parameters, each in all its spellings, for messages."""
    flags = {option.parameter: "/".join(option.flags) for option in runner_options()}
    return ", ".join(flags.get(name, f"--{PREFIX}-{name.replace('_', '-')}") for name in parameters)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
