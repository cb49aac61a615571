"""Packed layers: Dense, EinsumDense, convolutions and embeddings whose weights are packed codes.

One definition serves both Keras versions: `packed_class(base)` mixes a packed form into a layer
class of tf_keras or of Keras 3. Codes and scales are variables that are not trained, so that each
Keras saves, loads, counts and exports them itself; there is no float kernel.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import tensorflow as tf

from tfmot_ternary import ops
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packed_embedding import PackedEmbedding
from tfmot_ternary.packed_layer import PackedLayer, is_keras_class, layer_class_of

__all__ = ["pack_in_place", "packed_class"]


class PackedKernel(PackedLayer):
    """A packed layer with a matrix `kernel`; code that reads it gets the dequantized one."""

    @property
    def kernel(self) -> tf.Tensor:
        return self.unpacked()

    def _call_base(self, inputs: Any, kwargs: dict[str, Any]) -> Any:
        """The base layer's own computation on the unpacked kernel."""
        call = super().call  # type: ignore[misc]
        accepted = inspect.signature(call).parameters
        return call(inputs, **{key: kwargs[key] for key in kwargs if key in accepted})


class PackedDense(PackedKernel):
    """Dense and EinsumDense as `fully_connected`."""

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, **kwargs: Any) -> Any:
        if not _has_own_call(type(self), ("Dense", "EinsumDense")):
            return self._call_base(inputs, kwargs)
        layout = self.kernel_layout
        bias = None if self.bias is None else tf.cast(self.bias, tf.float32)
        row_bias = None if bias is None else _bias_row(bias, layout)
        fused = row_bias is not None or bias is None
        activation = _fused_activation(self.activation) if fused else "none"
        y = ops.fully_connected(
            layout.input_to_rows(tf.cast(inputs, tf.float32)),
            self.packed,
            self.scales,
            row_bias,
            **self._product_options(activation),
        )
        y = layout.rows_to_output(y)
        if not fused:
            y = y + bias
        return _finished(self, y, activation)


class PackedConv(PackedKernel):
    """Conv1D and Conv2D as `conv2d`; other convolutions call their base on the unpacked kernel."""

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, **kwargs: Any) -> Any:
        supported = (
            _has_own_call(type(self), ("Conv", "BaseConv", "Conv1D", "Conv2D"))
            and self.rank in (1, 2)
            and self.groups == 1
            and self.data_format == "channels_last"
            and inputs.shape.rank == self.rank + 2
        )
        if not supported:
            return self._call_base(inputs, kwargs)
        x = tf.cast(inputs, tf.float32)
        padding = self.padding.upper()
        if padding == "CAUSAL":
            reach = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            x = tf.pad(x, [[0, 0], [reach, 0], [0, 0]])
            padding = "VALID"
        if self.rank == 1:  # one image row
            x = x[:, tf.newaxis]
        ones = (1,) * (2 - self.rank)
        activation = _fused_activation(self.activation)
        y = ops.conv2d(
            x,
            self.packed,
            self.scales,
            None if self.bias is None else tf.cast(self.bias, tf.float32),
            kernel_size=ones + tuple(self.kernel_size),
            strides=ones + tuple(self.strides),
            dilations=ones + tuple(self.dilation_rate),
            padding=padding,
            **self._product_options(activation),
        )
        if self.rank == 1:
            y = y[:, 0]
        return _finished(self, y, activation)

    rank: int
    groups: int
    data_format: str
    padding: str
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]


class PackedDepthwiseConv(PackedLayer):
    """DepthwiseConv1D and DepthwiseConv2D: the stock convolution on the unpacked kernel."""

    @property
    def depthwise_kernel(self) -> tf.Tensor:
        return self.unpacked()


class PackedSeparableConv(PackedLayer):
    """SeparableConv1D and SeparableConv2D: stock depthwise convolution, then a 1 x 1 `conv2d`."""

    float_kernels = ("depthwise_kernel",)

    @property
    def pointwise_kernel(self) -> tf.Tensor:
        return self.unpacked()

    def build(self, input_shape: Any) -> None:
        c_in = self.kernel_layout.k // self.depth_multiplier
        self.depthwise_kernel = self.add_weight(  # type: ignore[attr-defined]
            name="depthwise_kernel", shape=(*self.kernel_size, c_in, self.depth_multiplier)
        )
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, **kwargs: Any) -> Any:
        del kwargs  # `training`, of tf_keras
        if self.data_format != "channels_last":
            return super().call(inputs)  # type: ignore[misc]
        x, kernel = inputs, self.depthwise_kernel
        padding = self.padding.upper()
        if padding == "CAUSAL":
            reach = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            x = tf.pad(x, [[0, 0], [reach, 0], [0, 0]])
            padding = "VALID"
        strides, dilations = tuple(self.strides), tuple(self.dilation_rate)
        if self.rank == 1:  # one image row; depthwise convolutions have equal strides only
            x, kernel = x[:, tf.newaxis], kernel[tf.newaxis]
            strides, dilations = strides * 2, (1, *dilations)
        x = tf.nn.depthwise_conv2d(x, kernel, (1, *strides, 1), padding, dilations=dilations)
        activation = _fused_activation(self.activation)
        y = ops.conv2d(
            tf.cast(x, tf.float32),
            self.packed,
            self.scales,
            None if self.bias is None else tf.cast(self.bias, tf.float32),
            kernel_size=(1, 1),
            **self._product_options(activation),
        )
        if self.rank == 1:
            y = y[:, 0]
        return _finished(self, y, activation)

    rank: int
    data_format: str
    padding: str
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    depth_multiplier: int
    depthwise_kernel: Any


_FORMS: dict[str, type[PackedLayer]] = {
    "Dense": PackedDense,
    "EinsumDense": PackedDense,
    "Conv1D": PackedConv,
    "Conv2D": PackedConv,
    "Conv3D": PackedConv,
    "DepthwiseConv1D": PackedDepthwiseConv,
    "DepthwiseConv2D": PackedDepthwiseConv,
    "SeparableConv1D": PackedSeparableConv,
    "SeparableConv2D": PackedSeparableConv,
    "Embedding": PackedEmbedding,
}


@functools.cache
def packed_class(base: type) -> type:
    """The packed subclass of a layer class of tf_keras or Keras 3.

    Raises:
      TypeError: the class has no packed form.
    """
    form = next(
        (_FORMS[c.__name__] for c in base.__mro__ if is_keras_class(c, tuple(_FORMS))), None
    )
    if form is None:
        raise TypeError(
            f"expected a subclass of {', '.join(_FORMS)} of tf_keras or Keras 3, got "
            f"{base.__module__}.{base.__name__}"
        )
    members: dict[str, Any] = {"__module__": __name__, "changed_from": base}
    if hasattr(base, "equation") or base.__name__ == "EinsumDense":
        # The base class keeps its output shape from a build that a packed layer does not run.
        members["compute_output_shape"] = layer_class_of(base).compute_output_shape
    return type(f"Packed{base.__name__}", (form, base), members)


def pack_in_place(layer: Any, base: type, **packing: Any) -> None:
    """Turns a built Keras 3 layer into a packed one; its float kernel is gone afterwards.

    The packed variables hold zeros until `set_packed_weights`; in a skeleton they hold nothing.

    Args:
      layer: instance of `base`, or of a quantized class made from it.
      base: the float layer's class.
      packing: see `PackedLayer` for the keys, and `PackedEmbedding` for `head`.
    """
    names = ["_kernel", "_embeddings", "kernel_scale"]
    if packing.get("head") is not None:
        names.append("reverse_embeddings")
    for name in names:
        variable = layer.__dict__.get(name)
        if variable is not None:
            layer._untrack_variable(variable)
            # `del layer._kernel`, which also ends TensorFlow's tracking, but without the garbage
            # collection that Keras runs for each variable.
            super(layer_class_of(type(layer)), layer).__delattr__(name)
            setattr(layer, name, None)
    layer.__class__ = packed_class(base)
    layer._set_packing(**packing)
    layer._tracker.unlock()
    layer._add_packed_weights()
    layer._tracker.lock()
    # XLA turns the division by 127 into a product, which moves the last bit of a scale.
    layer.supports_jit = False


def _has_own_call(cls: type, names: tuple[str, ...]) -> bool:
    """Whether `call` comes from Keras' own class: then the operator computes what it would."""
    owner = next(c for c in cls.__mro__ if "call" in c.__dict__ and not issubclass(c, PackedLayer))
    return is_keras_class(owner, names)


def _finished(layer: Any, y: tf.Tensor, activation: str) -> tf.Tensor:
    """Applies the layer's activation unless the operator did; casts to the compute dtype."""
    if activation == "none" and layer.activation is not None:
        y = layer.activation(y)
    return tf.cast(y, layer.compute_dtype)


def _fused_activation(activation: Any) -> str:
    """The operator's name of an activation; "none" where the layer must apply it (or has none)."""
    module = getattr(activation, "__module__", "").split(".")[0]
    name = getattr(activation, "__name__", "")
    if module in ("keras", "tf_keras", "tensorflow") and name in ("relu", "relu6"):
        return name
    return "none"


def _bias_row(bias: tf.Tensor, layout: KernelLayout) -> tf.Tensor | None:
    """The bias as [n], or None where it varies along an axis that is not one of n."""
    if layout.output_permutation is None:
        return bias
    n_axes = len(layout.n_axes)
    rank = len(layout.output_permutation)
    free = rank - n_axes
    lead = [1] * (rank - bias.shape.rank) + bias.shape.as_list()
    target = [
        1 if source < free else layout.kernel_shape[layout.n_axes[source - free]]
        for source in layout.output_permutation
    ]
    if any(have not in (1, want) for have, want in zip(lead, target, strict=True)):
        return None
    # The axes of n are in the output's order: without the free axes (all 1) that is the row.
    return tf.reshape(tf.broadcast_to(tf.reshape(bias, lead), target), [layout.n])
