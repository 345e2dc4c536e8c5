"""A converted model as a function of TensorFlow, for graphs and input pipelines."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError
from rewriter.runtime.inputs import bind
from rewriter.runtime.native import numpy_dtype
from rewriter.runtime.other_errors import import_failure
from rewriter.runtime.strings import to_bytes
from rewriter.source import Signature

if TYPE_CHECKING:
    from rewriter.runtime.function import ConvertedFunction

_NO_GRADIENT = (
    "a converted model has no gradient: call it outside of the tf.GradientTape, or on tf.stop_gradient(its inputs)"
)


def as_tf_function(function: ConvertedFunction) -> Any:
    """See `ConvertedFunction.as_tf_function`.

    Raises:
        MissingDependencyError: TensorFlow is not installed.
        InvalidParameterError: TensorFlow lacks the dtype of an input or output.
    """
    tf = _import_tensorflow()
    signature = function.signature
    inputs = [_tensor_spec(tf, spec) for spec in signature.inputs]
    outputs = [_tensor_spec(tf, spec) for spec in signature.outputs]

    def compute(*arrays: Any) -> list[Any]:
        found = function.run(tuple(arrays))
        return [_encoded(found[spec.name]) for spec in signature.outputs]

    def call(*args: Any, **kwargs: Any) -> dict[str, Any]:
        values = (*args, *(kwargs[name] for name in names if name in kwargs))
        results = tf.numpy_function(compute, values, [spec.dtype for spec in outputs], name="converted_function")
        results = results if isinstance(results, (list, tuple)) else [results] if outputs else []
        for result, spec in zip(results, outputs, strict=True):
            result.set_shape(spec.shape)
        return {spec.name: _guarded(tf, value) for spec, value in zip(signature.outputs, results, strict=True)}

    # TensorFlow binds arguments by the names of the Python function: here those of the signature.
    names = _parameter_names([spec.name for spec in signature.inputs])
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    call.__name__ = "converted_function"
    return _taking_structures(tf, tf.function(call, input_signature=inputs, autograph=False), signature, names)


def _taking_structures(tf: Any, function: Any, signature: Signature, parameters: list[str]) -> Any:
    """The same `tf.function`, which also takes one dict, tuple or list of all inputs, as a converted function does.

    An input signature has one structure, so the arguments are put in order before TensorFlow looks at them. The class
    is derived from TensorFlow's own, to be a `tf.function` in every other respect.
    """
    kind = type(function)
    public = {spec.name for spec in signature.inputs}
    names = dict(zip(parameters, (spec.name for spec in signature.inputs), strict=True))

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key if key in public else names.get(key, key): value for key, value in values.items()}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], (Mapping, tuple, list)):
            first = named(args[0]) if isinstance(args[0], Mapping) else args[0]
            args, kwargs = tuple(bind(signature, (first,), named(kwargs)).values()), {}
        return kind.__call__(self, *args, **kwargs)

    plain = tf.autograph.experimental.do_not_convert(call)
    function.__class__ = type(kind.__name__, (kind,), {"__call__": plain, "__doc__": kind.__doc__})
    return function


def _guarded(tf: Any, value: Any) -> Any:
    """A value whose gradient is an error; without this TensorFlow would take it for zero, without a word."""
    return tf.raw_ops.PreventGradient(input=value, message=_NO_GRADIENT) if value.dtype.is_floating else value


def _encoded(array: np.ndarray) -> np.ndarray:
    """TensorFlow's strings are bytes."""
    return array if array.dtype.kind != "O" else to_bytes(array)


def _tensor_spec(tf: Any, spec: TensorSpec) -> Any:
    """The `tf.TensorSpec`; dimensions that are not fixed are None."""
    name = "string" if spec.dtype == TensorProto.STRING else numpy_dtype(spec.dtype).name
    try:
        dtype = tf.as_dtype(name)
    except TypeError as error:
        raise InvalidParameterError(f"{spec.name!r} has the dtype {name}, which TensorFlow has not: {error}") from error
    shape = None if spec.shape is None else [dim if isinstance(dim, int) else None for dim in spec.shape]
    return tf.TensorSpec(shape, dtype, name=re.sub(r"\W", "_", spec.name) or None)


def _parameter_names(names: list[str]) -> list[str]:
    """The inputs' names as Python can spell them: other characters become "_"; no two are alike."""
    found: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name)
        word = word if word.isidentifier() and not keyword.iskeyword(word) else f"_{word}"
        while word in found:
            word += "_"
        found.append(word)
    return found


def _import_tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise import_failure(error, "tensorflow", "TensorFlow", "tf", "as_tf_function") from error
    return tf
