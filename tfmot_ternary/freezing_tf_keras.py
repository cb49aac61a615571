"""Freezing of tf_keras models: quantize wrappers become packed layers of a clone."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.folding import Tail, fold_batch_normalization, followers, relu_name, tail_of
from tfmot_ternary.freezing import nothing_to_freeze, pack_kernel, pack_recognized
from tfmot_ternary.freezing_rnn import config_for_tf_lite, freeze_rnn, is_rnn
from tfmot_ternary.layer_kernels import kernel_layouts, kernel_variable, quantizes
from tfmot_ternary.layer_storage import LayerStorage
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.packed_tf_keras import (
    PROJECTIONS,
    PackedMultiHeadAttention,
    packed_keras_class,
)
from tfmot_ternary.packing import PackedWeights
from tfmot_ternary.quantize_config import KernelQuantizeConfig
from tfmot_ternary.weight_storage import pack_rows

__all__ = ["freeze"]

# Layers whose packed form is an operator of ours, which takes half precision from other layers.
_ONLY_OPERATORS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
)
# Layers with one kernel, whose n outputs are the last axis; transposed convolutions are subclasses.
_FOLDING_LAYERS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def freeze(
    model: Any,
    weight_format: str | None,
    activations: str,
    recognize: bool,
    tables: str | None = None,
    others: str | None = None,
) -> Any:
    """See `tfmot_ternary.freezing.freeze`."""
    layers = list(model._flatten_layers())
    frozen_already = any(isinstance(layer, PackedLayer) for layer in layers)
    quantized = any(_is_quantized(layer) for layer in layers)
    storage = LayerStorage(model, tables, others)
    if not quantized and (frozen_already or not recognize and storage.is_float):
        raise nothing_to_freeze(model, frozen_already, recognize)
    if not model.built or not isinstance(model, (keras.Sequential, keras.Model)):
        raise ValueError(
            f"expected a built model, got {model.name!r}; call model.build(input_shape)"
        )
    # For layers that tfmot's 8-bit scheme wraps, and for users' own layers and configs.
    with tfmot.quantization.keras.quantize_scope(_users_classes(layers)):
        frozen = _Freezing(weight_format, activations, recognize, storage).clone(model)
    if not any(isinstance(layer, PackedLayer) for layer in frozen._flatten_layers()):
        raise nothing_to_freeze(model, frozen_already, recognize)
    return frozen


def _is_quantized(layer: Any) -> bool:
    return isinstance(layer, tfmot.quantization.keras.QuantizeWrapperV2) and isinstance(
        layer.quantize_config, KernelQuantizeConfig
    )


def _users_classes(layers: list[Any]) -> dict[str, Any]:
    """{name: class} of layers and QuantizeConfigs, by which Keras clones those that wrap them."""
    configs = [layer.quantize_config for layer in layers if hasattr(layer, "quantize_config")]
    names = {
        type(thing): keras.saving.get_registered_name(type(thing)) for thing in (*layers, *configs)
    }
    stock = ("keras.", "tf_keras.", "tensorflow_model_optimization.", "tfmot_ternary.", "builtins.")
    return {name: cls for cls, name in names.items() if not f"{cls.__module__}.".startswith(stock)}


def _warn_of_roundings(wrapper: Any) -> None:
    """Names a layer whose config, a user's subclass of ours, rounds more than kernels."""
    layer, config = wrapper.layer, wrapper.quantize_config
    if config.get_activations_and_quantizers(layer) or config.get_output_quantizers(layer):
        warnings.warn(
            f"layer {layer.name!r} is frozen without the rounding of its activations that "
            f"{type(config).__name__} adds: operators round their inputs themselves; for ranges "
            "that training learns use a scheme with activation_bits=8",
            stacklevel=5,
        )


class _Freezing:
    """One run: clones models layer by layer, then fills in the weights."""

    def __init__(
        self,
        weight_format: str | None,
        activations: str,
        recognize: bool,
        storage: LayerStorage,
    ) -> None:
        self._weight_format = weight_format
        self._activations = activations
        self._recognize = recognize
        self._storage = storage

    def clone(self, model: Any) -> Any:
        """The frozen clone of a Sequential or Functional model, nested ones included."""
        if not isinstance(model, keras.Sequential) and not hasattr(model, "_nodes_by_depth"):
            raise ValueError(
                f"expected a Sequential or Functional model, got {type(model).__name__} "
                f"{model.name!r}; rebuild it with the functional API"
            )
        following = followers(model)
        float_kernels = self._float_layers(model)
        tails = {
            id(layer): tail_of(inner, layer, following)
            for layer in model.layers
            if _is_quantized(layer) or id(layer) in float_kernels
            for inner in (layer.layer if _is_quantized(layer) else layer,)
            if isinstance(inner, _FOLDING_LAYERS)
            and getattr(inner, "data_format", "channels_last") == "channels_last"
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
            if _is_quantized(layer) or id(layer) in float_kernels:
                inner = layer.layer if _is_quantized(layer) else layer
                if inner is not layer:
                    _warn_of_roundings(layer)
                kernels = float_kernels.get(id(layer)) or self._pack(layer)
                made, parts = self._packed(inner, kernels, tails.get(id(layer), Tail()))
                weights.extend(parts)
                return made
            if type(layer) in (keras.layers.MultiHeadAttention, QuantizedMultiHeadAttention):
                projections = self._projections(layer)
                if projections is not None:
                    return _packed_attention(layer, projections, weights)
            if isinstance(layer, keras.Model):
                return self.clone(layer)
            made = type(layer).from_config(layer.get_config())
            weights.append((made, layer.get_weights()))
            return made

        frozen = keras.models.clone_model(model, clone_function=clone_layer)
        if not frozen.built:
            frozen.build(model.input_shape)
        for layer, values in weights:
            layer.set_weights(values)
        return frozen

    def _float_layers(self, model: Any) -> dict[int, dict[str, PackedWeights]]:
        """id(layer) -> packed kernels of the float layers that are packed as well."""
        kernels = {id(layer): self._float_kernels(layer) for layer in model.layers}
        return {key: packed for key, packed in kernels.items() if packed is not None}

    def _float_kernels(self, layer: Any) -> dict[str, PackedWeights] | None:
        """Packed kernels of a float layer, by their attribute; None for one that stays float."""
        recognized = self._recognized_kernels(layer)
        storage = self._storage.kernel(layer) if recognized is None else None
        if storage is None:
            return recognized
        ((attribute, layout),) = kernel_layouts(layer).items()
        matrix = layout.to_matrix(np.asarray(kernel_variable(layer, attribute)))
        return {attribute: pack_rows(matrix, storage, layer.name)}

    def _recognized_kernels(self, layer: Any) -> dict[str, PackedWeights] | None:
        """Packed kernels of a float layer, by their attribute, if all of them are recognized."""
        if not self._recognize or not quantizes(layer):
            return None
        try:
            layouts = kernel_layouts(layer)
        except ValueError:  # not one matrix product
            return None
        found = {}
        for attribute, layout in layouts.items():
            kernel = np.asarray(kernel_variable(layer, attribute))
            packed = pack_recognized(kernel, layout, self._weight_format, layer.name)
            if packed is None:
                return None
            found[attribute] = packed
        return found

    def _pack(self, wrapper: Any) -> dict[str, PackedWeights]:
        """Packed kernels of a wrapped layer, by their attribute."""
        layer, config = wrapper.layer, wrapper.quantize_config
        layouts = kernel_layouts(layer)
        # tfmot's own wrapper may hold our config too; it has no `kernel_scales`, and it leaves a
        # tensor in the place of the kernel.
        return {
            attribute: pack_kernel(
                np.asarray(kernel),
                np.asarray(scales["scale"]),
                layout,
                config.levels,
                config.group_size,
                self._weight_format,
                layer.name,
            )
            for (attribute, layout), (kernel, _, scales) in zip(
                layouts.items(), wrapper._weight_vars, strict=True
            )
        }

    def _packing(self, layer: Any, weights: PackedWeights) -> dict[str, Any]:
        """What a packed layer in place of a float layer with one kernel is told."""
        bias = getattr(layer, "bias", None)
        (layout,) = kernel_layouts(layer).values()
        return {
            "kernel_layout": layout.get_config(),
            "weight_format": weights.weight_format,
            "group_size": weights.group_size,
            "activations": self._activations,
            "bias_shape": None if bias is None else list(bias.shape),
        }

    def _packed(
        self, layer: Any, kernels: dict[str, PackedWeights], tail: Tail
    ) -> tuple[Any, list[tuple[Any, list[Any]]]]:
        """A packed layer in place of a float one; it or its parts, with their weights in order."""
        if is_rnn(layer):
            return freeze_rnn(layer, kernels, self._activations)
        (weights,) = kernels.values()
        packing = self._packing(layer, weights)
        config = layer.get_config()
        if type(layer) not in _ONLY_OPERATORS:
            config = config_for_tf_lite(layer)
        bias = getattr(layer, "bias", None)
        bias = None if bias is None else np.asarray(bias)
        if tail.normalization is not None:
            weights, bias = fold_batch_normalization(weights, bias, tail.normalization)
            config["use_bias"] = True
            packing.update(group_size=weights.group_size, bias_shape=list(bias.shape))
        if tail.activation is not None:
            config["activation"] = relu_name(tail.activation)
        cls = packed_keras_class(type(layer))
        made = cls.from_config({**config, "packing": packing})
        floats = [np.asarray(getattr(layer, name)) for name in cls.float_kernels]
        return made, [(made, [*floats, *_ordered(weights, bias)])]

    def _projections(
        self, attention: Any
    ) -> dict[str, tuple[PackedWeights, dict[str, Any], Any]] | None:
        """{projection: (packed kernel, what its layer is told, bias)}; None where one is float."""
        found = {}
        for name in PROJECTIONS:
            part = getattr(attention, name)
            quantized = _is_quantized(part)
            layer = part.layer if quantized else part
            kernels = self._pack(part) if quantized else self._float_kernels(part)
            if kernels is None:
                return None
            (packed,) = kernels.values()
            found[name] = packed, self._packing(layer, packed), layer.bias
        return found


def _packed_attention(
    attention: Any,
    projections: dict[str, tuple[PackedWeights, dict[str, Any], Any]],
    weights: list[tuple[Any, list[Any]]],
) -> Any:
    """Attention with packed projections, whose values are added to `weights`."""
    config = keras.layers.MultiHeadAttention.get_config(attention)
    packing = {name: told for name, (_, told, _) in projections.items()}
    made = PackedMultiHeadAttention.from_config({**config, "packing": packing})
    for name, (packed, _, bias) in projections.items():
        values = _ordered(packed, None if bias is None else np.asarray(bias))
        weights.append((getattr(made, name), values))
    return made


def _ordered(weights: PackedWeights, bias: np.ndarray | None) -> list[Any]:
    """Values in the order of a packed layer's weights: trainable ones first."""
    return ([] if bias is None else [bias]) + [weights.packed, weights.scales]
