"""Tests of tfmot_ternary.integer_weights."""

from __future__ import annotations

import numpy as np
import pytest

from tfmot_ternary import integer_weights, packing

FORMATS = ("i8", "i4")
GROUP_SIZES: tuple[packing.GroupSize, ...] = (None, "tensor", 32, 64, 128, 256)


def heavy_tails(n: int, k: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (n, k)).astype(np.float32)


def by_group(matrix: np.ndarray, group_size: packing.GroupSize) -> list[np.ndarray]:
    """The weights of every scale, in the order of the scales."""
    if group_size == "tensor":
        return [matrix.ravel()]
    size = group_size if isinstance(group_size, int) else matrix.shape[1]
    return [row[i : i + size] for row in matrix for i in range(0, len(row), size)]


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_i8_keeps_the_range_of_each_group(group_size: packing.GroupSize):
    weights = heavy_tails(5, 300)
    codes, scales = integer_weights.quantize(weights, "i8", group_size)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.shape == packing.scale_shape(5, 300, group_size)
    pairs = zip(by_group(weights, group_size), by_group(codes, group_size), strict=True)
    for scale, (group, code) in zip(scales.ravel(), pairs, strict=True):
        assert scale == np.abs(group).max() / np.float32(127)
        assert np.abs(code).max() == 127
        # Half a step, and the rounding of three float32 operations on values up to 127 steps.
        assert np.abs(group - code * scale).max() <= scale * (0.5 + 127 * 3 * 2.0**-24)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_i4_error_is_near_the_least(group_size: packing.GroupSize):
    weights = heavy_tails(3, 520)
    codes, scales = integer_weights.quantize(weights, "i4", group_size)
    assert np.abs(codes).max() == 7
    pairs = zip(by_group(weights, group_size), by_group(codes, group_size), strict=True)
    for scale, (group, code) in zip(scales.ravel(), pairs, strict=True):
        error = np.square(group - code * scale).sum()
        widest = np.abs(group).max() / 7
        candidates = [
            np.square(group - np.clip(np.rint(group / s), -7, 7) * s).sum()
            for s in widest * np.linspace(1, 0.58, 8)
        ]
        # The grid of the definition; a weight midway between two codes may be rounded to either.
        assert error <= min(candidates) * 1.001


def test_i4_clips_where_one_weight_is_large():
    weights = np.full((1, 256), 0.1, np.float32)
    weights[0, ::2] *= -1
    weights[0, 9] = 1
    _, scales = integer_weights.quantize(weights, "i4", 256)
    assert 0.58 / 7 <= scales[0, 0] < 1 / 7


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_pieces_and_float_types_change_nothing(
    weight_format: str, group_size: packing.GroupSize, monkeypatch: pytest.MonkeyPatch
):
    weights = heavy_tails(9, 100).astype(np.float16)
    codes, scales = integer_weights.quantize(weights, weight_format, group_size)
    monkeypatch.setattr(integer_weights, "_PIECE_WEIGHTS", 250)
    again = integer_weights.quantize(weights.astype(np.float32), weight_format, group_size)
    np.testing.assert_array_equal(again[0], codes)
    np.testing.assert_array_equal(again[1], scales)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_zeros(weight_format: str, group_size: packing.GroupSize):
    weights = np.zeros((2, 300), np.float32)
    weights[0, 299] = 1e-38  # its reciprocal in units of a step is no float32
    codes, scales = integer_weights.quantize(weights, weight_format, group_size)
    assert not codes.any()
    assert not scales.any()


def test_pack_is_quantize_packed():
    weights = heavy_tails(4, 70)
    codes, scales = integer_weights.quantize(weights, "i4", 32)
    packed = integer_weights.pack(weights, "i4", 32)
    assert (packed.k, packed.weight_format, packed.group_size) == (70, "i4", 32)
    np.testing.assert_array_equal(packed.codes(), codes)
    np.testing.assert_array_equal(packed.scales, scales)


@pytest.mark.parametrize(
    ("weights", "weight_format", "group_size", "message"),
    [
        (np.ones((2, 3)), "t2", None, r"expected weight_format out of \['i4', 'i8'\], got 't2'"),
        (np.ones(3), "i8", None, r"expected weights of shape \[n, k\]"),
        (np.ones((2, 0)), "i8", None, r"expected weights of shape \[n, k\]"),
        (np.ones((2, 3)), "i8", 48, "expected group_size"),
        (np.array([[1, 2], [3, np.nan]]), "i8", None, "got nan at row 1, column 1"),
        (np.array([[1, 2], [np.inf, 0]]), "i4", "tensor", "got inf at row 1, column 0"),
        (np.full((1, 70), -np.inf), "i4", 64, "got -inf at row 0, column 0"),
    ],
)
def test_refuses(
    weights: np.ndarray, weight_format: str, group_size: packing.GroupSize, message: str
):
    with pytest.raises(ValueError, match=message):
        integer_weights.quantize(weights, weight_format, group_size)
