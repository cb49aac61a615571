"""The registry of a scheme: the layers that it quantizes, and their QuantizeConfigs."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary import importance
from tfmot_ternary.layer_kernels import only_if_chosen
from tfmot_ternary.layout_transform import LEFT_IN_FLOAT
from tfmot_ternary.quantize_config import KernelQuantizeConfig, quantizes

__all__ = ["QuantizeRegistry"]


class QuantizeRegistry(tfmot.quantization.keras.QuantizeRegistry):
    """The layers that a scheme quantizes, and their QuantizeConfigs."""

    def __init__(self, scheme: Any) -> None:
        """Makes the registry of a TernaryScheme or BinaryScheme."""
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
        if only_if_chosen(layer):
            return chosen
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
        config = self._scheme.quantize_config()
        config.importance = importance.below(self._scheme.importance, layer.name)
        return config

    def require_importance(self, model: Any) -> None:
        """Checks that the scheme's importances name layers of a model; raises ValueError."""
        names = [layer.name for layer in model.layers]
        importance.require_names(self._scheme.importance, names, model.name)
