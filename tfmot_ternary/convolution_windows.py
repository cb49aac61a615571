"""Convolution windows: what each output position of a convolution sees of its input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["window_rows", "window_sums"]


def window_sums(
    plane: np.ndarray, window: Any, strides: Any, padding: str, dilation: Any
) -> tuple[np.ndarray, int]:
    """Sums of what each tap of a convolution's window sees, over all output positions.

    Args:
      plane: float [spatial..., c].
      window, strides, dilation: one int a spatial axis.
      padding: "valid", "same" (as TensorFlow pads) or "causal".

    Returns:
      (float [window..., c], number of output positions).
    """
    pads, outputs = _positions(plane.shape[:-1], window, strides, padding, dilation)
    padded = np.pad(plane, [*pads, (0, 0)])
    sums = np.empty((*window, plane.shape[-1]), plane.dtype)
    for tap in np.ndindex(*window):
        seen = tuple(
            slice(i * rate, i * rate + (out - 1) * stride + 1, stride)
            for i, rate, out, stride in zip(tap, dilation, outputs, strides, strict=True)
        )
        sums[tap] = padded[seen].sum(axis=tuple(range(len(outputs))))
    return sums, int(np.prod(outputs))


def window_rows(
    x: tf.Tensor, window: Any, strides: Any, padding: str, dilation: Any, limit: int
) -> Iterator[tf.Tensor]:
    """The rows that W[n, k] of a convolution is multiplied by, some of them at a time.

    Args:
      x: [batch, spatial..., c].
      window, strides, padding, dilation: as `window_sums` takes them.
      limit: the most rows of a piece. Its indices take as much memory as the piece where c = 1.

    Yields:
      float32 [rows, k], k over (window..., c), rows over (batch, output positions...).
    """
    pads, outputs = _positions(x.shape[1:-1], window, strides, padding, dilation)
    padded = tf.pad(x, [(0, 0), *pads, (0, 0)])
    batch, *sizes, channels = padded.shape
    flat = tf.reshape(padded, [-1, channels])
    # Rows of `flat` from one pixel to the next, along each axis.
    pitches = [int(np.prod(sizes[axis + 1 :])) for axis in range(len(sizes))]
    image = int(np.prod(sizes))
    origins = _sums_of_steps(
        [batch, *outputs], [image, *(p * s for p, s in zip(pitches, strides, strict=True))]
    )
    taps = _sums_of_steps(window, [p * d for p, d in zip(pitches, dilation, strict=True)])
    index = np.int32 if batch * image < 2**31 else np.int64
    origins, taps = origins.astype(index), taps.astype(index)
    for start in range(0, len(origins), limit):
        seen = tf.gather(flat, origins[start : start + limit, None] + taps)
        yield tf.cast(tf.reshape(seen, [-1, len(taps) * channels]), tf.float32)


def _positions(
    sizes: Any, window: Any, strides: Any, padding: str, dilation: Any
) -> tuple[list[tuple[int, int]], list[int]]:
    """(zeros before and after, number of outputs) of each spatial axis."""
    pads, outputs = [], []
    for size, taps, stride, rate in zip(sizes, window, strides, dilation, strict=True):
        extent = (taps - 1) * rate + 1
        front = total = 0
        if padding == "same":
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            front = total // 2
        elif padding == "causal":
            front = total = extent - 1
        pads.append((front, total - front))
        outputs.append((size + total - extent) // stride + 1)
    return pads, outputs


def _sums_of_steps(counts: Any, steps: Any) -> np.ndarray:
    """All sums of i * step over i < count, one an axis, the last axis fastest: int64 [product]."""
    sums = np.zeros(1, np.int64)
    for count, step in zip(counts, steps, strict=True):
        sums = np.add.outer(sums, step * np.arange(count)).ravel()
    return sums
