"""Attention over a key-value cache, in NumPy: the specification of `attention_op.cached_attention`.

The cache, which the operator keeps to itself, is an argument and a result here.
"""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["Cache", "reference"]


@dataclasses.dataclass(frozen=True)
class Cache:
    """What the operator stores: keys and values [length, kv_heads, dim] (float32, float16 or int8)
    and for int8 their scales float32 [length, kv_heads]."""

    key: np.ndarray
    value: np.ndarray
    key_scale: np.ndarray
    value_scale: np.ndarray

    @classmethod
    def empty(cls, length: int, kv_heads: int, dim: int, cache_type: str = "float32") -> Cache:
        rows = np.zeros((length, kv_heads, dim), cache_type)
        scales = np.zeros((length, kv_heads), np.float32)
        return cls(rows, rows, scales, scales)

    def stored(self, key: np.ndarray, value: np.ndarray, position: int) -> Cache:
        """With key and value [1, steps, kv_heads, dim] from `position` on."""
        arrays = [self.key.copy(), self.value.copy()]
        scales = [self.key_scale.copy(), self.value_scale.copy()]
        count = min(key.shape[1], len(self.key) - position)
        rows = slice(position, position + count)
        for array, scale, update in zip(arrays, scales, (key, value), strict=True):
            if array.dtype == np.int8:
                array[rows], scale[rows] = _int8(update[0, :count])
            else:
                array[rows] = update[0, :count]
        return Cache(*arrays, *scales)


def reference(
    cache: Cache,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    position: int,
    mask: np.ndarray | None = None,
    *,
    scale: float,
    soft_cap: float = 0.0,
) -> tuple[np.ndarray, Cache]:
    """The operator with its cache as an argument and a result; float64 behind the rounding.

    Args:
      cache: what was stored before.
      query, key, value, position, mask, scale, soft_cap: as in `attention_op.cached_attention`.

    Returns:
      float32 [1, steps, heads, dim] and the new cache.
    """
    cache = cache.stored(key, value, position)
    steps, heads, dim = query.shape[1:]
    length, kv_heads = cache.key.shape[:2]
    rows = query[0].reshape(steps, kv_heads, heads // kv_heads, dim)
    if cache.key.dtype == np.int8:
        codes, code_scales = _int8(rows)
        integers = np.einsum("tkgd,skd->tkgs", codes.astype(np.int64), cache.key.astype(np.int64))
        # The operator's order of float32 products; its integers are exact.
        scores = integers.astype(np.float32) * (code_scales * np.float32(scale))[..., None]
        scores = (scores * cache.key_scale.T[None, :, None, :]).astype(np.float64)
        values = cache.value * cache.value_scale.astype(np.float64)[..., None]
    else:
        keys = cache.key.astype(np.float64)
        scores = np.einsum("tkgd,skd->tkgs", rows.astype(np.float64), keys) * scale
        values = cache.value.astype(np.float64)
    if soft_cap:
        scores = soft_cap * np.tanh(scores / soft_cap)
    index = np.arange(length)
    if mask is None:
        visible = index[None, :] <= position + np.arange(steps)[:, None]
    else:
        visible = mask[0] & (index < position + steps)[None, :]
    visible = visible[:, None, None, :]
    largest = np.max(scores, axis=-1, keepdims=True, initial=-np.inf, where=visible)
    weights = np.where(visible, np.exp(np.where(visible, scores - largest, 0.0)), 0.0)
    sums = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    output = np.einsum("tkgs,skd->tkgd", weights, values)
    return output.reshape(1, steps, heads, dim).astype(np.float32), cache


def _int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [..., dim] and scales float32 [...]: largest / 127, ties to even."""
    largest = np.abs(x).max(axis=-1)
    inverse = np.divide(
        np.float32(127), largest, out=np.zeros_like(largest), where=largest >= 1e-30
    )
    codes = np.clip(np.rint(x * inverse[..., None]), -127, 127).astype(np.int8)
    return codes, largest / np.float32(127)
