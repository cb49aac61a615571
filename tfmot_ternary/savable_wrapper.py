"""The savable wrapper: tfmot's wrapper for layers with a QuantizeConfig that is not ours."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

__all__ = ["SavableQuantizeWrapper"]


@keras.utils.register_keras_serializable("tfmot_ternary")
class SavableQuantizeWrapper(tfmot.quantization.keras.QuantizeWrapperV2):
    """tfmot's wrapper, with the same variables for a trained layer and for one that is loaded.

    Its base counts a kernel twice in a trained layer, and .keras files of it do not load.
    """

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            with keras.backend.name_scope(self.layer.name):
                self.layer.build(input_shape)
            self.layer.built = True
        super().build(input_shape)
        self._trainable_weights[:] = self._dedup_weights(self._trainable_weights)
