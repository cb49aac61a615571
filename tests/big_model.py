"""A model with hundreds of megabytes of packed weights that take no room on the disk."""

from __future__ import annotations

import math
import os

import keras
import numpy as np
import tensorflow as tf

from tfmot_ternary import linked_conversion, ops, packing

WIDTH = 8192


def sparse_array(path: str | os.PathLike[str], shape: tuple[int, ...]) -> np.memmap:
    """Zeros [shape] of uint8 in a file that is one hole; zeros are valid codes (-1) in t2."""
    with open(path, "wb") as file:
        file.truncate(math.prod(shape))
    return np.memmap(path, np.uint8, "r+", shape=shape)


def convert_big(folder: str, layers: int, rows: int) -> tuple[str, int]:
    """Writes `folder`/big.tflite with `layers` products x[1, WIDTH] W[rows, WIDTH].T in t2.

    Returns:
      The path, and the bytes of all packed weights.
    """
    row_bytes = packing.row_bytes(WIDTH, "t2")
    array = sparse_array(os.path.join(folder, "weights"), (layers, rows, row_bytes))
    with keras.StatelessScope(initialize_variables=False):
        variables = [
            keras.Variable("zeros", (rows, row_bytes), "uint8", trainable=False, autocast=False)
            for _ in range(layers)
        ]
    scale = np.full(1, 1 / WIDTH, np.float32)

    def function(x):
        # A row of -1 times ones of scale 1 / WIDTH: every layer changes the sign.
        for variable in variables:
            y = ops.fully_connected(x, variable, scale, weight_format="t2")
            x = y[:, :WIDTH]
        return {"y": x}

    path = os.path.join(folder, "big.tflite")
    spec = tf.TensorSpec([1, WIDTH], tf.float32)
    linked_conversion.convert(
        {"one": (function, {"x": spec})}, list(zip(variables, array, strict=True)), path
    )
    return path, array.nbytes
