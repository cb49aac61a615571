"""Calibration: from data, how much an error on each weight of a float model costs.

    calibration = calibrate(model, batches)
    quantized = quantize_apply(model, TernaryScheme(importance=calibration))

The initializer then computes the scales with these importances in the place of equal ones.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorflow_model_optimization.python.core.keras.compat import keras as tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_annotate
from tqdm import tqdm

from tfmot_ternary.calibration_batches import Batches
from tfmot_ternary.kernel_gradients import loss_function, mean_squared_gradients
from tfmot_ternary.kernel_inputs import Kernel, mean_squared_inputs
from tfmot_ternary.kernel_moments import second_moments
from tfmot_ternary.layer_hessian import LayerHessian
from tfmot_ternary.layer_kernels import (
    kernel_layouts,
    kernel_names,
    kernel_variable,
    quantizes,
)
from tfmot_ternary.model_outputs import ends_in_softmax, flavour

__all__ = ["Calibration", "calibrate"]

_KINDS = ("activations", "gradients", "hessian")
_LISTED = "'activations', 'gradients' or 'hessian'"
_ATTENTION = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")
# What the names of arrays begin with in a file.
_ARRAY, _MATRIX = "importance/", "hessian/"


class Calibration(Mapping[str, Any]):
    """Importances by the name of the layer: a mapping name -> float32 [k] or [n, k].

    Of kind "hessian" it maps to a LayerHessian [k, k], or to mean squared inputs, as above, where
    there is no single matrix.

    A layer inside another goes by its path, names joined by "/" ("inner/dense",
    "attention/query"); so do the kernels of a layer with several ("lstm/recurrent_kernel").
    """

    def __init__(self, values: Mapping[str, Any], kind: str) -> None:
        """Takes importances over.

        Args:
          values: {path: array >= 0 broadcastable to W[n, k]}; for "hessian" also LayerHessian.
          kind: "activations", "gradients" or "hessian": what they are.

        Raises:
          ValueError: for another kind, or a LayerHessian in one that has none.
        """
        if kind not in _KINDS:
            raise ValueError(f"expected kind {_LISTED}, got {kind!r}")
        self.kind = kind
        self._values: dict[str, np.ndarray | LayerHessian] = {}
        for path, value in values.items():
            if not isinstance(value, LayerHessian):
                self._values[path] = np.asarray(value, np.float32)
            elif kind == "hessian":
                self._values[path] = value
            else:
                raise ValueError(
                    f"expected arrays in a calibration of kind {kind!r}, got a LayerHessian for "
                    f"{path!r}; its kind is 'hessian'"
                )

    def __getitem__(self, path: str) -> Any:
        return self._values[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Calibration({len(self)} kernels, kind={self.kind!r})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file, under a temporary name first: what lies at `path` is whole."""
        target = pathlib.Path(path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                arrays: dict[str, Any] = {}
                for key, value in self._values.items():
                    if isinstance(value, LayerHessian):
                        arrays[_MATRIX + key] = value.matrix
                    else:
                        arrays[_ARRAY + key] = value
                np.savez(file, kind=np.array(self.kind), **arrays)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads what `save` wrote.

        Raises:
          ValueError: if the file is something else.
        """
        values: dict[str, Any] = {}
        try:
            with np.load(path, allow_pickle=False) as file:
                kind = str(file["kind"])
                for name in file.files:
                    if name.startswith(_ARRAY):
                        values[name[len(_ARRAY) :]] = file[name]
                    elif name.startswith(_MATRIX):
                        values[name[len(_MATRIX) :]] = LayerHessian(file[name])
        except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"expected a file that Calibration.save wrote, got {os.fspath(path)!r}: {error}"
            ) from error
        return cls(values, kind)


def calibrate(
    model: Any,
    data: Any,
    importance: str = "activations",
    *,
    steps: int | None = None,
    loss: Any = None,
    batch_size: int = 32,
    progress: bool = True,
    max_inputs: int = 8192,
) -> Calibration:
    """Measures on data how much an error on each weight costs; `model` stays as it was.

    Args:
      model: a built float model: tf_keras (nested models and the projections of MultiHeadAttention
        included), Keras 3 or KerasHub. It runs in inference mode, eagerly.
      data: inputs as the model takes them (a KerasHub task: preprocessed). Arrays: an array or a
        dict of them, a list of one array an input where the model has several, a tuple (x, y) or
        (x, y, sample_weight). Or batches of these: a tf.data.Dataset or another iterable.
      importance: "activations": for each layer the mean squared input of each of the k inputs of
        W[n, k]; layers that are not called, and embeddings, get no entry. "gradients": for each
        weight the mean over batches of the squared gradient of the loss (the empirical Fisher
        information; small batches come closer to it). "hessian": for each layer the second moments
        E[x x^T] of its inputs, as a LayerHessian; their diagonal is what "activations" gives.
      steps: the most batches that are read; for data without an end.
      loss: for gradients: a Keras loss, its name, or callable (y, outputs) -> tensor; None for the
        compiled loss. Without labels the classes that the model itself predicts are the labels, of
        the loss or, without one, of cross entropy over the last axis.
      batch_size: rows of a batch that is cut from arrays.
      progress: whether a progress bar is shown.
      max_inputs: for "hessian": the largest k that a matrix is kept for, 4 k^2 bytes a kernel
        (8192: 256 MiB), and three times that more for the kernel at work. Larger layers, and
        grouped, depthwise and transposed convolutions, get what "activations" gives.

    Returns:
      The Calibration, for a scheme's `importance`.

    Raises:
      TypeError: for something that is no Keras model, or data of an unknown kind.
      ValueError: for an unknown `importance`, max_inputs < 1, an unbuilt model, one without layers
        to quantize, no data, NaN or Inf in the data, an activation or a gradient (the layer is
        named), or gradients that are all zero.
    """
    if importance not in _KINDS:
        raise ValueError(f"expected importance {_LISTED}, got {importance!r}")
    if max_inputs < 1:
        raise ValueError(f"expected max_inputs >= 1, got {max_inputs}")
    if flavour(model, "model") == "keras":
        kernels = list(_keras3_kernels(model))
    else:
        kernels = list(_tf_keras_kernels(model))
    if not kernels:
        raise ValueError(
            f"expected a float model with layers that can be quantized, got {model.name!r} with "
            "none; calibrate the model before it is quantized"
        )
    batches = Batches(data, steps, batch_size, len(getattr(model, "inputs", None) or [None]))
    bar = tqdm(
        batches,
        desc=f"calibrate {importance}",
        total=batches.length,
        unit="batch",
        disable=not progress,
    )
    if importance == "activations":
        values: Mapping[str, Any] = mean_squared_inputs(model, kernels, bar)
    elif importance == "hessian":
        values = second_moments(model, kernels, bar, max_inputs)
    else:
        function = loss_function(model, loss, ends_in_softmax(model))
        with _metrics_kept(model):
            values = mean_squared_gradients(model, kernels, bar, function)
    return Calibration(values, importance)


def _tf_keras_kernels(model: Any, prefix: str = "") -> Iterator[Kernel]:
    for layer in model.layers:
        if isinstance(layer, quantize_annotate.QuantizeAnnotate):
            layer = layer.layer
        path = prefix + layer.name
        if isinstance(layer, tf_keras.Model):
            yield from _tf_keras_kernels(layer, path + "/")
        elif not layer.built:
            continue
        elif type(layer) is tf_keras.layers.MultiHeadAttention:
            for projection in (getattr(layer, name) for name in _ATTENTION):
                yield from _kernels_of(projection, f"{path}/{projection.name}")
        elif quantizes(layer):
            yield from _kernels_of(layer, path)


def _kernels_of(layer: Any, path: str) -> Iterator[Kernel]:
    try:
        layouts = kernel_layouts(layer)
    except ValueError:
        return  # an einsum that no scheme can quantize
    for (attribute, layout), name in zip(layouts.items(), kernel_names(layer), strict=True):
        owner, inner = layer, attribute
        if attribute.startswith(("forward_layer.", "backward_layer.")):
            direction, inner = attribute.split(".", 1)
            owner = getattr(layer, direction)
        full = path if len(layouts) == 1 else f"{path}/{name}"
        yield Kernel(full, owner, inner, kernel_variable(layer, attribute), layout)


def _keras3_kernels(model: Any) -> Iterator[Kernel]:
    from keras import layers

    from tfmot_ternary.keras3_layers import SUPPORTED, is_quantized, layout_of
    from tfmot_ternary.keras3_structure import nested_layers, require_tensorflow

    require_tensorflow()
    for path, layer in nested_layers(model):
        if not isinstance(layer, SUPPORTED) or is_quantized(layer) or layer.quantization_mode:
            continue
        try:
            layout = layout_of(layer)
        except (TypeError, ValueError):
            continue  # unbuilt, or an einsum that no scheme can quantize
        attribute = "embeddings" if isinstance(layer, layers.Embedding) else "kernel"
        variable = getattr(layer, f"_{attribute}").value
        yield Kernel(path, layer, attribute, variable, layout)


@contextlib.contextmanager
def _metrics_kept(model: Any) -> Iterator[None]:
    """Puts the metrics back that a compiled loss updates."""
    before = {id(m): [np.array(v) for v in m.variables] for m in model.metrics}
    try:
        yield
    finally:
        for metric in model.metrics:
            if id(metric) not in before:
                metric.reset_state()
                continue
            for variable, value in zip(metric.variables, before[id(metric)], strict=True):
                variable.assign(value)
