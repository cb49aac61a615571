"""Quantize configs: which weight of a tf_keras layer is quantized, and how.

A config is made by a scheme's registry, or by a user who wants one layer treated in its own way:
`tfmot.quantization.keras.quantize_annotate_layer(layer, BinaryQuantizeConfig(group_size=64))`.
"""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary import initializers
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packing import GroupSize
from tfmot_ternary.quantizers import BinaryQuantizer, TernaryQuantizer

__all__ = [
    "BinaryQuantizeConfig",
    "KernelQuantizeConfig",
    "TernaryQuantizeConfig",
    "kernel_attribute",
    "kernel_layout",
    "quantizes",
]

# The layers whose kernel is one matrix product, and the attribute that holds it. Subclasses are not
# taken for their base: they may use the kernel in another way (DepthwiseConv2D is a Conv2D).
_KERNEL_ATTRIBUTES: dict[type, str] = {
    keras.layers.Dense: "kernel",
    keras.layers.Conv1D: "kernel",
    keras.layers.Conv2D: "kernel",
    keras.layers.EinsumDense: "kernel",
    keras.layers.Embedding: "embeddings",
}


def quantizes(layer: Any) -> bool:
    """Whether the layer has a kernel that a KernelQuantizeConfig can quantize."""
    return type(layer) in _KERNEL_ATTRIBUTES


def kernel_attribute(layer: Any) -> str:
    """The name of the attribute that holds the layer's kernel.

    Raises:
      ValueError: if the layer is none of those that are quantized.
    """
    if not quantizes(layer):
        known = ", ".join(cls.__name__ for cls in _KERNEL_ATTRIBUTES)
        raise ValueError(
            f"expected layer {layer.name!r} to be one of {known}, got {type(layer).__name__}; "
            "leave it in float, or annotate it with a QuantizeConfig of your own"
        )
    return _KERNEL_ATTRIBUTES[type(layer)]


def kernel_layout(layer: Any) -> KernelLayout:
    """How the kernel of a built layer becomes W[n, k].

    Raises:
      ValueError: for an unbuilt layer, one that is not quantized, or an einsum with a batch axis in
        its kernel; the layer is named.
    """
    attribute = kernel_attribute(layer)
    if not layer.built:
        raise ValueError(f"expected layer {layer.name!r} to be built, got one without weights")
    shape = tuple(getattr(layer, attribute).shape)
    if isinstance(layer, keras.layers.Embedding):
        return KernelLayout.embedding(shape)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, output = layer.equation.split("->")[0].split(",")[0], layer.equation.split("->")[1]
        # An ellipsis stands for as many axes in the input as in the output.
        elided = len(layer.full_output_shape) - len(output.replace("...", ""))
        rank = len(inputs.replace("...", "")) + elided
        try:
            return KernelLayout.einsum(layer.equation, shape, rank)
        except ValueError as error:
            raise ValueError(f"layer {layer.name!r}: {error}") from error
    if isinstance(layer, keras.layers.Dense):
        return KernelLayout.dense(shape)
    return KernelLayout.conv(shape)


class KernelQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes a layer's kernel; activations and outputs stay float. Use one of its subclasses."""

    quantizer_class: type

    def __init__(
        self,
        group_size: GroupSize = None,
        initializer: Any = None,
        trainable_scales: bool = True,
        clip: float | None = None,
        initialized: bool = False,
    ) -> None:
        """Makes the config.

        Args:
          group_size: None (one scale per output channel), "tensor", or 32, 64, 128, 256 inputs.
          initializer: ScaleInitializer, its name, or None for exact k-means.
          trainable_scales: whether training changes the scales.
          clip: see `quantizers.quantize_kernel`.
          initialized: whether the scales exist already and are about to be loaded; then the
            initializer does not run again. Set by `get_config` once the layer is built.
        """
        self.group_size = group_size
        self.initializer = initializers.get(initializer)
        self.trainable_scales = bool(trainable_scales)
        self.clip = clip
        self.initialized = bool(initialized)
        self._built = self.initialized
        self._quantizer(None)  # checks the arguments

    @property
    def levels(self) -> int:
        """3 for ternary, 2 for binary."""
        return self.quantizer_class.levels  # type: ignore[attr-defined]

    def _quantizer(self, layout: KernelLayout | None) -> Any:
        # Scales that are about to be loaded still need a start value, also for those who clone a
        # model to train it from nothing: the cheapest sensible one.
        initializer = initializers.get("absmean") if self.initialized else self.initializer
        return self.quantizer_class(
            group_size=self.group_size,
            initializer=initializer,
            layout=layout,
            trainable=self.trainable_scales,
            clip=self.clip,
        )

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """[(kernel, quantizer)] of a built layer."""
        quantizer = self._quantizer(kernel_layout(layer))
        self._built = True
        return [(getattr(layer, kernel_attribute(layer)), quantizer)]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """None."""
        del layer
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        """Puts the quantized kernel where the layer's `call` reads it."""
        (kernel,) = quantize_weights
        setattr(layer, kernel_attribute(layer), kernel)

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        """Nothing to set."""
        del layer, quantize_activations

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """None."""
        del layer
        return []

    def get_config(self) -> dict[str, Any]:
        initializer = initializers.serialize(self.initializer)
        # A user's class goes by the name under which Keras knows it.
        initializer["class_name"] = keras.saving.get_registered_name(type(self.initializer))
        return {
            "group_size": self.group_size,
            "initializer": initializer,
            "trainable_scales": self.trainable_scales,
            "clip": self.clip,
            "initialized": self._built,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KernelQuantizeConfig:
        config = dict(config)
        class_name = config["initializer"]["class_name"]
        registered = keras.saving.get_registered_object(class_name)
        config["initializer"] = initializers.deserialize(
            config["initializer"], {class_name: registered} if registered else None
        )
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self.get_config())))


@keras.utils.register_keras_serializable("tfmot_ternary")
class TernaryQuantizeConfig(KernelQuantizeConfig):
    """Kernel in {-a, 0, +a}."""

    quantizer_class = TernaryQuantizer


@keras.utils.register_keras_serializable("tfmot_ternary")
class BinaryQuantizeConfig(KernelQuantizeConfig):
    """Kernel in {-a, +a}."""

    quantizer_class = BinaryQuantizer
