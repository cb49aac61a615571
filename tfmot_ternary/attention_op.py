"""Attention over a key-value cache that the operator keeps: composites.

In a TF Lite file each call becomes one operator whose cache is memory of the operator library: one
for each interpreter and `layer`, shared by all signatures. A TensorFlow graph has no such memory,
so the composite's body gives what the operator gives when nothing was stored before `position`
(positions before it hold zeros). `attention_reference` has the cache as an argument: it is the
specification over sequences of calls.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tfmot_ternary.composite import composite

__all__ = ["CACHE_TYPES", "cache_bytes", "cached_attention", "cached_rows"]

CACHE_TYPES = ("float32", "float16", "int8")
PARTS = ("key", "value")
ELEMENT_BYTES = {"float32": 4, "float16": 2, "int8": 1}
LANES = 16  # positions in a block of the operator's keys; values in a row are padded to it


@tf.autograph.experimental.do_not_convert
def cached_attention(
    query: Any,
    key: Any,
    value: Any,
    position: Any,
    mask: Any | None = None,
    *,
    layer: int,
    cache_length: int,
    scale: float,
    soft_cap: float = 0.0,
    cache_type: str = "float32",
) -> tf.Tensor:
    """Stores key and value from `position` on, then attends to all that is stored.

    Query head h uses key-value head h // (heads / kv_heads). Without a mask, step t sees the
    positions up to position + t; with one, those below position + steps where it is true. A step
    that sees nothing gives zeros. Rows past the end of the cache are dropped.

    Args:
      query: float32 [1, steps, heads, dim].
      key, value: float32 [1, steps, kv_heads, dim]; kv_heads divides heads.
      position: int32 [1], in [0, cache_length).
      mask: bool [1, steps, cache_length] or None.
      layer: number of the cache, from 0 on; another for each attention layer of a model.
      cache_length: positions that the cache holds.
      scale: what the scores are multiplied with, usually dim ** -0.5; not negative.
      soft_cap: scores become soft_cap * tanh(score / soft_cap); 0 for none.
      cache_type: how the cache is held: "float32", "float16" or "int8" (a scale for each position
        and head, for keys and values; the query is rounded to int8 as well, a scale for each head).

    Returns:
      float32 [1, steps, heads, dim].

    Raises:
      ValueError: unknown option, or shapes that do not fit.
    """
    query, key, value = (tf.convert_to_tensor(x, tf.float32) for x in (query, key, value))
    position = tf.reshape(tf.cast(position, tf.int32), [1])
    _check_cache(layer, cache_length)
    _check_attention(query, key, value, scale, soft_cap, cache_type)
    inputs = [query, key, value, position]
    if mask is not None:
        inputs.append(_checked_mask(mask, query, cache_length))
    function = _attention_composite(
        int(layer), int(cache_length), cache_type, float(scale), float(soft_cap)
    )
    output = function(*inputs)
    output.set_shape(query.shape)
    return output


@tf.autograph.experimental.do_not_convert
def cached_rows(
    update: Any, position: Any, *, layer: int, part: str, cache_length: int
) -> tf.Tensor:
    """Stores rows from `position` on and returns the whole cache, for attention of any other kind.

    Args:
      update: float32 [1, steps, kv_heads, dim].
      position: int32 [1], in [0, cache_length). Rows past the end are dropped.
      layer: number of the cache, from 0 on.
      part: "key" or "value": a layer has a cache for each.
      cache_length: positions that the cache holds.

    Returns:
      float32 [1, cache_length, kv_heads, dim], zeros where nothing was stored.

    Raises:
      ValueError: unknown option, or shapes that do not fit.
    """
    update = tf.convert_to_tensor(update, tf.float32)
    position = tf.reshape(tf.cast(position, tf.int32), [1])
    _check_cache(layer, cache_length)
    _check_heads(update, "update")
    if part not in PARTS:
        raise ValueError(f"expected part to be one of {', '.join(PARTS)}, got {part!r}")
    output = _rows_composite(int(layer), part, int(cache_length))(update, position)
    output.set_shape([1, cache_length, *update.shape[2:]])
    return output


def cache_bytes(cache_length: int, kv_heads: int, dim: int, cache_type: str) -> int:
    """Memory of one layer's cache in the operator, padding included."""
    positions = -(-cache_length // LANES) * LANES
    key_dim = -(-dim // 4) * 4 if cache_type == "int8" else dim
    value_dim = -(-dim // LANES) * LANES
    scales = 8 if cache_type == "int8" else 0
    row = (key_dim + value_dim) * ELEMENT_BYTES[cache_type] + scales
    return positions * kv_heads * row


# The composites. One tf.function for each set of options, which are attributes of the function.


@functools.cache
def _attention_composite(
    layer: int, cache_length: int, cache_type: str, scale: float, soft_cap: float
) -> Any:
    options: dict[str, Any] = {
        "layer": layer,
        "cache_length": cache_length,
        "cache_type": cache_type,
        "scale": scale,
        "soft_cap": soft_cap,
    }

    def body(
        query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, position: tf.Tensor, *mask: tf.Tensor
    ) -> tf.Tensor:
        keys = _placed(_rounded(key, cache_type), position[0], cache_length)
        values = _placed(_rounded(value, cache_type), position[0], cache_length)
        steps = tf.shape(query)[1]
        heads, dim = query.shape[2], query.shape[3]
        kv_heads = key.shape[2]
        if cache_type == "int8":
            query = _rounded(query, cache_type)
        rows = tf.reshape(query[0] * scale, [steps, kv_heads, heads // kv_heads, dim])
        scores = tf.einsum("tkgd,skd->tkgs", rows, keys)
        if soft_cap:
            scores = soft_cap * tf.tanh(scores / soft_cap)
        index = tf.range(cache_length)
        if mask:
            visible = mask[0][0] & (index < position[0] + steps)[tf.newaxis, :]
        else:
            visible = index[tf.newaxis, :] <= position[0] + tf.range(steps)[:, tf.newaxis]
        visible = visible[:, tf.newaxis, tf.newaxis, :]
        scores = tf.where(visible, scores, tf.constant(-3e38, tf.float32))
        weights = tf.where(visible, tf.nn.softmax(scores), tf.zeros_like(scores))
        return tf.reshape(tf.einsum("tkgs,skd->tkgd", weights, values), tf.shape(query))

    return composite("cached_attention", options, body)


@functools.cache
def _rows_composite(layer: int, part: str, cache_length: int) -> Any:
    options: dict[str, Any] = {"layer": layer, "part": part, "cache_length": cache_length}

    def body(update: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        return _placed(update, position[0], cache_length)[tf.newaxis]

    return composite("cached_rows", options, body)


def _placed(update: tf.Tensor, position: tf.Tensor, cache_length: int) -> tf.Tensor:
    """[1, steps, ...] as rows of zeros [cache_length, ...] from `position` on."""
    rows = update[0][: cache_length - position]
    behind = cache_length - position - tf.shape(rows)[0]
    return tf.reshape(
        tf.pad(rows, [[position, behind], [0, 0], [0, 0]]), [cache_length, *update.shape[2:]]
    )


def _rounded(x: tf.Tensor, cache_type: str) -> tf.Tensor:
    """x as the cache gives it back."""
    if cache_type == "float16":
        return tf.cast(tf.cast(x, tf.float16), tf.float32)
    if cache_type == "int8":
        largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
        inverse = tf.where(largest >= 1e-30, 127.0 / largest, tf.zeros_like(largest))
        codes = tf.clip_by_value(tf.round(x * inverse), -127.0, 127.0)
        return codes * (largest / 127.0)
    return x


# Checks.


def _check_cache(layer: int, cache_length: int) -> None:
    if layer < 0:
        raise ValueError(f"expected a layer from 0 on, got {layer}")
    if cache_length < 1:
        raise ValueError(f"expected a cache_length of at least 1, got {cache_length}")


def _check_heads(x: tf.Tensor, name: str) -> None:
    if x.shape.rank != 4 or x.shape[0] != 1 or None in x.shape[2:].as_list():
        raise ValueError(
            f"expected {name} of shape [1, steps, heads, dim] with known heads and dim, got "
            f"{x.shape}; the operator keeps one sequence"
        )


def _check_attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    scale: float,
    soft_cap: float,
    cache_type: str,
) -> None:
    for x, name in ((query, "query"), (key, "key"), (value, "value")):
        _check_heads(x, name)
    if key.shape.as_list() != value.shape.as_list() or key.shape[3] != query.shape[3]:
        raise ValueError(
            "expected key and value of one shape, with the query's dim, got "
            f"{key.shape}, {value.shape} and query {query.shape}"
        )
    if key.shape[1] != query.shape[1]:
        raise ValueError(
            f"expected as many steps in query and key, got {query.shape[1]} and {key.shape[1]}"
        )
    if query.shape[2] % key.shape[2]:
        raise ValueError(
            f"expected query heads to be a multiple of the key's {key.shape[2]}, got "
            f"{query.shape[2]}"
        )
    if scale < 0 or soft_cap < 0:
        raise ValueError(f"expected scale and soft_cap from 0 on, got {scale} and {soft_cap}")
    if cache_type not in CACHE_TYPES:
        raise ValueError(
            f"expected cache_type to be one of {', '.join(CACHE_TYPES)}, got {cache_type!r}"
        )


def _checked_mask(mask: Any, query: tf.Tensor, cache_length: int) -> tf.Tensor:
    mask = tf.convert_to_tensor(mask, tf.bool)
    if not mask.shape.is_compatible_with([1, query.shape[1], cache_length]):
        raise ValueError(
            f"expected mask bool [1, {query.shape[1]}, {cache_length}], got {mask.shape}"
        )
    return mask
