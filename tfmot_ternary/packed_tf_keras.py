"""The packed layers of tf_keras, registered under their names so that saved models load.

Importing this module is enough to load a frozen model, without a custom object scope.
"""

from __future__ import annotations

from typing import Any

from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.packed_layers import packed_class

__all__ = ["PROJECTIONS", "PackedMultiHeadAttention", "packed_keras_class"]

# Attributes of the EinsumDense layers inside MultiHeadAttention.
PROJECTIONS = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")


def packed_keras_class(base: type) -> Any:
    """`packed_class(base)`, registered with tf_keras under "tfmot_ternary>Packed...".

    The classes of the layers that schemes quantize are registered on import. A packed form of a
    user's own subclass is registered here, when a model with it is frozen.
    """
    cls = packed_class(base)
    if keras.saving.get_registered_name(cls) == cls.__name__:
        keras.saving.register_keras_serializable("tfmot_ternary")(cls)
    return cls


for _base in (
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
):
    packed_keras_class(_base)


@keras.saving.register_keras_serializable("tfmot_ternary")
class PackedMultiHeadAttention(keras.layers.MultiHeadAttention):
    """MultiHeadAttention with packed query, key, value and output projections."""

    def __init__(self, packing: dict[str, dict[str, Any]], **kwargs: Any) -> None:
        """Makes the layer.

        Args:
          packing: for each of PROJECTIONS the argument `packing` of its packed EinsumDense.
          **kwargs: as MultiHeadAttention.
        """
        super().__init__(**kwargs)
        self._packing = tuple((name, packing[name]) for name in PROJECTIONS)

    def _build_from_signature(self, query: Any, value: Any, key: Any = None) -> None:
        super()._build_from_signature(query, value, key)
        cls = packed_keras_class(keras.layers.EinsumDense)
        for name, packing in self._packing:
            projection = getattr(self, name)
            setattr(self, name, cls.from_config({**projection.get_config(), "packing": packing}))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "packing": {n: dict(p) for n, p in self._packing}}
