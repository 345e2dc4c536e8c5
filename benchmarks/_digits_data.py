"""Images for a classifier that has something to lose: scikit-learn's digits, moved, turned, tinted and noisy.

`sklearn.datasets.load_digits` ships 1797 handwritten digits of 8 x 8 pixels. A part of the *originals* is held out
for testing and another for calibration, so that no picture of a test digit, however moved, was ever seen; then each
original is drawn many times over, 32 x 32 x 3, so that ten thousand test images resolve a hundredth of a point.
"""

from __future__ import annotations

import dataclasses

import numpy as np

#: Side of the images, pixels.
SIDE = 32
CHANNELS = 3
CLASSES = 10
#: Originals held out for the test set, and of the rest for calibration.
TEST_ORIGINALS = 500
CALIBRATION_ORIGINALS = 100
#: Pictures drawn of each original.
TEST_COPIES = 20
CALIBRATION_COPIES = 5
TRAINING_COPIES = 24
#: Standard deviation of the pixel noise; sized so that a good small network errs on a few percent.
NOISE = 0.26
SEED = 7


class MissingDataError(RuntimeError):
    """scikit-learn is not installed; the message says how to get it."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images, uint8 [N, 32, 32, 3], with their classes, int64 [N], in three sets of unrelated originals."""

    train_images: np.ndarray
    train_labels: np.ndarray
    calibration_images: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def as_input(images: np.ndarray) -> np.ndarray:
    """What the networks take: float32 in 0..1."""
    return images.astype(np.float32) / np.float32(255)


def make_digits() -> Digits:
    """Draws all three sets; every call gives the same bytes.

    Raises:
        MissingDataError: scikit-learn is not installed.
    """
    originals, labels = _originals()
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(originals))
    test, calibration, train = np.split(order, [TEST_ORIGINALS, TEST_ORIGINALS + CALIBRATION_ORIGINALS])

    def draw(chosen: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
        repeated = np.tile(chosen, copies)
        return draw_all(originals[repeated], rng), labels[repeated]

    test_images, test_labels = draw(test, TEST_COPIES)
    calibration_images, _ = draw(calibration, CALIBRATION_COPIES)
    train_images, train_labels = draw(train, TRAINING_COPIES)
    return Digits(train_images, train_labels, calibration_images, test_images, test_labels)


def draw_all(originals: np.ndarray, rng: np.random.Generator, chunk: int = 2000) -> np.ndarray:
    """One picture of each original, uint8 [N, 32, 32, 3]; in chunks, to keep memory small."""
    parts = [_draw(originals[start : start + chunk], rng) for start in range(0, len(originals), chunk)]
    return np.concatenate(parts)


def _draw(originals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves, turns, scales and tints digits [N, 8, 8] in 0..1, and adds noise."""
    count = len(originals)
    ink = _sample(originals, *_source_positions(count, rng))[..., None]
    background = rng.uniform(0.0, 0.45, (count, 1, 1, CHANNELS))
    # The digit is brighter than the ground in every channel, by an amount of its own in each.
    contrast = rng.uniform(0.3, 0.55, (count, 1, 1, CHANNELS))
    noise = rng.normal(0.0, NOISE, (count, SIDE, SIDE, CHANNELS))
    picture = background + contrast * ink + noise
    return np.clip(np.rint(255 * picture), 0, 255).astype(np.uint8)


def _source_positions(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Row and column in the 8 x 8 original of every pixel of every picture, [N, 32, 32] each."""
    angle = rng.uniform(-0.3, 0.3, (count, 1, 1))
    size = rng.uniform(0.8, 1.15, (count, 1, 1))
    shift = rng.uniform(-1.0, 1.0, (2, count, 1, 1))
    axis = (np.arange(SIDE) + 0.5) * (8 / SIDE) - 4
    rows, columns = axis[None, :, None], axis[None, None, :]
    turned_rows = (np.cos(angle) * rows - np.sin(angle) * columns) / size
    turned_columns = (np.sin(angle) * rows + np.cos(angle) * columns) / size
    return turned_rows + shift[0] + 3.5, turned_columns + shift[1] + 3.5


def _sample(originals: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of [N, 8, 8] at positions [N, H, W]; zero outside."""
    padded = np.pad(originals, ((0, 0), (1, 2), (1, 2)))
    rows, columns = np.clip(rows + 1, 0, 8.999), np.clip(columns + 1, 0, 8.999)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = rows - top, columns - left
    number = np.arange(len(originals))[:, None, None]
    upper = padded[number, top, left] * (1 - right) + padded[number, top, left + 1] * right
    lower = padded[number, top + 1, left] * (1 - right) + padded[number, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def _originals() -> tuple[np.ndarray, np.ndarray]:
    """Digits [1797, 8, 8] in 0..1 and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDataError("the digits come with scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    return data.images / 16.0, data.target.astype(np.int64)
