"""Keras' own packed ternary kernels (from Keras 3.16: `keras.quantizers.pack_ternary`). NumPy only.

Keras stores the kernel [inputs, units] of a Dense or TernaryDense layer that went through
`quantize("ternary")` as uint8 [ceil(inputs / 5), units]: byte i of a unit holds its inputs 5 i to
5 i + 4 as the digits (code + 1) of a number in base 3, the first input counting 1, the last 81. The
last byte is filled up with codes 0. One float scale belongs to the whole kernel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tfmot_ternary.packing import PackedWeights

__all__ = ["from_keras_ternary"]

INPUTS_PER_BYTE = 5
LARGEST_BYTE = 3**INPUTS_PER_BYTE - 1


def from_keras_ternary(
    packed: npt.ArrayLike,
    scale: npt.ArrayLike,
    shape: tuple[int, int],
    weight_format: str = "t2",
) -> PackedWeights:
    """Keras' packed kernel in our format; codes and scale are the same.

    Args:
      packed: uint8 [ceil(inputs / 5), units], the layer's packed `kernel`.
      scale: one float, the layer's `kernel_scale`.
      shape: (inputs, units), the shape of the float kernel.
      weight_format: "t2" or "t5".

    Returns:
      W[n = units, k = inputs] with one scale per tensor.

    Raises:
      ValueError: arrays that do not fit the shape, bytes that Keras does not write, a scale that is
        negative or not finite, or a format that is not ternary.
    """
    inputs, units = (int(dim) for dim in shape)
    packed, scale = np.asarray(packed), np.asarray(scale, np.float32)
    expected = (-(-inputs // INPUTS_PER_BYTE), units)
    if packed.dtype != np.uint8 or packed.shape != expected or inputs < 1:
        raise ValueError(
            f"expected uint8 {list(expected)} for a Keras kernel of shape {[inputs, units]}, got "
            f"{packed.dtype} {list(packed.shape)}; packed along another axis it is not supported"
        )
    if scale.size != 1:
        raise ValueError(f"expected one scale for the kernel, got {scale.size}")
    if packed.max(initial=0) > LARGEST_BYTE:
        raise ValueError(
            f"expected bytes of at most {LARGEST_BYTE} (five base-3 digits), got {packed.max()}: "
            "the data is damaged or of another format"
        )
    digits = np.empty((units, expected[0], INPUTS_PER_BYTE), np.int8)
    rest = packed.T
    for place in range(INPUTS_PER_BYTE):
        rest, digits[:, :, place] = np.divmod(rest, np.uint8(3))
    codes = digits.reshape(units, -1)[:, :inputs] - np.int8(1)
    return PackedWeights.from_codes(codes, scale.reshape(1), weight_format, "tensor")
