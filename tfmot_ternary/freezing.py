"""Freezing: a trained quantized model becomes a model of packed layers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tfmot_ternary import ops, packing, quantizers
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packing import GroupSize, PackedWeights

__all__ = ["freeze", "pack_kernel"]


def freeze(model: Any, weight_format: str | None = None, activations: str = "int8") -> Any:
    """Returns a model whose quantized layers hold packed weights; `model` stays as it was.

    Args:
      model: a quantized Keras 3 model (`keras3.quantize`), or a tf_keras model that went through
        tfmot's `quantize_apply` with a `TernaryScheme` or `BinaryScheme`.
      weight_format: for ternary layers "t2" (2 bits a weight, the default) or "t5" (1.6 bits);
        binary layers are always "b1", which may also be given for a model that is binary only.
      activations: "int8" quantizes each row of a layer's input as the TF Lite operator does;
        "float32" keeps it, and predictions equal those of `model` up to the order of summation.

    Returns:
      A model of the same Keras version and structure, for inference only. In tf_keras a
      BatchNormalization directly after a packed layer is folded into its scales and bias.

    Raises:
      TypeError: not a Keras model.
      ValueError: no quantized layer in it, a model that is frozen already, an unknown format, or a
        scale or kernel that is not finite.
    """
    if weight_format is not None and weight_format not in packing.FORMATS:
        raise ValueError(
            f"expected weight_format None or out of {sorted(packing.FORMATS)}, got "
            f"{weight_format!r}"
        )
    if activations not in ops.ACTIVATION_TYPES:
        raise ValueError(f"expected activations out of {ops.ACTIVATION_TYPES}, got {activations!r}")
    # A Keras version that is not loaded cannot have made the model.
    keras3, tf_keras = sys.modules.get("keras"), sys.modules.get("tf_keras")
    if keras3 is not None and isinstance(model, keras3.Model):
        from tfmot_ternary import freezing_keras3

        return freezing_keras3.freeze(model, weight_format, activations)
    if tf_keras is not None and isinstance(model, tf_keras.Model):
        from tfmot_ternary import freezing_tf_keras

        return freezing_tf_keras.freeze(model, weight_format, activations)
    raise TypeError(
        f"expected a tf_keras or Keras 3 model, got {type(model).__module__}.{type(model).__name__}"
    )


def pack_kernel(
    kernel: Any,
    scales: Any,
    layout: KernelLayout,
    levels: int,
    group_size: GroupSize,
    weight_format: str | None,
    name: str,
) -> PackedWeights:
    """Packs one trained kernel by the rule that its quantizer used.

    Args:
      kernel: float array of `layout.kernel_shape`.
      scales: float array of `packing.scale_shape(layout.n, layout.k, group_size)`.
      layout: how the kernel becomes W[n, k].
      levels: 3 or 2.
      group_size: None, "tensor" or inputs per scale.
      weight_format: None for the default of `levels`, or the format for ternary weights.
      name: the layer's name, for errors.

    Raises:
      ValueError: a value is not finite, or the format does not hold the codes.
    """
    if levels == 2:
        chosen = "b1"
    else:
        chosen = weight_format or "t2"
    if packing.FORMATS[chosen].levels != levels:
        raise ValueError(
            f"expected a ternary format (t2, t5) for the ternary layer {name!r}, got {chosen}"
        )
    matrix = layout.to_matrix(np.asarray(kernel, np.float32))
    scales = np.asarray(scales, np.float32)
    for what, values in (("kernel", matrix), ("scales", scales)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"expected finite {what} in layer {name!r}, got NaN or infinity: the training has "
                "diverged; freeze an earlier checkpoint"
            )
    codes = quantizers.weight_codes(matrix, scales, levels, group_size)
    return PackedWeights.from_codes(codes, scales, chosen, group_size)
