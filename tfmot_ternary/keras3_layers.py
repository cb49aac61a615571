"""Quantized layers of Keras 3: subclasses that a layer changes to, in place.

The `kernel` (or `embeddings`) of such a layer is the quantized value of the trained variable: codes
times scales, with a straight-through gradient. The layer's own call sees it, and so does any other
code that reads `layer.kernel`; nothing is patched globally.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import layers

from tfmot_ternary import initializers, packing, quantizers
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.starting_point import starting_point

__all__ = ["SUPPORTED", "QuantizedWeights", "is_quantized", "layout_of", "quantize_in_place"]

# Layers whose weight matrix is one product with the input, or a table; subclasses count, for their
# call sees the quantized kernel whatever it does with it.
SUPPORTED = (
    layers.Dense,
    layers.EinsumDense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Embedding,
)


class QuantizedWeights:
    """Mixed into the class of a layer: its weight matrix is read as codes times scales.

    Attributes:
      kernel_layout: how the kernel becomes W[n, k].
      levels: 3 or 2.
      group_size: None, "tensor" or inputs per scale.
      clip: None, or the bound on |w| above which no gradient reaches a weight.
      preserve_zeros: whether weights that are exactly 0 stay 0.
      kernel_scale: trainable float32 variable of shape `packing.scale_shape(n, k, group_size)`.
    """

    kernel_layout: KernelLayout
    levels: int
    group_size: packing.GroupSize
    clip: float | None
    preserve_zeros: bool
    kernel_scale: keras.Variable
    changed_from: type
    # See `quantizers.quantize_kernel`; GradualQuantization sets it while a step of training runs.
    quantized_fraction: Any = None
    _reads_float = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Not possible: the change of a layer is part of its model's config, not of its own."""
        raise ValueError(
            f"expected a whole quantized model, got the layer {config.get('name')!r} alone; in "
            "place of keras.models.clone_model(model) use type(model).from_config("
            "model.get_config()), or save and load the model"
        )

    @property
    def float_weights(self) -> keras.Variable:
        """The trained variable behind the quantized weights."""
        raise NotImplementedError

    def quantized_weights(self) -> Any:
        """The quantized value of `float_weights`, in the layer's compute dtype."""
        if self._reads_float:
            return self.float_weights
        values = quantizers.quantize_kernel(
            self.float_weights.value,
            self.kernel_scale.value,
            self.kernel_layout,
            self.levels,
            self.group_size,
            self.clip,
            self.preserve_zeros,
            self.quantized_fraction,
        )
        return keras.ops.cast(values, self.compute_dtype)  # type: ignore[attr-defined]

    def save_own_variables(self, store: Any) -> None:
        """Saves the layer's float variables under its own keys, and `kernel_scale`."""
        self._reads_float = True  # the base class may save what it reads as `self.kernel`
        try:
            super().save_own_variables(store)  # type: ignore[misc]
        finally:
            self._reads_float = False
        store["kernel_scale"] = self.kernel_scale

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved."""
        if "kernel_scale" not in store:
            raise ValueError(
                f"expected weights of a quantized layer with a kernel_scale for {self.path!r}, got "  # type: ignore[attr-defined]
                f"{sorted(store.keys())}; load weights of the float model before quantizing it"
            )
        super().load_own_variables(store)  # type: ignore[misc]
        self.kernel_scale.assign(store["kernel_scale"])

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Keras' own integer quantization passes over this layer (it warns and goes on)."""
        raise NotImplementedError(f"{self.path!r} is quantized by tfmot_ternary already")  # type: ignore[attr-defined]


class QuantizedKernel(QuantizedWeights):
    """The `kernel` of Dense, EinsumDense and convolutions, quantized."""

    @property
    def float_weights(self) -> keras.Variable:
        return self._kernel  # type: ignore[attr-defined]

    @property
    def kernel(self) -> Any:
        return self.quantized_weights()


class QuantizedEmbeddings(QuantizedWeights):
    """The `embeddings` of Embedding and ReversibleEmbedding, quantized."""

    @property
    def float_weights(self) -> keras.Variable:
        return self._embeddings  # type: ignore[attr-defined]

    @property
    def embeddings(self) -> Any:
        return self.quantized_weights()


def is_quantized(layer: Any) -> bool:
    """Whether the layer was changed to a quantized one."""
    return isinstance(layer, QuantizedWeights)


def layout_of(layer: keras.Layer) -> KernelLayout:
    """The layout of a supported layer's kernel.

    Raises:
      ValueError: the layer is not built, or its einsum is not one matrix product.
      TypeError: the layer's class is not supported.
    """
    if not isinstance(layer, SUPPORTED):
        raise TypeError(f"no quantized form of {type(layer).__name__}")
    if not layer.built:
        raise ValueError("it is not built")
    if isinstance(layer, layers.Embedding):
        return KernelLayout.embedding(layer._embeddings.shape)
    shape = layer._kernel.shape
    if isinstance(layer, layers.EinsumDense):
        return KernelLayout.einsum(layer.equation, shape, layer.input_spec.ndim)
    if isinstance(layer, layers.Dense):
        return KernelLayout.dense(shape)
    return KernelLayout.conv(shape)


@functools.cache
def _quantized_class(base: type) -> type:
    mixin = QuantizedEmbeddings if issubclass(base, layers.Embedding) else QuantizedKernel
    members = {"__module__": __name__, "changed_from": base}
    return type(f"Quantized{base.__name__}", (mixin, base), members)


def quantize_in_place(
    layer: keras.Layer,
    path: str,
    initializer: initializers.ScaleInitializer | None,
    levels: int,
    group_size: packing.GroupSize,
    clip: float | None,
    trainable_scales: bool,
    preserve_zeros: bool = False,
    importance: Any = None,
) -> None:
    """Changes a built layer's class to its quantized form and adds its `kernel_scale`.

    Args:
      layer: a layer that `layout_of` knows.
      path: its path, for errors.
      initializer: computes the scales from the kernel; None sets them to one, to be loaded.
      levels, group_size, clip, trainable_scales, preserve_zeros: as in a scheme.
      importance: None, weights of errors or a LayerHessian, see `starting_point`.

    Raises:
      ValueError: a NaN or an infinity in the kernel.
    """
    layout = layout_of(layer)
    shape = packing.scale_shape(layout.n, layout.k, group_size)
    base: Any = type(layer)
    layer.__class__ = _quantized_class(base)
    # Codes come from the float32 values: rounding them to the compute dtype first would move some
    # across the threshold, and freezing would give other codes than training saw.
    layer.float_weights._autocast = False
    scales: Any = "ones"
    if initializer is not None:
        matrix = layout.to_matrix(keras.ops.convert_to_numpy(layer.float_weights))
        weights, values = starting_point(
            matrix, levels, group_size, initializer, importance, preserve_zeros, name=path
        )
        if weights is not None:
            layer.float_weights.assign(layout.from_matrix(weights))
        scales = keras.initializers.Constant(values)
    layer.kernel_layout = layout
    layer.levels = levels
    layer.group_size = group_size
    layer.clip = clip
    layer.preserve_zeros = preserve_zeros
    layer._tracker.unlock()
    layer.kernel_scale = layer.add_weight(
        name="kernel_scale",
        shape=shape,
        dtype="float32",
        initializer=scales,
        constraint=keras.constraints.NonNeg(),
        trainable=trainable_scales and layer.float_weights.trainable,
        autocast=False,
    )
    layer._tracker.lock()
