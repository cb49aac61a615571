"""Chains of `activation_bits=8`: a layer of the model, and the rounding of its output behind it."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_aware_activation
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_configs,
)

from tfmot_ternary.activation_quantizer import ActivationQuantizer
from tfmot_ternary.layout_transform import quantized_layer
from tfmot_ternary.quantize_config import KernelQuantizeConfig
from tfmot_ternary.savable_wrapper import SavableQuantizeWrapper

__all__ = ["NO_OP", "eight_bit_chain", "kernel_chain"]

# A chain is the list of layers that take the place of one (`layer_chains`).

NO_OP = default_8bit_quantize_configs.NoOpQuantizeConfig
# Layers that end with their `activation`; the one of an LSTM is inside.
_ENDING_IN_ACTIVATION = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def eight_bit_chain(layer: Any, config: Any, rounded_later: bool) -> list[Any]:
    """The layers for one that tfmot's scheme treats.

    Args:
      layer: the trained layer.
      config: what tfmot's layout transform chose for it, or None.
      rounded_later: whether the rounding comes after a Concatenate that follows.
    """
    registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    if not registry.supports(layer):  # BatchNormalization
        return [layer] if config is None or rounded_later else _with_output(layer, config)
    if config is None:
        config = registry.get_quantize_config(layer)
    if not layer.weights:
        return [layer] if rounded_later else _with_output(layer, config)
    if rounded_later or isinstance(config, NO_OP):
        # Where a ReLU follows tfmot leaves the kernel in float; the activation alone must be.
        config = registry.get_quantize_config(layer)
        config.activation_attrs = []
    return [SavableQuantizeWrapper(layer, config)]


def _with_output(layer: Any, config: Any) -> list[Any]:
    """The layer, and the rounding of its output where the config wants it."""
    try:
        wanted = config.get_output_quantizers(layer) or config.get_activations_and_quantizers(layer)
    except ValueError:  # tfmot's config for Activation knows eight functions
        return [layer]
    return [layer, ActivationQuantizer(name=f"quant_{layer.name}")] if wanted else [layer]


def kernel_chain(layer: Any, config: KernelQuantizeConfig, rounded_later: bool) -> list[Any]:
    """The layers for one with a ternary or binary kernel.

    Args:
      layer: the trained layer.
      config: for its kernel.
      rounded_later: whether the rounding comes after a ReLU or Concatenate that follows.
    """
    name = layer.name
    if isinstance(layer, keras.layers.Embedding):  # its values are few already
        return [quantized_layer(layer, config)]
    activation = None
    if isinstance(layer, _ENDING_IN_ACTIVATION):
        activation = layer.activation
        if isinstance(activation, quantize_aware_activation.NoOpActivation):
            layer.activation = keras.activations.linear
            rounded_later = True
    if rounded_later:
        return [quantized_layer(layer, config)]
    known = quantize_aware_activation.QuantizeAwareActivation
    function = getattr(activation, "__name__", "")
    if function not in known._PRE_QUANT_ACTIVATIONS:
        chain = [
            quantized_layer(layer, config),
            ActivationQuantizer(name=f"quant_{name}"),
        ]
    else:
        layer.activation = keras.activations.linear
        chain = [
            quantized_layer(layer, config),
            ActivationQuantizer(name=f"{name}_linear"),
            keras.layers.Activation(activation, name=f"quant_{name}", dtype=layer._dtype_policy),
        ]
        if function in known._POST_QUANT_ACTIVATIONS:
            chain[-1]._name = f"{name}_{function}"
            chain.append(ActivationQuantizer(name=f"quant_{name}"))
    if chain[0].name == f"quant_{name}":  # this name is that of the last one, as in tfmot
        chain[0]._name = f"{name}_kernel"
    return chain
