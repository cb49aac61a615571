"""Scenes: images of several handwritten digits on a 2 x 2 grid.

The digits are the 1797 real 8 x 8 ones of scikit-learn's `load_digits`. They are divided once, by
class and with a fixed seed, into train, validation and test digits, so that no test scene shows a
digit that training has seen.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

GRID = 2  # cells a side
CELLS = GRID * GRID  # in reading order: top left, top right, bottom left, bottom right
CELL_PIXELS = 16
IMAGE_PIXELS = GRID * CELL_PIXELS
EMPTY = -1  # the label of a cell without a digit
SPLITS = ("train", "validation", "test")

_SPLIT_SEED = 2026
_HELD_OUT = {"validation": 0.10, "test": 0.15}  # share of each class; the rest is for training
_DIGIT_PIXELS = 8
_MAGNIFICATION = 1.75  # 8 pixels become 14 of a cell's 16, which leaves room for shifts
_EMPTY_PROBABILITY = 0.15


@dataclasses.dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
      images: float32 [n, 8, 8], ink in [0, 1].
      labels: int64 [n], 0 to 9.
      indices: int64 [n], positions in scikit-learn's `load_digits`.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Rendered scenes.

    Attributes:
      images: uint8 [n, 32, 32, 3], RGB.
      cells: int64 [n, 4], the digit of each cell in reading order, `EMPTY` (-1) where there is
        none.
    """

    images: np.ndarray
    cells: np.ndarray


@dataclasses.dataclass(frozen=True)
class Variation:
    """How far a digit may be moved and bent; each amount is drawn uniformly within plus or minus
    the bound.

    Attributes:
      shift: pixels of the scene, both directions.
      scale: relative change of size.
      stretch: relative change of width against height.
      rotation: degrees.
      shear: horizontal pixels per vertical pixel.
      noise: standard deviation of pixel noise, in parts of full ink.
    """

    shift: float = 1.0
    scale: float = 0.08
    stretch: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    noise: float = 0.0


# What validation and test scenes show, and what training adds so that few digits teach much.
PLAIN = Variation()
AUGMENTED = Variation(shift=1.6, scale=0.14, stretch=0.10, rotation=12.0, shear=0.15, noise=0.04)


@functools.lru_cache(maxsize=1)
def _assignment() -> dict[str, Digits]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, _DIGIT_PIXELS, _DIGIT_PIXELS) / 16.0).astype(np.float32)
    rng = np.random.default_rng(_SPLIT_SEED)
    members: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for label in range(10):
        order = rng.permutation(np.flatnonzero(labels == label))
        start = 0
        for name, share in _HELD_OUT.items():
            stop = start + round(share * order.size)
            members[name].append(order[start:stop])
            start = stop
        members["train"].append(order[start:])
    chosen = {name: np.sort(np.concatenate(parts)) for name, parts in members.items()}
    return {name: Digits(images[index], labels[index], index) for name, index in chosen.items()}


def digits(split: str) -> Digits:
    """Returns the digits of one split; no two splits share a digit.

    Raises:
      ValueError: `split` is not "train", "validation" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    return _assignment()[split]


def _uniform(rng: np.random.Generator, bound: float, count: int) -> np.ndarray:
    return rng.uniform(-bound, bound, count).astype(np.float32)


def _warp(images: np.ndarray, variation: Variation, rng: np.random.Generator) -> np.ndarray:
    """Draws each 8 x 8 digit into a cell: float32 [n, 8, 8] -> float32 [n, 16, 16] (affine map,
    bilinear samples)."""
    count = images.shape[0]
    angle = np.deg2rad(_uniform(rng, variation.rotation, count))
    scale = _MAGNIFICATION * (1 + _uniform(rng, variation.scale, count))
    stretch = 1 + _uniform(rng, variation.stretch, count)
    shear = _uniform(rng, variation.shear, count)
    shift_y, shift_x = _uniform(rng, variation.shift, count), _uniform(rng, variation.shift, count)

    centred = np.arange(CELL_PIXELS, dtype=np.float32) - (CELL_PIXELS - 1) / 2
    y = centred[None, :, None] - shift_y[:, None, None]
    x = centred[None, None, :] - shift_x[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    # Where in the digit does this pixel come from? (undo rotation, shear, stretch and size, in
    # this order)
    from_y = cos * y - sin * x
    from_x = sin * y + cos * x - shear[:, None, None] * from_y
    middle = (_DIGIT_PIXELS - 1) / 2 + 1  # + 1: the digit is padded by one empty pixel all around
    source_y = from_y / scale[:, None, None] + middle
    source_x = from_x / (scale * stretch)[:, None, None] + middle

    size = _DIGIT_PIXELS + 2
    padded = np.zeros((count, size, size), np.float32)
    padded[:, 1:-1, 1:-1] = images
    # Samples outside the padded digit are clipped to its empty border.
    source_y = np.clip(source_y, 0, size - 1.001)
    source_x = np.clip(source_x, 0, size - 1.001)
    top, left = source_y.astype(np.int32), source_x.astype(np.int32)
    part_y, part_x = source_y - top, source_x - left
    flat = padded.reshape(-1)
    corner = (np.arange(count, dtype=np.int32) * (size * size))[:, None, None] + top * size + left
    upper = flat[corner] * (1 - part_x) + flat[corner + 1] * part_x
    lower = flat[corner + size] * (1 - part_x) + flat[corner + size + 1] * part_x
    return upper * (1 - part_y) + lower * part_y


def render(
    source: Digits, count: int, rng: np.random.Generator, variation: Variation = PLAIN
) -> Scenes:
    """Composes scenes from digits drawn at random.

    Args:
      source: the digits to draw from.
      count: scenes.
      rng: decides everything: the same state gives the same scenes, bit for bit.
      variation: how digits are moved and bent.

    Returns:
      `Scenes`; every scene has at least one digit.
    """
    chosen = rng.integers(0, source.labels.size, (count, CELLS))
    cells = source.labels[chosen]
    empty = rng.random((count, CELLS)) < _EMPTY_PROBABILITY
    empty[np.arange(count), rng.integers(0, CELLS, count)] = False
    cells = np.where(empty, EMPTY, cells)

    ink = _warp(source.images[chosen.reshape(-1)], variation, rng)
    ink = ink.reshape(count, CELLS, CELL_PIXELS, CELL_PIXELS)
    ink *= rng.uniform(0.75, 1.0, (count, CELLS, 1, 1)).astype(np.float32)  # faint and firm pens
    ink[empty] = 0
    ink = ink.reshape(count, GRID, GRID, CELL_PIXELS, CELL_PIXELS)
    ink = ink.transpose(0, 1, 3, 2, 4).reshape(count, IMAGE_PIXELS, IMAGE_PIXELS, 1)
    if variation.noise:
        ink = ink + variation.noise * rng.standard_normal(ink.shape, np.float32)

    paper = rng.uniform(0.0, 0.2, (count, 1, 1, 3)).astype(np.float32)
    pen = rng.uniform(0.75, 1.0, (count, 1, 1, 3)).astype(np.float32)
    pixels = np.clip(paper + (pen - paper) * ink, 0, 1)
    return Scenes(np.rint(pixels * 255).astype(np.uint8), cells)
