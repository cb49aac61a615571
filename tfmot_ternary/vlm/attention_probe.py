"""Attention probe: what a KerasHub layer's `_compute_attention` computes, in the operator's words.

The numbers are read from the layer's attributes and checked: the layer's own method (it has no
weights) runs on small random tensors against the formula.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfmot_ternary.vlm.attention_mask import CausalMask

# Positions and rows of the probe, and a window that cuts something off.
_LENGTH, _FIRST, _ROWS, _WINDOW = 2, 4, 8, 3
_WINDOW_NAMES = ("sliding_window_size", "sliding_window")
_TOLERANCE = 1e-4  # Both are float32 sums of a few products of values around 1.


@dataclasses.dataclass(frozen=True)
class AttentionMath:
    """softmax(cap(scale * query . key) + mask) . value.

    Attributes:
      scale: factor of the products.
      soft_cap: c in c * tanh(x / c), or 0 for none.
      window: window that `_compute_attention` adds to the mask it is given, or None.
    """

    scale: float
    soft_cap: float
    window: int | None


def probe(layer: Any, compute: Callable, query_heads: int, key_heads: int, size: int) -> Any:
    """Returns the layer's `AttentionMath`, or None if it computes something else.

    Args:
      layer: the attention layer.
      compute: its own `_compute_attention`.
      query_heads, key_heads, size: heads of the query, heads of keys and values as the method gets
        them (repeated or not), head size.
    """
    if layer._trainable_variables:  # of its own, beside its dense layers: attention sinks
        return None
    rng = np.random.default_rng(0)
    query = rng.normal(size=(1, _LENGTH, query_heads, size)).astype(np.float32)
    key, value = rng.normal(size=(2, 1, _ROWS, key_heads, size)).astype(np.float32)
    soft_cap = float(getattr(layer, "logit_soft_cap", None) or 0.0)
    with _small_window(layer) as window:
        got = _run(compute, query, key, value)
        if got is None:
            return None
        for scale in _scales(layer, size):
            for applied in (None, window):
                seen = CausalMask(applied and _WINDOW).array(_FIRST, _LENGTH, _ROWS)
                wanted = reference(query, key, value, seen, scale, soft_cap)
                if got.shape == wanted.shape and np.abs(got - wanted).max() <= _TOLERANCE:
                    return AttentionMath(scale, soft_cap, applied)
    return None


def reference(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    seen: np.ndarray,
    scale: float,
    soft_cap: float,
) -> np.ndarray:
    """Attention of query [1, T, H, D] over key, value [1, S, KV, D], seen [T, S]: [1, T, H, D]."""
    groups = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x[0].astype(np.float64), groups, axis=1) for x in (key, value))
    scores = np.einsum("thd,shd->hts", query[0].astype(np.float64), key) * scale
    if soft_cap:
        scores = soft_cap * np.tanh(scores / soft_cap)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, value)[np.newaxis]


def _scales(layer: Any, size: int) -> list[float]:
    """The scales that the layer's attributes suggest."""
    named = (getattr(layer, name, None) for name in ("_inv_norm_factor", "_inverse_sqrt_key_dim"))
    found = [float(value) for value in named if value is not None]
    heads, width = getattr(layer, "num_query_heads", None), getattr(layer, "hidden_dim", None)
    if heads and width:  # Gemma's query normalisation by width
        found.append(1 / math.sqrt(width // heads))
    return [*found, 1 / math.sqrt(size), 1.0]


@contextlib.contextmanager
def _small_window(layer: Any) -> Iterator[int | None]:
    """Gives the layer a window that the probe notices. Yields its real one, or None."""
    name = next((name for name in _WINDOW_NAMES if getattr(layer, name, None)), None)
    if name is None:
        yield None
        return
    window = getattr(layer, name)
    setattr(layer, name, _WINDOW)
    try:
        yield int(window)
    finally:
        setattr(layer, name, window)


def _run(
    compute: Callable, query: np.ndarray, key: np.ndarray, value: np.ndarray
) -> np.ndarray | None:
    import tensorflow as tf

    seen = CausalMask().array(_FIRST, _LENGTH, _ROWS)[np.newaxis]
    names = inspect.signature(compute).parameters
    extra = {"cache_update_index": _FIRST} if "cache_update_index" in names else {}
    with tf.init_scope():  # outside of the graph that is being traced
        inputs = [tf.constant(x) for x in (query, key, value)]
        try:
            result = compute(*inputs, attention_mask=tf.constant(seen), **extra)
        except (TypeError, ValueError, AttributeError, tf.errors.OpError):
            return None
        result = result[0] if isinstance(result, tuple) else result
        return np.asarray(result)
