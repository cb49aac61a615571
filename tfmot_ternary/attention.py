"""Multi-head attention of tf_keras with quantized projections.

A quantize wrapper hands one input on, attention takes two or three and makes its projections late.
So the four EinsumDense projections inside are wrapped, each by itself, instead.
"""

from __future__ import annotations

from typing import Any

from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.importance import below
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper

__all__ = ["QuantizedMultiHeadAttention"]

_PROJECTIONS = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")


@keras.utils.register_keras_serializable("tfmot_ternary")
class QuantizedMultiHeadAttention(keras.layers.MultiHeadAttention):
    """MultiHeadAttention whose query, key, value and output kernels are quantized.

    Softmax, dropout and the products of activations stay float.
    """

    def __init__(self, quantize_config: Any, **kwargs: Any) -> None:
        """Makes the layer.

        Args:
          quantize_config: a KernelQuantizeConfig (or its serialized form), for each projection.
          **kwargs: as MultiHeadAttention.
        """
        super().__init__(**kwargs)
        if isinstance(quantize_config, dict):
            quantize_config = keras.utils.legacy.deserialize_keras_object(quantize_config)
        self.quantize_config = quantize_config

    @classmethod
    def from_trained(cls, layer: Any, quantize_config: Any) -> QuantizedMultiHeadAttention:
        """Takes over a built MultiHeadAttention with its weights.

        Raises:
          ValueError: if the layer has no weights yet.
        """
        if not layer._built_from_signature:
            raise ValueError(
                f"expected attention layer {layer.name!r} to be built, got one without weights"
            )
        config = layer.get_config()
        config["quantize_config"] = quantize_config
        quantized = cls.from_config(config)
        for name in _PROJECTIONS:
            setattr(quantized, name, quantized._quantized(getattr(layer, name)))
        quantize_config.importance = {}  # the projections have theirs
        return quantized

    @property
    def projections(self) -> dict[str, Any]:
        """The KernelQuantizeWrapper around each EinsumDense, by name: query, key, value, output."""
        return {name.split("_")[1]: getattr(self, name) for name in _PROJECTIONS}

    def _quantized(self, projection: Any) -> Any:
        config = type(self.quantize_config).from_config(self.quantize_config.get_config())
        config.importance = below(self.quantize_config.importance, projection.name)
        return KernelQuantizeWrapper(
            projection, config, name=projection.name, dtype=self._dtype_policy
        )

    def _build_from_signature(self, query: Any, value: Any, key: Any = None) -> None:
        super()._build_from_signature(query, value, key)
        for name in _PROJECTIONS:
            setattr(self, name, self._quantized(getattr(self, name)))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        quantize_config = self.quantize_config
        if self._built_from_signature:
            # The projections own copies of the config; theirs know whether scales exist.
            quantize_config = self._query_dense.quantize_config
        config["quantize_config"] = keras.utils.legacy.serialize_keras_object(quantize_config)
        return config
