"""Calibration batches: what users call data, as a stream of (x, y, sample_weight)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["Batches"]


class Batches:
    """Batches of an array, a structure of arrays, a dataset or another iterable, read once.

    Each batch is (x, y, sample_weight); what is not there is None. Floating-point inputs are
    checked: NaN and Inf raise.
    """

    def __init__(self, data: Any, steps: int | None, batch_size: int, inputs: int) -> None:
        """Takes the data; nothing is read yet.

        Args:
          data: arrays with the batch axis first: an array or a dict (x), a list of one array an
            input where the model has several (x), a tuple (x, y) or (x, y, sample_weight). Or
            batches: a tf.data.Dataset, a Sequence, a generator or another iterable of such x or
            tuples.
          steps: None, or the most batches that are read.
          batch_size: rows of a batch that is cut from arrays.
          inputs: how many inputs the model has.

        Raises:
          TypeError: for data that is none of these.
          ValueError: for steps or batch_size below 1, or arrays of different lengths.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"expected steps None or >= 1, got {steps}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        several = isinstance(data, list) and len(data) == inputs > 1 and all(map(_is_array, data))
        length: int | None
        if _is_array(data) or isinstance(data, (dict, tuple)) or several:
            self._items, length = _cut(data, batch_size)
        elif isinstance(data, Iterable):
            self._items, length = iter(data), _length(data)
        elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # Keras' Sequence
            self._items, length = (data[i] for i in range(len(data))), len(data)
        else:
            raise TypeError(
                "expected arrays, a tf.data.Dataset or an iterable of batches as calibration data, "
                f"got {type(data).__name__}"
            )
        self._steps = steps
        known = [n for n in (steps, length) if n is not None]
        self.length: int | None = min(known) if known else None

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        """Raises ValueError for no batch at all, NaN, Inf, or a tuple of another length."""
        number = -1
        for number, item in enumerate(itertools.islice(self._items, self._steps)):
            parts = item if isinstance(item, tuple) else (item,)
            if not 1 <= len(parts) <= 3:
                raise ValueError(
                    "expected a batch x, (x, y) or (x, y, sample_weight), got a tuple of "
                    f"{len(parts)} in batch {number}; put several inputs into a list or dict"
                )
            for name, part in zip(("inputs", "labels", "sample weights"), parts, strict=False):
                _check_finite(part, name, number)
            # The losses of tf_keras take tensors only.
            parts = tf.nest.map_structure(
                lambda leaf: tf.convert_to_tensor(leaf) if _is_array(leaf) else leaf, parts
            )
            yield (*parts, *[None] * (3 - len(parts)))
        if number < 0:
            raise ValueError("expected at least one batch of calibration data, got none")


def _is_array(x: Any) -> bool:
    return hasattr(x, "__array__") or tf.is_tensor(x)


def _length(data: Any) -> int | None:
    if isinstance(data, tf.data.Dataset):
        cardinality = int(data.cardinality())
        return cardinality if cardinality >= 0 else None
    return len(data) if hasattr(data, "__len__") else None


def _cut(data: Any, batch_size: int) -> tuple[Iterator[Any], int]:
    """(batches, their number) of a structure of arrays."""
    lengths = {len(leaf) for leaf in tf.nest.flatten(data) if leaf is not None}
    if len(lengths) != 1:
        raise ValueError(
            f"expected arrays of one length as calibration data, got lengths {sorted(lengths)}"
        )
    (rows,) = lengths

    def part(start: int) -> Any:
        rows_of_batch = slice(start, start + batch_size)
        return tf.nest.map_structure(lambda a: None if a is None else a[rows_of_batch], data)

    return (part(start) for start in range(0, rows, batch_size)), -(-rows // batch_size)


def _check_finite(structure: Any, name: str, number: int) -> None:
    for leaf in tf.nest.flatten(structure):
        if not _is_array(leaf):
            continue
        dtype = tf.as_dtype(leaf.dtype) if hasattr(leaf, "dtype") else None
        if dtype is None or not dtype.is_floating:
            continue
        if not np.isfinite(np.asarray(tf.cast(leaf, tf.float64))).all():
            raise ValueError(
                f"expected finite calibration data, got NaN or Inf in the {name} of batch "
                f"{number}; clean the data first"
            )
