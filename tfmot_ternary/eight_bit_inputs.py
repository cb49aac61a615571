"""8-bit inputs: rounds what goes into 8-bit layers in a model whose other activations are float.

TFLiteConverter makes an integer operator only where inputs, weights and outputs are all rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry,
)

from tfmot_ternary.activation_quantizer import ActivationQuantizer
from tfmot_ternary.layer_chains import consumers, with_chains

__all__ = ["replace_with_rounded_inputs", "rounded_layers"]


def replace_with_rounded_inputs(model: Any, replacements: Mapping[str, Any]) -> Any:
    """Returns the model with wrappers in place of layers, and 8-bit ones behind rounded inputs.

    Args:
      model: a built Sequential or Functional model.
      replacements: {layer name: wrapper in its place}.
    """
    eight_bit = {name for name, wrapper in replacements.items() if _is_eight_bit(wrapper)}
    if not eight_bit:
        return keras.models.clone_model(
            model, clone_function=lambda layer: replacements.get(layer.name, layer)
        )
    rounded = rounded_layers(model, eight_bit)
    chains = {name: [wrapper] for name, wrapper in replacements.items()}
    for name, parents in _parents(model).items():
        if name in eight_bit and model.get_layer(name).weights and not parents <= rounded:
            chains[name].insert(0, ActivationQuantizer(name=f"{name}_input"))
    return with_chains(model, chains)


def _is_eight_bit(wrapper: Any) -> bool:
    config = getattr(wrapper, "quantize_config", None)
    return isinstance(config, default_8bit_quantize_registry.Default8BitQuantizeConfig)


def _parents(model: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, taken_by in consumers(model).items():
        for consumer in taken_by:
            found.setdefault(consumer, set()).add(name)
    return found


def rounded_layers(model: Any, names: Iterable[str]) -> set[str]:
    """Adds, to names of layers whose outputs are rounded, those that only move such outputs.

    tfmot's registry tells which they are: those that it knows and does not quantize.
    """
    registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    parents, rounded = _parents(model), set(names)
    for layer in model.layers:  # in the order of the graph
        if layer.weights or isinstance(layer, (keras.layers.Activation, keras.layers.Softmax)):
            continue
        if not registry.supports(layer) or layer.name not in parents:
            continue
        if registry.get_quantize_config(layer).get_output_quantizers(layer):
            continue
        if parents[layer.name] <= rounded:
            rounded.add(layer.name)
    return rounded
