"""From what a user passes to ONNX feeds: binding to the signature, conversion to numpy, checks with clear words."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from passes.segments import TensorSpec
from rewriter.errors import InputError
from rewriter.runtime.native import numpy_dtype
from rewriter.runtime.other_errors import first_line
from rewriter.runtime.strings import stray_surrogate, to_text
from rewriter.source import Signature

__all__ = [
    "bind",
    "check_dtype",
    "check_shape",
    "describe",
    "describe_shape",
    "disagreement",
    "first_line",
    "is_on_device",
    "is_tensorflow",
    "iterate_samples",
    "sample_feeds",
    "to_array",
    "to_device_feeds",
    "to_feeds",
]

_PLAIN = (bool, int, float, complex, str, bytes)
_numpy_dtype = functools.cache(numpy_dtype)  # every call of a converted function asks for the same few
#: DLPack's number for memory of a CUDA device.
_DLPACK_CUDA = 2


def bind(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Gives each input of the signature its value, as a Python function's call does.

    One positional argument may hold all inputs: a dict by name; a tuple in the order of the signature; a list, when
    the signature has several inputs or when one of its elements is an array (other lists are data).

    Returns:
        Public input name -> value, in signature order.

    Raises:
        InputError: too many, missing, unknown or repeated inputs; the message names them.
    """
    names = [spec.name for spec in signature.inputs]
    if len(args) == len(names) and not kwargs and not any(isinstance(value, (Mapping, list, tuple)) for value in args):
        return dict(zip(names, args, strict=True))  # nothing to find out: the way of the hot loop
    given: Mapping[str, Any] = {}
    if len(args) == 1 and isinstance(args[0], Mapping) and (names or not args[0]):
        given, args = args[0], ()
    elif len(args) == 1 and _is_sequence_of_inputs(args[0], len(names)):
        args = tuple(args[0])
    if len(args) > len(names):
        count = "1 input was" if len(args) == 1 else f"{len(args)} inputs were"
        raise InputError(f"{count} given, the signature has {_listed(names)}")
    bound = dict(zip(names, args, strict=False))
    for name, value in (*given.items(), *kwargs.items()):
        if name not in names:
            raise InputError(f"unknown input {name!r}{_similar(name, names)}: the signature has {_listed(names)}")
        if name in bound:
            raise InputError(f"input {name!r} was given twice")
        bound[name] = value
    missing = [spec for spec in signature.inputs if spec.name not in bound]
    if missing:
        wanted = ", ".join(f"{spec.name!r} ({describe(spec)})" for spec in missing)
        raise InputError(f"missing input{'s' if len(missing) > 1 else ''} {wanted}")
    return {name: bound[name] for name in names}


def to_feeds(signature: Signature, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Bound values (see `bind`) as arrays by ONNX input name.

    Raises:
        InputError: a value does not fit; see `to_array`.
    """
    return {spec.tensor: to_array(values[spec.name], spec) for spec in signature.inputs}


def to_device_feeds(signature: Signature, values: Mapping[str, Any]) -> dict[str, Any]:
    """Bound values by ONNX input name for an executor that takes device tensors: those are passed on as they are.

    A device tensor is not looked at here: the executor checks it (`check_dtype`, `check_shape`) when it has its
    address. Everything else becomes an array, as in `to_feeds`. TensorFlow does not say on which stream it computes
    a tensor, so its devices are waited for when an input is a tensor of TensorFlow that lies on the GPU.

    Raises:
        InputError: a value does not fit; see `to_array`.
    """
    feeds: dict[str, Any] = {}
    wait = False
    for spec in signature.inputs:
        value = values[spec.name]
        if _is_tensorflow_on_device(value):
            value = _TensorFlowOnDevice(value)
            wait = True
        feeds[spec.tensor] = value if is_on_device(value) else to_array(value, spec)
    if wait:
        sys.modules["tensorflow"].test.experimental.sync_devices()
    return feeds


def sample_feeds(signature: Signature, samples: Iterable[Any]) -> Iterator[dict[str, np.ndarray]]:
    """Feeds for the items that an `input_fn` yields: each an array, a tuple or list of inputs, or a dict by name.

    Raises:
        InputError: an item does not fit; the message says which one.
    """
    for number, sample in enumerate(samples):
        try:
            yield to_feeds(signature, bind(signature, (sample,), {}))
        except InputError as error:
            raise InputError(f"sample {number}: {error}") from error


def iterate_samples(value: Any) -> Iterator[Any]:
    """An iterator over what one call of an `input_fn` returned.

    Raises:
        InputError: it is nothing that can be iterated over (None, where a `yield` is missing), or one input instead
            of a series of them (a dict, a text).
    """
    if value is None:
        raise InputError("input_fn returned None: it must yield inputs (is a `yield` missing?)")
    kind = type(value).__name__
    if isinstance(value, (Mapping, str, bytes)):
        raise InputError(f"input_fn returned a {kind}: it must yield inputs, so yield it or return it in a list")
    try:
        return iter(value)
    except TypeError as error:
        raise InputError(f"input_fn returned a {kind}: it must yield inputs (is a `yield` missing?)") from error


def to_array(value: Any, spec: TensorSpec) -> np.ndarray:
    """One input as an array, without a copy where it already lies in CPU memory.

    Takes numpy arrays, tensors (TensorFlow, or anything with `__array__` or DLPack), and Python numbers, strings and
    nested lists of them. Only the latter are converted to the wanted dtype, and only when no value changes its kind
    or overflows.

    Raises:
        InputError: wrong dtype, rank or static dimension, a tensor in the memory of a GPU (but TensorFlow's are
            copied), or nothing that an array can be made of.
    """
    if type(value) is np.ndarray and value.dtype.kind not in "SUO" and value.dtype.isnative:
        array = value
    elif isinstance(value, (*_PLAIN, list, tuple)) and not isinstance(value, np.generic):
        array = _from_python(value, spec)
    else:
        array = _from_tensor(value, spec)
    check_dtype(array.dtype, spec)
    check_shape(array.shape, spec)
    return array


def check_dtype(dtype: np.dtype[Any], spec: TensorSpec) -> None:
    """Refuses a dtype that is not that of the signature; any dtype that numpy keeps texts in is one of strings.

    Raises:
        InputError: it names the input and what is expected.
    """
    wanted = _numpy_dtype(spec.dtype)
    if dtype == wanted or (wanted.kind == "O" and dtype.kind in "OU"):
        return
    raise InputError(
        f"input {spec.name!r} has dtype {dtype.name}, expected {_dtype_name(spec)}: convert it first, dtypes are never "
        "changed silently"
    )


def check_shape(shape: Sequence[int], spec: TensorSpec) -> None:
    """Refuses a shape whose rank, or a fixed dimension of it, is not that of the signature.

    Raises:
        InputError: it names the input, the dimension and what is expected.
    """
    if spec.shape is None:
        return
    if len(shape) != len(spec.shape):
        raise InputError(
            f"input {spec.name!r} has shape {list(shape)}, expected rank {len(spec.shape)}: {describe_shape(spec)}"
        )
    for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if size != wanted and isinstance(wanted, int):
            raise InputError(
                f"input {spec.name!r} has shape {list(shape)}, expected {describe_shape(spec)}: dimension {axis} "
                f"must be {wanted}"
            )


def disagreement(signature: Signature, shapes: Mapping[str, Sequence[int] | None]) -> str:
    """Which dimension of the signature has two sizes, for people; "" when every one has one.

    This alone is no reason to refuse inputs: ONNX models claim names that nothing proves, and one of two tensors that
    TensorFlow wants equal may have the size 1, which is repeated. When the model fails it is the likely cause.

    Args:
        signature: the inputs; a name stands for one size in all of them.
        shapes: public input name -> shape; those that are missing, None, or of another rank say nothing.
    """
    found: dict[str, tuple[int, str]] = {}
    for spec in signature.inputs:
        shape = shapes.get(spec.name)
        if shape is None or spec.shape is None or len(shape) != len(spec.shape):
            continue
        for dim, size in zip(spec.shape, shape, strict=True):
            if not isinstance(dim, str):
                continue
            first, owner = found.setdefault(dim, (int(size), spec.name))
            if first != size:
                return f"dimension {dim!r} is {first} in input {owner!r}, but {size} in input {spec.name!r}"
    return ""


def is_on_device(value: Any) -> bool:
    """True for a tensor in the memory of a CUDA device, by DLPack or `__cuda_array_interface__`.

    Tensors of TensorFlow are none, wherever they lie: their library copies them to the host when it is asked.
    """
    if isinstance(value, (np.ndarray, np.generic, *_PLAIN, list, tuple)) or is_tensorflow(value):
        return False
    # DLPack is asked first: PyTorch's tensors that require a gradient raise at the mere look at the other one.
    if not hasattr(value, "__dlpack_device__"):
        return hasattr(value, "__cuda_array_interface__")
    try:
        return int(value.__dlpack_device__()[0]) == _DLPACK_CUDA
    except (TypeError, ValueError, RuntimeError, BufferError):  # it has no DLPack after all: reading it says why
        return False


def is_tensorflow(value: Any) -> bool:
    """True for a tensor of TensorFlow; TensorFlow is not imported for the question."""
    module = sys.modules.get("tensorflow")
    kind = getattr(module, "Tensor", None)
    return kind is not None and isinstance(value, kind)


def describe(spec: TensorSpec) -> str:
    """Dtype and shape for people: `float32 [batch, 8, 8]`."""
    return f"{_dtype_name(spec)} {describe_shape(spec)}"


def describe_shape(spec: TensorSpec) -> str:
    """The shape for people: `[batch, ?, 8]`."""
    if spec.shape is None:
        return "of any shape"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in spec.shape) + "]"


def _is_sequence_of_inputs(value: Any, inputs: int) -> bool:
    if isinstance(value, list):
        return inputs != 1 or any(not isinstance(item, (*_PLAIN, list, tuple)) for item in value)
    return isinstance(value, tuple)


def _from_python(value: Any, spec: TensorSpec) -> np.ndarray:
    """Numbers, strings and nested lists, converted when each value keeps its kind and fits."""
    dtype = numpy_dtype(spec.dtype)
    try:
        natural = np.asarray(value)
    except Exception as error:  # elements may be foreign objects, which raise what they like
        raise InputError(
            f"input {spec.name!r}: no array can be made of this {type(value).__name__}: {first_line(error)}"
        ) from error
    if dtype.kind == "O":
        if natural.size and natural.dtype.kind not in "SU":
            raise InputError(f"input {spec.name!r} holds {natural.dtype.name} values, expected strings")
        return _decoded(np.asarray(value, dtype=object), spec)
    if natural.size and not _keeps_kind(natural, dtype):
        raise InputError(
            f"input {spec.name!r} holds {natural.dtype.name} values that do not fit {dtype.name}: expected "
            f"{describe(spec)}"
        )
    return natural.astype(dtype)


def _keeps_kind(natural: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """True when Python values may become `dtype`: bool < int < float < complex, integers within range."""
    order = "biufcV"
    kind = dtype.kind if dtype.kind in "biufc" else "f"  # bfloat16 and float8 of ml_dtypes have the kind "V"
    if natural.dtype.kind not in order:
        return False
    if natural.dtype.kind in "iu" and kind in "iu":
        limits = np.iinfo(dtype)
        return int(natural.min()) >= limits.min and int(natural.max()) <= limits.max
    if natural.dtype.kind in "iu" and kind == "b":
        return False
    return order.index(natural.dtype.kind) <= order.index(kind)


def _from_tensor(value: Any, spec: TensorSpec) -> np.ndarray:
    """An array over the memory of a tensor of another library."""
    if is_on_device(value):
        raise InputError(
            f"input {spec.name!r} lies on the GPU, but is read on the CPU here: pass a host array ({describe(spec)})"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"input {spec.name!r} is a masked array: fill it first (.filled(...))")
    try:
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
        elif hasattr(value, "__array__"):
            array = np.asarray(value.__array__())
        elif hasattr(value, "__dlpack__"):
            array = np.from_dlpack(value)
        else:
            raise InputError(
                f"input {spec.name!r} is a {type(value).__name__}, expected an array or a tensor: {describe(spec)}"
            )
    except InputError:
        raise
    except Exception as error:  # a foreign `__array__` raises what it likes
        raise InputError(
            f"input {spec.name!r}: this {type(value).__name__} cannot be read as an array: {first_line(error)}"
        ) from error
    if array.dtype.kind in "SO" and _numpy_dtype(spec.dtype).kind == "O":
        return _decoded(array, spec)
    if array.dtype.kind == "U":
        _check_text(array, spec)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _decoded(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Bytes (TensorFlow's strings) as text: ONNX Runtime looks bytes up wrongly, without an error.

    It also makes texts of whatever else an object array holds, None included: only texts and bytes are let pass. Bytes
    that are no text (an encoded image) become lone surrogates, see `rewriter.runtime.strings`: islands of TensorFlow
    take them as they were, ONNX Runtime refuses them.
    """
    strange = next((item for item in array.reshape(-1).tolist() if not isinstance(item, (str, bytes))), "")
    if not isinstance(strange, str):
        raise InputError(
            f"input {spec.name!r} holds {strange!r:.60} ({type(strange).__name__}), expected strings: convert it first"
        )
    _check_text(array, spec)
    return to_text(array)


def _check_text(array: np.ndarray, spec: TensorSpec) -> None:
    """Refuses what is neither text nor bytes.

    Raises:
        InputError: it shows the string.
    """
    stray = stray_surrogate(array)
    if stray is not None:
        raise InputError(
            f"input {spec.name!r} holds {stray!r:.60}, with half of a surrogate pair, which is no text: decode the "
            "string anew, or pass bytes"
        )


class _TensorFlowOnDevice:
    """A tensor of TensorFlow on the GPU, exported by TensorFlow's own DLPack.

    The exported memory belongs to TensorFlow, which frees it when the last of its users is gone.
    """

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape)

    def __dlpack__(self, **options: Any) -> Any:
        """The capsule; TensorFlow has been waited for, so the stream among the options does not matter."""
        return sys.modules["tensorflow"].experimental.dlpack.to_dlpack(self._tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, int(self._tensor.device.rpartition(":")[2])


def _is_tensorflow_on_device(value: Any) -> bool:
    """True for an eager tensor of TensorFlow on a GPU; strings are never there, for all that TensorFlow may say."""
    return is_tensorflow(value) and "GPU:" in str(getattr(value, "device", "")) and value.dtype.name != "string"


def _dtype_name(spec: TensorSpec) -> str:
    """The dtype for people; numpy's word for strings is "object"."""
    dtype = numpy_dtype(spec.dtype)
    return "string" if dtype.kind == "O" else dtype.name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) if names else "no inputs"


def _similar(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(str(name), names, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
