"""Comparisons to show: every kind of output, with the differences that each can have."""

import numpy as np

from rewriter.comparing.comparison import Pair, compare

#: Inputs say how many items a sample has.
SAMPLES = [{"items": np.array(count)} for count in (1, 3)]


def _maps(count):
    x = np.arange(count * 12 * 10 * 4, dtype=np.float32).reshape(count, 12, 10, 4) + 1
    other = x * np.float32(1.0001)
    other[:, 3:6, 2:5] *= np.float32(1.5)
    return x, other


def _scores(count):
    x = np.sin(np.arange(count * 6, dtype=np.float32)).reshape(count, 6)
    return x, x + np.float32(1e-4) * x**2


KINDS = {
    "feature/map:0": _maps,
    "scores": _scores,
    "digit": lambda count: (np.arange(count), np.arange(count)),
    "odd$x$": lambda count: (np.float32([[1, 2, 3]] * count), np.float32([[1, np.nan, 3.01]] * count)),
    "text": lambda count: (np.array(["a", "<b>"], object), np.array([b"a", b"c"], object)),
    "grown": lambda count: (np.zeros((count, 2)), np.zeros((count, 3))),
}


def runner(side, names=tuple(KINDS)):
    """Gives the reference's values (side 0) or others (side 1) for these outputs."""
    return lambda sample: {name: KINDS[name](int(sample["items"]))[side] for name in names}


def comparison(names=tuple(KINDS), *, pairs=None, notes=(), **options):
    """The native run against its emulation, with all pictures."""
    pairs = pairs or [Pair("native", "emulated", 5e-3, {"scores": 1e-5})]
    runners = {"source": runner(0, names), "native": runner(0, names), "emulated": runner(1, names)}
    options = {"top_k": (1, 5), "histograms": True, "heat_maps": True, **options}
    return compare(runners, SAMPLES, pairs, notes=notes, **options)
