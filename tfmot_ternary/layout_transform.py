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
from tfmot_ternary.eight_bit_inputs import replace_with_rounded_inputs
from tfmot_ternary.layer_kernels import only_if_chosen
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.quantize_config import KernelQuantizeConfig, kernel_layouts
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper
from tfmot_ternary.savable_wrapper import SavableQuantizeWrapper
from tfmot_ternary.stripping import require_stripped

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


def tell_about_depthwise(layers: list[Any]) -> None:
    """Says once why the depthwise layers among those spared by default are not quantized."""
    names = [repr(layer.name) for layer in layers if not isinstance(layer, keras.layers.Embedding)]
    if names:
        warnings.warn(
            f"depthwise layers keep their float weights by default: {', '.join(names)}. They have "
            "few weights, so that packing saves little; to quantize one all the same, annotate it "
            "by itself (quantize_annotate_layer)",
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
        """Returns the model with quantized layers, and an empty map: tfmot wraps no more.

        A layer with a QuantizeConfig of another kind is wrapped as tfmot would; where that is one
        of tfmot's 8-bit scheme, its inputs are rounded too. (tfmot leaves layers alone that are
        wrapped already; its `quantized_layer_name_prefix` does not reach them: it is "quant_".)

        Args:
          model: the tf_keras model without annotations, with its weights.
          layer_quantize_map: {layer name: {"quantize_config": config or None}} of annotated layers.

        Raises:
          ValueError: for a layer that cannot be quantized if only some layers are annotated (so the
            user chose this one), or if nothing at all is left to quantize.
        """
        self._registry.require_importance(model)
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        annotated = [layer for layer in layers if layer.name in layer_quantize_map]
        # `quantize_annotate_model` annotates all but Lambda layers, and `apply` all but those and
        # nested models; a smaller part is a user's choice.
        opaque = (keras.layers.Lambda, keras.Model)
        chosen = any(
            layer.name not in layer_quantize_map and not isinstance(layer, opaque)
            for layer in layers
        )
        quantized: dict[str, Any] = {}
        left: list[str] = []
        spared: list[Any] = []
        for layer in annotated:
            require_float(layer)
            config = layer_quantize_map[layer.name].get("quantize_config")
            if config is None and self._skips(layer.name):
                continue
            if config is None and self._registry.supports(layer, chosen):
                config = self._registry.get_quantize_config(layer)
            if config is None:
                if needs_no_warning(layer):
                    continue
                if only_if_chosen(layer):
                    spared.append(layer)
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
                quantized[layer.name] = quantized_layer(layer, config)
            else:
                quantized[layer.name] = SavableQuantizeWrapper(layer, config)
        if not quantized:
            raise ValueError(
                f"expected at least one layer of model {model.name!r} to quantize, got none"
                + (f"; left in float: {', '.join(left)}" if left else "")
                + "; see the scheme's `skip` and `embeddings`"
            )
        tell_about_depthwise(spared)
        model = replace_with_rounded_inputs(model, quantized)
        for layer in model.layers:
            setattr(layer, LEFT_IN_FLOAT, True)
        return model, {}


def require_float(layer: Any) -> None:
    """Raises ValueError for a layer that is quantized, frozen, or wrapped for pruning."""
    require_stripped(layer)
    state = None
    if isinstance(layer, (tfmot.quantization.keras.QuantizeWrapper, QuantizedMultiHeadAttention)):
        state = "quantized already; quantize the original model instead"
    elif isinstance(layer, PackedLayer):
        state = "frozen; quantize the model that it was made from"
    if state is not None:
        raise ValueError(f"expected a float layer, got {layer.name!r}, which is {state}")


def quantized_layer(layer: Any, config: KernelQuantizeConfig) -> Any:
    """The layer that takes the place of a trained `layer`; raises ValueError for other kinds."""
    if type(layer) is keras.layers.MultiHeadAttention:
        return QuantizedMultiHeadAttention.from_trained(layer, config)
    kernel_layouts(layer)
    if config.get_activations_and_quantizers(layer) or config.get_output_quantizers(layer):
        # A user's subclass that quantizes more than kernels: tfmot's own wrapper does all of it.
        return SavableQuantizeWrapper(layer, config)
    # The policy of the layer, not the global one of now: a wrapper hands its inputs on as they are.
    return KernelQuantizeWrapper(layer, config, dtype=layer._dtype_policy)
