"""Teacher outputs: what a teacher says about a data set, computed once and read from disk."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_ternary.checkpoint import digest
from tfmot_ternary.example_arrays import ExampleArrays
from tfmot_ternary.feature_matching import FeatureCapture, Features, feature_pairs
from tfmot_ternary.model_outputs import ends_in_softmax, flavour
from tfmot_ternary.output_folder import OutputFolder, holds_files, part_of, unfinished
from tfmot_ternary.row_file import RowFile, open_rows

__all__ = ["Targets", "TeacherOutputs"]

_DTYPES = ("float16", "float32")


class Targets(NamedTuple):
    """One batch of labels with the teacher's rows: `y` in a `TeacherOutputs.dataset`.

    Attributes:
      labels: as given to `dataset`; an empty tuple for none.
      predictions: float [batch, ...], the teacher's.
      features: teacher layer -> outputs, one a call.
    """

    labels: Any
    predictions: Any
    features: Any

    @property
    def task_labels(self) -> Any:
        """The labels, or None."""
        return None if isinstance(self.labels, tuple) and not self.labels else self.labels


class TeacherOutputs:
    """The outputs of a teacher for a data set, memory-mapped from a folder.

        outputs = tt.TeacherOutputs.compute(teacher, x, "teacher_outputs")
        distiller = tt.Distiller(student, outputs, alpha=0.9)
        distiller.compile(optimizer, loss=task_loss)
        distiller.fit(outputs.dataset(x, y, batch_size=32, shuffle=True, seed=0), epochs=3)

    `TeacherOutputs(path)` opens a finished folder; the teacher is not needed any more.

    Args:
      path: the folder.
      teacher: if given, must be the model whose outputs these are.

    Attributes:
      predictions: float16 or float32 memory map [examples, ..., classes].
      features: teacher layer -> memory maps [examples, ..., channels], one a call of the layer.
      from_logits: whether the predictions are logits (True) or probabilities (False).

    Raises:
      FileNotFoundError: no finished folder at `path`.
      ValueError: a damaged folder, or outputs of another teacher.
    """

    def __init__(self, path: str | os.PathLike[str], teacher: Any = None):
        self.path = pathlib.Path(path)
        folder = self._folder = OutputFolder.finished(self.path)
        if teacher is not None:
            folder.require({"teacher": digest(teacher.weights)})
        dtype = folder.settings["dtype"]
        arrays = {f: open_rows(self.path / f, shape, dtype) for f, shape in folder.shapes.items()}
        self.predictions = arrays["predictions.npy"]
        self.features = {name: [arrays[f] for f in files] for name, files in folder.files.items()}
        self.from_logits = bool(folder.settings["from_logits"])

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.predictions)

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """The shape of a batch of predictions, as Keras models have it."""
        return (None, *self.predictions.shape[1:])

    @classmethod
    def compute(
        cls,
        teacher: Any,
        x: Any,
        path: str | os.PathLike[str],
        *,
        batch_size: int = 32,
        dtype: str = "float32",
        features: str | Sequence[str] | Mapping[str, str] | None = None,
        from_logits: bool | None = None,
        verbose: bool = True,
    ) -> TeacherOutputs:
        """Runs the teacher on every example and stores what it gives.

        An interrupted run goes on where it was when called again with the same arguments; a
        finished one is opened and nothing is computed.

        Args:
          teacher: a built keras.Model or tf_keras.Model with one output; `training=False`.
          x: what the teacher takes: an array, or a list or dict of arrays, an example a row.
          path: a new folder, or one of an earlier run.
          batch_size: examples at a time; changes rounding at most.
          dtype: "float32", or "float16": half the size, relative error up to 1/2048.
          features: names of teacher layers to store for feature matching, as for `Distiller`.
          from_logits: whether the teacher gives logits; None: told from its last layer.
          verbose: whether to show a progress bar.

        Raises:
          TypeError: the teacher is no Keras model, or x holds no arrays.
          ValueError: `path` holds something else (another teacher, other examples or settings), an
            unknown layer, or outputs that are not finite in `dtype`.
          OSError: less free space than the outputs need.
        """
        flavour(teacher, "teacher")
        if not teacher.built:
            raise ValueError("expected a teacher with weights, got an unbuilt one; call it once")
        if dtype not in _DTYPES:
            raise ValueError(f"expected dtype {' or '.join(_DTYPES)}, got {dtype!r}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        arrays = ExampleArrays(x, "x")
        names = list(dict.fromkeys(feature_pairs(features).values()))
        run = tf.function(FeatureCapture(teacher, names, "teacher"), reduce_retracing=True)
        settings = {
            "teacher": digest(teacher.weights),
            "examples": len(arrays),
            "data": arrays.digest(),
            "dtype": dtype,
            "from_logits": not ends_in_softmax(teacher) if from_logits is None else from_logits,
            "names": names,
        }
        path = pathlib.Path(path)
        if holds_files(path):
            outputs = cls(path)
            outputs._folder.require(settings)
            return outputs
        folder = unfinished(path)
        if folder is None:
            predictions, found = _run(run, arrays[:1], names)
            shapes = [[tensor.shape[1:] for tensor in found[name]] for name in names]
            folder = OutputFolder.begin(part_of(path), settings, predictions.shape[1:], shapes)
        folder.require(settings)
        _write(folder, run, arrays, batch_size, verbose)
        folder.finish(path)
        return cls(path)

    def require_features(self, names: Sequence[str]) -> None:
        """Raises ValueError unless the outputs of these teacher layers are stored."""
        missing = [name for name in names if name not in self.features]
        if missing:
            raise ValueError(
                f"{self.path}: expected stored outputs of the teacher layers {missing}, got "
                f"{sorted(self.features)}; compute them anew with features={list(names)}"
            )

    def dataset(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        *,
        sample_weight: Any = None,
        shuffle: bool = False,
        seed: int | None = None,
        drop_remainder: bool = False,
        same_x: bool = True,
    ) -> tf.data.Dataset:
        """Returns batches for `Distiller.fit` and `evaluate`: x, y beside the teacher's rows.

        Args:
          x: what the student takes, in the order of the examples: array, list or dict of arrays.
          y: labels, an example a row, or None (alpha=1).
          batch_size: examples in a batch.
          sample_weight: float [examples] or [examples, positions], or None.
          shuffle: whether to draw a new order in every epoch.
          seed: of the orders; None: another each time.
          drop_remainder: whether to leave out the last batch where it is smaller.
          same_x: whether x must be what the teacher saw (some rows are compared). False for a
            student with inputs of its own.

        Returns:
          A tf.data.Dataset of (x, Targets) or (x, Targets, sample_weight); rows are read from disk
          as they are needed.

        Raises:
          TypeError: x, y or sample_weight holds no arrays.
          ValueError: another number of examples, or other examples.
        """
        parts = {"x": x, "y": y, "sample_weight": sample_weight}
        given = {name: ExampleArrays(v, name) for name, v in parts.items() if v is not None}
        for name, arrays in given.items():
            if len(arrays) != len(self):
                raise ValueError(
                    f"{self.path}: expected {len(self)} examples, as the teacher saw, got "
                    f"{len(arrays)} in {name}; give all of them in the same order"
                )
        if same_x and given["x"].digest() != self._folder.settings["data"]:
            raise ValueError(
                f"{self.path}: expected the examples that the teacher saw, in their order, got "
                "others; compute the outputs for these, or say same_x=False if the student's "
                "inputs differ from the teacher's"
            )
        rows = ExampleArrays(
            Targets((), self.predictions, {n: tuple(a) for n, a in self.features.items()}), "rows"
        )
        order = tf.data.Dataset.range(len(self))
        if shuffle:
            order = order.shuffle(len(self), seed=seed)

        def read(indices: tf.Tensor) -> Any:
            targets = rows.take(indices)
            if "y" in given:
                targets = targets._replace(labels=given["y"].take(indices))
            batch = (given["x"].take(indices), targets)
            return (
                (*batch, given["sample_weight"].take(indices))
                if "sample_weight" in given
                else batch
            )

        batches = order.batch(batch_size, drop_remainder=drop_remainder)
        return batches.map(read).prefetch(tf.data.AUTOTUNE)

    def unpack(self, y: Any) -> tuple[Any, tf.Tensor, Features]:
        """Returns (labels or None, predictions, features) of one batch of a `dataset`.

        Raises:
          ValueError: the batch does not come from a `dataset`.
        """
        if not isinstance(y, Targets):
            raise ValueError(
                "expected batches with the teacher's stored outputs, got labels alone; train with "
                "distiller.fit(outputs.dataset(x, y, batch_size))"
            )
        return y.task_labels, y.predictions, y.features


def _run(
    run: Any, batch: Any, names: Sequence[str]
) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Returns (predictions, feature -> outputs, one a call) of one batch."""
    predictions, features = run(batch, training=False)
    if not isinstance(predictions, tf.Tensor):
        raise ValueError(
            f"expected the teacher to have one output, got {type(predictions).__name__}; give a "
            "model of the output to learn from"
        )
    return predictions.numpy(), {name: [t.numpy() for t in features[name]] for name in names}


def _write(
    folder: OutputFolder, run: Any, arrays: ExampleArrays, batch_size: int, verbose: bool
) -> None:
    """Appends the rows that are missing."""
    from tqdm import tqdm

    count, dtype = len(arrays), folder.settings["dtype"]
    files = {f: RowFile(folder.path / f, shape, dtype) for f, shape in folder.shapes.items()}
    first = min(file.rows for file in files.values())
    for file in files.values():
        file.truncate(first)
    bar = tqdm(desc="teacher", unit="example", total=count, initial=first, disable=not verbose)
    with bar:
        for start in range(first, count, batch_size):
            batch = arrays[start : start + batch_size]
            predictions, features = _run(run, batch, list(folder.files))
            rows = {"predictions.npy": predictions}
            for name, outputs in features.items():
                rows.update(zip(folder.files[name], outputs, strict=True))
            stored = {f: _stored(values, dtype, f, start) for f, values in rows.items()}
            for name, values in stored.items():
                files[name].append(values)
            bar.update(len(predictions))


def _stored(values: np.ndarray, dtype: str, file: str, start: int) -> np.ndarray:
    """Returns the values in the stored dtype; raises ValueError where they are not finite."""
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if not np.isfinite(stored).all():
        cure = (
            'use dtype="float32"'
            if np.isfinite(values).all()
            else "the model itself gives NaN or infinity there"
        )
        raise ValueError(
            f"expected finite {dtype} values for {file}, got others in examples {start} to "
            f"{start + len(values) - 1}; {cure}"
        )
    return stored
