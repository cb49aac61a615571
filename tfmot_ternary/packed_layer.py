"""A packed layer: packed weights in place of a layer's kernel, in either Keras version."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ternary import ops
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packing import FORMATS, GroupSize, PackedWeights, row_bytes, scale_shape

__all__ = ["PackedLayer", "is_keras_class", "layer_class_of"]


class PackedLayer:
    """Mixed into a layer class: packed weights in place of its kernel or table.

    Attributes:
      kernel_layout: how the float kernel became W[n, k].
      weight_format: "t2", "t5", "b1", "i4" or "i8".
      group_size: None (one scale per output), "tensor" or inputs per scale.
      activations: "int8" or "float32", what the operator multiplies.
      packed: variable uint8 [n, row_bytes(k)].
      scales: variable float32 of shape `packing.scale_shape(n, k, group_size)`.
    """

    # Kernels that stay float beside the packed one; the first weights of the layer.
    float_kernels: tuple[str, ...] = ()

    kernel_layout: KernelLayout
    weight_format: str
    group_size: GroupSize
    activations: str
    packed: Any
    scales: Any
    changed_from: type
    bias: Any
    activation: Any
    compute_dtype: str

    def __init__(self, *args: Any, packing: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if packing is None:
            raise ValueError(
                f"expected the argument `packing` of {type(self).__name__}, which tells layout and "
                "format, got None; packed layers are made by tfmot_ternary.freeze"
            )
        self._set_packing(**packing)

    def _set_packing(
        self,
        kernel_layout: KernelLayout | dict[str, Any],
        weight_format: str,
        group_size: GroupSize,
        activations: str,
        bias_shape: Any = None,
    ) -> None:
        if isinstance(kernel_layout, dict):
            kernel_layout = KernelLayout.from_config(kernel_layout)
        if weight_format not in FORMATS:
            raise ValueError(
                f"expected weight_format out of {sorted(FORMATS)}, got {weight_format!r}"
            )
        if activations not in ops.ACTIVATION_TYPES:
            raise ValueError(
                f"expected activations out of {ops.ACTIVATION_TYPES}, got {activations!r}"
            )
        self.kernel_layout = kernel_layout
        self.weight_format = weight_format
        self.group_size = group_size
        self.activations = activations
        self.bias_shape = None if bias_shape is None else tuple(bias_shape)

    def _add_packed_weights(self) -> None:
        layout = self.kernel_layout
        self.packed, self.scales = self._add_matrix(
            "", layout.n, layout.k, self.weight_format, self.group_size
        )

    def _add_matrix(
        self, prefix: str, n: int, k: int, weight_format: str, group_size: GroupSize
    ) -> tuple[Any, Any]:
        """Adds the variables `packed` and `scales` of a matrix W[n, k], zeros."""
        shapes = {
            "packed": ((n, row_bytes(k, weight_format)), "uint8"),
            "scales": (scale_shape(n, k, group_size), "float32"),
        }
        # Scales stay float32 under a mixed precision policy; each Keras has its own word for that.
        keras3 = layer_class_of(type(self)).__module__.startswith("keras.")
        no_autocast = {"autocast" if keras3 else "experimental_autocast": False}
        packed, scales = (
            self.add_weight(  # type: ignore[attr-defined]
                name=prefix + name,
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                **no_autocast,
            )
            for name, (shape, dtype) in shapes.items()
        )
        return packed, scales

    def build(self, input_shape: Any) -> None:
        """Adds packed weights and bias (tf_keras; a Keras 3 layer is built before it is packed)."""
        del input_shape  # the layout has all shapes
        self._add_packed_weights()
        if self.bias_shape is not None:
            self.bias = self.add_weight(name="bias", shape=self.bias_shape, initializer="zeros")  # type: ignore[attr-defined]
        else:
            self.bias = None
        self.built = True

    @property
    def packed_weights(self) -> PackedWeights:
        """The weights as NumPy arrays."""
        return PackedWeights(
            tf.convert_to_tensor(self.packed).numpy(),
            tf.convert_to_tensor(self.scales).numpy(),
            self.kernel_layout.k,
            self.weight_format,
            self.group_size,
        )

    def set_packed_weights(self, weights: PackedWeights) -> None:
        """Assigns codes and scales; format and shape must be those of the layer."""
        if weights.weight_format != self.weight_format or weights.group_size != self.group_size:
            raise ValueError(
                f"expected weights of format {self.weight_format}, group_size {self.group_size!r}, "
                f"got {weights.weight_format}, {weights.group_size!r}"
            )
        self.packed.assign(weights.packed)
        self.scales.assign(weights.scales)

    def unpacked(self) -> tf.Tensor:
        """The dequantized kernel, float32 of the float kernel's shape, by the operator `unpack`."""
        matrix = ops.unpack(
            self.packed, self.scales, k=self.kernel_layout.k, **self._matrix_options
        )
        return tf.cast(self.kernel_layout.from_matrix(matrix), self.compute_dtype)

    @property
    def _matrix_options(self) -> dict[str, Any]:
        group_size = self.group_size if isinstance(self.group_size, int) else 0
        return {"weight_format": self.weight_format, "group_size": group_size}

    def _product_options(self, activation: str) -> dict[str, Any]:
        return {
            **self._matrix_options,
            "activation": activation,
            "activations": self.activations,
        }

    def get_config(self) -> dict[str, Any]:
        """The base layer's config and `packing`."""
        config = super().get_config()  # type: ignore[misc]
        config["packing"] = {
            "kernel_layout": self.kernel_layout.get_config(),
            "weight_format": self.weight_format,
            "group_size": self.group_size,
            "activations": self.activations,
            "bias_shape": None if self.bias_shape is None else list(self.bias_shape),
        }
        return config

    # Base classes of Keras 3 save `kernel` under keys of their own: go by the variables instead.

    def save_own_variables(self, store: Any) -> None:
        layer_class_of(type(self)).save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        layer_class_of(type(self)).load_own_variables(self, store)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Keras' own integer quantization passes over this layer (it warns and goes on)."""
        raise NotImplementedError(f"{self.name!r} is packed by tfmot_ternary already")  # type: ignore[attr-defined]


def layer_class_of(cls: type) -> Any:
    """The class `Layer` of the Keras version that `cls` belongs to."""
    return next(c for c in cls.__mro__ if is_keras_class(c, ("Layer",)))


def is_keras_class(cls: type, names: tuple[str, ...]) -> bool:
    return cls.__name__ in names and cls.__module__.split(".")[0] in ("keras", "tf_keras")
