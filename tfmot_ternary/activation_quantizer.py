"""The activation quantizer: a tf_keras layer that rounds what passes through it to 8 bits.

tfmot's QuantizeLayer does that for the inputs of a model; this one also passes masks on, and loads
without a custom object scope.
"""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras import utils
from tensorflow_model_optimization.python.core.keras.compat import keras

__all__ = ["ActivationQuantizer"]

_QUANTIZERS = {
    "moving_average": tfmot.quantization.keras.quantizers.MovingAverageQuantizer,
    "all_values": tfmot.quantization.keras.quantizers.AllValuesQuantizer,
}


@keras.utils.register_keras_serializable("tfmot_ternary")
class ActivationQuantizer(keras.layers.Layer):
    """Rounds a float tensor to the 256 values of a range that it learns from training batches.

    In inference the range is fixed, and TFLiteConverter makes an int8 tensor of the output.
    """

    def __init__(self, ranges: str = "moving_average", **kwargs: Any) -> None:
        """Makes the layer.

        Args:
          ranges: how the range is learned, as tfmot does: "moving_average" (for activations; it
            starts at [-6, 6]) or "all_values" (for inputs: the smallest and the largest so far).
          **kwargs: as Layer.

        Raises:
          ValueError: for another word.
        """
        # Under a mixed precision policy the range and the rounding stay float32.
        super().__init__(**{"dtype": "float32", **kwargs})
        if ranges not in _QUANTIZERS:
            raise ValueError(f"expected ranges out of {sorted(_QUANTIZERS)}, got {ranges!r}")
        self.ranges = ranges
        self.supports_masking = True
        self._quantizer = _QUANTIZERS[ranges](
            num_bits=8, per_axis=False, symmetric=False, narrow_range=False
        )

    def build(self, input_shape: Any) -> None:
        variables = self._quantizer.build(input_shape, "output", self)
        self.min, self.max = variables["min_var"], variables["max_var"]
        super().build(input_shape)

    def call(self, inputs: Any, training: Any = None) -> Any:
        if training is None:
            training = keras.backend.learning_phase()
        variables = {"min_var": self.min, "max_var": self.max}
        return utils.smart_cond(
            training,
            lambda: self._quantizer(inputs, True, weights=variables),
            lambda: self._quantizer(inputs, False, weights=variables),
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ranges": self.ranges}
