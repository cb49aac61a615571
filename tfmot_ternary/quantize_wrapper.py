"""The quantize wrapper: a tf_keras layer whose kernels are quantized whenever the layer is called.

tfmot's QuantizeWrapperV2 does that too and is what users meet elsewhere; this subclass differs
where trainable scales, masks and frozen layers need it.
"""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.layer_kernels import (
    kernel_attributes,
    kernel_names,
    kernel_variable,
    with_kernels,
)

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

    def _kernels(self) -> dict[str, Any]:
        """{name: variable}; both directions of an RNN have a "kernel", the names differ."""
        names, attributes = kernel_names(self.layer), kernel_attributes(self.layer)
        variables = (kernel_variable(self.layer, attribute) for attribute in attributes)
        return dict(zip(names, variables, strict=True))

    def _weight_name(self, name: str) -> str:
        """The base's hook: full name of a variable -> what its scales are called after."""
        return next(key for key, kernel in self._kernels().items() if kernel.name == name)

    def kernel_named(self, name: str) -> Any:
        """The trained variable behind one of `kernel_scales`."""
        return self._kernels()[name]

    def build_from_config(self, config: Any) -> None:
        # Without the scope the variables of a nested, loaded model share their names, and HDF5
        # refuses to save it again.
        with tf.name_scope(self.name):
            super().build_from_config(config)

    def call(
        self,
        inputs: Any,
        training: Any = None,
        mask: Any = None,
        initial_state: Any = None,
        constants: Any = None,
    ) -> Any:
        kernels = {
            # Codes come from the float32 values, as in freezing, under mixed precision as well.
            attribute: tf.cast(
                quantizer(getattr(variable, "_variable", variable), training, weights=scales),
                self.layer.compute_dtype,
            )
            for attribute, (variable, quantizer, scales) in zip(
                kernel_attributes(self.layer), self._weight_vars, strict=True
            )
        }
        given = {
            "training": training,
            "mask": mask,
            "initial_state": initial_state,
            "constants": constants,  # Bidirectional passes it, always None for the cells we know
        }
        taken = inspect.signature(self.layer.call).parameters
        with with_kernels(self.layer, kernels):
            return self.layer.call(inputs, **{key: given[key] for key in given if key in taken})

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    @property
    def kernel_scales(self) -> dict[str, Any]:
        """{name of a kernel: its float32 variable of `packing.scale_shape(n, k, group_size)`}."""
        return {
            name: scales["scale"]
            for name, (_, _, scales) in zip(
                kernel_names(self.layer), self._weight_vars, strict=True
            )
        }

    @property
    def scales(self) -> Any:
        """The one of `kernel_scales`, for a layer with one kernel."""
        (scales,) = self.kernel_scales.values()
        return scales

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
        scales = self.kernel_scales
        keys = ["scale"] if len(scales) == 1 else [f"{name}_scale" for name in scales]
        return {
            **dict(zip(keys, scales.values(), strict=True)),
            "optimizer_step": self.optimizer_step,
        }

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
