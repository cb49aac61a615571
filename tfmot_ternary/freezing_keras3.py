"""Freezing of Keras 3 models: each quantized layer of a clone becomes a packed layer in place."""

from __future__ import annotations

from typing import Any

import keras

from tfmot_ternary.freezing import nothing_to_freeze, pack_kernel, pack_recognized
from tfmot_ternary.keras3_layers import is_quantized, layout_of
from tfmot_ternary.keras3_storage import FloatStorage, float_kernel, head_layout, layer_config
from tfmot_ternary.keras3_structure import (
    RestructuredModel,
    Structure,
    clone,
    float_class,
    float_config,
    nested_layers,
    require_tensorflow,
)
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.packed_layers import pack_in_place
from tfmot_ternary.packing import PackedWeights
from tfmot_ternary.weight_storage import pack_rows

__all__ = ["FrozenModel", "freeze"]


class FrozenModel(RestructuredModel):
    """The class of a frozen Keras 3 model, next to the class of the model itself."""

    @staticmethod
    def restructure(model: keras.Model, layers: list[dict[str, Any]]) -> None:
        """Packs the listed layers with zeros; codes and scales are loaded with all weights.

        Args:
          model: a float model, or a skeleton of one: its variables need not be initialized.
          layers: one dict per layer, see `keras3_storage.layer_config`.
        """
        nested = list(nested_layers(model))
        for config in layers:
            layer = nested[config["index"]][1]
            packing = {key: config[key] for key in config if key != "index"}
            pack_in_place(
                layer, float_class(type(layer)), kernel_layout=layout_of(layer), **packing
            )
        model.jit_compile = False  # see `packed_layers.pack_in_place`


keras.saving.register_keras_serializable("tfmot_ternary")(FrozenModel)


def freeze(
    model: keras.Model,
    weight_format: str | None,
    activations: str,
    recognize: bool,
    tables: str | None = None,
    others: str | None = None,
) -> keras.Model:
    """See `tfmot_ternary.freezing.freeze`."""
    require_tensorflow()
    sources = [("", model), *nested_layers(model)]
    frozen_already = any(isinstance(layer, PackedLayer) for _, layer in sources)
    quantized = any(is_quantized(layer) for _, layer in sources)
    storage = FloatStorage(model, tables, others)
    if frozen_already or not (quantized or recognize or not storage.is_float):
        raise nothing_to_freeze(model, frozen_already, recognize)
    if not model.built:
        raise ValueError(f"expected a built model, got {model.name!r}; call it on data first")
    frozen = clone(model)
    targets = [frozen, *(layer for _, layer in nested_layers(frozen))]
    configs = []
    for index, ((path, source), target) in enumerate(zip(sources, targets, strict=True)):
        left_out: list[Any] = []
        packed = _packed(source, path, weight_format, recognize, storage)
        if packed is not None:
            weights, layout, left_out = packed
            head = storage.head(source)
            # The model itself is not among its nested layers.
            config = layer_config(index - 1, weights, activations, head)
            packing = {key: config[key] for key in config if key != "index"}
            pack_in_place(target, float_class(type(target)), kernel_layout=layout, **packing)
            target.set_packed_weights(weights)
            left_out += [target.packed, target.scales]
            if head is not None:
                table = keras.ops.convert_to_numpy(source.reverse_embeddings)
                table = head_layout(source).to_matrix(table)
                target.set_head_weights(pack_rows(table, head, f"the head of {path}"))
                left_out += [source.reverse_embeddings, target.head_packed, target.head_scales]
            configs.append(config)
        _copy_own_variables(source, target, left_out)
    if not configs:
        raise nothing_to_freeze(model, frozen_already, recognize)
    frozen.jit_compile = False  # a task has compiled itself before its layers were packed
    return FrozenModel.adopt(frozen, Structure(float_config(model), configs))


def _packed(
    layer: Any, path: str, weight_format: str | None, recognize: bool, storage: FloatStorage
) -> tuple[PackedWeights, KernelLayout, list[Any]] | None:
    """Packed weights of a layer, their layout, and the variables that they replace.

    None for a layer that stays as it is.
    """
    if is_quantized(layer):
        weights = pack_kernel(
            keras.ops.convert_to_numpy(layer.float_weights),
            keras.ops.convert_to_numpy(layer.kernel_scale),
            layer.kernel_layout,
            layer.levels,
            layer.group_size,
            weight_format,
            path,
        )
        return weights, layer.kernel_layout, [layer.float_weights, layer.kernel_scale]
    if recognize and not _is_changed_by_keras(layer):
        try:
            layout = layout_of(layer)
        except (TypeError, ValueError):  # no kernel, or not one matrix product
            return None
        kernel = float_kernel(layer)
        recognized = pack_recognized(
            keras.ops.convert_to_numpy(kernel), layout, weight_format, path
        )
        if recognized is not None:
            return recognized, layout, [kernel]
    stored = storage.kernel(layer)
    if stored is None:
        return None
    layout, kernel = layout_of(layer), float_kernel(layer)
    matrix = layout.to_matrix(keras.ops.convert_to_numpy(kernel))
    return pack_rows(matrix, stored, path), layout, [kernel]


def _is_changed_by_keras(layer: Any) -> bool:
    """Whether the layer's kernel is not the whole of its weights: Keras' quantization, or LoRA."""
    return bool(getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False))


def _copy_own_variables(source: Any, target: Any, left_out: list[Any]) -> None:
    """Copies the variables that a layer itself holds, sublayers not included."""
    skipped = {id(variable) for variable in left_out}

    def own(layer: Any) -> list[Any]:
        variables = layer._trainable_variables + layer._non_trainable_variables
        return [variable for variable in variables if id(variable) not in skipped]

    for to, value in zip(own(target), own(source), strict=True):
        to.assign(value)
