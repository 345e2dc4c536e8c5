"""Arguments that may be given for each of several signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rewriter.errors import ConversionError, InvalidParameterError

#: All signatures of the model, as a signature key.
ALL_SIGNATURES = "*"

_Value = TypeVar("_Value")

#: A function that yields inputs, for every signature; or signature key -> one for it; or nothing.
InputFns = Callable[[], Iterable[Any]] | Mapping[str, Callable[[], Iterable[Any]]] | None


def check_keys(key: object) -> tuple[str | None, ...]:
    """The signature keys that were asked for; (None,) for the default one.

    Raises:
        InvalidParameterError: no string, or no sequence of different strings.
    """
    if key is None or isinstance(key, str):
        return (key,)
    if isinstance(key, Sequence) and key and all(isinstance(item, str) for item in key):
        if len(set(key)) < len(key):
            raise InvalidParameterError(f"input_saved_model_signature_key names a signature twice: {list(key)!r}")
        return tuple(key)
    raise InvalidParameterError(
        "input_saved_model_signature_key must be the key of a signature, a list of keys, or '*' for all of them, "
        f"not {key!r}"
    )


def by_signature(name: str, given: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Signature key -> what was given for it; keys that nothing was given for are left out.

    Args:
        name: the argument, for messages.
        given: one value for all of them, or a mapping.
        keys: the signatures there are.

    Raises:
        InvalidParameterError: the mapping names a signature that is not converted.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(keys, given)
    for key in given:
        if key not in keys:
            raise InvalidParameterError(
                f"{name} names the signature {key!r}, which is not converted; converted: {', '.join(keys)}"
            )
    return dict(given)


def chosen(tracks: Mapping[str, _Value], key: str | None) -> _Value:
    """The entry of one signature; the first one for None.

    Raises:
        InvalidParameterError: there is no such signature.
    """
    if key is None:
        return next(iter(tracks.values()))
    if not isinstance(key, str) or key not in tracks:
        raise InvalidParameterError(f"the signature {key!r} is not converted; converted: {', '.join(tracks)}")
    return tracks[key]


@contextlib.contextmanager
def naming(key: str, keys: Collection[object]) -> Iterator[None]:
    """Puts the signature in front of the message of an error, where there are several.

    Args:
        key: the signature at work.
        keys: all of them.
    """
    try:
        yield
    except ConversionError as error:
        if len(keys) > 1:
            error.args = (f"signature {key!r}: {error}", *error.args[1:])
        raise
