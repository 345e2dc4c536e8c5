"""TF-TRT's environment variables: what each one that is set means here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewriter.denylists import describe, translate
from rewriter.errors import InvalidParameterError

PREFIX = "TF_TRT_"
DENYLIST = "TF_TRT_OP_DENYLIST"
FAKELIST = "TF_TRT_OP_FAKELIST"
REPORT = "TF_TRT_SHOW_DETAILED_REPORT"
PICTURE = "TF_TRT_EXPORT_GRAPH_VIZ_PATH"
MAX_ENGINES = "TF_TRT_MAX_ALLOWED_ENGINES"
ALLOW_NATIVE = "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION"
ABORT = "TF_TRT_ABORT_CUDA_ENGINE_BUILD"
EXPERIMENTAL = "TF_TRT_EXPERIMENTAL_FEATURES"

#: `Switches.report` for the report on the terminal alone.
PRINTED = "1"

_WORDS = {"1": True, "true": True, "0": False, "false": False}
#: Variables of TF-TRT that have nothing to act on here, and why.
_WITHOUT_MEANING = {
    "TF_TRT_FIXED_ALGORITHM_ID": "TensorRT-RTX has no algorithm selector that a tactic could be forced with",
    "TF_TRT_FORCE_BILINEAR_RESIZE_WAR": "resizing is exported to ONNX and checked against TensorFlow",
    "TF_TRT_BENCHMARK_EARLY_QUIT": "it belongs to TensorFlow's benchmark programs",
    "TF_TRT_TIMING_CACHE_DIR": "there is no timing cache: engine_cache_dir keeps whole engines",
}
_FEATURES = {
    "disable_graph_freezing": "weights are always frozen into the artifact",
    "remove_native_segments": "native segments stay, for they are what runs without an engine",
}


@dataclasses.dataclass(frozen=True)
class Switches:
    """What TF-TRT's environment variables ask for; the defaults are those of an empty environment.

    Attributes:
        op_denylist: ONNX operators that stay native: the translated names, and as they are those that the table of
            TensorFlow's operators does not hold.
        op_fakelist: ONNX operators that are cut as if TensorRT took them, likewise.
        report: None for no non-conversion report, "1" for one on the terminal, else the CSV file to write besides.
        graph_picture: the file to draw the converted graph to; None for none.
        max_engines: how many engines there may be; None, also the default, for any number.
        allow_native: False makes a segment that would run natively an error, at every place.
        abort_builds: True makes every engine build fail, to see what happens then.
        translations: variable -> TensorFlow's operator names in it -> the ONNX operators taken for each.
        notes: one line for each variable that is set: what it does here, or why it does nothing.
    """

    op_denylist: tuple[str, ...] = ()
    op_fakelist: tuple[str, ...] = ()
    report: str | None = None
    graph_picture: Path | None = None
    max_engines: int | None = None
    allow_native: bool = True
    abort_builds: bool = False
    translations: Mapping[str, Mapping[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Switches:
        """Reads the variables whose names begin with TF_TRT_.

        1. An empty value counts as not set, and is told.
        2. Names of operators are TensorFlow's; they are separated by commas.
        3. Switches are "1", "true", "0" or "false", in any case.
        4. A variable that means nothing here, or that nobody knows, is told and does nothing.

        Args:
            environ: variable -> value; default: the environment of this process.

        Raises:
            InvalidParameterError: a value is not allowed; the message names the variable and what is.
        """
        found = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        notes: list[str] = []
        for name in sorted(variable for variable in found if variable.startswith(PREFIX)):
            value = found[name].strip()
            if not value:
                notes.append(f"{name} is empty, which counts as not set")
            elif name in _READERS:
                fields, note = _READERS[name](name, value)
                for field, content in fields.items():
                    both = isinstance(content, dict) and field in values
                    values[field] = {**values[field], **content} if both else content
                notes.append(f"{name}={value}: {note}")
            elif name in _WITHOUT_MEANING:
                notes.append(f"{name} has no meaning here: {_WITHOUT_MEANING[name]}")
            else:
                notes.append(f"{name} is not known here and does nothing")
        return cls(**values, notes=tuple(notes))


#: (name, value) -> (fields of `Switches`, what they do).
_Reader = Callable[[str, str], tuple[dict[str, Any], str]]


def _items(value: str) -> list[str]:
    return list(dict.fromkeys(item.strip() for item in value.split(",") if item.strip()))


def _operators(field: str, effect: str) -> _Reader:
    def read(name: str, value: str) -> tuple[dict[str, Any], str]:
        words = translate(_items(value))
        operators = tuple(dict.fromkeys(operator for known in words.values() for operator in known))
        if not words:
            return {}, "it is an empty list, so it does nothing"
        return {field: operators, "translations": {name: words}}, f"{effect}: {describe(words)}"

    return read


def _report(_: str, value: str) -> tuple[dict[str, Any], str]:
    """A number or a switch for the terminal, anything else is a file."""
    word = _WORDS.get(value.lower())
    number = _integer(value)
    if word is None and number is not None:
        word = number >= 1
    if word is None:
        return {"report": value}, "the non-conversion report is printed, and written to this file as CSV"
    return {"report": PRINTED if word else None}, f"the non-conversion report is {'' if word else 'not '}printed"


def _picture(_: str, value: str) -> tuple[dict[str, Any], str]:
    kind = "an SVG picture" if value.lower().endswith(".svg") else "a DOT file"
    return {"graph_picture": Path(value)}, f"the converted graph is drawn to it as {kind}"


def _max_engines(name: str, value: str) -> tuple[dict[str, Any], str]:
    number = _integer(value)
    if number is None:
        raise InvalidParameterError(f"{name} must be an integer (0 and less: any number of engines), not {value!r}")
    if number <= 0:
        return {"max_engines": None}, "any number of engines, which is the default here"
    return {"max_engines": number}, f"of more segments the {number} largest become engines"


def _switch(field: str, on: str, off: str) -> _Reader:
    def read(name: str, value: str) -> tuple[dict[str, Any], str]:
        word = _WORDS.get(value.lower())
        if word is None:
            raise InvalidParameterError(f"{name} must be one of {', '.join(_WORDS)}, not {value!r}")
        return {field: word}, on if word else off

    return read


def _experimental(_: str, value: str) -> tuple[dict[str, Any], str]:
    """Whole words, as TF-TRT's Python side compared them."""
    told = [f"{item}: {_FEATURES.get(item, 'not known here')}" for item in _items(value)]
    return {}, f"does nothing here ({'; '.join(told)})"


def _integer(value: str) -> int | None:
    try:
        return int(value)
    except ValueError:
        return None


_READERS: Mapping[str, _Reader] = {
    DENYLIST: _operators("op_denylist", "stay native"),
    FAKELIST: _operators("op_fakelist", "cut as if TensorRT took them; segments with such nodes never get an engine"),
    REPORT: _report,
    PICTURE: _picture,
    MAX_ENGINES: _max_engines,
    ALLOW_NATIVE: _switch(
        "allow_native",
        "segments may run natively, which is the default",
        "a segment that would run natively is an error",
    ),
    ABORT: _switch("abort_builds", "every engine build fails", "engines are built, which is the default"),
    EXPERIMENTAL: _experimental,
}
