"""Kernel moments: how the inputs that W[n, k] is multiplied by vary together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ternary.convolution_windows import window_rows
from tfmot_ternary.kernel_inputs import Kernel, channels_last, means_over_calls, sum_of_squares
from tfmot_ternary.layer_hessian import LayerHessian

__all__ = ["second_moments"]

# Floats in the rows that are multiplied at a time: 64 MiB, however large the activations are.
_PIECE = 1 << 24


def second_moments(
    model: Any,
    kernels: Iterable[Kernel],
    batches: Iterable[tuple[Any, Any, Any]],
    max_inputs: int,
) -> dict[str, np.ndarray | LayerHessian]:
    """E[x x^T] over all products of a kernel: over rows, positions and calls.

    The rows are those of `mean_squared_inputs`, which the diagonal agrees with. Kernels that see
    the same tensor one after the other (query, key and value) take one product of it.

    Args:
      model, kernels, batches: as `mean_squared_inputs` takes them.
      max_inputs: the largest k that a matrix [k, k] is computed for.

    Returns:
      {path: LayerHessian, or what `mean_squared_inputs` gives where k > max_inputs or where the
      product is not one with a single matrix (grouped, depthwise and transposed convolutions)}.

    Raises:
      ValueError: for NaN or Inf in a layer's input; the first such layer is named.
    """
    kernels = list(kernels)
    full = {k.path for k in kernels if k.layout.k <= max_inputs and _is_one_product(k)}
    last: list[Any] = []

    def sum_of(kernel: Kernel, x: tf.Tensor) -> tuple[np.ndarray, int]:
        if kernel.path not in full:
            return sum_of_squares(kernel, x)
        view = _row_view(kernel, x)
        # The tensor itself is kept, so that no other can be taken for it.
        if not last or last[0] is not x or last[1] != view:
            last.clear()
            last[:] = [x, view, _sum_of_products(kernel, x)]
        return last[2]

    means = means_over_calls(model, kernels, batches, sum_of)
    last.clear()
    return {
        path: LayerHessian(_symmetric(mean)) if path in full else mean
        for path, mean in means.items()
    }


def _is_one_product(kernel: Kernel) -> bool:
    """Whether all outputs of the layer see the same rows of inputs."""
    layer = kernel.layer
    if kernel.attribute == "pointwise_kernel" or not hasattr(layer, "kernel_size"):
        return True
    return _takes_windows(kernel) and layer.groups == 1 and "Transpose" not in type(layer).__name__


def _takes_windows(kernel: Kernel) -> bool:
    return kernel.attribute == "kernel" and hasattr(kernel.layer, "kernel_size")


def _row_view(kernel: Kernel, x: tf.Tensor) -> tuple[Any, ...]:
    """Equal for two kernels that multiply by the same rows of one input, in whatever order."""
    layer, layout = kernel.layer, kernel.layout
    if _takes_windows(kernel):
        sizes = (tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate))
        return (*sizes, layer.padding, layer.data_format)
    order = layout.input_permutation or tuple(range(len(x.shape)))
    return order[len(order) - len(layout.k_axes) :]


def _sum_of_products(kernel: Kernel, x: tf.Tensor) -> tuple[np.ndarray, int]:
    """(float32 [k, k], how many products it sums over)."""
    k = kernel.layout.k
    total, count = tf.zeros([k, k], tf.float32), 0
    for rows in _row_pieces(kernel, x):
        total += tf.matmul(rows, rows, transpose_a=True)
        count += int(rows.shape[0])
    return np.asarray(total), count


def _row_pieces(kernel: Kernel, x: tf.Tensor) -> Iterator[tf.Tensor]:
    """The rows that W[n, k] is multiplied by: float32 [at most _PIECE / k, k] at a time."""
    layer, layout = kernel.layer, kernel.layout
    limit = max(1, _PIECE // layout.k)
    if _takes_windows(kernel):
        geometry = layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate
        yield from window_rows(channels_last(layer, x), *geometry, limit)
        return
    rows = tf.reshape(layout.input_to_rows(x), [-1, layout.k])
    for start in range(0, int(rows.shape[0]), limit):
        yield tf.cast(rows[start : start + limit], tf.float32)


def _symmetric(x: np.ndarray) -> np.ndarray:
    """The mean of [k, k] and its transpose, in place; a product's halves differ in rounding."""
    for start in range(0, len(x), 1024):  # blocks, so that no second [k, k] is needed
        stop = start + 1024
        mean = (x[start:stop, start:] + x[start:, start:stop].T) / 2
        x[start:stop, start:], x[start:, start:stop] = mean, mean.T
    return x
