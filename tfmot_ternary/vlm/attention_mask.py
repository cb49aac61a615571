"""Attention mask: which cache rows the positions of one call may see, while tracing.

A mask costs memory traffic in every layer of every step; the attention operator needs none where
each position sees all rows up to its own. So a mask that KerasHub computes is evaluated at a few
positions, and kept only where it says more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class CausalMask:
    """Row r is seen from position p where r <= p and, with a window, p - r < window.

    Attributes:
      window: newest rows that are seen, the position's own included; None: all.
    """

    window: int | None = None

    def narrowed(self, window: int | None) -> CausalMask:
        """Returns this mask with a window of at most `window` rows."""
        sizes = [size for size in (self.window, window) if size is not None]
        return CausalMask(min(sizes, default=None))

    def array(self, first: int, length: int, cache_length: int) -> np.ndarray:
        """Returns the mask of positions first, first + 1, ...: bool [length, cache_length]."""
        distance = np.arange(first, first + length)[:, np.newaxis] - np.arange(cache_length)
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def tensor(self, position: Any, length: int, cache_length: int) -> Any:
        """Returns the mask as a tensor, bool [1, length, cache_length], or None if it is plain.

        Args:
          position: int32 [1], the first position.
          length: positions in the call.
          cache_length: rows of the cache.
        """
        if self.window is None or self.window >= cache_length:
            return None
        import tensorflow as tf

        distance = distances(position, length, cache_length)
        return tf.logical_and(distance >= 0, distance < self.window)[tf.newaxis]


def distances(position: Any, length: int, cache_length: int) -> Any:
    """Returns position minus row, int32 [length, cache_length]."""
    import tensorflow as tf

    positions = position + tf.range(length)
    return positions[:, tf.newaxis] - tf.range(cache_length)[tf.newaxis]


def recognized(mask: Any, position: Any, cache_length: int) -> CausalMask | None:
    """Returns the causal mask that the symbolic `mask` is, or None if it is another one.

    Args:
      mask: bool or int tensor [1, length, cache_length] of the graph that is being traced, or None
        (everything is seen: no causal mask).
      position: int32 [1], input of that graph or a constant.
      cache_length: rows of the cache.
    """
    if mask is None or mask.shape.rank != 3 or mask.shape[0] != 1:
        return None
    length = int(mask.shape[1])
    if int(mask.shape[2]) != cache_length or length > cache_length:
        return None
    last = cache_length - length
    tried = sorted({0, min(1, last), last // 2, last})
    arrays = _evaluate(mask, position, tried)
    if arrays is None:
        return None
    # The last position has the most rows behind it.
    window = int(arrays[-1][-1].sum())
    for candidate in (CausalMask(), CausalMask(window)):
        if all(
            np.array_equal(array, candidate.array(first, length, cache_length))
            for first, array in zip(tried, arrays, strict=True)
        ):
            return candidate
    return None


def _evaluate(mask: Any, position: Any, tried: list[int]) -> list[np.ndarray] | None:
    """Returns the mask for each value of `position`, or None if it depends on more than that."""
    import tensorflow as tf

    try:
        with tf.compat.v1.Session(graph=mask.graph) as session:
            feeds = ({position.name: np.array([first], np.int32)} for first in tried)
            return [session.run(mask.name, feed)[0] != 0 for feed in feeds]
    except (tf.errors.OpError, ValueError, TypeError):
        return None
