"""Nested arguments and results, flattened in the order in which they were written.

TensorFlow's own `tf.nest` sorts dictionaries by key; a signature must keep the order of its author.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Path = tuple["str | int", ...]


def leaves(structure: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields (path, leaf) of dicts, lists, tuples and named tuples, in order of writing; None is a leaf."""
    if isinstance(structure, Mapping):
        for key, value in structure.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(structure, (list, tuple)):
        for index, value in enumerate(structure):
            yield from leaves(value, (*path, index))
    else:
        yield path, structure


def rebuild(structure: Any, replace: Callable[[Any], Any]) -> Any:
    """A copy of `structure` in plain containers, each leaf replaced by `replace(leaf)` in the order of `leaves`."""
    if isinstance(structure, Mapping):
        return {key: rebuild(value, replace) for key, value in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(rebuild(value, replace) for value in structure))
    if isinstance(structure, (list, tuple)):
        return type(structure)(rebuild(value, replace) for value in structure)
    return replace(structure)


def unique(name: str, taken: set[str], separator: str = "_") -> str:
    """`name`, or `name_1`, `name_2` ... where it is taken; the result is added to `taken`."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}{separator}{number}"
    taken.add(candidate)
    return candidate


def name_outputs(structure: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Names the tensors of a result as TensorFlow's signatures do; entries that are None are left out.

    Rules: 1. `names`, one a leaf, where the caller knows them. 2. The key of a dictionary. 3. `output_<index>` for
    the elements of a sequence and `output_0` for a bare tensor. Deeper levels are joined with "_".
    """
    found = [(path, leaf) for path, leaf in leaves(structure) if leaf is not None]
    taken: set[str] = set()
    if names is not None and len(names) == len(found):
        return {unique(name, taken): leaf for name, (_, leaf) in zip(names, found, strict=True)}
    return {unique(_output_name(path), taken): leaf for path, leaf in found}


def _output_name(path: Path) -> str:
    if not path:
        return "output_0"
    head = path[0] if isinstance(path[0], str) else f"output_{path[0]}"
    return "_".join([head, *map(str, path[1:])])
