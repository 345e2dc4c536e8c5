"""Protocol buffers' text format, as far as Triton's `config.pbtxt` needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Word(str):
    """A name that is written without quotes: a value of an enum."""

    __slots__ = ()


def message_text(fields: Mapping[str, Any]) -> str:
    """A message as text, a field a line, in the order of `fields`.

    Rules:
        1. A mapping is a message, a list or tuple a repeated field, one entry for each element; empty ones of these
           are left out, an empty mapping is not.
        2. A list of numbers is written in one line: `dims: [ 3, -1 ]`. Where it must be said though it is empty
           (`reshape { shape: [] }`) a `Word("[]")` says it.
        3. `str` is quoted, `Word`, bool and numbers are not. None leaves a field out.

    Raises:
        TypeError: a value of another kind.
    """
    return "".join(f"{line}\n" for line in _lines(fields, ""))


def map_entries(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A `map<string, V>` field: the text format writes it as repeated entries."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(fields: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, (list, tuple)):
            yield from _repeated(name, value, indent)
        else:
            yield from _one(name, value, indent)


def _repeated(name: str, values: Sequence[Any], indent: str) -> Iterator[str]:
    if values and all(isinstance(value, int) for value in values):
        yield f"{indent}{name}: [ {', '.join(_scalar(value) for value in values)} ]"
        return
    for value in values:
        yield from _one(name, value, indent)


def _one(name: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{indent}{name} {{"
        yield from _lines(value, indent + "  ")
        yield f"{indent}}}"
        return
    yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, str):
        return f'"{"".join(_escaped(c) for c in value)}"'
    if isinstance(value, int):
        return str(value)
    raise TypeError(f"no text for a {type(value).__name__}")


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    return char if char.isprintable() else "".join(f"\\{byte:03o}" for byte in char.encode("utf-8"))
