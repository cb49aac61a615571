"""Schemes: the tfmot QuantizeSchemes that make the kernels of a model ternary or binary.

    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    quantized = tfmot.quantization.keras.quantize_apply(annotated, TernaryScheme())

A scheme is also what `tfmot_ternary.quantize_apply` takes for Keras 3 models, which tfmot refuses.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary import initializers
from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.layout_transform import LEFT_IN_FLOAT, LayoutTransform
from tfmot_ternary.packing import GroupSize, scale_shape
from tfmot_ternary.quantize_config import (
    BinaryQuantizeConfig,
    KernelQuantizeConfig,
    TernaryQuantizeConfig,
    quantizes,
)
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper
from tfmot_ternary.quantizers import BinaryQuantizer, TernaryQuantizer

__all__ = ["BinaryScheme", "QuantizeRegistry", "TernaryScheme", "quantize_scope"]


class QuantizeRegistry(tfmot.quantization.keras.QuantizeRegistry):
    """The layers that a scheme quantizes, and their QuantizeConfigs."""

    def __init__(self, scheme: _KernelScheme) -> None:
        self._scheme = scheme

    def supports(self, layer: Any, chosen: bool = False) -> bool:
        """Whether the scheme quantizes this layer.

        Args:
          layer: a tf_keras layer.
          chosen: whether the user annotated this very layer (that includes Embedding).
        """
        if getattr(layer, LEFT_IN_FLOAT, False) or self._scheme.skips(layer.name):
            return False
        if type(layer) is keras.layers.Embedding:
            return chosen or self._scheme.embeddings
        return quantizes(layer) or type(layer) is keras.layers.MultiHeadAttention

    def get_quantize_config(self, layer: Any) -> KernelQuantizeConfig:
        """A new config for the layer.

        Raises:
          ValueError: for a layer of a kind that has no config.
        """
        if not quantizes(layer) and type(layer) is not keras.layers.MultiHeadAttention:
            raise ValueError(
                "expected a layer that the scheme supports, got "
                f"{layer.name!r} ({type(layer).__name__})"
            )
        return self._scheme.quantize_config()


class _KernelScheme(tfmot.quantization.keras.QuantizeScheme):
    """What TernaryScheme and BinaryScheme share."""

    levels: int
    quantize_config_class: type[KernelQuantizeConfig]

    def __init__(
        self,
        group_size: GroupSize = None,
        initializer: Any = None,
        skip: str | Iterable[str] = (),
        activation_bits: int | None = None,
        *,
        embeddings: bool = False,
        trainable_scales: bool = True,
        clip: float | None = None,
    ) -> None:
        """Makes the scheme.

        Args:
          group_size: None: one scale per output channel; "tensor": one per kernel; 32, 64, 128 or
            256: one per that many inputs of a channel.
          initializer: ScaleInitializer, its name ("kmeans", "lloyd", "absmean", "absmax", "twn"),
            or None for exact k-means: the first scales, computed from the trained weights.
          skip: regular expressions; a layer is left as it is if one of them is found in its name
            (`re.search`; anchor with ^ and $ for a whole name).
          activation_bits: None: activations stay float in training, and the operators quantize them
            per row to 8 bits when they run. Nothing else is supported.
          embeddings: whether Embedding layers are quantized as well. A layer that is annotated by
            itself with `quantize_annotate_layer` always is.
          trainable_scales: whether training changes the scales.
          clip: None, or the bound on |w| above which no gradient reaches a weight.

        Raises:
          ValueError: for an argument outside of that.
        """
        scale_shape(1, 1, group_size)
        if activation_bits is not None:
            raise ValueError(
                "expected activation_bits=None (weights are quantized in training; the operators "
                f"quantize activations per row to 8 bits when they run), got {activation_bits!r}"
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"expected clip None or > 0, got {clip!r}")
        self.group_size = group_size
        self.initializer = initializers.get(initializer)
        self.skip = (skip,) if isinstance(skip, str) else tuple(skip)
        self.activation_bits = activation_bits
        self.embeddings = bool(embeddings)
        self.trainable_scales = bool(trainable_scales)
        self.clip = clip
        try:
            self._patterns = [re.compile(pattern) for pattern in self.skip]
        except (re.error, TypeError) as error:
            raise ValueError(
                f"expected regular expressions in skip, got {self.skip}: {error}"
            ) from error

    def skips(self, layer_name: str) -> bool:
        """Whether a layer of this name (or path) is left as it is."""
        return any(pattern.search(layer_name) for pattern in self._patterns)

    def quantize_config(self) -> KernelQuantizeConfig:
        """A QuantizeConfig with this scheme's settings, for `quantize_annotate_layer`."""
        return self.quantize_config_class(
            group_size=self.group_size,
            initializer=self.initializer,
            trainable_scales=self.trainable_scales,
            clip=self.clip,
        )

    def get_layout_transformer(self) -> LayoutTransform:
        """tfmot's hook: rewrites the model before its layers are wrapped."""
        return LayoutTransform(self.get_quantize_registry(), self.skips)

    def get_quantize_registry(self) -> QuantizeRegistry:
        """tfmot's hook: which layers are quantized, and how."""
        return QuantizeRegistry(self)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(group_size={self.group_size!r}, "
            f"initializer={self.initializer!r}, skip={self.skip!r}, embeddings={self.embeddings}, "
            f"trainable_scales={self.trainable_scales}, clip={self.clip})"
        )


class TernaryScheme(_KernelScheme):
    """Kernels in {-a, 0, +a}."""

    levels = 3
    quantize_config_class = TernaryQuantizeConfig


class BinaryScheme(_KernelScheme):
    """Kernels in {-a, +a}."""

    levels = 2
    quantize_config_class = BinaryQuantizeConfig


def quantize_scope(*custom_objects: dict[str, Any]) -> Any:
    """The scope in which quantized and frozen models are loaded, cloned and made from JSON.

    It serves tf_keras models and, where Keras 3 is loaded, Keras 3 models as well.

    Args:
      *custom_objects: {name: class} of the users' own layers and ScaleInitializers.

    Returns:
      A context manager; it includes tfmot's own `quantize_scope`.
    """
    # These modules register the classes of frozen models, and of Keras 3's quantized models.
    importlib.import_module("tfmot_ternary.packed_tf_keras")
    if "keras" in sys.modules:
        importlib.import_module("tfmot_ternary.freezing_keras3")
        importlib.import_module("tfmot_ternary.keras3")
    ours = {
        cls.__name__: cls
        for cls in (
            BinaryQuantizeConfig,
            BinaryQuantizer,
            KernelQuantizeWrapper,
            QuantizedMultiHeadAttention,
            TernaryQuantizeConfig,
            TernaryQuantizer,
        )
    }
    return tfmot.quantization.keras.quantize_scope(ours, *custom_objects)
