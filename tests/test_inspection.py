"""`inspect`: every weight of a file with its true size, read from the file alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import inspection, inspection_table, ops, packing
from tfmot_ternary.conversion import convert_functions

# Not multiples of a block, so that rows have a short last block.
N, K = 24, 300


def packed_weights(weight_format, n, k, group_size, seed=0):
    rng = np.random.default_rng(seed)
    levels = packing.FORMATS[weight_format].levels
    codes = rng.integers(-1, 2, (n, k)) if levels == 3 else rng.choice([-1, 1], (n, k))
    scales = rng.uniform(0.5, 1, packing.scale_shape(n, k, group_size)).astype(np.float32)
    return packing.pack(codes, weight_format), scales


def write_model(path, weight_format, group_size, float_copy=False):
    """Writes a model of a product, a convolution, an embedding and an unpack."""
    number = group_size if isinstance(group_size, int) else 0
    dense, dense_scales = packed_weights(weight_format, N, K, group_size)
    conv, conv_scales = packed_weights(weight_format, 8, 3 * 3 * 32, None, seed=1)
    table, table_scales = packed_weights(weight_format, 50, K, None, seed=2)
    matrix, matrix_scales = packed_weights(weight_format, 16, 40, None, seed=3)
    copy = np.random.default_rng(4).normal(size=(N, K)).astype(np.float32)

    @tf.function(
        input_signature=[
            tf.TensorSpec([2, K], tf.float32, "x"),
            tf.TensorSpec([1, 6, 6, 32], tf.float32, "image"),
            tf.TensorSpec([3], tf.int32, "ids"),
        ]
    )
    def function(x, image, ids):
        y = ops.fully_connected(
            x, dense, dense_scales, weight_format=weight_format, group_size=number
        )
        if float_copy:
            y += tf.matmul(x, copy, transpose_b=True)
        return {
            "y": y,
            "z": ops.conv2d(
                image, conv, conv_scales, weight_format=weight_format, kernel_size=(3, 3)
            ),
            "e": ops.embedding_lookup(ids, table, table_scales, weight_format=weight_format, k=K),
            "u": tf.matmul(
                tf.zeros([1, 16]) + x[0, 0],
                ops.unpack(matrix, matrix_scales, weight_format=weight_format, k=40),
            ),
        }

    path.write_bytes(convert_functions({"serve": function}))
    return path


@pytest.mark.parametrize(
    ("weight_format", "group_size"), [("t2", None), ("t5", 64), ("b1", "tensor")]
)
def test_every_packed_weight(tmp_path, weight_format, group_size):
    found = inspection.inspect(write_model(tmp_path / "m.tflite", weight_format, group_size))
    packed = {w.op: w for w in found.weights if w.packed}
    assert found.signatures == ["serve"]
    prefix = inspection.PREFIX
    expected = {
        prefix + "fully_connected": (N, K, group_size),
        prefix + "conv2d": (8, 288, None),
        prefix + "embedding_lookup": (50, K, None),
        prefix + "unpack": (16, 40, None),
    }
    assert set(packed) == set(expected)
    for op, (n, k, group) in expected.items():
        weight = packed[op]
        assert (weight.shape, weight.format) == ([n, k], weight_format)
        assert weight.group_size == {None: "channel"}.get(group, group)
        assert weight.bytes == n * packing.row_bytes(k, weight_format)
        assert weight.scale_bytes == 4 * math.prod(packing.scale_shape(n, k, group))
        assert weight.bits_per_weight == pytest.approx(packing.bits_per_weight(k, weight_format))
        assert weight.aligned
        assert weight.offset + weight.bytes <= found.file_bytes
    assert not found.float_copies()
    assert not found.misaligned()
    assert not [w for w in found.weights if w.format == "float32"]


@pytest.mark.parametrize(("weight_format", "bits"), [("t2", 2.0), ("t5", 1.7), ("b1", 1.0)])
def test_promised_bits_per_weight(tmp_path, weight_format, bits):
    weights, scales = packed_weights(weight_format, 4, 1280, None)

    @tf.function(input_signature=[tf.TensorSpec([1, 1280], tf.float32, "x")])
    def function(x):
        return {"y": ops.fully_connected(x, weights, scales, weight_format=weight_format)}

    path = tmp_path / "m.tflite"
    path.write_bytes(convert_functions({"serve": function}))
    (weight,) = inspection.inspect(path).weights
    assert weight.bits_per_weight <= bits


def test_a_float_copy_is_found(tmp_path):
    found = inspection.inspect(write_model(tmp_path / "m.tflite", "t2", None, float_copy=True))
    (copy,) = found.float_copies()
    assert copy.elements == N * K
    assert copy.format == "float32"
    assert copy.bits_per_weight == 32
    assert "float copies of packed weights: none" not in inspection_table.format_table(found)


def test_table_and_json(tmp_path):
    found = inspection.inspect(write_model(tmp_path / "m.tflite", "t2", None))
    table = inspection_table.format_table(found)
    assert "tfmot_ternary.conv2d" in table
    assert "8x288" in table
    assert "float copies of packed weights: none" in table
    record = json.loads(json.dumps(found.to_dict()))
    total = record["totals"]["t2"]
    assert total["count"] == 4
    assert total["bytes"] == sum(w["bytes"] + w["scale_bytes"] for w in record["weights"])
    assert record["float_copies"] == []
    assert record["misaligned"] == []


def test_integer_weights_of_builtin_operators(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 48)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([1, 64], tf.float32, "x")])
    def function(x):
        return {"y": tf.matmul(x, kernel)}

    path = tmp_path / "m.tflite"
    path.write_bytes(convert_functions({"serve": function}, [tf.lite.Optimize.DEFAULT]))
    (weight,) = inspection.inspect(path).weights
    assert (weight.op, weight.format) == ("FULLY_CONNECTED", "int8")
    assert (weight.shape, weight.group_size) == ([48, 64], "channel")
    assert (weight.bytes, weight.scale_bytes) == (48 * 64, 4 * 48)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_truncated_file(tmp_path, share):
    path = write_model(tmp_path / "m.tflite", "t2", None)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="expected"):
        inspection.inspect(path)


def test_bytes_turned_over(tmp_path):
    """An edited file gives an error or an inspection, never another exception."""
    path = write_model(tmp_path / "m.tflite", "t2", None)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    messages = []
    for _ in range(200):
        damaged = content.copy()
        damaged[rng.integers(8, content.size, 20)] = rng.integers(0, 256, 20)
        path.write_bytes(damaged.tobytes())
        try:
            inspection.inspect(path)
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert all("expected" in message for message in messages)
