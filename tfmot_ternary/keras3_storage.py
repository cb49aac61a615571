"""Storage of a Keras 3 model's float weights: which layers are tables, heads and other kernels."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import keras
from keras import layers

from tfmot_ternary.keras3_layers import is_quantized, layout_of
from tfmot_ternary.keras3_structure import nested_layers
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.weight_storage import (
    MIN_ELEMENTS,
    WeightStorage,
    is_token_table_name,
    others_storage_of,
    storage_of,
)

__all__ = [
    "FloatStorage",
    "float_kernel",
    "head_layout",
    "is_untied",
    "layer_config",
    "storage_configs",
]


class FloatStorage:
    """How the float weights of one model are stored, by the arguments `tables` and `others`.

    - `tables`: token tables (Embedding and ReversibleEmbedding), the second table of an untied
      ReversibleEmbedding, and a head: a Dense or EinsumDense with as many outputs as a token table
      has rows and as many inputs as it has columns, which is no part of a block.
    - `others`: every other Dense, EinsumDense, Conv1D and Conv2D kernel, and embeddings of
      positions and segments, of at least 1024 weights.
    """

    def __init__(self, model: keras.Model, tables: str | None, others: str | None) -> None:
        """Looks the tables up.

        Args:
          model: the built float or quantized model; its variables need not be initialized.
          tables: None or a token of `weight_storage.storage_of`.
          others: None or "i8".

        Raises:
          ValueError: another token.
        """
        self._tables = None if tables is None else storage_of(tables)
        self._others = others_storage_of(others)
        self._table_shapes = {
            (int(layer.input_dim), int(layer.output_dim))
            for _, layer in nested_layers(model)
            if _is_token_table(layer)
        }
        models = [model, *(layer for _, layer in nested_layers(model))]
        self._outside_of_blocks = {
            id(layer) for part in models if isinstance(part, keras.Model) for layer in part._layers
        }

    @property
    def is_float(self) -> bool:
        """Whether everything stays float."""
        return self._tables is None and self._others is None

    def kernel(self, layer: keras.Layer) -> WeightStorage | None:
        """The storage of a layer's float kernel or table; None where it stays float."""
        if self.is_float or is_quantized(layer) or isinstance(layer, PackedLayer):
            return None
        if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
            return None  # the kernel is not the whole of the layer's weights
        try:
            layout = layout_of(layer)
        except (TypeError, ValueError):  # no kernel, or not one matrix product
            return None
        if _is_token_table(layer):
            return self._tables
        if self._is_head(layer, layout):
            return self._tables or self._others
        if isinstance(layer, layers.Conv3D) or math.prod(layout.kernel_shape) < MIN_ELEMENTS:
            return None
        return self._others

    def _is_head(self, layer: keras.Layer, layout: KernelLayout) -> bool:
        return (
            isinstance(layer, (layers.Dense, layers.EinsumDense))
            and (layout.n, layout.k) in self._table_shapes
            and layout.n != layout.k  # a toy's vocabulary: it may be any projection
            and id(layer) in self._outside_of_blocks
        )

    def head(self, layer: keras.Layer) -> WeightStorage | None:
        """The storage of an untied ReversibleEmbedding's second table; None elsewhere."""
        return self._tables if is_untied(layer) else None


def storage_configs(
    model: keras.Model, storage: FloatStorage, taken: Collection[int], activations: str
) -> list[dict[str, Any]]:
    """What `FrozenModel.restructure` does to the layers that no scheme packs.

    Args:
      model: as for `FloatStorage`.
      storage: the choice.
      taken: indices (in `nested_layers`) of the layers that are packed otherwise.
      activations: "int8" or "float32".

    Returns:
      One dict per layer, in the model's order, with "index", "weight_format", "group_size",
      "activations" and, for an untied ReversibleEmbedding, "head": its second table's
      "weight_format" and "group_size".
    """
    configs = []
    for index, (_, layer) in enumerate(nested_layers(model)):
        chosen = None if index in taken else storage.kernel(layer)
        if chosen is not None:
            configs.append(layer_config(index, chosen, activations, storage.head(layer)))
    return configs


def layer_config(
    index: int, storage: Any, activations: str, head: WeightStorage | None
) -> dict[str, Any]:
    """The dict of one packed layer; `storage` has a `weight_format` and a `group_size`."""
    config = {
        "index": index,
        "weight_format": storage.weight_format,
        "group_size": storage.group_size,
        "activations": activations,
    }
    if head is not None:
        config["head"] = {"weight_format": head.weight_format, "group_size": head.group_size}
    return config


def float_kernel(layer: keras.Layer) -> keras.Variable:
    """The variable behind the kernel or table that `keras3_layers.layout_of` describes."""
    return layer._embeddings if isinstance(layer, layers.Embedding) else layer._kernel


def is_untied(layer: Any) -> bool:
    """Whether the layer is a ReversibleEmbedding with a float second table, its head."""
    return (
        isinstance(layer, layers.ReversibleEmbedding)
        and not layer.tie_weights
        and getattr(layer, "reverse_embeddings", None) is not None
    )


def head_layout(layer: Any) -> KernelLayout:
    """How the second table [width, vocabulary] of an untied ReversibleEmbedding becomes W[n, k]."""
    return KernelLayout.dense((layer.output_dim, layer.input_dim))


def _is_token_table(layer: Any) -> bool:
    return isinstance(layer, layers.Embedding) and is_token_table_name(layer.name)
