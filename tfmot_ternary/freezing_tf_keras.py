"""Freezing of tf_keras models: quantize wrappers become packed layers of a clone."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.folding import Tail, fold_batch_normalization, followers, relu_name, tail_of
from tfmot_ternary.freezing import pack_kernel
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.packed_tf_keras import (
    PROJECTIONS,
    PackedMultiHeadAttention,
    packed_keras_class,
)
from tfmot_ternary.packing import PackedWeights
from tfmot_ternary.quantize_config import KernelQuantizeConfig, kernel_attribute, kernel_layout

__all__ = ["freeze"]

_FOLDING_LAYERS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)


def freeze(model: Any, weight_format: str | None, activations: str) -> Any:
    """See `tfmot_ternary.freezing.freeze`."""
    layers = list(model._flatten_layers())
    if not any(_is_quantized(layer) for layer in layers):
        state = "frozen already"
        if not any(isinstance(layer, PackedLayer) for layer in layers):
            state = (
                "in float: quantize it first with tfmot's quantize_apply(annotated, scheme), or "
                "with tfmot_ternary.quantize_apply(model, scheme)"
            )
        raise ValueError(f"expected a quantized model, got {model.name!r}, which is {state}")
    if not model.built or not isinstance(model, (keras.Sequential, keras.Model)):
        raise ValueError(
            f"expected a built model, got {model.name!r}; call model.build(input_shape)"
        )
    return _Freezing(weight_format, activations).clone(model)


def _is_quantized(layer: Any) -> bool:
    return isinstance(layer, tfmot.quantization.keras.QuantizeWrapperV2) and isinstance(
        layer.quantize_config, KernelQuantizeConfig
    )


class _Freezing:
    """One run: clones models layer by layer, then fills in the weights."""

    def __init__(self, weight_format: str | None, activations: str) -> None:
        self._weight_format = weight_format
        self._activations = activations

    def clone(self, model: Any) -> Any:
        """The frozen clone of a Sequential or Functional model, nested ones included."""
        if not isinstance(model, keras.Sequential) and not hasattr(model, "_nodes_by_depth"):
            raise ValueError(
                f"expected a Sequential or Functional model, got {type(model).__name__} "
                f"{model.name!r}; rebuild it with the functional API"
            )
        following = followers(model)
        tails = {
            id(layer): tail_of(layer.layer, layer, following)
            for layer in model.layers
            if _is_quantized(layer) and isinstance(layer.layer, _FOLDING_LAYERS)
        }
        absorbed = {
            id(part)
            for tail in tails.values()
            for part in (tail.normalization, tail.activation)
            if part is not None
        }
        weights: list[tuple[Any, list[Any]]] = []

        def clone_layer(layer: Any) -> Any:
            if id(layer) in absorbed:
                return keras.layers.Identity(name=layer.name)
            if _is_quantized(layer):
                made, values = self._packed(layer, tails.get(id(layer), Tail()))
            elif isinstance(layer, QuantizedMultiHeadAttention):
                return self._packed_attention(layer, weights)
            elif isinstance(layer, keras.Model):
                return self.clone(layer)
            else:
                made, values = type(layer).from_config(layer.get_config()), layer.get_weights()
            weights.append((made, values))
            return made

        frozen = keras.models.clone_model(model, clone_function=clone_layer)
        if not frozen.built:
            frozen.build(model.input_shape)
        for layer, values in weights:
            layer.set_weights(values)
        return frozen

    def _pack(self, wrapper: Any) -> tuple[PackedWeights, dict[str, Any]]:
        """Packed weights of a wrapped layer, and what its packed layer is told."""
        layer, config = wrapper.layer, wrapper.quantize_config
        layout = kernel_layout(layer)
        _, _, scales = wrapper._weight_vars[0]
        weights = pack_kernel(
            np.asarray(getattr(layer, kernel_attribute(layer))),
            np.asarray(scales["scale"]),
            layout,
            config.levels,
            config.group_size,
            self._weight_format,
            layer.name,
        )
        bias = getattr(layer, "bias", None)
        packing = {
            "kernel_layout": layout.get_config(),
            "weight_format": weights.weight_format,
            "group_size": weights.group_size,
            "activations": self._activations,
            "bias_shape": None if bias is None else list(bias.shape),
        }
        return weights, packing

    def _packed(self, wrapper: Any, tail: Tail) -> tuple[Any, list[Any]]:
        """A packed layer in place of a wrapper, and its weights in the layer's order."""
        layer = wrapper.layer
        weights, packing = self._pack(wrapper)
        config = layer.get_config()
        bias = getattr(layer, "bias", None)
        bias = None if bias is None else np.asarray(bias)
        if tail.normalization is not None:
            weights, bias = fold_batch_normalization(weights, bias, tail.normalization)
            config["use_bias"] = True
            packing.update(group_size=weights.group_size, bias_shape=list(bias.shape))
        if tail.activation is not None:
            config["activation"] = relu_name(tail.activation)
        made = packed_keras_class(type(layer)).from_config({**config, "packing": packing})
        return made, _ordered(weights, bias)

    def _packed_attention(self, layer: Any, weights: list[tuple[Any, list[Any]]]) -> Any:
        """Attention with packed projections, whose values are added to `weights`."""
        packing, values = {}, {}
        for name in PROJECTIONS:
            wrapper = getattr(layer, name)
            packed, packing[name] = self._pack(wrapper)
            bias = wrapper.layer.bias
            values[name] = _ordered(packed, None if bias is None else np.asarray(bias))
        config = keras.layers.MultiHeadAttention.get_config(layer)
        made = PackedMultiHeadAttention.from_config({**config, "packing": packing})
        weights += [(getattr(made, name), values[name]) for name in PROJECTIONS]
        return made


def _ordered(weights: PackedWeights, bias: np.ndarray | None) -> list[Any]:
    """Values in the order of `layer.weights`: trainable ones first."""
    return ([] if bias is None else [bias]) + [weights.packed, weights.scales]
