"""Packed weights: the wire formats t2, t5, b1, i8 and i4 (normative text: g3doc/packing.md).

A matrix of codes W[n, k] is stored row by row. A byte holds F weights (1 to 8); a row is cut into
blocks of 64 * F weights = 64 bytes, and byte j of a block of s bytes holds the weights j, j + s,
j + 2s, ... of that block, so that every field of a block is a run of consecutive weights.
NumPy only.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 64
GROUP_SIZES = (32, 64, 128, 256)
# Weights that are packed or unpacked at once: the arrays in between stay in a cache.
_PIECE_WEIGHTS = 1 << 20

# None: one scale per output channel. "tensor": one per weight tensor. An int of GROUP_SIZES: one
# per that many inputs of a channel.
GroupSize = int | Literal["tensor"] | None
# The same as command lines spell it.
GROUP_SIZE_TOKENS = ("channel", "tensor", *map(str, GROUP_SIZES))


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """How the codes of one byte are coded: code = lowest + step * digit.

    Attributes:
      name: the token of the format.
      fields: weights per byte.
      levels: number of digits.
      base: field f of a byte counts base**f.
      padding: the digit of a weight that fills up the last block.
      lowest: the code of digit 0.
      step: what codes lie apart.
    """

    name: str
    fields: int
    levels: int
    base: int
    padding: int
    lowest: int = -1
    step: int = 1

    @property
    def block_weights(self) -> int:
        """Weights of a full block."""
        return BLOCK_BYTES * self.fields

    @property
    def highest(self) -> int:
        """The code of the last digit."""
        return self.lowest + self.step * (self.levels - 1)

    @property
    def value_text(self) -> str:
        """The codes in words, for messages."""
        if self.levels > 3:
            return f"{self.lowest} to {self.highest}"
        return "-1, 0, +1" if self.levels == 3 else "-1, +1"


FORMATS: dict[str, WeightFormat] = {
    "t2": WeightFormat("t2", fields=4, levels=3, base=4, padding=1),
    "t5": WeightFormat("t5", fields=5, levels=3, base=3, padding=1),
    "b1": WeightFormat("b1", fields=8, levels=2, base=2, padding=0, step=2),
    "i8": WeightFormat("i8", fields=1, levels=256, base=256, padding=128, lowest=-128),
    "i4": WeightFormat("i4", fields=2, levels=16, base=16, padding=8, lowest=-8),
}
# What the layers of a ternary or binary scheme are frozen to.
SCHEME_FORMATS = ("t2", "t5", "b1")
# What holds integers of more than three levels (see `integer_weights`).
INTEGER_FORMATS = ("i8", "i4")


def weight_format_of(name: str) -> WeightFormat:
    """The format called `name`; raises ValueError for any other name."""
    if not isinstance(name, str) or name not in FORMATS:
        raise ValueError(f"expected a weight format of {sorted(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"expected k >= 1 weights per row, got {k}")


def _check_group_size(group_size: GroupSize) -> None:
    known = group_size is None or group_size == "tensor"
    wrong_type = isinstance(group_size, (bool, float))  # 32.0 equals 32
    if not known and (wrong_type or group_size not in GROUP_SIZES):
        raise ValueError(
            f"expected group_size None (per channel), 'tensor' or one of {GROUP_SIZES},"
            f" got {group_size!r}"
        )


def group_size_of(token: str) -> GroupSize:
    """The group size that a command line spells "channel", "tensor", "32", ...

    Raises:
      ValueError: any other token.
    """
    if token not in GROUP_SIZE_TOKENS:
        raise ValueError(f"expected a group size of {GROUP_SIZE_TOKENS}, got {token!r}")
    if token == "channel":
        return None
    return "tensor" if token == "tensor" else int(token)


def _short_block_bytes(weights: int, fields: int) -> int:
    """Bytes of a last block of 0 <= weights < 64 * fields: whole bytes, up to a multiple of 4."""
    return (weights + 4 * fields - 1) // (4 * fields) * 4


def row_bytes(k: int, weight_format: str) -> int:
    """Bytes of a packed row of k weights."""
    fmt = weight_format_of(weight_format)
    _check_k(k)
    full, rest = divmod(k, fmt.block_weights)
    return BLOCK_BYTES * full + _short_block_bytes(rest, fmt.fields)


def pack(codes: npt.ArrayLike, weight_format: str) -> np.ndarray:
    """Packs a matrix of codes.

    Args:
      codes: integers [n, k], n, k >= 1, of {-1, 0, +1} (t2, t5), {-1, +1} (b1), -128 to 127 (i8) or
        -8 to 7 (i4).
      weight_format: one of FORMATS.

    Returns:
      uint8 [n, row_bytes(k, weight_format)].

    Raises:
      ValueError: wrong rank, an empty matrix, a type that is not integer, or a value that the
        format does not hold.
    """
    fmt = weight_format_of(weight_format)
    codes = np.asarray(codes)
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"expected codes of shape [n, k] with n, k >= 1, got {codes.shape}")
    if codes.dtype.kind not in "iu":
        raise ValueError(f"expected integer codes, got {codes.dtype}")
    n, k = codes.shape
    packed = np.empty((n, row_bytes(k, weight_format)), np.uint8)
    for rows in _row_pieces(n, k):
        _check_codes(codes[rows], fmt, rows.start)
        packed[rows] = _pack_rows(codes[rows], fmt)
    return packed


def _row_pieces(n: int, k: int) -> list[slice]:
    """Runs of rows, so that intermediate arrays stay small beside a large matrix."""
    step = max(1, _PIECE_WEIGHTS // k)
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def _check_codes(codes: np.ndarray, fmt: WeightFormat, first_row: int) -> None:
    allowed = (codes >= fmt.lowest) & (codes <= fmt.highest)
    if fmt.step == 2:
        allowed &= (codes & 1) == 1
    if not allowed.all():
        row, column = (int(i) for i in np.argwhere(~allowed)[0])
        raise ValueError(
            f"expected {fmt.name} codes of {fmt.value_text},"
            f" got {codes[row, column]} at row {first_row + row}, column {column}"
        )


def _pack_rows(codes: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    n, k = codes.shape
    # Modulo 256, as every digit is below 256.
    digits = codes.astype(np.uint8) - np.uint8(fmt.lowest % 256)
    if fmt.step == 2:
        digits >>= np.uint8(1)
    full, rest = divmod(k, fmt.block_weights)
    parts = []
    if full:
        parts.append(_pack_blocks(digits[:, : full * fmt.block_weights], BLOCK_BYTES, fmt))
    if rest:
        size = _short_block_bytes(rest, fmt.fields)
        last = np.full((n, size * fmt.fields), fmt.padding, np.uint8)
        last[:, :rest] = digits[:, k - rest :]
        parts.append(_pack_blocks(last, size, fmt))
    return np.concatenate(parts, axis=1)


def _pack_blocks(digits: np.ndarray, size: int, fmt: WeightFormat) -> np.ndarray:
    """Digits [n, blocks * fields * size] -> bytes [n, blocks * size]."""
    n = digits.shape[0]
    if fmt.fields == 1:
        return digits
    by_field = digits.reshape(n, -1, fmt.fields, size)
    packed = np.zeros((n, by_field.shape[1], size), np.uint8)
    for field in reversed(range(fmt.fields)):  # Horner; a byte holds every sum
        packed *= np.uint8(fmt.base)
        packed += by_field[:, :, field]
    return packed.reshape(n, -1)


def unpack(packed: npt.ArrayLike, k: int, weight_format: str) -> np.ndarray:
    """The inverse of `pack`.

    Args:
      packed: uint8 [n, row_bytes(k, weight_format)].
      k: weights per row.
      weight_format: one of FORMATS.

    Returns:
      int8 [n, k], the codes.

    Raises:
      ValueError: wrong shape or type, or a byte that holds no code of the format.
    """
    fmt = weight_format_of(weight_format)
    packed = np.asarray(packed)
    _check_packed(packed, k, fmt)
    codes = np.empty((packed.shape[0], k), np.int8)
    for rows in _row_pieces(packed.shape[0], k):
        codes[rows] = _unpack_rows(packed[rows], k, fmt)
    return codes


def _unpack_rows(packed: np.ndarray, k: int, fmt: WeightFormat) -> np.ndarray:
    full, rest = divmod(k, fmt.block_weights)
    parts = []
    if full:
        parts.append(_unpack_blocks(packed[:, : full * BLOCK_BYTES], BLOCK_BYTES, fmt))
    if rest:
        size = _short_block_bytes(rest, fmt.fields)
        parts.append(_unpack_blocks(packed[:, full * BLOCK_BYTES :], size, fmt)[:, :rest])
    digits = np.concatenate(parts, axis=1)
    if fmt.step == 2:
        digits *= np.uint8(2)
    return (digits + np.uint8(fmt.lowest % 256)).view(np.int8)  # modulo 256


def _unpack_blocks(packed: np.ndarray, size: int, fmt: WeightFormat) -> np.ndarray:
    """Bytes [n, blocks * size] -> digits uint8 [n, blocks * fields * size]."""
    n = packed.shape[0]
    if fmt.fields == 1:
        return packed
    rest = packed.reshape(n, -1, size)
    digits = np.empty((n, rest.shape[1], fmt.fields, size), np.uint8)
    for field in range(fmt.fields):
        rest, digits[:, :, field] = np.divmod(rest, np.uint8(fmt.base))
    return digits.reshape(n, -1)


def _check_packed(packed: np.ndarray, k: int, fmt: WeightFormat) -> None:
    """Raises ValueError unless `packed` is a packed matrix of rows of k weights."""
    if packed.dtype != np.uint8:
        raise ValueError(f"expected packed weights of type uint8, got {packed.dtype}")
    expected = row_bytes(k, fmt.name)
    if packed.ndim != 2 or packed.shape[0] < 1 or packed.shape[1] != expected:
        raise ValueError(
            f"expected packed {fmt.name} weights of shape [n, {expected}] for k = {k},"
            f" got {packed.shape}"
        )
    if fmt.name == "t2":
        invalid = (packed & (packed >> 1) & 0x55) != 0  # a bit pair 3
    elif fmt.name == "t5":
        invalid = packed > 242
    else:
        return
    if invalid.any():
        row, byte = (int(i) for i in np.argwhere(invalid)[0])
        raise ValueError(
            f"expected bytes that hold {fmt.name} codes, got {int(packed[row, byte])} in row {row},"
            f" byte {byte}: the data is damaged or of another format"
        )


def scale_shape(n: int, k: int, group_size: GroupSize) -> tuple[int, ...]:
    """Shape of the scales of a matrix [n, k]: [1], [n] or [n, ceil(k / group_size)]."""
    _check_k(k)
    _check_group_size(group_size)
    if n < 1:
        raise ValueError(f"expected n >= 1 rows, got {n}")
    if group_size == "tensor":
        return (1,)
    if group_size is None:
        return (n,)
    return (n, -(-k // int(group_size)))


def expand_scales(scales: npt.ArrayLike, n: int, k: int, group_size: GroupSize) -> np.ndarray:
    """One scale per weight.

    Args:
      scales: float [...] of shape scale_shape(n, k, group_size).
      n: rows.
      k: weights per row.
      group_size: None (per channel), "tensor" or an int.

    Returns:
      float32 that broadcasts against [n, k]: [1, 1], [n, 1] or [n, k].

    Raises:
      ValueError: the scales have another shape.
    """
    scales = np.asarray(scales, np.float32)
    expected = scale_shape(n, k, group_size)
    if scales.shape != expected:
        raise ValueError(
            f"expected scales of shape {expected} for n = {n}, k = {k},"
            f" group_size = {group_size!r}, got {scales.shape}"
        )
    if group_size is None or group_size == "tensor":
        return scales[:, np.newaxis]
    return np.repeat(scales, int(group_size), axis=1)[:, :k]


def bits_per_weight(k: int, weight_format: str, group_size: GroupSize = None) -> float:
    """Stored bits per weight of a row of k: codes, padding and the scales of its groups.

    The scales per channel and per tensor are left out: their share of a weight depends on n, and is
    at most 32 / k bits.
    """
    bits = 8 * row_bytes(k, weight_format)
    if group_size is not None and group_size != "tensor":
        bits += 32 * scale_shape(1, k, group_size)[1]
    return bits / k


@dataclasses.dataclass(frozen=True, eq=False)
class PackedWeights:
    """A packed weight matrix W[n, k] with its scales.

    Attributes:
      packed: uint8 [n, row_bytes(k, weight_format)].
      scales: float32 of shape scale_shape(n, k, group_size), finite, >= 0.
      k: weights per row.
      weight_format: one of FORMATS.
      group_size: None (per channel), "tensor" or one of GROUP_SIZES.

    Raises:
      ValueError: a member does not fit the others.
    """

    packed: np.ndarray
    scales: np.ndarray
    k: int
    weight_format: str
    group_size: GroupSize = None

    def __post_init__(self) -> None:
        packed = np.ascontiguousarray(self.packed)
        scales = np.ascontiguousarray(self.scales)
        _check_packed(packed, self.k, weight_format_of(self.weight_format))
        if scales.dtype != np.float32:
            raise ValueError(f"expected scales of type float32, got {scales.dtype}")
        expand_scales(scales, packed.shape[0], self.k, self.group_size)  # checks the shape
        bad = ~np.isfinite(scales) | (scales < 0)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"expected finite scales >= 0, got {scales[where]} at {where}")
        object.__setattr__(self, "packed", packed)
        object.__setattr__(self, "scales", scales)

    @classmethod
    def from_codes(
        cls,
        codes: npt.ArrayLike,
        scales: npt.ArrayLike,
        weight_format: str,
        group_size: GroupSize = None,
    ) -> PackedWeights:
        """Packs integer codes [n, k]; `scales` as in the class."""
        codes = np.asarray(codes)
        packed = pack(codes, weight_format)
        return cls(
            packed, np.asarray(scales, np.float32), codes.shape[1], weight_format, group_size
        )

    @property
    def n(self) -> int:
        """Rows, the output channels."""
        return self.packed.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.scales.nbytes

    def codes(self) -> np.ndarray:
        """int8 [n, k]."""
        return unpack(self.packed, self.k, self.weight_format)

    def dequantize(self) -> np.ndarray:
        """float32 [n, k]: codes times scales."""
        return self.codes() * expand_scales(self.scales, self.n, self.k, self.group_size)
