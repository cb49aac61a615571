"""Example arrays: a structure of arrays with an example a row, read by row, alone or in tf.data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["ExampleArrays"]

# Rows that a digest looks at, evenly spread: enough to tell another order or another data set
# without reading one that is larger than the memory.
_DIGEST_ROWS = 256


class ExampleArrays:
    """What Keras takes as x, y or sample_weight: an array, or a (nested) list or dict of arrays.

    Args:
      values: the structure; memory-mapped arrays stay on disk.
      name: what it is called in errors.

    Raises:
      TypeError: something that has no rows to choose from, as a dataset or a generator.
      ValueError: no rows, or arrays of several lengths.
    """

    def __init__(self, values: Any, name: str):
        self._structure = values
        self._arrays = [_array(value, name) for value in tf.nest.flatten(values)]
        lengths = {len(array) for array in self._arrays}
        if len(lengths) != 1 or not min(lengths):
            shapes = [list(array.shape) for array in self._arrays]
            raise ValueError(
                f"expected one or more examples and arrays of one length in {name}, got {shapes}"
            )

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __getitem__(self, rows: slice) -> Any:
        """Returns tensors of some rows, in the given structure."""
        return self._pack([tf.convert_to_tensor(array[rows]) for array in self._arrays])

    def take(self, indices: tf.Tensor) -> Any:
        """Returns tensors of the rows `indices` (int64 [batch]), in a graph of tf.data."""
        types = [_tensor_type(array) for array in self._arrays]
        rows = tf.numpy_function(self._rows, [indices], types, stateful=False)
        for tensor, array in zip(rows, self._arrays, strict=True):
            tensor.set_shape((*indices.shape, *array.shape[1:]))
        return self._pack(rows)

    def digest(self) -> str:
        """Returns a short digest of shapes and some rows; the size of a number does not matter."""
        chosen = np.unique(np.linspace(0, len(self) - 1, _DIGEST_ROWS).astype(np.int64))
        state = hashlib.sha256()
        for array in self._arrays:
            rows = np.asarray(array[chosen])
            state.update(str(array.shape).encode())
            if rows.dtype.kind in "biuf":
                state.update(rows.astype(np.float64).tobytes())
            else:  # the bytes of an array of objects would be addresses
                state.update(repr(rows.tolist()).encode())
        return state.hexdigest()[:16]

    def _rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(array[indices]) for array in self._arrays]

    def _pack(self, flat: list[Any]) -> Any:
        return tf.nest.pack_sequence_as(self._structure, flat)


def _array(value: Any, name: str) -> np.ndarray:
    array = np.asanyarray(value) if hasattr(value, "__array__") else None
    if array is None or not array.ndim:
        raise TypeError(
            f"expected {name} to be an array, or a list or dict of arrays, with an example a row, "
            f"got {type(value).__name__}; for a dataset, give the arrays that it is made of"
        )
    return array


def _tensor_type(array: np.ndarray) -> tf.DType:
    return tf.as_dtype(array.dtype) if array.dtype.kind in "biufcV" else tf.string
