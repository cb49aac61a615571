"""Freezing: a trained quantized model becomes a model of packed layers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tfmot_ternary import ops, packing, quantizers, recognition
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packing import GroupSize, PackedWeights

__all__ = ["freeze", "nothing_to_freeze", "pack_kernel", "pack_recognized"]


def freeze(
    model: Any,
    weight_format: str | None = None,
    activations: str = "int8",
    *,
    recognize: bool = False,
    tables: str | None = None,
    others: str | None = None,
) -> Any:
    """Returns a model whose quantized layers hold packed weights; `model` stays as it was.

    Args:
      model: a quantized Keras 3 model (`keras3.quantize`), or a tf_keras model that went through
        tfmot's `quantize_apply` with a `TernaryScheme` or `BinaryScheme`. With `recognize` also a
        float model of either Keras.
      weight_format: for ternary layers "t2" (2 bits a weight, the default) or "t5" (1.6 bits);
        binary layers are always "b1", which may also be given for a model that is binary only.
      activations: "int8" quantizes each row of a layer's input as the TF Lite operator does;
        "float32" keeps it, and predictions equal those of `model` up to the order of summation.
      recognize: whether float layers are packed too where their weights are ternary or binary
        already: {-a, 0, +a} or {-a, +a}, with one `a` per tensor, output or group of inputs. This
        is exact (`recognition.recognize`); all other float layers stay as they are.
      tables: how token tables and heads that were not quantized are stored: None (float),
        "i8" (one scale per row), "i4" (per group of 32), "t2" or "t5" (k-means per group of 64),
        or with another group size: "i4:64", "t2:128". A table that is also the head is stored once.
      others: "i8" stores the other kernels that are still float (skipped layers, embeddings of
        positions) in 8 bits, one scale per output, as TF Lite's dynamic range does; None leaves
        them. With `tables` or `others` a float model is taken too.

    Returns:
      A model of the same Keras version and structure, for inference only. In tf_keras a
      BatchNormalization directly after a packed layer is folded into its scales and bias. Rounding
      of activations that a user's subclass of our QuantizeConfigs adds is left out, with a warning.

    Raises:
      TypeError: not a Keras model.
      ValueError: no quantized (or recognized) layer in it, a model that is frozen already, an
        unknown format, or a scale or kernel that is not finite.
    """
    if weight_format is not None and weight_format not in list(packing.SCHEME_FORMATS):
        raise ValueError(
            f"expected weight_format None or out of {sorted(packing.SCHEME_FORMATS)}, got "
            f"{weight_format!r}; 8 and 4 bits are for tables and others"
        )
    if activations not in ops.ACTIVATION_TYPES:
        raise ValueError(f"expected activations out of {ops.ACTIVATION_TYPES}, got {activations!r}")
    # A Keras version that is not loaded cannot have made the model.
    keras3, tf_keras = sys.modules.get("keras"), sys.modules.get("tf_keras")
    if keras3 is not None and isinstance(model, keras3.Model):
        from tfmot_ternary import freezing_keras3

        return freezing_keras3.freeze(model, weight_format, activations, recognize, tables, others)
    if tf_keras is not None and isinstance(model, tf_keras.Model):
        from tfmot_ternary import freezing_tf_keras

        return freezing_tf_keras.freeze(
            model, weight_format, activations, recognize, tables, others
        )
    raise TypeError(
        f"expected a tf_keras or Keras 3 model, got {type(model).__module__}.{type(model).__name__}"
    )


def nothing_to_freeze(model: Any, frozen: bool, recognize: bool) -> ValueError:
    """The error for a model in which no layer is packed.

    Args:
      model: the model as it was given.
      frozen: whether it has packed layers already.
      recognize: as in `freeze`.
    """
    if frozen:
        return ValueError(
            f"expected a quantized model, got {model.name!r}, which is frozen already; freeze the "
            "model that it was made from"
        )
    if recognize:
        return ValueError(
            f"expected a model with quantized layers, or with float kernels that hold only -a, 0, "
            f"+a or -a, +a for one a per tensor, output or group of inputs, got {model.name!r} "
            "with neither; quantize it first with tfmot_ternary.quantize_apply(model, scheme)"
        )
    if any(type(layer).__name__ == "QuantizeAnnotate" for layer in model.layers):
        return ValueError(
            f"expected a quantized model, got {model.name!r}, which is annotated only; call "
            "tfmot's quantize_apply(model, scheme) on it first"
        )
    if any(type(layer).__name__.startswith("QuantizeWrapper") for layer in model.layers):
        return ValueError(
            f"expected ternary or binary layers, got {model.name!r}, which tfmot quantized with "
            "another scheme; convert it with tf.lite.TFLiteConverter, or pass TernaryScheme() or "
            "BinaryScheme() to quantize_apply"
        )
    return ValueError(
        f"expected a quantized model, got {model.name!r}, which is in float: quantize it first "
        "with tfmot_ternary.quantize_apply(model, scheme), or freeze it with recognize=True if its "
        "kernels are ternary or binary already"
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
    chosen = _format_for(levels, weight_format, name)
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


def pack_recognized(
    kernel: Any, layout: KernelLayout, weight_format: str | None, name: str
) -> PackedWeights | None:
    """Packs a float kernel that is ternary or binary already; None for any other.

    Args:
      kernel: float array of `layout.kernel_shape`.
      layout, weight_format, name: as in `pack_kernel`.

    Raises:
      ValueError: a value is not finite, or the format does not hold the codes.
    """
    matrix = layout.to_matrix(np.asarray(kernel))
    found = recognition.recognize(matrix)
    if found is None:
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"expected finite weights in layer {name!r}, got NaN or infinity; repair the model "
                "before it is frozen"
            )
        return None
    chosen = _format_for(found.levels, weight_format, name)
    return PackedWeights.from_codes(found.codes, found.scales, chosen, found.group_size)


def _format_for(levels: int, weight_format: str | None, name: str) -> str:
    chosen = "b1" if levels == 2 else weight_format or "t2"
    if packing.FORMATS[chosen].levels != levels:
        raise ValueError(
            f"expected a ternary format (t2, t5) for the ternary layer {name!r}, got {chosen}; "
            "leave weight_format out for the default of each layer"
        )
    return chosen
