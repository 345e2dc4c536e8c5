"""Sample inputs on which the export is compared with TensorFlow: the user's, or made up until TensorFlow takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.errors import InputError, SourceError
from rewriter.frontend.callee import Argument, Callee, import_tensorflow

#: Sizes tried for unknown dimensions other than the batch, until TensorFlow accepts one.
SIZES = (32, 64, 128, 224, 7, 256, 16, 8, 4, 3, 2, 1, 512, 1024, 4096, 16000)
#: Sizes tried for an unknown first dimension.
BATCHES = (2, 1)
#: Exclusive upper bounds tried for integers: small, for they are often indices into tables.
INTEGER_BOUNDS = (8, 2, 1)
#: Shapes tried for an input of unknown rank.
UNKNOWN_RANK = ((2, 32), (2, 32, 32, 3), (2, 32, 32), (32,), ())
_SEED = 20210
#: Texts for inputs of strings: different lengths and numbers of words, one empty, letters beyond ASCII. What a model
#: makes of made-up strings that are all alike says little of how its dimensions depend on them.
TEXTS = (
    b"to be or not to be, that is the question",
    b"",
    b"a",
    "na\u00efve caf\u00e9 2 b".encode(),
    b"x = 1\nreturn x",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One sample and what TensorFlow makes of it; both by public name."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def evaluate(callee: Callee, inputs: Mapping[str, np.ndarray]) -> Run:
    """Runs TensorFlow on one sample, on the CPU; bfloat16 values are told as float32.

    As a graph, which is what gets exported: run eagerly, some Keras layers compute something else (Resizing rounds its
    result to uint8 when its input is uint8).
    """
    tf = import_tensorflow()
    with tf.device("/CPU:0"):
        tensors = [tf.constant(inputs[a.name], dtype=a.dtype) for a in callee.inputs]
        outputs = tf.function(lambda *given: callee.call(given), autograph=False)(*tensors)
    taken = {name: without_bfloat16(array) for name, array in inputs.items()}
    return Run(taken, {name: without_bfloat16(np.asarray(value.numpy())) for name, value in outputs.items()})


def without_bfloat16(array: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, which is what the export takes and returns in its place."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def with_texts(array: np.ndarray) -> np.ndarray:
    """Other strings in the same shape; what holds none stays as it is."""
    if array.dtype.kind not in "OSU":
        return array
    made = [TEXTS[i % len(TEXTS)] for i in range(array.size)]
    return np.array(made, dtype=object).reshape(array.shape)


def given_runs(callee: Callee, given: Sequence[Any]) -> tuple[Run, ...]:
    """TensorFlow's outputs on the user's samples.

    Raises:
        InputError: a sample does not fit the signature, or TensorFlow refuses it.
    """
    samples = [to_named(callee, sample) for sample in given]
    try:
        return tuple(evaluate(callee, sample) for sample in samples)
    except tensorflow_errors() as error:
        raise InputError(f"TensorFlow refused a given sample of {callee.origin}: {one_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class Plan:
    """How made-up values look: sizes of unknown dimensions and ranges of values."""

    batch: int
    size: int
    bound: int
    unknown_rank: tuple[int, ...]
    uniform: bool = False
    seed: int = _SEED
    #: (input name, axis) -> size, over the rules above.
    override: tuple[tuple[tuple[str, int], int], ...] = ()

    def make(self, arguments: Sequence[Argument]) -> dict[str, np.ndarray]:
        """The sample."""
        random = np.random.default_rng(self.seed)
        return {a.name: self._values(random, a.dtype, self.shape(a)) for a in arguments}

    def shape(self, argument: Argument) -> tuple[int, ...]:
        """The shape that `argument` gets."""
        if argument.shape is None:
            return self.unknown_rank
        sizes = dict(self.override)
        return tuple(
            d if d is not None else sizes.get((argument.name, axis), self.batch if axis == 0 else self.size)
            for axis, d in enumerate(argument.shape)
        )

    def _values(self, random: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        if dtype.name == "string":
            return np.array([b"sample"] * int(np.prod(shape)), dtype=object).reshape(shape)
        kind = np.dtype(dtype.as_numpy_dtype)
        if dtype.is_bool:
            return random.integers(0, 2, shape).astype(kind)
        if dtype.name in ("uint8", "int8"):
            info = np.iinfo(kind)
            return random.integers(info.min, int(info.max) + 1, shape).astype(kind)
        if dtype.is_integer:
            return random.integers(0, self.bound, shape).astype(kind)
        values = random.random(shape) if self.uniform else random.standard_normal(shape)
        if dtype.is_complex:
            values = values + 1j * random.standard_normal(shape)
        return np.asarray(values).astype(kind)


def to_named(callee: Callee, sample: Any) -> dict[str, np.ndarray]:
    """A user's sample (dict by public name, tuple in signature order, or the single input) as arrays by name.

    Raises:
        InputError: names, number, dtype kind or shape do not fit.
    """
    names = [a.name for a in callee.inputs]
    if isinstance(sample, Mapping):
        if set(sample) != set(names):
            raise InputError(f"a sample names the inputs {sorted(sample)}, the signature has {names}")
        values = [sample[name] for name in names]
    else:
        values = list(sample) if isinstance(sample, (tuple, list)) else [sample]
        if len(values) != len(names):
            raise InputError(f"a sample has {len(values)} inputs, the signature has {len(names)}: {names}")
    return {a.name: _fitted(a, value) for a, value in zip(callee.inputs, values, strict=True)}


def _fitted(argument: Argument, value: Any) -> np.ndarray:
    """One given value in the dtype of its input; its shape is checked."""
    dtype = np.dtype(argument.dtype.as_numpy_dtype)
    array = np.asarray(value)
    if argument.dtype.name != "string":
        floats = array.dtype.kind == "f" and argument.dtype.is_floating
        if not (floats or np.can_cast(array.dtype, dtype, "same_kind")):
            raise InputError(f"the sample for {argument.name!r} is {array.dtype}, the signature wants {dtype}")
        array = array.astype(dtype)
    wanted = argument.shape
    if wanted is not None and (
        len(wanted) != array.ndim or any(w not in (None, d) for w, d in zip(wanted, array.shape, strict=True))
    ):
        raise InputError(f"the sample for {argument.name!r} has shape {list(array.shape)}, not {list(wanted)}")
    return array


def first_accepted(callee: Callee) -> tuple[Run, Plan]:
    """The first made-up sample that TensorFlow takes; deterministic.

    Raises:
        SourceError: TensorFlow took none; pass `samples`.
    """
    first: Exception | None = None
    for plan in _plans(callee.inputs):
        try:
            return evaluate(callee, plan.make(callee.inputs)), plan
        except tensorflow_errors() as error:
            first = first or error
    raise SourceError(
        f"no made-up sample input fits {callee.origin} ({one_line(first)}): pass samples=[{{input name: array}}]"
    ) from first


def second_accepted(callee: Callee, plan: Plan, sizes: Mapping[tuple[str, int], int]) -> Run | None:
    """A further made-up sample, with values in [0, 1) and unknown dimensions of `sizes`; else of the first's sizes."""
    further = dataclasses.replace(plan, uniform=True, seed=plan.seed + 1)
    for override in [tuple(sizes.items())] if not sizes else [tuple(sizes.items()), ()]:
        try:
            return evaluate(callee, dataclasses.replace(further, override=override).make(callee.inputs))
        except tensorflow_errors():
            continue
    return None


def _plans(arguments: Sequence[Argument]) -> Iterator[Plan]:
    """All guesses, likeliest first; dimensions that no input leaves open are not varied."""
    known = [a.shape for a in arguments if a.shape is not None]
    batches = BATCHES if any(s and s[0] is None for s in known) else BATCHES[:1]
    sizes = SIZES if any(d is None for s in known for d in s[1:]) else SIZES[:1]
    integers = any(a.dtype.is_integer and a.dtype.name not in ("uint8", "int8") for a in arguments)
    bounds = INTEGER_BOUNDS if integers else INTEGER_BOUNDS[:1]
    ranks = UNKNOWN_RANK if len(known) < len(arguments) else UNKNOWN_RANK[:1]
    for rank in ranks:
        for batch in batches:
            for size in sizes:
                for bound in bounds:
                    yield Plan(batch, size, bound, rank)


def one_line(error: BaseException | str | None) -> str:
    """The first telling line of an error, at most 300 characters."""
    text = str(error or "").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def tensorflow_errors() -> tuple[type[Exception], ...]:
    """What TensorFlow and Keras raise for inputs that they do not take."""
    tf = import_tensorflow()
    return (tf.errors.OpError, ValueError, TypeError)
