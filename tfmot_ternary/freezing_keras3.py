"""Freezing of Keras 3 models: each quantized layer of a clone becomes a packed layer in place."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfmot_ternary.freezing import pack_kernel
from tfmot_ternary.keras3_layers import QuantizedWeights, is_quantized, layout_of
from tfmot_ternary.keras3_structure import (
    RestructuredModel,
    Structure,
    clone,
    float_class,
    float_config,
    nested_layers,
    require_tensorflow,
)
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.packed_layers import pack_in_place
from tfmot_ternary.packing import PackedWeights, row_bytes, scale_shape

__all__ = ["FrozenModel", "freeze"]


class FrozenModel(RestructuredModel):
    """The class of a frozen Keras 3 model, next to the class of the model itself."""

    @staticmethod
    def restructure(model: keras.Model, layers: list[dict[str, Any]]) -> None:
        """Packs the listed layers with zeros; codes and scales are loaded with all weights."""
        nested = list(nested_layers(model))
        for config in layers:
            layer = nested[config["index"]][1]
            layout = layout_of(layer)
            weight_format, group_size = config["weight_format"], config["group_size"]
            weights = PackedWeights(
                np.zeros((layout.n, row_bytes(layout.k, weight_format)), np.uint8),
                np.zeros(scale_shape(layout.n, layout.k, group_size), np.float32),
                layout.k,
                weight_format,
                group_size,
            )
            pack_in_place(
                layer,
                float_class(type(layer)),
                weights,
                kernel_layout=layout,
                activations=config["activations"],
            )
        model.jit_compile = False  # see `packed_layers.pack_in_place`


keras.saving.register_keras_serializable("tfmot_ternary")(FrozenModel)


def freeze(model: keras.Model, weight_format: str | None, activations: str) -> keras.Model:
    """See `tfmot_ternary.freezing.freeze`."""
    require_tensorflow()
    sources = [("", model), *nested_layers(model)]
    if not any(is_quantized(layer) for _, layer in sources):
        state = "frozen already"
        if not any(isinstance(layer, PackedLayer) for _, layer in sources):
            state = "in float: quantize it first with tfmot_ternary.quantize_apply(model, scheme)"
        raise ValueError(f"expected a quantized model, got {model.name!r}, which is {state}")
    frozen = clone(model)
    targets = [frozen, *(layer for _, layer in nested_layers(frozen))]
    configs = []
    for index, ((path, source), target) in enumerate(zip(sources, targets, strict=True)):
        left_out: list[Any] = []
        if is_quantized(source):
            weights = _pack(source, path, weight_format)
            pack_in_place(
                target,
                float_class(type(target)),
                weights,
                kernel_layout=source.kernel_layout,
                activations=activations,
            )
            left_out = [source.float_weights, source.kernel_scale, target.packed, target.scales]
            configs.append(
                {
                    "index": index - 1,  # the model itself is not among its nested layers
                    "weight_format": weights.weight_format,
                    "group_size": weights.group_size,
                    "activations": activations,
                }
            )
        _copy_own_variables(source, target, left_out)
    frozen.jit_compile = False  # a task has compiled itself before its layers were packed
    return FrozenModel.adopt(frozen, Structure(float_config(model), configs))


def _pack(layer: QuantizedWeights, path: str, weight_format: str | None) -> PackedWeights:
    return pack_kernel(
        keras.ops.convert_to_numpy(layer.float_weights),
        keras.ops.convert_to_numpy(layer.kernel_scale),
        layer.kernel_layout,
        layer.levels,
        layer.group_size,
        weight_format,
        path,
    )


def _copy_own_variables(source: Any, target: Any, left_out: list[Any]) -> None:
    """Copies the variables that a layer itself holds, sublayers not included."""
    skipped = {id(variable) for variable in left_out}

    def own(layer: Any) -> list[Any]:
        variables = layer._trainable_variables + layer._non_trainable_variables
        return [variable for variable in variables if id(variable) not in skipped]

    for to, value in zip(own(target), own(source), strict=True):
        to.assign(value)
