"""A small trained TensorFlow model and its test set, for demonstrations and tests (made by `make_digits.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parent


def digits_path() -> Path:
    """The SavedModel of a classifier of handwritten digits.

    Its signature `serving_default` maps image, float32 [batch, 8, 8] with values 0..16, to probabilities, float32
    [batch, 10], and digit, int64 [batch]. One of its operators, a bitwise XOR, is none that TensorRT takes.
    """
    return _FOLDER / "digits"


def load_digits_test() -> tuple[np.ndarray, np.ndarray]:
    """The images that the classifier was not trained on.

    Returns:
        Images, float32 [360, 8, 8] with whole values 0..16, and their digits, int64 [360].
    """
    with np.load(_FOLDER / "digits_test.npz", allow_pickle=False) as file:
        return file["images"].astype(np.float32), file["labels"].astype(np.int64)
