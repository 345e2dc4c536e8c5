"""tf.Module objects: their tf.functions are what can be converted, each by its name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.callee import Callee, from_function


def is_module(source: Any) -> bool:
    """True for a tf.Module; imports nothing."""
    return any(base.__name__ == "Module" and base.__module__.startswith("tensorflow.") for base in type(source).__mro__)


def from_module(module: Any, signature_key: str | None, samples: Sequence[Any] | None) -> Callee:
    """A tf.function of a module, which stays the function's owner.

    Args:
        module: the tf.Module.
        signature_key: the function's attribute name; None for "serving_default", `__call__`, or the only one.
        samples: trace a function without an input_signature.

    Raises:
        SourceError: there is no such function, or several and none of them is the default; the message lists them.
    """
    origin = f"tf.Module {type(module).__name__}"
    functions = _functions(module)
    listed = ", ".join(sorted(functions)) or "none"
    key = signature_key or next((name for name in ("serving_default", "__call__") if name in functions), None)
    if key is None and len(functions) == 1:
        key = next(iter(functions))
    if key is None:
        advice = "name one with signature_key" if functions else "decorate its method with tf.function"
        raise SourceError(f"{origin} has no tf.function that stands out: {advice}; it has: {listed}")
    if key not in functions:
        raise SourceError(f"{origin} has no tf.function {key!r}; it has: {listed}")
    found = from_function(functions[key], samples)
    return dataclasses.replace(found, origin=f"{origin}, function {key}", name=key, owner=(module, found.owner))


def _functions(module: Any) -> Mapping[str, Any]:
    """The tf.functions among the attributes of a module, by name; properties are not run."""
    found = {}
    for name in dir(module):
        static = inspect.getattr_static(module, name, None)
        if hasattr(type(static), "get_concrete_function"):
            found[name] = getattr(module, name)
    return found
