"""The straight-through estimator: forward values of a kernel, gradients to weights and scales.

The rule is that of `quantizers`. Kernel and scales come as two float32 tensors that broadcast
against each other, or as [k, n] and the [n, groups] that its groups of rows have.

Done op by op, forward and gradient pass over the kernel a dozen times, as long as small batches
take for their matrix products. In the graph of a training step on a CPU each is therefore one XLA
cluster, one pass; what brings scales into the kernel's order is part of it. Graphs without
gradients (inference, export, conversion) and eager execution hold stock operations only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Whether a GradientTape watches a tensor; public TensorFlow does not tell.
from tensorflow.python.eager import record

__all__ = ["codes", "straight_through"]

# To compile a cluster takes some 50 ms, which the passes over a smaller kernel never add up to.
_SMALLEST_FUSED = 1 << 16
# XLA on CPUs keeps a sum apart from the terms that it adds, which are then written and read again.
# Adding this many slices of the kernel first is one loop, and leaves a sum over as much less.
_SLICES = 16


def codes(w: tf.Tensor, scales: tf.Tensor, levels: int) -> tf.Tensor:
    """Codes -1, 0, +1 of weights.

    Args:
      w: float32 tensor.
      scales: float32 tensor, >= 0, that broadcasts to its shape.
      levels: 3 or 2.

    Returns:
      float32 tensor of the shape of `w`.
    """
    if levels == 2:
        return tf.cast(w >= 0, tf.float32) * 2.0 - 1.0
    # The rule in fewer passes over the kernel: a >= 0, so that |w| > a / 2 decides for both signs.
    return tf.where(tf.abs(w) > scales * 0.5, tf.sign(w), 0.0)


def straight_through(
    w: tf.Tensor,
    scales: tf.Tensor,
    levels: int,
    clip: float | None = None,
    preserve_zeros: bool = False,
    fraction: Any = None,
    group_size: int | None = None,
) -> tf.Tensor:
    """codes * scales with the straight-through gradient.

    Args:
      w: float32 tensor; [k, n] with a group size.
      scales: float32 tensor of its rank, each axis that long or 1; [n, ceil(k / group_size)] with a
        group size.
      levels: 3 or 2.
      clip: None, or the bound on |w| above which no gradient goes through the quantizer to w.
      preserve_zeros: whether no gradient reaches weights that are 0.
      fraction: None for a quantized kernel, or a scalar f for (1 - f) * w + f * codes * scales.
      group_size: None, or the rows of `w` that share a scale in each column.

    Returns:
      float32 tensor of the shape of `w`.
    """
    size = None if group_size is None else min(group_size, w.shape[0])
    # Outside of the custom gradient, which asks to be told of every variable that it reads.
    f = None if fraction is None else tf.cast(tf.convert_to_tensor(fraction), tf.float32)
    fused = _fuses(w) and record.should_record_backprop([w, scales])

    # x + stop_gradient(q - x) would round; a custom gradient leaves the forward value exact.
    @tf.custom_gradient
    def quantized(w: tf.Tensor, scales: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            fuses = _fuses(w)
            run = _fused if fuses else _plain
            dw = dy
            if clip is not None or preserve_zeros:
                dw = run(_weight_gradient, clip, preserve_zeros)(w, dy, f)
            slices = _SLICES if fuses else 1
            return dw, run(_scale_gradient, levels, size, slices)(w, scales, dy, f)

        return (_fused if fused else _plain)(_values, levels, size)(w, scales, f), gradient

    return quantized(w, scales)


def _values(levels: int, size: int | None, w: tf.Tensor, scales: tf.Tensor, f: Any) -> tf.Tensor:
    view = w
    if size is not None:
        view, scales = _grouped(w, scales, size)
    values = codes(view, scales, levels) * scales
    values = values if f is None else (1.0 - f) * view + f * values
    return tf.reshape(values, w.shape)


def _grouped(w: tf.Tensor, scales: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """[k, n] and [n, groups] as two tensors that broadcast against each other."""
    k, n = w.shape
    scales = tf.transpose(scales)
    if k % size:
        return w, tf.repeat(scales, size, axis=0)[:k]
    return tf.reshape(w, [k // size, size, n]), tf.reshape(scales, [k // size, 1, n])


def _weight_gradient(
    clip: float | None, preserve_zeros: bool, w: tf.Tensor, dy: tf.Tensor, f: Any
) -> tf.Tensor:
    dw = dy
    if clip is not None:
        far = 0.0 if f is None else (1.0 - f) * dy  # the float share of the value is not clipped
        dw = tf.where(tf.abs(w) <= clip, dw, far)
    return tf.where(w != 0, dw, 0.0) if preserve_zeros else dw


def _scale_gradient(
    levels: int,
    size: int | None,
    slices: int,
    w: tf.Tensor,
    scales: tf.Tensor,
    dy: tf.Tensor,
    f: Any,
) -> tf.Tensor:
    if size is None:
        da = _sum_of_products(levels, slices, w, scales, dy)
    else:
        whole = w.shape[0] // size * size
        parts = [(size, slice(0, whole), slice(0, whole // size))]
        if whole < w.shape[0]:  # the last group is short
            parts.append((w.shape[0] - whole, slice(whole, None), slice(whole // size, None)))
        sums = []
        for rows_each, rows, columns in parts:
            view, scale_view = _grouped(w[rows], scales[:, columns], rows_each)
            dy_view = tf.reshape(dy[rows], view.shape)
            sums.append(_sum_of_products(levels, slices, view, scale_view, dy_view)[:, 0])
        da = tf.transpose(tf.concat(sums, axis=0))
    return da if f is None else f * da


def _sum_of_products(
    levels: int, slices: int, w: tf.Tensor, scales: tf.Tensor, dy: tf.Tensor
) -> tf.Tensor:
    """sum dy * code over the axes that share a scale; at most `slices` partial sums first."""
    shared = [axis for axis, dim in enumerate(scales.shape) if dim == 1]
    # Not the last axis: its slices would not be runs of memory.
    count, axis = max(
        ((math.gcd(w.shape[axis], slices), axis) for axis in shared if axis < w.shape.rank - 1),
        default=(1, 0),
    )
    half = scales * 0.5
    total = None
    for part, dy_part in zip(tf.split(w, count, axis), tf.split(dy, count, axis), strict=True):
        # dy * code, by selection: fewer operations than the codes and a product.
        if levels == 2:
            product = tf.where(part >= 0, dy_part, -dy_part)
        else:
            negative = tf.where(part < -half, -dy_part, 0.0)
            product = tf.where(part > half, dy_part, negative)
        total = product if total is None else total + product
    return tf.reduce_sum(total, axis=shared, keepdims=True)


def _fuses(w: tf.Tensor) -> bool:
    """Whether an operation on this kernel, built now, becomes an XLA cluster."""
    if tf.executing_eagerly() or w.shape.num_elements() < _SMALLEST_FUSED:
        return False
    # Accelerators are fast at the passes, and some installations cannot compile for theirs.
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def _plain(function: Callable[..., tf.Tensor], *settings: Any) -> Callable[..., tf.Tensor]:
    return functools.partial(function, *settings)


@functools.cache
def _fused(function: Callable[..., tf.Tensor], *settings: Any) -> Any:
    # One tf.function for all layers: those of one shape share the compiled cluster.
    return tf.function(functools.partial(function, *settings), jit_compile=True, autograph=False)
