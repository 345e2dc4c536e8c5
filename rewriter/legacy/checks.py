"""What the arguments and feeds of TF-TRT's interface for TensorFlow 1 must be."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper

from passes.segments import TensorSpec
from rewriter import params as parameters
from rewriter.converter import Converter
from rewriter.errors import InputError, InvalidParameterError

logger = logging.getLogger(__name__)

#: Arguments of `Converter` that this interface sets itself.
_OWN = ("input_saved_model_dir", "model", "conversion_params")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses what is no argument of `Converter`, and those of its arguments that this interface sets itself.

    Raises:
        InvalidParameterError: there is such a one.
    """
    known = [name for name in inspect.signature(Converter).parameters if name not in _OWN]
    for name in options:
        if name in _OWN:
            raise InvalidParameterError(f"{name} is no option of TrtGraphConverter: use Converter")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]!r}?" if near else ": see TrtGraphConverter and Converter"
            raise InvalidParameterError(f"TrtGraphConverter has no argument {name!r}{hint}")


def batch_limit(size: int | None, dynamic: bool) -> int:
    """`max_batch_size` as `ConversionParams` has it.

    Raises:
        InvalidParameterError: it is no number of at least 1, or static engines need one.
    """
    if size is None and not dynamic:
        raise InvalidParameterError("max_batch_size must be an integer when is_dynamic_op is False, not None")
    number = parameters.check_count("max_batch_size", size) or 1
    if not dynamic or number == 1:
        return number
    logger.warning("max_batch_size=%r is not used: dynamic engines take the batches that they are built for", number)
    return 1


def one_sample(fed: object, names: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """One feed dict by signature name; what is no array becomes one of the input's dtype.

    Raises:
        InputError: it is no dict, a name is no input, or a value makes no array.
    """
    if not isinstance(fed, Mapping):
        raise InputError(f"feed_dict_fn must return a dict of input names and values, not {type(fed).__name__}")
    sample = {}
    for key, value in fed.items():
        text = str(getattr(key, "name", key))
        if text not in names:
            raise InputError(f"feed_dict_fn returned {text!r}, which is no input: inputs are {', '.join(specs)}")
        name = names[text]
        dtype = helper.tensor_dtype_to_np_dtype(specs[name].dtype)
        try:
            sample[name] = value if hasattr(value, "dtype") else np.asarray(value, dtype)
        except (TypeError, ValueError, OverflowError) as error:
            kind = type(value).__name__
            raise InputError(
                f"feed_dict_fn returned for {text!r} a {kind} that makes no array of {dtype}: {error}"
            ) from error
    return sample
