"""Fused operators: the small float operators between the products, each one custom operator.

As in `ops`, each public function calls a `tf.function` whose body runs in TensorFlow and which a
TF Lite conversion replaces by one CUSTOM operator `tfmot_ternary.<name>`. A norm is else five to
eight builtin operators, a rotary embedding about fifteen.

The operators compute in float32, in an order of their own: their error bounds are in
custom_ops/kernels (normalization.h, activation_body.h, rotary.h), near 1e-6 of the values.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from tfmot_ternary.composite import Option, composite

__all__ = ["activation", "layer_norm", "rms_norm", "rotary"]

ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
LAYOUTS = ("halves", "pairs")


@tf.autograph.experimental.do_not_convert
def rms_norm(x: Any, scale: Any, *, epsilon: float) -> tf.Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis.

    Args:
      x: float32 [..., n]; n must be known statically.
      scale: float32 [n].
      epsilon: at least 0.

    Returns:
      float32, the shape of x.

    Raises:
      ValueError: epsilon out of range, or shapes that do not fit.
    """
    x = tf.convert_to_tensor(x, tf.float32)
    scale = _row("scale", scale, x)
    return _like(x, _rms_norm_composite(_epsilon(epsilon))(x, scale))


@tf.autograph.experimental.do_not_convert
def layer_norm(x: Any, gamma: Any, beta: Any, *, epsilon: float) -> tf.Tensor:
    """`(x - mean) / sqrt(variance + epsilon) * gamma + beta` over the last axis.

    Args:
      x: float32 [..., n]; n must be known statically.
      gamma: float32 [n].
      beta: float32 [n].
      epsilon: at least 0.

    Returns:
      float32, the shape of x.

    Raises:
      ValueError: epsilon out of range, or shapes that do not fit.
    """
    x = tf.convert_to_tensor(x, tf.float32)
    gamma, beta = _row("gamma", gamma, x), _row("beta", beta, x)
    return _like(x, _layer_norm_composite(_epsilon(epsilon))(x, gamma, beta))


@tf.autograph.experimental.do_not_convert
def activation(x: Any, kind: str) -> tf.Tensor:
    """An activation function of every value of x.

    Args:
      x: float32 [...].
      kind: "gelu" (with erf), "gelu_tanh" (its approximation with tanh) or "silu".

    Returns:
      float32, the shape of x.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in ACTIVATIONS:
        raise ValueError(f"expected kind to be one of {', '.join(ACTIVATIONS)}, got {kind!r}")
    x = tf.convert_to_tensor(x, tf.float32)
    return _like(x, _activation_composite(kind)(x))


@tf.autograph.experimental.do_not_convert
def rotary(
    x: Any,
    position: Any,
    inverse_frequencies: Any,
    *,
    amplitude: float = 1.0,
    input_layout: str = "halves",
    output_layout: str = "halves",
) -> tf.Tensor:
    """Rotary position embedding of the first `2 * pairs` features; the others are copied.

    Pair (a, b) number i in row t becomes `amplitude * (a cos - b sin, b cos + a sin)` of the angle
    `position[t] * inverse_frequencies[i]`, a float32 product.

    Args:
      x: float32 [batch, length, ..., width]; the axes from the third on must be known statically.
      position: int32 [length], or [1]: the first row's, of rows that follow each other.
      inverse_frequencies: float32 [pairs], pairs <= width / 2.
      amplitude: at least 0, of the cosines and sines.
      input_layout: "halves": pair i is features i and pairs + i. "pairs": 2 i and 2 i + 1.
      output_layout: the same of the result.

    Returns:
      float32, the shape of x.

    Raises:
      ValueError: unknown layout, amplitude out of range, or shapes that do not fit.
    """
    x = tf.convert_to_tensor(x, tf.float32)
    position = tf.convert_to_tensor(position, tf.int32)
    table = tf.convert_to_tensor(inverse_frequencies, tf.float32)
    if x.shape.rank is None or x.shape.rank < 3 or None in x.shape[2:]:
        raise ValueError(f"expected x of shape [batch, length, ..., width], got {x.shape}")
    if table.shape.rank != 1 or table.shape[0] is None or 2 * table.shape[0] > x.shape[-1]:
        raise ValueError(
            f"expected inverse_frequencies float32 [pairs], pairs <= {x.shape[-1] // 2}, got "
            f"{table.shape}"
        )
    if position.shape.rank != 1 or position.shape[0] not in (None, 1, x.shape[1]):
        raise ValueError(f"expected position int32 [1] or [{x.shape[1]}], got {position.shape}")
    for name, layout in (("input_layout", input_layout), ("output_layout", output_layout)):
        if layout not in LAYOUTS:
            raise ValueError(f"expected {name} to be one of {', '.join(LAYOUTS)}, got {layout!r}")
    amplitude = _at_least_zero("amplitude", amplitude)
    function = _rotary_composite(amplitude, input_layout, output_layout)
    return _like(x, function(x, position, table))


# The composites. One tf.function for each set of options, which are attributes of the function.


@functools.cache
def _rms_norm_composite(epsilon: float) -> Any:
    def body(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        mean_square = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        return x * tf.math.rsqrt(mean_square + epsilon) * scale

    return composite("rms_norm", {"epsilon": epsilon}, body)


@functools.cache
def _layer_norm_composite(epsilon: float) -> Any:
    def body(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + epsilon) * gamma + beta

    return composite("layer_norm", {"epsilon": epsilon}, body)


@functools.cache
def _activation_composite(kind: str) -> Any:
    functions = {
        "gelu": tf.nn.gelu,
        "gelu_tanh": functools.partial(tf.nn.gelu, approximate=True),
        "silu": tf.nn.silu,
    }

    def body(x: tf.Tensor) -> tf.Tensor:
        return functions[kind](x)

    return composite("activation", {"kind": kind}, body)


@functools.cache
def _rotary_composite(amplitude: float, input_layout: str, output_layout: str) -> Any:
    options: dict[str, Option] = {
        "amplitude": amplitude,
        "input_layout": input_layout,
        "output_layout": output_layout,
    }

    def body(x: tf.Tensor, position: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
        pairs = table.shape[0]
        rows = tf.range(tf.shape(x)[1]) if position.shape[0] == 1 else 0
        positions = tf.cast(position + rows, tf.float32)
        angles = positions[:, tf.newaxis] * table
        for _ in range(x.shape.rank - 3):
            angles = angles[:, tf.newaxis]
        cosines, sines = amplitude * tf.cos(angles), amplitude * tf.sin(angles)
        rotated, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
        if input_layout == "pairs":
            first, second = rotated[..., ::2], rotated[..., 1::2]
        else:
            first, second = rotated[..., :pairs], rotated[..., pairs:]
        halves = [first * cosines - second * sines, second * cosines + first * sines]
        if output_layout == "pairs":
            stacked = tf.stack(halves, axis=-1)
            halves = [tf.reshape(stacked, tf.shape(rotated))]
        return tf.concat([*halves, rest], axis=-1)

    return composite("rotary", options, body)


# Checks.


def _row(name: str, value: Any, x: tf.Tensor) -> tf.Tensor:
    """`value` as float32 [n], n being the last axis of x."""
    if x.shape.rank is None or x.shape.rank < 1 or x.shape[-1] is None:
        raise ValueError(f"expected x with a known last dimension, got shape {x.shape}")
    value = tf.convert_to_tensor(value, tf.float32)
    if value.shape.as_list() != [x.shape[-1]]:
        raise ValueError(f"expected {name} float32 [{x.shape[-1]}], got {value.shape}")
    return value


def _epsilon(epsilon: float) -> float:
    return _at_least_zero("epsilon", epsilon)


def _at_least_zero(name: str, value: float) -> float:
    value = float(value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"expected {name} to be a finite number >= 0, got {value}")
    return value


def _like(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    y.set_shape(x.shape)
    return y
