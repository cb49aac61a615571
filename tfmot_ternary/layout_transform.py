"""The layout transform: what becomes of each layer of an annotated tf_keras model.

Quantized layers are wrapped here, attention is rewritten, and what stays float is left alone: not
wrapped at all, it keeps its class, its masks and its several inputs.
"""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.quantize_config import KernelQuantizeConfig, kernel_layout
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper

__all__ = ["LayoutTransform"]

_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.UnitNormalization,
)

# tfmot asks the registry about float layers in front of quantized ones, to quantize their outputs;
# this mark on the layer makes the registry decline.
LEFT_IN_FLOAT = "_tfmot_ternary_left_in_float"


def needs_no_warning(layer: Any) -> bool:
    """Whether leaving the layer in float is what everybody expects: weightless or normalization."""
    return not layer.weights or isinstance(layer, _NORMALIZATIONS)


def warn_left_in_float(layer: Any) -> None:
    """Names a layer with weights that no scheme quantizes."""
    warnings.warn(
        f"layer {layer.name!r} ({type(layer).__name__}) is left in float: a layer of this kind "
        "cannot be quantized",
        stacklevel=3,
    )


class LayoutTransform(tfmot.quantization.keras.QuantizeLayoutTransform):
    """Prepares an annotated model for a scheme's registry."""

    def __init__(self, registry: Any, skips: Any) -> None:
        """Makes the transform.

        Args:
          registry: the scheme's QuantizeRegistry.
          skips: callable, layer name -> whether the user wants it left as it is.
        """
        self._registry = registry
        self._skips = skips

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the model with quantized layers, and what is left for tfmot to wrap.

        That is the layers with a QuantizeConfig of another kind. (tfmot leaves layers alone that
        are wrapped already; its `quantized_layer_name_prefix` does not reach them: it is "quant_".)

        Args:
          model: the tf_keras model without annotations, with its weights.
          layer_quantize_map: {layer name: {"quantize_config": config or None}} of annotated layers.

        Raises:
          ValueError: for a layer that cannot be quantized if only some layers are annotated (so the
            user chose this one), or if nothing at all is left to quantize.
        """
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        annotated = [layer for layer in layers if layer.name in layer_quantize_map]
        # `quantize_annotate_model` annotates all but Lambda layers, and `apply` all but those and
        # nested models; a smaller part is a user's choice.
        opaque = (keras.layers.Lambda, keras.Model)
        chosen = any(
            layer.name not in layer_quantize_map and not isinstance(layer, opaque)
            for layer in layers
        )
        foreign: dict[str, Any] = {}
        quantized: dict[str, Any] = {}
        left: list[str] = []
        for layer in annotated:
            config = layer_quantize_map[layer.name].get("quantize_config")
            if config is None and self._skips(layer.name):
                continue
            if config is None and self._registry.supports(layer, chosen):
                config = self._registry.get_quantize_config(layer)
            if config is None:
                if needs_no_warning(layer) or isinstance(layer, keras.layers.Embedding):
                    continue
                if chosen:
                    raise ValueError(
                        f"expected a layer that can be quantized, got {layer.name!r} "
                        f"({type(layer).__name__}); do not annotate it, or annotate it with a "
                        "QuantizeConfig of your own"
                    )
                warn_left_in_float(layer)
                left.append(layer.name)
            elif isinstance(config, KernelQuantizeConfig):
                quantized[layer.name] = _quantized(layer, config)
            else:
                foreign[layer.name] = {"quantize_config": config}
        if not quantized and not foreign:
            raise ValueError(
                f"expected at least one layer of model {model.name!r} to quantize, got none"
                + (f"; left in float: {', '.join(left)}" if left else "")
                + "; see the scheme's `skip` and `embeddings`"
            )
        if quantized:
            model = keras.models.clone_model(
                model, clone_function=lambda layer: quantized.get(layer.name, layer)
            )
        for layer in model.layers:
            setattr(layer, LEFT_IN_FLOAT, layer.name not in foreign)
        return model, foreign


def _quantized(layer: Any, config: KernelQuantizeConfig) -> Any:
    """The layer that takes the place of a trained `layer`; raises ValueError for other kinds."""
    if type(layer) is keras.layers.MultiHeadAttention:
        return QuantizedMultiHeadAttention.from_trained(layer, config)
    kernel_layout(layer)
    return KernelQuantizeWrapper(layer, config)
