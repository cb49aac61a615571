"""The straight-through estimator: forward values of a kernel, gradients to weights and scales.

The rule is that of `quantizers`. Kernel and scales come as two float32 tensors that broadcast
against each other.

Done op by op, forward and gradient pass over the kernel a dozen times, as long as small batches
take for their matrix products. In the graph of a training step on a CPU each is therefore one XLA
cluster, one pass. Graphs without gradients (inference, export, conversion) and eager execution hold
stock operations only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Whether a GradientTape watches a tensor; public TensorFlow does not tell.
from tensorflow.python.eager import record

__all__ = ["codes", "straight_through"]

# To compile a cluster takes some 50 ms, which the passes over a smaller kernel never add up to.
_SMALLEST_FUSED = 1 << 16


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
) -> tf.Tensor:
    """codes * scales with the straight-through gradient.

    Args:
      w: float32 tensor.
      scales: float32 tensor of its rank, each axis that long or 1.
      levels: 3 or 2.
      clip: None, or the bound on |w| above which no gradient goes through the quantizer to w.
      preserve_zeros: whether no gradient reaches weights that are 0.
      fraction: None for a quantized kernel, or a scalar f for (1 - f) * w + f * codes * scales.

    Returns:
      float32 tensor of the shape of `w`.
    """
    # Outside of the custom gradient, which asks to be told of every variable that it reads.
    f = None if fraction is None else tf.cast(tf.convert_to_tensor(fraction), tf.float32)
    fused = _fuses(w) and record.should_record_backprop([w, scales])

    # x + stop_gradient(q - x) would round; a custom gradient leaves the forward value exact.
    @tf.custom_gradient
    def quantized(w: tf.Tensor, scales: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            run = _fused if _fuses(w) else _plain
            dw = dy
            if clip is not None or preserve_zeros:
                dw = run(_weight_gradient, clip, preserve_zeros)(w, dy, f)
            return dw, run(_scale_gradient, levels)(w, scales, dy, f)

        return (_fused if fused else _plain)(_values, levels)(w, scales, f), gradient

    return quantized(w, scales)


def _values(levels: int, w: tf.Tensor, scales: tf.Tensor, f: Any) -> tf.Tensor:
    values = codes(w, scales, levels) * scales
    return values if f is None else (1.0 - f) * w + f * values


def _weight_gradient(
    clip: float | None, preserve_zeros: bool, w: tf.Tensor, dy: tf.Tensor, f: Any
) -> tf.Tensor:
    dw = dy
    if clip is not None:
        far = 0.0 if f is None else (1.0 - f) * dy  # the float share of the value is not clipped
        dw = tf.where(tf.abs(w) <= clip, dw, far)
    return tf.where(w != 0, dw, 0.0) if preserve_zeros else dw


def _scale_gradient(
    levels: int, w: tf.Tensor, scales: tf.Tensor, dy: tf.Tensor, f: Any
) -> tf.Tensor:
    # dy * code, by selection: fewer operations than the codes and a product.
    if levels == 2:
        product = tf.where(w >= 0, dy, -dy)
    else:
        half = scales * 0.5
        product = tf.where(w > half, dy, tf.where(w < -half, -dy, 0.0))
    shared = [axis for axis, dim in enumerate(scales.shape) if dim == 1]
    da = tf.reduce_sum(product, axis=shared, keepdims=True)
    return da if f is None else f * da


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
