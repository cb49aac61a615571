"""Composites: the TensorFlow bodies behind the custom operators.

Each public function calls a `tf.function` that carries `experimental_implements` with
`tfl_fusable_op`. In TensorFlow the body runs; in a TF Lite conversion the whole call becomes one
CUSTOM operator named `tfmot_ternary.<name>`, its options a FlexBuffer map and the packed weights an
untouched uint8 constant.

The body is the operator's reference: its numbers are the operator's, bit for bit where the
activations are int8 (`op_arithmetic`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from tfmot_ternary import op_arithmetic, packing
from tfmot_ternary.composite import composite

__all__ = ["conv2d", "embedding_lookup", "fully_connected", "unpack"]

ACTIVATION_TYPES = ("int8", "float32")
# The operators' limit (MaxK in custom_ops/kernels/format.h): sums stay inside int32.
MAX_K = {"t2": 1 << 22, "t5": 1 << 22, "b1": 1 << 22, "i8": 1 << 16, "i4": 1 << 16}


@tf.autograph.experimental.do_not_convert
def fully_connected(
    x: Any,
    packed: Any,
    scales: Any,
    bias: Any | None = None,
    *,
    weight_format: str,
    group_size: int = 0,
    activation: str = "none",
    activations: str = "int8",
) -> tf.Tensor:
    """`activation(x @ W.T + bias)` with packed weights W[n, k].

    Args:
      x: float32 [..., k]; k must be known statically.
      packed: uint8 [n, row_bytes(k)], see `packing.pack`.
      scales: float32 [1] (per tensor), [n] (per channel) or [n, ceil(k / group_size)].
      bias: float32 [n] or None.
      weight_format: "t2", "t5", "b1", "i8" or "i4".
      group_size: 0 for scales per tensor or channel, else 32, 64, 128 or 256.
      activation: "none", "relu" or "relu6", applied last.
      activations: "int8" quantizes each row of x to int8 (symmetric, one scale a row) as the
        operator does; "float32" keeps x as it is.

    Returns:
      float32 [..., n]. A row of x with a NaN or an infinity gives a row of NaN ("int8").

    Raises:
      ValueError: unknown option, or shapes that do not fit.
    """
    x = tf.convert_to_tensor(x, tf.float32)
    packed, scales = _weights(packed, scales)
    k = _static_dim(x, -1, "x")
    _check_options(weight_format, activation, activations)
    n = _check_weights(packed, scales, k, weight_format, group_size)
    function = _fully_connected_composite(weight_format, int(group_size), activation, activations)
    y = function(x, packed, scales, *_bias(bias, n))
    y.set_shape(x.shape[:-1].concatenate([n]))
    return y


@tf.autograph.experimental.do_not_convert
def conv2d(
    x: Any,
    packed: Any,
    scales: Any,
    bias: Any | None = None,
    *,
    weight_format: str,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    padding: str = "VALID",
    group_size: int = 0,
    activation: str = "none",
    activations: str = "int8",
) -> tf.Tensor:
    """2-D convolution with packed weights W[n, kernel_h * kernel_w * c_in], k = (kh, kw, c_in).

    Args:
      x: float32 [batch, height, width, c_in]; c_in must be known statically.
      packed, scales, bias, weight_format, group_size, activation: as in `fully_connected`.
      kernel_size: (kernel_h, kernel_w).
      strides, dilations: (h, w), each at least 1.
      padding: "SAME" (zeros) or "VALID".
      activations: "int8" quantizes each image with one scale; "float32" keeps x as it is.

    Returns:
      float32 [batch, out_height, out_width, n]. An image with a NaN or an infinity gives an image
      of NaN ("int8").

    Raises:
      ValueError: unknown option, or shapes that do not fit.
    """
    x = tf.convert_to_tensor(x, tf.float32)
    packed, scales = _weights(packed, scales)
    if x.shape.rank != 4:
        raise ValueError(f"expected x of shape [batch, height, width, c_in], got {x.shape}")
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'expected padding "SAME" or "VALID", got {padding!r}')
    sizes = {"kernel_size": kernel_size, "strides": strides, "dilations": dilations}
    for name, pair in sizes.items():
        if len(pair) != 2 or min(pair) < 1:
            raise ValueError(f"expected {name} to be two integers >= 1 (h, w), got {pair}")
    k = math.prod(kernel_size) * _static_dim(x, -1, "x")
    _check_options(weight_format, activation, activations)
    n = _check_weights(packed, scales, k, weight_format, group_size)
    function = _conv2d_composite(
        weight_format,
        int(group_size),
        activation,
        activations,
        tuple(int(v) for pair in (kernel_size, strides, dilations) for v in pair),
        padding,
    )
    y = function(x, packed, scales, *_bias(bias, n))
    # In a large model (EfficientNetB0) TF Lite's converter loses the rank of some results, and then
    # cannot convert a depthwise convolution of them. Where the whole shape is known, this is not in
    # the file; else it may stay, and TF Lite lacks it.
    return tf.ensure_shape(y, y.shape) if y.shape.is_fully_defined() else y


@tf.autograph.experimental.do_not_convert
def embedding_lookup(
    ids: Any, packed: Any, scales: Any, *, k: int, weight_format: str, group_size: int = 0
) -> tf.Tensor:
    """Rows of a packed embedding table W[vocabulary, k], dequantized.

    Args:
      ids: int32 [...], each in [0, vocabulary). The operator reports an id out of range;
        TensorFlow's CPU kernel of this body raises InvalidArgumentError.
      packed: uint8 [vocabulary, row_bytes(k)].
      scales: float32 [1], [vocabulary] or [vocabulary, ceil(k / group_size)].
      k: the embedding's width.
      weight_format, group_size: as in `fully_connected`.

    Returns:
      float32 [..., k].

    Raises:
      ValueError: unknown option, or shapes that do not fit.
    """
    ids = tf.cast(ids, tf.int32)
    packed, scales = _weights(packed, scales)
    _check_options(weight_format)
    _check_weights(packed, scales, k, weight_format, group_size)
    y = _embedding_lookup_composite(weight_format, int(group_size), int(k))(ids, packed, scales)
    y.set_shape(ids.shape.concatenate([k]))
    return y


@tf.autograph.experimental.do_not_convert
def unpack(
    packed: Any, scales: Any, *, k: int, weight_format: str, group_size: int = 0
) -> tf.Tensor:
    """The float32 matrix W[n, k] (codes times scales) of packed weights.

    Args:
      packed: uint8 [n, row_bytes(k)].
      scales: float32 [1], [n] or [n, ceil(k / group_size)].
      k: weights in a row.
      weight_format, group_size: as in `fully_connected`.

    Returns:
      float32 [n, k].

    Raises:
      ValueError: unknown option, or shapes that do not fit.
    """
    packed, scales = _weights(packed, scales)
    _check_options(weight_format)
    n = _check_weights(packed, scales, k, weight_format, group_size)
    y = _unpack_composite(weight_format, int(group_size), int(k))(packed, scales)
    y.set_shape([n, k])
    return y


# The composites. One tf.function for each set of options, which are attributes of the function.


@functools.cache
def _fully_connected_composite(
    weight_format: str, group_size: int, activation: str, activations: str
) -> Any:
    options: dict[str, Any] = {
        "weight_format": weight_format,
        "group_size": group_size,
        "activation": activation,
        "activations": activations,
    }

    def body(x: tf.Tensor, packed: tf.Tensor, scales: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
        k = x.shape[-1]
        rows = tf.reshape(x, [-1, k])
        codes = op_arithmetic.codes_of(packed, k, weight_format)
        if activations == "int8":
            q, scale_x, finite = op_arithmetic.quantize(rows, axes=[1])
            y = op_arithmetic.scaled_product(
                q, codes, scales, group_size, scale_x, op_arithmetic.max_exact_k(weight_format)
            )
        else:
            finite = None
            y = tf.matmul(
                rows, op_arithmetic.dequantize(codes, scales, group_size), transpose_b=True
            )
        y = op_arithmetic.epilogue(y, bias, activation, finite)
        shape = tf.concat([tf.shape(x)[:-1], [packed.shape[0]]], axis=0)
        return tf.reshape(y, shape)

    return composite("fully_connected", options, body)


@functools.cache
def _conv2d_composite(
    weight_format: str,
    group_size: int,
    activation: str,
    activations: str,
    geometry: tuple[int, ...],
    padding: str,
) -> Any:
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w")
    options: dict[str, Any] = {
        "weight_format": weight_format,
        "group_size": group_size,
        "activation": activation,
        "activations": activations,
        **dict(zip(names, geometry, strict=True)),
        "padding": padding,
    }
    kernel_h, kernel_w, *steps = geometry
    strides, dilations = steps[:2], steps[2:]

    def convolve(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        kernel = tf.reshape(
            tf.transpose(matrix), [kernel_h, kernel_w, x.shape[-1], matrix.shape[0]]
        )
        return tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations)

    def body(x: tf.Tensor, packed: tf.Tensor, scales: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
        k = kernel_h * kernel_w * x.shape[-1]
        codes = op_arithmetic.codes_of(packed, k, weight_format)
        if activations == "float32":
            y = convolve(x, op_arithmetic.dequantize(codes, scales, group_size))
            return op_arithmetic.epilogue(y, bias, activation, None)
        q, scale_x, finite = op_arithmetic.quantize(x, axes=[1, 2, 3])
        exact_k = op_arithmetic.max_exact_k(weight_format)
        if not group_size and k <= exact_k:
            y = op_arithmetic.as_integers(convolve(q, codes)) * op_arithmetic.joint_scale(
                scale_x, scales
            )
        else:
            patches = tf.image.extract_patches(
                q,
                [1, kernel_h, kernel_w, 1],
                [1, *strides, 1],
                [1, *dilations, 1],
                padding,
            )
            y = op_arithmetic.scaled_product(patches, codes, scales, group_size, scale_x, exact_k)
        return op_arithmetic.epilogue(y, bias, activation, finite)

    return composite("conv2d", options, body)


@functools.cache
def _embedding_lookup_composite(weight_format: str, group_size: int, k: int) -> Any:
    options: dict[str, Any] = {
        "weight_format": weight_format,
        "group_size": group_size,
        "k": k,
    }

    def body(ids: tf.Tensor, packed: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(ids, [-1])
        rows = op_arithmetic.codes_of(tf.gather(packed, flat), k, weight_format)
        per_tensor = not group_size and _is_per_tensor(packed, scales)
        row_scales = scales if per_tensor else tf.gather(scales, flat)
        values = op_arithmetic.dequantize(rows, row_scales, group_size)
        return tf.reshape(values, tf.concat([tf.shape(ids), [k]], axis=0))

    return composite("embedding_lookup", options, body)


@functools.cache
def _unpack_composite(weight_format: str, group_size: int, k: int) -> Any:
    options: dict[str, Any] = {
        "weight_format": weight_format,
        "group_size": group_size,
        "k": k,
    }

    def body(packed: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        return op_arithmetic.dequantize(
            op_arithmetic.codes_of(packed, k, weight_format), scales, group_size
        )

    return composite("unpack", options, body)


# Checks.


def _check_options(weight_format: str, activation: str = "none", activations: str = "int8") -> None:
    for name, value, allowed in (
        ("weight_format", weight_format, tuple(packing.FORMATS)),
        ("activation", activation, tuple(op_arithmetic.ACTIVATION_FUNCTIONS)),
        ("activations", activations, ACTIVATION_TYPES),
    ):
        if value not in allowed:
            raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")


def _check_weights(
    packed: tf.Tensor, scales: tf.Tensor, k: int, weight_format: str, group_size: int
) -> int:
    """Checks static shapes; returns n."""
    max_k = MAX_K[weight_format]
    if not 1 <= k <= max_k:
        raise ValueError(
            f"expected 1 <= k <= {max_k} (the operators' limit for {weight_format}), got k = {k}"
        )
    row_bytes = packing.row_bytes(k, weight_format)
    if packed.shape.rank != 2 or packed.shape[1] != row_bytes or packed.shape[0] is None:
        raise ValueError(
            f"expected packed weights uint8 [n, {row_bytes}] for k = {k} in format "
            f"{weight_format}, got {packed.shape}; pack them with packing.pack"
        )
    n = int(packed.shape[0])
    if group_size:
        allowed: list[list[int]] = [list(packing.scale_shape(n, k, group_size))]
    else:
        allowed = [[1], [n]]
    if scales.shape.as_list() not in allowed:
        shapes = " or ".join(str(shape) for shape in allowed)
        raise ValueError(
            f"expected scales float32 {shapes} for n = {n}, k = {k}, group_size = {group_size}, "
            f"got {scales.shape}"
        )
    return n


def _weights(packed: Any, scales: Any) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.convert_to_tensor(packed, tf.uint8), tf.convert_to_tensor(scales, tf.float32)


def _bias(bias: Any | None, n: int) -> tuple[tf.Tensor, ...]:
    if bias is None:
        return ()
    tensor = tf.convert_to_tensor(bias, tf.float32)
    if tensor.shape.as_list() != [n]:
        raise ValueError(f"expected bias float32 [{n}], got {tensor.shape}")
    return (tensor,)


def _static_dim(x: tf.Tensor, axis: int, name: str) -> int:
    if x.shape.rank is None or x.shape.rank < 1 or x.shape[axis] is None:
        raise ValueError(f"expected {name} with a known last dimension, got shape {x.shape}")
    return int(x.shape[axis])


def _is_per_tensor(packed: tf.Tensor, scales: tf.Tensor) -> bool:
    return scales.shape.as_list() == [1] and packed.shape[0] != 1
