"""Kernel inputs: what the columns of W[n, k] are multiplied by while a model computes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ternary.convolution_windows import window_sums
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.padding import TextPositions

__all__ = [
    "Kernel",
    "call_eagerly",
    "channels_last",
    "mean_squared_inputs",
    "means_over_calls",
    "sum_of_squares",
]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a model.

    Attributes:
      path: the name that its importance goes by.
      layer: the layer whose `call` multiplies by it.
      attribute: where the layer keeps it, for instance "kernel" or "cell.recurrent_kernel".
      variable: the tf.Variable.
      layout: how it becomes W[n, k].
    """

    path: str
    layer: Any
    attribute: str
    variable: Any
    layout: KernelLayout


def mean_squared_inputs(
    model: Any, kernels: Iterable[Kernel], batches: Iterable[tuple[Any, Any, Any]]
) -> dict[str, np.ndarray]:
    """E[x_k^2] over all products of a kernel: over rows, positions (no padding) and calls.

    Exact for Dense, EinsumDense and convolutions (over all patches, padding included). A transposed
    convolution takes each input channel's mean for all taps of its window: equal up to the border.
    A recurrent kernel takes the hidden states of the layer.

    Args:
      model: a tf_keras or Keras 3 model; called with `training=False`, left as it was.
      kernels: those to measure; tables of embeddings have no inputs and are left out.
      batches: of (x, y, sample_weight); only x is used.

    Returns:
      {path: float32 [k], or [n, k] where outputs see different inputs} of the kernels that were
      used.

    Raises:
      ValueError: for NaN or Inf in a layer's input; the first such layer is named.
    """
    return means_over_calls(model, kernels, batches, sum_of_squares)


def means_over_calls(
    model: Any,
    kernels: Iterable[Kernel],
    batches: Iterable[tuple[Any, Any, Any]],
    sum_of: Callable[[Kernel, tf.Tensor], tuple[np.ndarray, int]],
) -> dict[str, np.ndarray]:
    """Means of what `sum_of(kernel, input)` gives as (float array, how many products it sums over).

    Args:
      model, kernels, batches: as `mean_squared_inputs` takes them.
      sum_of: called once for every call of a kernel's layer; it may give the same array again.

    Returns:
      {path: float32 array} of the kernels that multiplied by something.

    Raises:
      ValueError: for NaN or Inf in a sum; the first such layer is named.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    broken: list[str] = []
    positions = TextPositions(model)

    def observe(kernel: Kernel, x: tf.Tensor) -> None:
        total, count = sum_of(kernel, positions.of(x))
        if kernel.path in sums:
            sums[kernel.path] += total
        else:
            sums[kernel.path] = total.copy()
        counts[kernel.path] = counts.get(kernel.path, 0) + count
        if not np.isfinite(sums[kernel.path]).all():
            broken.append(kernel.path)

    measured = [kernel for kernel in kernels if kernel.attribute != "embeddings"]
    with _observed(measured, observe):
        for number, (x, _, _) in enumerate(batches):
            positions.read(x)
            call_eagerly(model, x)
            # Not raised inside the call: Keras would wrap the message into one of its own.
            if broken:
                raise ValueError(
                    f"expected finite inputs of layer {broken[0]!r}, got NaN, Inf or squares "
                    f"beyond float32 in calibration batch {number}; look for them in the weights "
                    "of the layers before it, and in how the data is scaled"
                )
    for path, total in sums.items():
        total /= max(counts[path], 1)
    # No product: a recurrent kernel whose sequences have one step.
    return {p: total.astype(np.float32, copy=False) for p, total in sums.items() if counts[p]}


def call_eagerly(model: Any, x: Any) -> Any:
    """The model's outputs in inference mode, eagerly also where a layer is a tf.function."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        return model(x, training=False)
    finally:
        tf.config.run_functions_eagerly(before)


@contextlib.contextmanager
def _observed(
    kernels: Iterable[Kernel], observe: Callable[[Kernel, tf.Tensor], None]
) -> Iterator[None]:
    """Has `observe(kernel, input)` called whenever the layer of a kernel is called."""
    by_layer: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        by_layer.setdefault(id(kernel.layer), []).append(kernel)

    def observing(call: Any, of_layer: list[Kernel]) -> Any:
        @functools.wraps(call)
        def observed(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if args else next(iter(kwargs.values()))
            for kernel in of_layer:
                seen = x
                if kernel.attribute.endswith("recurrent_kernel"):
                    seen = _hidden_states(kernel.layer, call, args, kwargs)
                elif kernel.attribute == "pointwise_kernel":
                    seen = _depthwise_part(kernel.layer, x)
                observe(kernel, seen)
            return call(*args, **kwargs)

        return observed

    before: list[tuple[dict[str, Any], Any]] = []
    try:
        for of_layer in by_layer.values():
            layer = of_layer[0].layer
            # Not setattr: Keras tracks what is set. An attribute of the instance hides the class's.
            before.append((layer.__dict__, layer.__dict__.get("call")))
            layer.__dict__["call"] = observing(layer.call, of_layer)
        yield
    finally:
        for attributes, call in before:
            if call is None:
                del attributes["call"]
            else:
                attributes["call"] = call


def channels_last(layer: Any, x: tf.Tensor) -> tf.Tensor:
    """The input of a convolution as [batch, spatial..., c]."""
    if layer.data_format == "channels_first":
        return tf.transpose(x, [0, *range(2, len(x.shape)), 1])
    return x


def _hidden_states(layer: Any, call: Any, args: Any, kwargs: Any) -> tf.Tensor:
    """What the recurrent kernel multiplies by at steps 1 and on: [batch, steps - 1, units].

    The state before step 0 is usually zero, and one of many; it is left out.
    """
    before = layer.return_sequences, layer.stateful
    layer.return_sequences, layer.stateful = True, False
    try:
        outputs = call(*args, **kwargs)
    finally:
        layer.return_sequences, layer.stateful = before
    sequences = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return sequences[:-1] if getattr(layer, "time_major", False) else sequences[:, :-1]


def _depthwise_part(layer: Any, x: tf.Tensor) -> tf.Tensor:
    """Float32 output of the depthwise half of a separable convolution, channels last."""
    x = channels_last(layer, tf.cast(x, tf.float32))
    kernel = tf.cast(tf.convert_to_tensor(layer.depthwise_kernel), tf.float32)
    strides, rates, padding = list(layer.strides), list(layer.dilation_rate), layer.padding
    if padding == "causal":
        x = tf.pad(x, [[0, 0], [(layer.kernel_size[0] - 1) * rates[0], 0], [0, 0]])
        padding = "valid"
    if len(strides) == 1:
        x, kernel = x[:, None], kernel[None]
        strides, rates = strides * 2, [1, *rates]
    return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding.upper(), dilations=rates)


def sum_of_squares(kernel: Kernel, x: tf.Tensor) -> tuple[np.ndarray, int]:
    """Sums of x_k^2 over one call: (float64 [k] or [n, k], how many products it sums over)."""
    layer, layout = kernel.layer, kernel.layout
    squared = tf.square(tf.cast(x, tf.float32))
    if kernel.attribute == "pointwise_kernel" or not hasattr(layer, "kernel_size"):
        rows = layout.input_to_rows(squared)
        total = tf.reduce_sum(rows, axis=list(range(len(rows.shape) - 1)))
        return total.numpy().astype(np.float64), int(tf.size(rows)) // layout.k
    batch = int(squared.shape[0])
    plane = tf.reduce_sum(squared, axis=0).numpy().astype(np.float64)
    if layer.data_format == "channels_first":
        plane = np.moveaxis(plane, 0, -1)
    if "Transpose" in type(layer).__name__:
        positions = int(np.prod(plane.shape[:-1]))
        channels = plane.reshape(positions, -1).sum(axis=0)
        return np.tile(channels, layout.k // len(channels)), batch * positions
    sums, positions = window_sums(
        plane, layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate
    )
    if kernel.attribute == "depthwise_kernel":
        full = np.broadcast_to(sums[..., None], layout.kernel_shape)
        return layout.to_matrix(full), batch * positions
    if layer.groups == 1:
        return sums.reshape(layout.k), batch * positions
    # The outputs of a group see its channels only: [window, group, c] -> [window, c, group, n].
    grouped = np.moveaxis(sums.reshape(*layer.kernel_size, layer.groups, -1), -2, -1)
    full = np.repeat(grouped, layout.n // layer.groups, axis=-1)
    return layout.to_matrix(full), batch * positions
