"""Which signatures a SavedModel has, without loading it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rewriter.errors import InvalidParameterError, SourceError
from rewriter.frontend import saved_model

_DEFAULT = "serving_default"


def signature_keys(source: Any, tags: tuple[str, ...] | None = None) -> tuple[str | None, ...]:
    """The keys of all signatures, "serving_default" first, the others sorted.

    Args:
        source: a SavedModel directory or a loaded SavedModel.
        tags: the tag set of a directory; see `load_source`.

    Raises:
        InvalidParameterError: it is no SavedModel.
        SourceError: it cannot be read, or has no signature.
        MissingDependencyError: TensorFlow is not installed.
    """
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return _ordered(saved_model.signature_keys(Path(source), tags), str(source))
    if hasattr(source, "signatures"):
        return _ordered(source.signatures, "the loaded SavedModel")
    raise InvalidParameterError(
        "input_saved_model_signature_key='*' asks for all signatures of a SavedModel; this is none"
    )


def _ordered(keys: Iterable[str], origin: str) -> tuple[str | None, ...]:
    found = sorted((key for key in keys if not key.startswith("__")), key=lambda key: (key != _DEFAULT, key))
    if not found:
        raise SourceError(
            f"{origin} has no signature: save it with tf.saved_model.save(model, path, signatures=function)"
        )
    return tuple(found)
