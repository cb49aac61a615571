"""Keras' own packed ternary kernels: every byte, every length, and the way into a model."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import tfmot_ternary as tt
from tfmot_ternary.keras_ternary import from_keras_ternary

SEED = 41


def keras_bytes(codes):
    """Independent encoder, one byte after the other, from the description of the format."""
    inputs, units = codes.shape
    packed = np.zeros(((inputs + 4) // 5, units), np.uint8)
    for unit in range(units):
        for byte in range(packed.shape[0]):
            trits = [int(c) for c in codes[5 * byte : 5 * byte + 5, unit]]
            d = [t + 1 for t in trits + [0] * (5 - len(trits))]
            packed[byte, unit] = d[0] + 3 * d[1] + 9 * d[2] + 27 * d[3] + 81 * d[4]
    return packed


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (13, 4), (321, 7)])
@pytest.mark.parametrize("weight_format", ["t2", "t5"])
def test_keras_ternary(shape, weight_format):
    codes = np.random.default_rng(SEED).integers(-1, 2, shape)
    weights = from_keras_ternary(keras_bytes(codes), np.float32(0.3), shape, weight_format)
    np.testing.assert_array_equal(weights.codes(), codes.T)
    np.testing.assert_array_equal(weights.scales, np.array([0.3], np.float32))
    assert (weights.weight_format, weights.group_size) == (weight_format, "tensor")
    np.testing.assert_array_equal(weights.dequantize(), codes.T * np.float32(0.3))


def test_keras_ternary_covers_every_byte():
    packed = np.arange(243, dtype=np.uint8)[np.newaxis]
    codes = from_keras_ternary(packed, 1.0, (5, 243)).codes()
    assert len({tuple(row) for row in codes.tolist()}) == 243
    np.testing.assert_array_equal(keras_bytes(codes.T), packed)


def test_keras_ternary_bad_input():
    packed = np.zeros((3, 4), np.uint8)
    for bad, shape in ((packed.T, (13, 4)), (packed, (16, 4)), (packed.astype(np.int32), (13, 4))):
        with pytest.raises(ValueError, match="expected uint8"):
            from_keras_ternary(bad, 1.0, shape)
    with pytest.raises(ValueError, match="one scale"):
        from_keras_ternary(packed, [1.0, 2.0], (13, 4))
    with pytest.raises(ValueError, match="scales >= 0"):
        from_keras_ternary(packed, -1.0, (13, 4))
    with pytest.raises(ValueError, match="b1 codes"):
        from_keras_ternary(np.full((3, 4), 121, np.uint8), 1.0, (13, 4), "b1")
    packed[2, 1] = 243
    with pytest.raises(ValueError, match="at most 242.*got 243"):
        from_keras_ternary(packed, 1.0, (13, 4))


def test_keras_ternary_into_a_model():
    """The way of the documentation: into a float kernel, and recognized from there."""
    codes = np.random.default_rng(SEED).integers(-1, 2, (13, 6))
    weights = from_keras_ternary(keras_bytes(codes), 0.3, (13, 6))
    model = keras.Sequential([keras.Input((13,)), keras.layers.Dense(6)])
    model.layers[0].kernel.assign(weights.dequantize().T)
    packed = tt.freeze(model, recognize=True).layers[-1]
    np.testing.assert_array_equal(packed.packed_weights.packed, weights.packed)
    np.testing.assert_array_equal(packed.packed_weights.scales, weights.scales)
