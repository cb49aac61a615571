"""Integer weights: float matrices -> codes and scales for the formats i8 and i4.

i8 keeps the range: scale = max |w| / 127. With 15 levels that wastes most of them on a few large
weights, so i4 clips: of a grid of clip factors each group takes the one with the least squared
error. NumPy only, a few rows at a time, deterministic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ternary import packing

__all__ = ["pack", "quantize"]

# The largest |code|: -128 and -8 have no counterpart above zero and are never written.
LIMITS = {"i8": 127, "i4": 7}
# Of max |w|, tried from the largest on: the first one wins a tie. On normal weights the root mean
# square error of these eight is 1.2 % above that of 64 factors (groups of 32).
_CLIP_FACTORS = {"i8": (1.0,), "i4": (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58)}
# Below this the reciprocal nears the end of float32: such a group is zero, as in the operators.
_SMALLEST = np.float32(1e-30)
# Weights handled at once: the arrays in between stay in a cache.
_PIECE_WEIGHTS = 1 << 18


def quantize(
    weights: Any, weight_format: str, group_size: packing.GroupSize = None
) -> tuple[np.ndarray, np.ndarray]:
    """The codes and scales whose products are close to `weights`.

    Args:
      weights: float array [n, k], also a memory map; other float types are read as float32.
      weight_format: "i8" or "i4".
      group_size: None (one scale per row), "tensor" or one of packing.GROUP_SIZES.

    Returns:
      codes int8 [n, k] in -127..127 (i8) or -7..7 (i4), and scales float32 of shape
      `packing.scale_shape(n, k, group_size)`. A group of zeros has scale 0.

    Raises:
      ValueError: another format, wrong shape, an unknown group size, or a weight that is not
        finite.
    """
    if weight_format not in LIMITS:
        raise ValueError(f"expected weight_format out of {sorted(LIMITS)}, got {weight_format!r}")
    weights = weights if isinstance(weights, np.ndarray) else np.asarray(weights)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(f"expected weights of shape [n, k] with n, k >= 1, got {weights.shape}")
    n, k = weights.shape
    scales = np.empty(packing.scale_shape(n, k, group_size), np.float32)
    codes = np.empty((n, k), np.int8)
    step = max(1, _PIECE_WEIGHTS // k)
    pieces = [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]
    if group_size == "tensor":
        scales[0] = _tensor_scale(weights, pieces, weight_format)
    for rows in pieces:
        groups = _groups(weights, rows, group_size)
        if group_size == "tensor":
            chosen = np.broadcast_to(scales, groups.shape[:2])
        else:
            chosen = _best_scales(groups, weight_format)
            scales[rows] = chosen.reshape(scales[rows].shape)
        rounded = _rounded(groups, chosen, LIMITS[weight_format])
        codes[rows] = rounded.reshape(len(groups), -1)[:, :k]
    return codes, scales


def pack(
    weights: Any, weight_format: str, group_size: packing.GroupSize = None
) -> packing.PackedWeights:
    """`quantize` and pack; arguments and errors as there."""
    codes, scales = quantize(weights, weight_format, group_size)
    return packing.PackedWeights.from_codes(codes, scales, weight_format, group_size)


def _groups(weights: np.ndarray, rows: slice, group_size: packing.GroupSize) -> np.ndarray:
    """float32 [rows, groups, size]: the weights of `rows`, filled up with zeros."""
    values = np.asarray(weights[rows], np.float32)
    count, k = values.shape
    size = group_size if isinstance(group_size, int) else k
    if k % size:
        values = np.pad(values, ((0, 0), (0, size - k % size)))
    groups = values.reshape(count, -1, size)
    finite = np.isfinite(groups)
    if not finite.all():
        row, group, place = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"expected finite weights, got {groups[row, group, place]} at row {rows.start + row},"
            f" column {group * size + place}"
        )
    return groups


def _largest(groups: np.ndarray) -> np.ndarray:
    """max |w| of each group, [rows, groups]; zero where it is next to nothing."""
    largest = np.maximum(groups.max(axis=2), -groups.min(axis=2))
    return np.where(largest >= _SMALLEST, largest, np.float32(0))


def _rounded(groups: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    """float32 integers [rows, groups, size] of `groups` in units of `scales` [rows, groups]."""
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    values = groups * inverse[..., np.newaxis]
    np.rint(values, out=values)  # half to even
    return np.clip(values, -limit, limit, out=values)


def _errors(groups: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    """Squared error of each group, [rows, groups]."""
    values = _rounded(groups, scales, limit)
    values *= scales[..., np.newaxis]
    values -= groups
    return np.einsum("rgs,rgs->rg", values, values)


def _best_scales(groups: np.ndarray, weight_format: str) -> np.ndarray:
    """float32 [rows, groups]."""
    limit, factors = LIMITS[weight_format], _CLIP_FACTORS[weight_format]
    widest = _largest(groups) / np.float32(limit)
    if len(factors) == 1:
        return widest
    best, least = widest, _errors(groups, widest, limit)
    for factor in factors[1:]:
        scales = widest * np.float32(factor)
        error = _errors(groups, scales, limit)
        best = np.where(error < least, scales, best)
        least = np.minimum(error, least)
    return best


def _tensor_scale(weights: np.ndarray, pieces: list[slice], weight_format: str) -> np.float32:
    """The scale of a whole matrix."""
    limit, factors = LIMITS[weight_format], _CLIP_FACTORS[weight_format]
    largest = max(float(_largest(_groups(weights, rows, None)).max()) for rows in pieces)
    widest = np.float32(largest) / np.float32(limit)
    candidates = [widest * np.float32(factor) for factor in factors]
    if len(candidates) == 1:
        return widest
    errors = np.zeros(len(candidates))
    for rows in pieces:
        groups = _groups(weights, rows, None)
        for i, scale in enumerate(candidates):
            scales = np.full(groups.shape[:2], scale)
            errors[i] += _errors(groups, scales, limit).sum(dtype=np.float64)
    return candidates[int(np.argmin(errors))]
