"""The arithmetic of the operators, in TensorFlow: the bodies behind the composites of `ops`.

Rows are quantized to int8 in float32 arithmetic: products and sums of the integers are exact in a
float32 matrix product as long as 127 * k * (largest code) <= 2^24, and longer sums are cut into
exact pieces that are added as int32, so no order of summation changes a bit. Grappler may rewrite
what is equal in exact arithmetic; where that would change a bit, a comment says how it is kept from
it.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfmot_ternary import packing

ACTIVATION_FUNCTIONS: dict[str, Callable[[tf.Tensor], tf.Tensor] | None] = {
    "none": None,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
}


def max_exact_k(weight_format: str) -> int:
    """Longest sum of products q * code whose partial sums are all integers that float32 holds."""
    fmt = packing.FORMATS[weight_format]
    return (1 << 24) // (127 * max(-fmt.lowest, fmt.highest))


def codes_of(packed: tf.Tensor, k: int, weight_format: str) -> tf.Tensor:
    """uint8 [rows, row_bytes] -> float32 codes [rows, k] (g3doc/packing.md); static k."""
    fields = packing.FORMATS[weight_format].fields
    rows = tf.shape(packed)[0]
    full = k // (64 * fields)
    rest = k - full * 64 * fields
    pieces = []
    if full:
        blocks = tf.reshape(packed[:, : full * 64], [rows, full, 1, 64])
        digits = _digits(blocks, weight_format)
        pieces.append(tf.reshape(digits, [rows, full * 64 * fields]))
    if rest:
        tail = packed[:, full * 64 :]
        digits = _digits(tail[:, tf.newaxis, tf.newaxis, :], weight_format)
        pieces.append(tf.reshape(digits, [rows, fields * tail.shape[1]])[:, :rest])
    return pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=1)


def _digits(blocks: tf.Tensor, weight_format: str) -> tf.Tensor:
    """uint8 [rows, blocks, 1, bytes] -> float32 weights [rows, blocks, fields, bytes]."""
    fmt = packing.FORMATS[weight_format]
    fields = fmt.fields
    if weight_format == "t5":
        powers = tf.constant([[3**f] for f in range(fields)], tf.int32)
        digits = tf.cast(blocks, tf.int32) // powers % 3
        return tf.cast(digits - 1, tf.float32)
    if fields == 1:
        return tf.cast(blocks, tf.float32) + float(fmt.lowest)
    bits = 8 // fields
    shifts = tf.constant([[bits * f] for f in range(fields)], tf.uint8)
    digits = tf.bitwise.bitwise_and(
        tf.bitwise.right_shift(blocks, shifts), tf.constant((1 << bits) - 1, tf.uint8)
    )
    values = tf.cast(digits, tf.float32)
    return (values if fmt.step == 1 else fmt.step * values) + float(fmt.lowest)


def dequantize(codes: tf.Tensor, scales: tf.Tensor, group_size: int) -> tf.Tensor:
    """codes [rows, k] times scales [1], [rows] or [rows, groups]."""
    if group_size:
        return codes * tf.repeat(scales, group_size, axis=1)[:, : codes.shape[1]]
    return codes * scales[:, tf.newaxis]


def quantize(x: tf.Tensor, axes: list[int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Symmetric int8 over `axes`: integers as float32, scale, finiteness (axes kept)."""
    finite = tf.reduce_all(tf.math.is_finite(x), axis=axes, keepdims=True)
    x = tf.where(finite, x, tf.zeros_like(x))
    amax = tf.reduce_max(tf.abs(x), axis=axes, keepdims=True)
    # Below 1e-30 the reciprocal nears the end of float32 (127 / 0 is infinite): such a row is zero.
    inverse = tf.where(amax >= 1e-30, 127.0 / amax, tf.zeros_like(amax))
    q = tf.clip_by_value(tf.round(x * inverse), -127.0, 127.0)  # tf.round: half to even
    # Not `amax / 127.0`: Grappler makes a division by a constant a product with its reciprocal,
    # which differs in the last bit.
    return q, tf.math.divide_no_nan(amax, 127.0), finite


def as_integers(accumulator: tf.Tensor) -> tf.Tensor:
    """float(int32(accumulator)): no negative zero from sums of negative zeros."""
    return tf.cast(tf.cast(accumulator, tf.int32), tf.float32)


def joint_scale(scale_x: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """scale_x * scales, rounded before the accumulator is multiplied.

    Not the operator `*`: Grappler reorders a chain of Mul nodes to broadcast less (n = 1), and the
    last bit changes. All values are finite, so the other node gives the same product.
    """
    return tf.math.multiply_no_nan(scale_x, scales)


def _exact_product(q: tf.Tensor, codes: tf.Tensor, exact_k: int) -> tf.Tensor:
    """float(int32 sum of q * codes) [..., n] for q [..., k] and codes [n, k], whatever k."""
    k = codes.shape[1]
    if k <= exact_k:
        return as_integers(tf.matmul(q, codes, transpose_b=True))
    total = tf.zeros([], tf.int32)
    for start in range(0, k, exact_k):
        piece = slice(start, min(start + exact_k, k))
        product = tf.matmul(q[..., piece], codes[:, piece], transpose_b=True)
        total = total + tf.cast(product, tf.int32)
    return tf.cast(total, tf.float32)


def scaled_product(
    q: tf.Tensor,
    codes: tf.Tensor,
    scales: tf.Tensor,
    group_size: int,
    scale_x: tf.Tensor,
    exact_k: int,
) -> tf.Tensor:
    """The int8 product [..., n] with both scales applied; groups are added in ascending order.

    exact_k: `max_exact_k` of the codes' format; a group (256 weights at most) is never longer.
    """
    if q.shape.rank > 2:  # conv2d patches [b, oh, ow, k] against codes [n, k]
        shape = tf.shape(q)
        flat = tf.reshape(q, [-1, codes.shape[1]])
        per_image = tf.reshape(
            tf.broadcast_to(scale_x, tf.concat([shape[:-1], [1]], axis=0)), [-1, 1]
        )
        y = scaled_product(flat, codes, scales, group_size, per_image, exact_k)
        return tf.reshape(y, tf.concat([shape[:-1], [codes.shape[0]]], axis=0))
    if not group_size:
        return _exact_product(q, codes, exact_k) * joint_scale(scale_x, scales)
    k, n = codes.shape[1], codes.shape[0]
    groups = -(-k // group_size)
    padding = [[0, 0], [0, groups * group_size - k]]
    q_groups = tf.transpose(tf.reshape(tf.pad(q, padding), [-1, groups, group_size]), [1, 0, 2])
    w_groups = tf.transpose(tf.reshape(tf.pad(codes, padding), [-1, groups, group_size]), [1, 0, 2])
    g_scales = tf.transpose(scales)

    def add_group(group: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        accumulator = as_integers(tf.matmul(q_groups[group], w_groups[group], transpose_b=True))
        return group + 1, total + accumulator * g_scales[group]

    # A loop, not one batched product: one [m, n] sum in memory, and the specified order of adding.
    _, total = tf.while_loop(
        lambda group, total: group < groups,
        add_group,
        (tf.constant(0), tf.zeros([tf.shape(q)[0], n])),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, n])),
        maximum_iterations=groups,
    )
    return total * scale_x


def epilogue(
    y: tf.Tensor, bias: tuple[tf.Tensor, ...], activation: str, finite: tf.Tensor | None
) -> tf.Tensor:
    if bias:
        y = y + bias[0]
    function = ACTIVATION_FUNCTIONS[activation]
    if function is not None:
        y = function(y)
    return y if finite is None else tf.where(finite, y, tf.constant(float("nan"), tf.float32))
