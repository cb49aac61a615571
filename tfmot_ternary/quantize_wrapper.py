"""The quantize wrapper: a tf_keras layer whose kernel is quantized whenever the layer is called.

tfmot's QuantizeWrapperV2 does that too and is what users meet elsewhere; this subclass differs
where trainable scales, masks and frozen layers need it.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.quantize_config import kernel_attribute

__all__ = ["KernelQuantizeWrapper"]


@keras.utils.register_keras_serializable("tfmot_ternary")
class KernelQuantizeWrapper(tfmot.quantization.keras.QuantizeWrapperV2):
    """Wraps a layer that has a KernelQuantizeConfig.

    Unlike its base it passes masks on, keeps a frozen layer frozen, has one order of weights
    whether the layer is trained or being loaded, and leaves the kernel variable in its place.
    """

    def build(self, input_shape: Any) -> None:
        # The base collects the layer's weights before it builds the layer. A layer that is loaded
        # would get its scales in front of its kernel, one that comes trained behind it.
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        super().build(input_shape)
        inner = {id(weight) for weight in self.layer.weights}
        self._trainable_weights[:] = [w for w in self._trainable_weights if id(w) not in inner]
        self.supports_masking = self.layer.supports_masking

    def build_from_config(self, config: Any) -> None:
        # Without the scope the variables of a nested, loaded model share their names, and HDF5
        # refuses to save it again.
        with tf.name_scope(self.name):
            super().build_from_config(config)

    def call(self, inputs: Any, training: Any = None) -> Any:
        attribute = kernel_attribute(self.layer)
        variable, quantizer, scales = self._weight_vars[0]
        kernel = quantizer(variable, training, weights=scales)
        # Not setattr: Keras would untrack the variable, and the layer would keep a tensor of this
        # graph as its kernel.
        self.layer.__dict__[attribute] = kernel
        try:
            return self.layer.call(inputs)  # none of the layers with a kernel takes more
        finally:
            self.layer.__dict__[attribute] = variable

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    @property
    def scales(self) -> Any:
        """The float32 variable of scales, shaped `packing.scale_shape(n, k, group_size)`."""
        return self._weight_vars[0][2]["scale"]

    @property
    def trainable_weights(self) -> list[Any]:
        if not self.trainable:
            return []
        return self._dedup_weights(self.layer.trainable_weights + self._trainable_weights)

    @property
    def non_trainable_weights(self) -> list[Any]:
        frozen = [] if self.trainable else self._trainable_weights
        return self._dedup_weights(
            self.layer.non_trainable_weights + frozen + self._non_trainable_weights
        )

    # The .keras format asks each layer for its own variables; the wrapped layer saves its kernel
    # and bias itself, so that they are in the file once.

    def _own_variables(self) -> dict[str, Any]:
        return {"scale": self.scales, "optimizer_step": self.optimizer_step}

    def save_own_variables(self, store: Any) -> None:
        for name, variable in self._own_variables().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        for name, variable in self._own_variables().items():
            if name not in store or tuple(store[name].shape) != tuple(variable.shape):
                got = tuple(store[name].shape) if name in store else f"only {sorted(store.keys())}"
                raise ValueError(
                    f"expected {name!r} of shape {tuple(variable.shape)} for layer {self.name!r} "
                    f"in the file, got {got}: the file belongs to another model"
                )
            variable.assign(store[name])
