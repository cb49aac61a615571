"""Weight storage: in which format a matrix that was not trained in few bits is stored.

Embedding tables, heads and the kernels that a scheme left in float are packed by this module alone,
whether a whole model is frozen or its weights pass by one at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfmot_ternary import initializers, integer_weights, quantizers
from tfmot_ternary.packing import (
    GROUP_SIZE_TOKENS,
    GroupSize,
    PackedWeights,
    group_size_of,
    row_bytes,
    scale_shape,
)

__all__ = [
    "MIN_ELEMENTS",
    "WeightStorage",
    "is_token_table_name",
    "others_storage_of",
    "pack_rows",
    "storage_of",
]

# Kernels of fewer weights stay float, as TF Lite's dynamic-range quantization leaves them.
MIN_ELEMENTS = 1024
# Embedding layers that are no token tables: few rows, each of which every example reads.
_NO_TOKENS = ("position", "segment", "token_type")

# The group size of a token without one: the fewer values a weight may have, the more its scale has
# to follow the weights around it. Eight bits lose next to nothing with one scale per row.
_GROUP_SIZES: dict[str, GroupSize] = {"i8": None, "i4": 32, "t2": 64, "t5": 64, "b1": 64}
_LEVELS = {"t2": 3, "t5": 3, "b1": 2}
# Weights that are packed at a time: k-means takes some ten temporary values for each.
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class WeightStorage:
    """A format and the inputs that share a scale.

    Attributes:
      weight_format: "i8", "i4", "t2", "t5" or "b1".
      group_size: None (one scale per output) or inputs per scale.
    """

    weight_format: str
    group_size: GroupSize


def storage_of(token: str, name: str = "tables") -> WeightStorage:
    """The storage that a token tells: "<format>" or "<format>:<group size>".

    "i8" has one scale per row, "i4" one per 32 weights, "t2", "t5" and "b1" one per 64;
    "t2:128" has one per 128, "i4:channel" one per row.

    Args:
      token: the token.
      name: the argument that it was given for, for errors.

    Raises:
      ValueError: another token.
    """
    sizes = [size for size in GROUP_SIZE_TOKENS if size != "tensor"]
    weight_format, colon, size = token.partition(":") if isinstance(token, str) else ("", "", "")
    if weight_format not in _GROUP_SIZES or (colon and size not in sizes):
        raise ValueError(
            f"expected {name} as <format> or <format>:<group size>, with a format out of "
            f"{', '.join(_GROUP_SIZES)} and a group size out of {', '.join(sizes)}, got {token!r}; "
            'write "i8", "i4:32" or "t2:64"'
        )
    return WeightStorage(
        weight_format, group_size_of(size) if size else _GROUP_SIZES[weight_format]
    )


def others_storage_of(token: str | None) -> WeightStorage | None:
    """The storage that the argument `others` tells; raises ValueError unless it is None or "i8"."""
    if token not in (None, "i8"):
        raise ValueError(
            f'expected others None (float) or "i8" (8 bits, one scale per output), got {token!r}'
        )
    return None if token is None else storage_of(token)


def is_token_table_name(name: str) -> bool:
    """Whether an embedding layer of this name may be a token table: not positions or segments."""
    return not any(word in name.lower() for word in _NO_TOKENS)


def pack_rows(
    matrix: Any,
    storage: WeightStorage,
    name: str,
    initializer: initializers.ScaleInitializer | str | None = None,
) -> PackedWeights:
    """Packs W[n, k] a few rows at a time, so that it needs little memory beside its result.

    Args:
      matrix: [n, k] of any float type: an array, or what has a `shape` and gives arrays for slices
        of rows (a memory map, a data set of an .h5 file).
      storage: format and group size.
      name: the layer's path, for errors.
      initializer: the scales of ternary and binary weights; None: exact k-means.

    Returns:
      The packed weights. Integers round to the nearest, with the largest |w| of a row or group as
      the largest code.

    Raises:
      ValueError: not a matrix, or a value is NaN or infinite.
    """
    if len(matrix.shape) != 2 or 0 in matrix.shape:
        raise ValueError(f"expected {name} as a matrix [n, k], got shape {tuple(matrix.shape)}")
    n, k = (int(dim) for dim in matrix.shape)
    weight_format, group_size = storage.weight_format, storage.group_size
    packed = np.empty((n, row_bytes(k, weight_format)), np.uint8)
    scales = np.empty(scale_shape(n, k, group_size), np.float32)
    step = max(1, _CHUNK // k)
    for first in range(0, n, step):
        rows = np.asarray(matrix[first : first + step]).astype(np.float32, copy=False)
        part = _pack_chunk(rows, storage, name, first, initializer)
        packed[first : first + step] = part.packed
        scales[first : first + step] = part.scales
    return PackedWeights(packed, scales, k, weight_format, group_size)


def _pack_chunk(
    rows: np.ndarray, storage: WeightStorage, name: str, first: int, initializer: Any
) -> PackedWeights:
    if not np.isfinite(rows).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
        raise ValueError(
            f"expected finite weights in {name}, got {rows[row, column]} at output {first + row}, "
            f"input {column}: the training has diverged, or the file is damaged; take an earlier "
            "checkpoint"
        )
    weight_format, group_size = storage.weight_format, storage.group_size
    levels = _LEVELS.get(weight_format)
    if levels is None:
        codes, scales = integer_weights.quantize(rows, weight_format, group_size)
    else:
        scales = initializers.initial_scales(rows, levels, group_size, initializer, name=name)
        codes = quantizers.weight_codes(rows, scales, levels, group_size)
    return PackedWeights.from_codes(codes, scales, weight_format, group_size)
