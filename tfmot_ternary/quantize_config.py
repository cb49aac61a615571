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
from tfmot_ternary.layer_kernels import (
    kernel_attribute,
    kernel_attributes,
    kernel_layout,
    kernel_layouts,
    kernel_names,
    kernel_variable,
    quantizes,
    set_kernel,
)
from tfmot_ternary.packing import GroupSize
from tfmot_ternary.quantizers import BinaryQuantizer, TernaryQuantizer

__all__ = [
    "BinaryQuantizeConfig",
    "KernelQuantizeConfig",
    "TernaryQuantizeConfig",
    "kernel_attribute",
    "kernel_layout",
    "kernel_layouts",
    "quantizes",
]


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
        preserve_zeros: bool = False,
    ) -> None:
        """Makes the config.

        Args:
          group_size: None (one scale per output channel), "tensor", or 32, 64, 128, 256 inputs.
          initializer: ScaleInitializer, its name, or None for exact k-means.
          trainable_scales: whether training changes the scales.
          clip: see `quantizers.quantize_kernel`.
          initialized: whether the scales exist already and are about to be loaded; then the
            initializer does not run again. Set by `get_config` once the layer is built.
          preserve_zeros: see `quantizers.quantize_kernel`.
        """
        self.group_size = group_size
        self.initializer = initializers.get(initializer)
        self.trainable_scales = bool(trainable_scales)
        self.clip = clip
        self.preserve_zeros = bool(preserve_zeros)
        self.initialized = bool(initialized)
        # What `importance.below` gives for the layer; used by the initializer, never serialized.
        self.importance: dict[str, Any] = {}
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
            preserve_zeros=self.preserve_zeros,
        )

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """[(kernel, quantizer)] of a built layer, in the order of `kernel_layouts`."""
        layouts = kernel_layouts(layer)
        pairs = []
        for (attribute, layout), name in zip(layouts.items(), kernel_names(layer), strict=True):
            quantizer = self._quantizer(layout)
            if not self.initialized:
                own = self.importance.get("")
                quantizer.importance = self.importance.get(name, own) if len(layouts) > 1 else own
            pairs.append((kernel_variable(layer, attribute), quantizer))
        self._built = True
        self.importance = {}
        return pairs

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """None."""
        del layer
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        """Puts the quantized kernels where the layer's `call` reads them."""
        for attribute, kernel in zip(kernel_attributes(layer), quantize_weights, strict=True):
            set_kernel(layer, attribute, kernel)

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
            "preserve_zeros": self.preserve_zeros,
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
