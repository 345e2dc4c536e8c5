"""The signatures of one artifact, as TensorFlow's `loaded.signatures` has them: opened with the first look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rewriter.errors import ConverterStateError

if TYPE_CHECKING:
    from rewriter.runtime.function import ConvertedFunction


class Signatures(Mapping[str, "ConvertedFunction"]):
    """Signature key -> function; thread-safe.

    Args:
        own: the function that these belong to.
        names: all keys, the default one first; () where `own` is the only one.
        load: makes the function of another key. What it made is closed together with `own`.
    """

    def __init__(
        self, own: ConvertedFunction, names: Sequence[str] = (), load: Callable[[str], ConvertedFunction] | None = None
    ) -> None:
        self._own = own.signature.name
        self._names = tuple(names) or (self._own,)
        self._load = load
        self._lock = threading.Lock()
        self._closed = False
        self._open: dict[str, ConvertedFunction] = {self._own: own}

    def __getitem__(self, key: str) -> ConvertedFunction:
        if key not in self._names:
            raise KeyError(f"no signature {key!r}; there are: {', '.join(self._names)}")
        with self._lock:
            if key in self._open:
                return self._open[key]
            if self._closed or self._load is None:
                raise ConverterStateError(f"this function is closed: load the artifact again for signature {key!r}")
            self._open[key] = self._load(key)
            return self._open[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<signatures {', '.join(self._names)}>"

    def close(self) -> None:
        """Closes the functions that were opened here; harmless when repeated."""
        with self._lock:
            self._closed = True
            others = [function for name, function in self._open.items() if name != self._own]
            self._open = {name: function for name, function in self._open.items() if name == self._own}
        for function in others:
            function.close()
