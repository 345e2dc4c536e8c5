"""Seeded random DAGs for tests and benchmarks of clustering: the three families that partitioners find hard."""

from __future__ import annotations

import random
from collections.abc import Callable

from passes.graph.clustering import Dag


def layered(count: int, unsupported: float, seed: int = 0, width: int = 8) -> Dag:
    """Layers of 1 to `width` nodes; every node reads 1 to 3 nodes of the two layers before its own."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    preds: list[list[int]] = []
    layers: list[range] = []
    while len(preds) < count:
        size = min(rng.randint(1, width), count - len(preds))
        pool = [node for layer in layers[-2:] for node in layer]
        layers.append(range(len(preds), len(preds) + size))
        preds.extend(sorted(rng.sample(pool, min(len(pool), rng.randint(1, 3)))) for _ in range(size))
    return Dag.of(preds, _flags(rng, count, unsupported))


def towers(count: int, unsupported: float, seed: int = 0, branches: int = 16) -> Dag:
    """Parallel chains from one source to one sink."""
    rng = random.Random(seed)  # noqa: S311
    preds: list[list[int]] = [[] if node == 0 else [max(0, node - branches)] for node in range(count - 1)]
    preds.append(list(range(max(0, count - 1 - branches), count - 1)))
    return Dag.of(preds, _flags(rng, count, unsupported))


def chain_skip(count: int, unsupported: float, seed: int = 0) -> Dag:
    """One chain with residual edges over 7 and 60 nodes."""
    rng = random.Random(seed)  # noqa: S311
    preds = []
    for node in range(count):
        sources = {node - 1}
        if node % 7 == 0:
            sources.add(node - 7)
        if node % 60 == 0:
            sources.add(node - 60)
        preds.append(sorted(s for s in sources if s >= 0))
    return Dag.of(preds, _flags(rng, count, unsupported))


#: Name -> builder(count, unsupported, seed).
FAMILIES: dict[str, Callable[[int, float, int], Dag]] = {
    "layered": layered,
    "towers": towers,
    "chain_skip": chain_skip,
}


def _flags(rng: random.Random, count: int, unsupported: float) -> list[bool]:
    return [rng.random() >= unsupported for _ in range(count)]
