"""Quantizers: kernels with ternary or binary values, and the straight-through gradient.

The rule, the same in NumPy and in TensorFlow, with a the scale of the weight:

    ternary code  c = +1 if w > a / 2, -1 if w < -a / 2, else 0
    binary code   c = +1 if w >= 0, else -1

The forward value is exactly c * a (halving and multiplying by -1, 0, +1 do not round), so a frozen
model has the very weights that were trained. The gradient is dL/dw = dL/dq (straight through) and
dL/da = sum dL/dq * c over the weights that share a.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary import initializers
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.nearest_codes import nearest_codes
from tfmot_ternary.packing import GroupSize, expand_scales, scale_shape
from tfmot_ternary.starting_point import starting_point
from tfmot_ternary.straight_through import codes, straight_through

__all__ = [
    "BinaryQuantizer",
    "TernaryQuantizer",
    "binarize",
    "binary_codes",
    "check_preserve_zeros",
    "quantize_kernel",
    "ternarize",
    "ternary_codes",
    "weight_codes",
]


def weight_codes(w: Any, scales: Any, levels: int, group_size: GroupSize = None) -> Any:
    """Codes of a weight matrix.

    Args:
      w: float [n, k], NumPy array or tensor; float32 is what is compared.
      scales: of shape `packing.scale_shape(n, k, group_size)`.
      levels: 3 (ternary) or 2 (binary, where the scales do not matter).
      group_size: None (per channel), "tensor" or the inputs per group.

    Returns:
      int8 [n, k], an array for an array and a tensor for a tensor.
    """
    _check_levels(levels)
    if not tf.is_tensor(w) and not isinstance(w, tf.Variable):
        w = np.asarray(w, np.float32)
        if w.ndim != 2:
            raise ValueError(f"expected a weight matrix [n, k], got shape {w.shape}")
        n, k = w.shape
        return nearest_codes(w, expand_scales(scales, n, k, group_size), levels)
    w = tf.cast(w, tf.float32)
    view, scale_view, _ = _views(w, scales, _rows_layout(w), group_size)
    return tf.reshape(tf.cast(codes(view, scale_view, levels), tf.int8), w.shape)


def ternary_codes(w: Any, scales: Any, group_size: GroupSize = None) -> Any:
    """`weight_codes` with three levels."""
    return weight_codes(w, scales, 3, group_size)


def binary_codes(w: Any, scales: Any, group_size: GroupSize = None) -> Any:
    """`weight_codes` with two levels."""
    return weight_codes(w, scales, 2, group_size)


def ternarize(w: Any, scales: Any, group_size: GroupSize = None) -> tf.Tensor:
    """W[n, k] -> codes * scales, float tensor [n, k] with the straight-through gradient."""
    return quantize_kernel(w, scales, _rows_layout(w), 3, group_size)


def binarize(
    w: Any, scales: Any, group_size: GroupSize = None, clip: float | None = None
) -> tf.Tensor:
    """As `ternarize` for {-a, +a}; `clip` as in `quantize_kernel`."""
    return quantize_kernel(w, scales, _rows_layout(w), 2, group_size, clip)


def quantize_kernel(
    kernel: Any,
    scales: Any,
    layout: KernelLayout,
    levels: int,
    group_size: GroupSize = None,
    clip: float | None = None,
    preserve_zeros: bool = False,
    fraction: Any = None,
) -> tf.Tensor:
    """A kernel in its layer's own axis order -> the kernel of its quantized values.

    The kernel is not transposed: scales are brought into its order instead. (Groups of an einsum
    kernel whose n and k axes are interleaved are the one exception.)

    Args:
      kernel: float tensor or variable of `layout.kernel_shape`.
      scales: float tensor or variable of `packing.scale_shape(layout.n, layout.k, group_size)`.
      layout: how the kernel becomes W[n, k].
      levels: 3 or 2.
      group_size: None (per channel), "tensor" or the inputs per group.
      clip: None, or the bound on |w| above which no gradient reaches w (Larq's `ste_sign` has 1).
      preserve_zeros: whether no gradient reaches weights that are exactly 0: they stay 0.
      fraction: None, or a scalar f from 0 to 1 (tensor or variable) for the value (1 - f) * w + f *
        codes * scales, with dL/dw = dL/dvalue and dL/da weighted by f; see `GradualQuantization`.

    Returns:
      Tensor of the kernel's shape and dtype; computed in float32.

    Raises:
      ValueError: for a wrong shape or level.
    """
    _check_levels(levels)
    kernel = tf.convert_to_tensor(kernel)
    dtype = kernel.dtype
    if tuple(kernel.shape) != layout.kernel_shape:
        raise ValueError(
            f"expected a kernel of shape {layout.kernel_shape}, got {tuple(kernel.shape)}"
        )
    interleaved = not (group_size is None or group_size == "tensor") and _order(layout) is None
    w = layout.to_matrix(kernel) if interleaved else kernel
    inner = _rows_layout(w) if interleaved else layout
    view, scale_view, size = _views(tf.cast(w, tf.float32), scales, inner, group_size)
    value = straight_through(view, scale_view, levels, clip, preserve_zeros, fraction, size)
    value = tf.cast(tf.reshape(value, w.shape), dtype)
    return layout.from_matrix(value) if interleaved else value


def _check_levels(levels: int) -> None:
    if levels not in (2, 3):
        raise ValueError(f"expected levels 2 (binary) or 3 (ternary), got {levels!r}")


def check_preserve_zeros(preserve_zeros: bool, levels: int) -> None:
    """Raises ValueError where zeros cannot be preserved."""
    if preserve_zeros and levels == 2:
        raise ValueError(
            "expected preserve_zeros=False for binary weights, got True: {-a, +a} has no zero; use "
            "the ternary scheme for a pruned model"
        )


def _rows_layout(w: Any) -> KernelLayout:
    if len(w.shape) != 2:
        raise ValueError(f"expected a weight matrix [n, k], got shape {tuple(w.shape)}")
    return KernelLayout(tuple(w.shape), n_axes=(0,), k_axes=(1,))


def _order(layout: KernelLayout) -> str | None:
    """The order of the matrix "nk" or "kn" that a reshape makes of the kernel; None if neither."""
    axes = tuple(range(len(layout.kernel_shape)))
    if layout.n_axes + layout.k_axes == axes:
        return "nk"
    return "kn" if layout.k_axes + layout.n_axes == axes else None


def _views(
    w: tf.Tensor, scales: Any, layout: KernelLayout, group_size: GroupSize
) -> tuple[tf.Tensor, tf.Tensor, int | None]:
    """Kernel, scales and group size as `straight_through` takes them.

    The size is None where kernel and scales are reshaped to broadcast against each other: always,
    but for groups of a kernel in the order "kn". Those scales need a transpose, which as an
    operation of its own (oneDNN's) takes as long as a pass over the kernel.
    """
    scales = tf.cast(tf.convert_to_tensor(scales), tf.float32)
    n, k = layout.n, layout.k
    expected = scale_shape(n, k, group_size)
    if tuple(scales.shape) != expected:
        raise ValueError(
            f"expected scales of shape {expected} for n = {n}, k = {k}, group_size = "
            f"{group_size!r}, got {tuple(scales.shape)}"
        )
    shape = layout.kernel_shape
    if group_size == "tensor":
        return w, tf.reshape(scales, [1] * len(shape)), None
    if group_size is None:
        by_axis = tf.reshape(scales, [shape[a] for a in layout.n_axes])
        if list(layout.n_axes) != sorted(layout.n_axes):
            by_axis = tf.transpose(by_axis, np.argsort(layout.n_axes).tolist())
        aligned = [d if a in layout.n_axes else 1 for a, d in enumerate(shape)]
        return w, tf.reshape(by_axis, aligned), None
    size = int(group_size)
    groups = expected[1]
    if _order(layout) == "kn":
        return tf.reshape(w, [k, n]), scales, size
    if k % size == 0:
        return tf.reshape(w, [n, groups, size]), tf.reshape(scales, [n, groups, 1]), None
    return tf.reshape(w, [n, k]), tf.repeat(scales, size, axis=1)[:, :k], None


class _KernelQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """What TernaryQuantizer and BinaryQuantizer share."""

    levels: int
    # See `quantize_kernel`; GradualQuantization sets it on instances while a step of training runs.
    quantized_fraction: Any = None

    def __init__(
        self,
        group_size: GroupSize = None,
        initializer: Any = None,
        layout: KernelLayout | None = None,
        trainable: bool = True,
        clip: float | None = None,
        preserve_zeros: bool = False,
    ) -> None:
        """Makes the quantizer.

        Args:
          group_size: None (one scale per output channel), "tensor", or 32, 64, 128, 256 inputs.
          initializer: a ScaleInitializer, its name, or None for exact k-means; computes the first
            scales from the weights that the layer has when the quantizer is built.
          layout: the kernel's layout; None infers it from the rank (2: Dense, 3 to 5: convolution).
          trainable: whether the scales are trained.
          clip: see `quantize_kernel`.
          preserve_zeros: see `quantize_kernel`; for three levels only.
        """
        scale_shape(1, 1, group_size)  # checks it
        check_preserve_zeros(preserve_zeros, self.levels)
        if clip is not None and not clip > 0:
            raise ValueError(f"expected clip None or > 0, got {clip!r}")
        self.group_size = group_size
        self.initializer = initializers.get(initializer)
        self.layout = layout
        self.trainable = bool(trainable)
        self.clip = clip
        self.preserve_zeros = bool(preserve_zeros)
        # For the next `build`, see `starting_point`; no part of the config.
        self.importance: Any = None

    def _layout_of(self, shape: Any) -> KernelLayout:
        if self.layout is not None:
            return self.layout
        return KernelLayout.dense(shape) if len(shape) == 2 else KernelLayout.conv(shape)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, tf.Variable]:
        """Adds the scales to `layer`, a QuantizeWrapper.

        They start from the weight that the wrapped layer has now; with a LayerHessian as
        `importance` that weight changes, too.

        Returns:
          {"scale": float32 variable of `packing.scale_shape(n, k, group_size)`, kept >= 0}.

        Raises:
          ValueError: if the wrapped layer has no weight `name` of that shape, or it is not finite.
        """
        shape = tuple(tensor_shape)
        layout = self._layout_of(shape)
        trained = _trained_weight(layer, name, shape)
        weights, scales = starting_point(
            layout.to_matrix(np.asarray(trained)),
            self.levels,
            self.group_size,
            self.initializer,
            self.importance,
            self.preserve_zeros,
            name=f"{layer.layer.name}/{name}",
        )
        self.importance = None
        if weights is not None:
            trained.assign(layout.from_matrix(weights))
        variable = layer.add_weight(
            name=f"{name}_scale",
            shape=scales.shape,
            dtype=tf.float32,
            initializer=keras.initializers.Constant(scales),
            trainable=self.trainable,
            constraint=keras.constraints.NonNeg(),
            experimental_autocast=False,  # float32 under every precision policy, as when frozen
        )
        # tfmot's wrapper collects the layer's weights before the layer is built: a trained layer
        # has them in front of the scales, one that is being loaded behind. One order for both.
        inner = layer.layer.trainable_weights
        known = {id(weight) for weight in inner}
        own = [weight for weight in layer._trainable_weights if id(weight) not in known]
        layer._trainable_weights[:] = [*inner, *own]
        return {"scale": variable}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        """Returns the quantized kernel; the same in training and inference."""
        del training, kwargs
        layout = self._layout_of(tuple(inputs.shape))
        return quantize_kernel(
            inputs,
            weights["scale"],
            layout,
            self.levels,
            self.group_size,
            self.clip,
            self.preserve_zeros,
            self.quantized_fraction,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "group_size": self.group_size,
            "initializer": initializers.serialize(self.initializer),
            "layout": None if self.layout is None else self.layout.get_config(),
            "trainable": self.trainable,
            "clip": self.clip,
            "preserve_zeros": self.preserve_zeros,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _KernelQuantizer:
        config = dict(config)
        if config.get("layout") is not None:
            config["layout"] = KernelLayout.from_config(config["layout"])
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self.get_config())))


class TernaryQuantizer(_KernelQuantizer):
    """tfmot Quantizer for {-a, 0, +a}."""

    levels = 3


class BinaryQuantizer(_KernelQuantizer):
    """tfmot Quantizer for {-a, +a}."""

    levels = 2


def _trained_weight(wrapper: Any, name: str, shape: tuple[int, ...]) -> tf.Variable:
    if hasattr(wrapper, "kernel_named"):  # ours; it knows equal names apart
        candidates = [wrapper.kernel_named(name)]
    else:
        candidates = [
            weight
            for weight in wrapper.layer.weights
            if weight.name.split(":")[0].split("/")[-1] == name and tuple(weight.shape) == shape
        ]
    if not candidates:
        raise ValueError(
            f"expected layer {wrapper.layer.name!r} to have a weight {name!r} of shape {shape}, "
            f"got {[(w.name, tuple(w.shape)) for w in wrapper.layer.weights]}"
        )
    if not tf.executing_eagerly():
        raise RuntimeError(
            f"expected eager execution while the scales of {wrapper.layer.name}/{name} are made "
            "from its weights, got a TensorFlow 1 graph; call tf.compat.v1.enable_eager_execution()"
        )
    return candidates[0]
