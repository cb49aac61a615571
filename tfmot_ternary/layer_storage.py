"""Storage of a tf_keras model's float weights: which layers are tables, heads and other kernels."""

from __future__ import annotations

import math
from typing import Any

from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.layer_kernels import kernel_layout, quantizes
from tfmot_ternary.weight_storage import (
    MIN_ELEMENTS,
    WeightStorage,
    is_token_table_name,
    others_storage_of,
    storage_of,
)

__all__ = ["LayerStorage"]

_OTHERS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Embedding,
)


class LayerStorage:
    """How the float weights of one model are stored, by the arguments `tables` and `others`.

    The rules of `keras3_storage.FloatStorage`, for layers of these very classes.
    """

    def __init__(self, model: Any, tables: str | None, others: str | None) -> None:
        """Looks the tables up.

        Args:
          model: the built model.
          tables: None or a token of `weight_storage.storage_of`.
          others: None or "i8".

        Raises:
          ValueError: another token.
        """
        self._tables = None if tables is None else storage_of(tables)
        self._others = others_storage_of(others)
        self._table_shapes = {
            (int(layer.input_dim), int(layer.output_dim))
            for layer in model._flatten_layers()
            if _is_token_table(layer)
        }

    @property
    def is_float(self) -> bool:
        """Whether everything stays float."""
        return self._tables is None and self._others is None

    def kernel(self, layer: Any) -> WeightStorage | None:
        """The storage of a float layer's one kernel; None where it stays float."""
        if self.is_float or type(layer) not in _OTHERS or not quantizes(layer):
            return None
        try:
            layout = kernel_layout(layer)
        except ValueError:  # not one matrix product
            return None
        if _is_token_table(layer):
            return self._tables
        is_product = isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense))
        if is_product and layout.n != layout.k and (layout.n, layout.k) in self._table_shapes:
            return self._tables or self._others
        return self._others if math.prod(layout.kernel_shape) >= MIN_ELEMENTS else None


def _is_token_table(layer: Any) -> bool:
    return type(layer) is keras.layers.Embedding and is_token_table_name(layer.name)
