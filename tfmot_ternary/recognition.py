"""Recognition: float weights that are ternary or binary already, as codes and scales.

Other tools (Larq, QKeras, BitNet-style training) leave float kernels whose values are {-a, 0, +a}
or {-a, +a}. Such a kernel is packed as it is, without training. NumPy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfmot_ternary.packing import GROUP_SIZES, GroupSize, row_bytes, scale_shape

__all__ = ["Recognition", "recognize"]

# Weights that are looked at in one go: a large matrix never has a second copy in float.
BLOCK_WEIGHTS = 1 << 18
# Every coarser group is a union of these.
FINEST = min(GROUP_SIZES)
COARSEST_FIRST: tuple[GroupSize, ...] = ("tensor", None, *sorted(GROUP_SIZES, reverse=True))


class Recognition(NamedTuple):
    """What `recognize` found; W = codes * scales, to the last bit.

    Attributes:
      codes: int8 [n, k] of -1, 0, +1 (3 levels) or -1, +1 (2 levels).
      scales: float32 of `packing.scale_shape(n, k, group_size)`, >= 0.
      group_size: None (per channel), "tensor" or inputs per scale.
      levels: 3 for ternary, 2 for binary.
    """

    codes: np.ndarray
    scales: np.ndarray
    group_size: GroupSize
    levels: int


def recognize(matrix: npt.ArrayLike) -> Recognition | None:
    """Finds the codes and scales of a matrix that is ternary or binary already.

    There is no tolerance: each group of weights must hold one magnitude (binary), or one magnitude
    and zeros (ternary). Of the forms that fit, the one of the fewest stored bytes is taken (ternary
    counted as t2); among equals the coarsest scales, and then binary. A group of zeros gets the
    scale 0, which either form can hold.

    Args:
      matrix: W[n, k], float.

    Returns:
      The recognition, or None: the weights are something else, are all zero, are not float32
      values, are not finite, or would take no fewer bytes packed than in float32 (every matrix with
      k = 1 is binary per channel).

    Raises:
      ValueError: not a matrix, or an empty one.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"expected a matrix [n, k] with n, k >= 1, got shape {matrix.shape}")
    found = _magnitudes(matrix)
    if found is None:
        return None
    magnitudes, mixed = found
    n, k = matrix.shape
    smallest = 4 * n * k
    best: tuple[np.ndarray, GroupSize, int] | None = None
    for group_size in COARSEST_FIRST:
        scales, uniform = _merged(magnitudes, group_size)
        if scales is None:
            continue
        for levels in (2, 3) if uniform and not mixed else (3,):
            size = n * row_bytes(k, "b1" if levels == 2 else "t2") + scales.nbytes
            if size < smallest:
                smallest, best = size, (scales, group_size, levels)
    if best is None:
        return None
    scales, group_size, levels = best
    scales = scales.reshape(scale_shape(n, k, group_size))
    return Recognition(_codes(matrix, levels), scales, group_size, levels)


def _row_blocks(matrix: np.ndarray) -> list[slice]:
    n, k = matrix.shape
    rows = max(1, BLOCK_WEIGHTS // k)
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _magnitudes(matrix: np.ndarray) -> tuple[np.ndarray, bool] | None:
    """Magnitudes of the finest groups, float32 [n, ceil(k / 32)]; whether zeros stand beside one.

    None where a group holds two magnitudes, or where all is zero or something is no finite float32.
    """
    n, k = matrix.shape
    starts = np.arange(0, k, FINEST)
    magnitudes = np.empty((n, len(starts)), np.float32)
    mixed = False
    for rows in _row_blocks(matrix):
        with np.errstate(over="ignore"):  # a float64 beyond float32 is told by its value
            block = matrix[rows].astype(np.float32)
        if matrix.dtype != np.float32 and (block != matrix[rows]).any():
            return None
        np.abs(block, out=block)
        magnitudes[rows] = np.maximum.reduceat(block, starts, axis=1)
        same = block == _expanded(magnitudes[rows], FINEST, k)
        if not (same | (block == 0)).all():
            return None
        mixed = mixed or not same.all()
    if not np.isfinite(magnitudes).all() or not magnitudes.any():
        return None
    return magnitudes, mixed


def _expanded(values: np.ndarray, times: int, k: int) -> np.ndarray:
    return np.repeat(values, times, axis=1)[:, :k]


def _merged(magnitudes: np.ndarray, group_size: GroupSize) -> tuple[np.ndarray | None, bool]:
    """The scales of coarser groups, and whether none of them has a finest group of zeros inside.

    No scales (None) where two magnitudes meet in a group. A coarser group of zeros counts as one
    without any.
    """
    groups = magnitudes.shape[1]
    if group_size == "tensor":
        scales = magnitudes.max(keepdims=True)
        expanded = scales
    else:
        times = groups if group_size is None else int(group_size) // FINEST
        scales = np.maximum.reduceat(magnitudes, np.arange(0, groups, times), axis=1)
        expanded = _expanded(scales, times, groups)
    same = magnitudes == expanded
    if not (same | (magnitudes == 0)).all():
        return None, False
    return scales, bool(same.all())


def _codes(matrix: np.ndarray, levels: int) -> np.ndarray:
    codes = np.empty(matrix.shape, np.int8)
    for rows in _row_blocks(matrix):
        if levels == 2:
            codes[rows] = np.where(matrix[rows] < 0, -1, 1)
        else:
            codes[rows] = np.sign(matrix[rows])
    return codes
