"""K-means in one dimension with symmetric levels: the exact optimum of {-a, 0, +a} and {-a, +a}.

For weights w with importance h >= 0 the best scale a minimises sum h (w - a c)^2 over codes c.

Ternary: for a given a the best code keeps the weights with |w| > a / 2, so an optimal code keeps a
prefix P of the weights sorted by |w| downwards; its best scale is a = sum_P h|w| / sum_P h, and the
error is sum h w^2 - (sum_P h|w|)^2 / sum_P h. So one sort and one running sum find the optimum; no
iteration and no start value are involved. Binary: a = sum h|w| / sum h.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["kmeans_scales", "lloyd_scales"]

# Weights worked on at a time: the scratch of one block (a few arrays of float64) stays inside the
# caches, and the peak memory above the input stays far below the tensor for a matrix.
_BLOCK = 1 << 16


def kmeans_scales(
    rows: Any, levels: int = 3, importance: Any = None, name: str = "weights"
) -> np.ndarray:
    """Returns for each row the scale of the exact optimum of the one-dimensional k-means problem.

    Args:
      rows: [r, k] float array; float32 and float64 are used as they are, the rest becomes float32.
      levels: 3 for {-a, 0, +a}, 2 for {-a, +a}.
      importance: None, or weights h >= 0 broadcastable to [r, k]; the ternary problem is then
        solved on float32 values. A row whose importances are all zero says nothing about the
        weights and is solved unweighted.
      name: the tensor's name for error messages.

    Returns:
      float32 [r]; 0 for a row of zeros.

    Raises:
      ValueError: for NaN or Inf in `rows`, negative or non-finite importance, a wrong shape or
        level.
    """
    rows, importance = _checked(rows, levels, importance, name)
    if levels == 2:
        return _mean_magnitude(rows, importance)
    scales = np.empty(rows.shape[0], np.float32)
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        stop = min(start + step, rows.shape[0])
        block = rows[start:stop]
        if importance is None:
            scales[start:stop] = _ternary(block)
        else:
            scales[start:stop] = _weighted_ternary(block, importance[start:stop])
    return scales


def lloyd_scales(
    rows: Any,
    levels: int = 3,
    iterations: int = 10,
    importance: Any = None,
    name: str = "weights",
) -> np.ndarray:
    """Returns for each row the scale of the paper's iteration (arXiv 2504.06298), kept to compare.

    Ternary: m = mean |w|, then `iterations` times m = mean of those |w| > m / 2. It stops at a
    local optimum that depends on the start. Binary: mean |w|.

    Args, returns and raises: as `kmeans_scales`; `iterations` >= 0.
    """
    if iterations < 0:
        raise ValueError(f"expected iterations >= 0, got {iterations}")
    rows, importance = _checked(rows, levels, importance, name)
    scales = _mean_magnitude(rows, importance)
    if levels == 2:
        return scales
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, min(start + step, rows.shape[0]))
        magnitude = np.abs(rows[part])
        weight = None if importance is None else _usable_importance(importance[part])
        mean = scales[part].astype(np.float64)
        for _ in range(iterations):
            kept = magnitude > (mean * 0.5)[:, None]
            if weight is None:
                total = kept.sum(axis=1, dtype=np.float64)
                summed = np.sum(magnitude, axis=1, where=kept, dtype=np.float64)
            else:
                total = np.sum(weight, axis=1, where=kept, dtype=np.float64)
                summed = np.sum(weight * magnitude, axis=1, where=kept, dtype=np.float64)
            # Nothing is kept in a row of zeros, or where only unimportant weights pass: stay.
            mean = np.divide(summed, total, out=mean.copy(), where=total > 0)
        scales[part] = mean
    return scales


def _checked(
    rows: Any, levels: int, importance: Any, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    if levels not in (2, 3):
        raise ValueError(f"expected levels 2 (binary) or 3 (ternary), got {levels}")
    rows = np.asarray(rows)
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float32)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(
            f"expected {name} as rows [r, k] with k >= 1, got shape {tuple(rows.shape)}"
        )
    if importance is not None:
        importance = np.asarray(importance)
        if importance.dtype not in (np.float32, np.float64):
            importance = importance.astype(np.float32)
        try:
            importance = np.broadcast_to(importance, rows.shape)
        except ValueError as error:
            raise ValueError(
                f"expected the importance of {name} broadcastable to {rows.shape}, got shape "
                f"{importance.shape}"
            ) from error
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        block = rows[start : start + step]
        # max and min pass NaN and Inf on, and read the block once without a temporary.
        if not (np.isfinite(block.max()) and np.isfinite(block.min())):
            row, column = (int(i) for i in np.argwhere(~np.isfinite(block))[0])
            raise ValueError(
                f"expected finite values in {name}, got {block[row, column]} at row {start + row}, "
                f"column {column}; repair or retrain that tensor before quantizing it"
            )
        if importance is not None:
            weight = importance[start : start + step]
            if not (np.isfinite(weight.max()) and weight.min() >= 0):
                wrong = ~(np.isfinite(weight) & (weight >= 0))
                row, column = (int(i) for i in np.argwhere(wrong)[0])
                raise ValueError(
                    f"expected finite importances >= 0 for {name}, got {weight[row, column]} at "
                    f"row {start + row}, column {column}"
                )
    return rows, importance


def _usable_importance(importance: np.ndarray) -> np.ndarray:
    """Rows whose importances are all zero are given equal importances."""
    silent = np.max(importance, axis=1) == 0
    if silent.any():
        importance = np.where(silent[:, None], importance.dtype.type(1), importance)
    return importance


def _mean_magnitude(rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    scales = np.empty(rows.shape[0], np.float32)
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, min(start + step, rows.shape[0]))
        total = np.zeros(part.stop - start, np.float64)
        weight_total = np.zeros_like(total)
        weight = None if importance is None else _usable_importance(importance[part])
        for begin in range(0, rows.shape[1], _BLOCK):
            columns = slice(begin, begin + _BLOCK)
            magnitude = np.abs(rows[part, columns])
            if weight is None:
                total += magnitude.sum(axis=1, dtype=np.float64)
                weight_total += magnitude.shape[1]
            else:
                h = weight[:, columns].astype(np.float64)
                weight_total += h.sum(axis=1)
                total += (h * magnitude).sum(axis=1)
        scales[part] = total / weight_total
    return scales


def _ternary(rows: np.ndarray) -> np.ndarray:
    """The unweighted optimum; scratch: one copy of `rows` and float64 blocks."""
    ordered = np.abs(rows)
    np.negative(ordered, out=ordered)
    ordered.sort(axis=1)  # ascending in -|w|: the largest magnitude first
    count, k = ordered.shape
    best = np.full(count, -1.0)
    scale = np.zeros(count)
    carry = np.zeros(count)
    index = np.arange(count)
    for begin in range(0, k, _BLOCK):
        part = ordered[:, begin : begin + _BLOCK]
        size = np.arange(begin + 1, begin + part.shape[1] + 1, dtype=np.float64)
        # float64 running sums: 2^22 float32 terms keep 9 digits at the least.
        total = np.cumsum(part, axis=1, dtype=np.float64)
        if begin:
            total += carry[:, None]
        carry = total[:, -1].copy()
        # sum / sqrt(size) grows with sum^2 / size, and cannot overflow. total is negative here.
        gain = total * (-1.0 / np.sqrt(size))
        at = gain.argmax(axis=1)
        value = gain[index, at]
        better = value > best
        best[better] = value[better]
        scale[better] = -(total[index, at] / size[at])[better]
    return scale


def _weighted_ternary(rows: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """The weighted optimum of the float32 values; scratch: 64 bits a weight and float64 blocks.

    A sort of 64-bit keys (magnitude above, importance below) carries the importances along: several
    times faster than an indirect sort and the gathers after it.
    """
    importance = _usable_importance(importance)
    count, k = rows.shape
    keys = np.empty((count, k), np.uint64)
    halves = keys.view(np.uint32).reshape(count, k, 2)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    # The bits of floats >= 0 are ordered as the floats; inverted, the largest comes first. Only the
    # ratios of importances matter: divided by the largest, float64 ones fit float32's range.
    largest = importance.max(axis=1, keepdims=True)
    halves[..., low] = (importance / largest).astype(np.float32, copy=False).view(np.uint32)
    halves[..., high] = np.abs(rows.astype(np.float32, copy=False)).view(np.uint32)
    np.invert(halves[..., high], out=halves[..., high])
    keys.sort(axis=1)
    best = np.full(count, -1.0)
    scale = np.zeros(count)
    carry = np.zeros(count)
    weight_carry = np.zeros(count)
    index = np.arange(count)
    for begin in range(0, k, _BLOCK):
        part = halves[:, begin : begin + _BLOCK]
        weight = part[..., low].copy().view(np.float32).astype(np.float64)
        total = np.invert(part[..., high]).view(np.float32) * weight
        np.cumsum(total, axis=1, out=total)
        np.cumsum(weight, axis=1, out=weight)
        total += carry[:, None]
        weight += weight_carry[:, None]
        carry = total[:, -1].copy()
        weight_carry = weight[:, -1].copy()
        # A prefix of unimportant weights only (0 / 0) gains nothing.
        gain = np.divide(total, np.sqrt(weight), out=np.zeros_like(total), where=weight > 0)
        at = gain.argmax(axis=1)
        value = gain[index, at]
        better = (value > best) & (weight[index, at] > 0)
        best[better] = value[better]
        scale[better] = total[index, at][better] / weight[index, at][better]
    return scale
