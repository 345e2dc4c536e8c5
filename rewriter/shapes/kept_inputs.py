"""What an `input_fn` yielded, kept for the next plan and the next `build()`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InvalidParameterError
from rewriter.runtime.inputs import iterate_samples, sample_feeds
from rewriter.source import Signature

#: Larger arrays go to a file, in bytes.
SPILL_BYTES = 1 << 20


class KeptInputs:
    """An `input_fn` that asks the user's only once, whatever that does when it is called again.

    1. The first call iterates over the user's function and keeps copies: small arrays and strings in memory, the others
       in files, which are mapped when they are read again.
    2. Later calls yield what was kept. A first call that did not come to its end keeps nothing.

    Args:
        input_fn: takes nothing and yields inputs (array, tuple or dict).
        signature: what these are bound to.
        folder: an existing folder for the files; the caller removes it.
    """

    def __init__(self, input_fn: Callable[[], Iterable[Any]], signature: Signature, folder: Path) -> None:
        self._input_fn = input_fn
        self._signature = signature
        self._folder = folder
        self._kept: list[dict[str, np.ndarray | Path]] | None = None

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        """The inputs, by public name; do not write to them.

        Raises:
            InputError: one does not fit the signature; the message has its number.
            InvalidParameterError: there are none.
        """
        if self._kept is None:
            yield from self._first()
            return
        for sample in self._kept:
            yield {n: np.load(v, mmap_mode="r") if isinstance(v, Path) else v for n, v in sample.items()}

    def _first(self) -> Iterator[dict[str, np.ndarray]]:
        kept = []
        for feeds in sample_feeds(self._signature, iterate_samples(self._input_fn())):
            sample = {spec.name: feeds[spec.tensor] for spec in self._signature.inputs}
            kept.append({name: self._keep(array) for name, array in sample.items()})
            yield sample
        if not kept:
            raise InvalidParameterError("input_fn yielded no inputs: build() needs at least one")
        self._kept = kept

    def _keep(self, array: np.ndarray) -> np.ndarray | Path:
        if array.nbytes < SPILL_BYTES or array.dtype.hasobject or array.dtype.kind == "V":
            return np.array(array)  # a copy: the user may fill the same buffer again
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".npy", delete=False) as file:
            np.save(file, array, allow_pickle=False)
        return Path(file.name)
