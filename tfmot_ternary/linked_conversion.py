"""Linked conversion: packed weights go from arrays straight into the `.tflite` file.

TensorFlow and its converter never see them: they convert functions that take the packed weights as
inputs, and the inputs become constants when the file is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_ternary import conversion, model_file, tflite_buffers, tflite_linking

__all__ = ["convert"]

# Between the names of a signature's own inputs and the weights' there must be no clash.
WEIGHT_PREFIX = "tfmot_ternary_weight_"
CALLS = ("PartitionedCall", "StatefulPartitionedCall")

Functions = Mapping[str, tuple[Callable[..., Mapping[str, Any]], Mapping[str, tf.TensorSpec]]]
Weights = Sequence[tuple[Any, np.ndarray]]
# Name of an input -> (the variables that have its value, the value).
_Inputs = dict[str, tuple[list[Any], np.ndarray]]


def convert(
    functions: Functions,
    weights: Weights,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, bytes] | None = None,
) -> None:
    """Converts functions of Keras 3 layers to one file with a signature for each.

    An array of `weights` that only operators of this package read never becomes a TensorFlow
    constant: it is written from where it is to the file, piece by piece, once for all signatures,
    64-byte aligned. So memory grows with the graph, not with the weights, and the file may exceed
    2 GiB. Any other array of `weights` becomes an ordinary constant.

    Args:
      functions: signature name -> (function, its inputs). The function takes keyword arguments
        named as the inputs and returns a flat dict of tensors.
      weights: (Keras 3 variable, its value) of the variables' shapes and types; the variables may
        be uninitialized. An array may be a `np.memmap`; one array for several variables is stored
        once. Variables that are not among them have the values they have now.
      path: where the file shall be; it appears there only when it is whole.
      metadata: entries for the file's metadata: name -> content.

    Raises:
      ValueError: no function, an array that does not fit its variable, an uninitialized variable
        without an array, an operation that TF Lite lacks.
      OSError: the disk is full: the message says how many bytes are needed; no file is left.
    """
    if not functions:
        raise ValueError("expected at least one function to convert, got none")
    inputs = _inputs(weights)
    arrays = {name: array for name, (_, array) in inputs.items()}
    traced = {name: _trace(f, specs, inputs) for name, (f, specs) in functions.items()}
    linked = {name for name in arrays if all(_only_packed(t, name) for t in traced.values())}
    constants = {
        name: tf.Variable(array, trainable=False)
        for name, array in arrays.items()
        if name not in linked and any(_is_read(t, name) for t in traced.values())
    }
    outer = {
        name: _with_constants(traced[name], specs, arrays, linked, constants)
        for name, (_, specs) in functions.items()
    }
    model = tflite_buffers.parse(conversion.stock_conversion(outer))
    del traced, outer, constants
    tflite_linking.shorten_tensor_names(model)
    names = {name: inputs[name][0][0].path for name in linked}
    buffers = tflite_linking.inputs_to_constants(model, names)
    tflite_linking.add_metadata(model, metadata or {})
    layout = tflite_buffers.FileLayout(model, {i: arrays[name] for name, i in buffers.items()})
    with model_file.atomic_file(path, layout.size) as file:
        layout.write(file)


def _inputs(weights: Weights) -> _Inputs:
    """Checks the weights; variables that have one array in common have one input in common."""
    names: dict[tuple[int, str], str] = {}
    inputs: dict[str, tuple[list[Any], np.ndarray]] = {}
    for variable, array in weights:
        dtype = keras.backend.standardize_dtype(array.dtype)
        if tuple(array.shape) != tuple(variable.shape) or dtype != variable.dtype:
            raise ValueError(
                f"expected an array of {variable.dtype} {tuple(variable.shape)} for the variable "
                f"{variable.path!r}, got {dtype} {tuple(array.shape)}"
            )
        array = np.ascontiguousarray(array) if not array.flags.c_contiguous else array
        place = (array.ctypes.data, f"{dtype} {array.shape}")
        name = names.setdefault(place, f"{WEIGHT_PREFIX}{len(names)}")
        inputs.setdefault(name, ([], array))[0].append(variable)
    return inputs


class _Scope(keras.StatelessScope):
    """Variables have the values of a mapping; uninitialized ones must be in it."""

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        if value is None and getattr(variable, "_value", True) is None:
            raise ValueError(
                f"expected a value for the variable {variable.path!r} {tuple(variable.shape)}, "
                "which is uninitialized, got none among the weights"
            )
        return value


def _trace(function: Callable[..., Any], specs: Mapping[str, Any], weights: _Inputs) -> Any:
    """A concrete function of `specs` and all weights."""

    def call(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = []
        for name, (variables, _) in weights.items():
            tensor = inputs.pop(name)
            values += [(variable, tensor) for variable in variables]
        with _Scope(state_mapping=values, initialize_variables=False):
            return dict(function(**inputs))

    arguments = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in specs.items()}
    for name, (_, array) in weights.items():
        arguments[name] = tf.TensorSpec(array.shape, array.dtype, name)
    return tf.function(call, autograph=False).get_concrete_function(**arguments)


def _input(traced: Any, name: str) -> tf.Tensor:
    return next(t for t in traced.inputs if t.op.name == name)


def _is_read(traced: Any, name: str) -> bool:
    return bool(_input(traced, name).consumers())


def _only_packed(traced: Any, name: str) -> bool:
    """Whether nothing but operators of this package reads the weight (or nothing at all)."""
    graph = traced.graph
    for operation in _input(traced, name).consumers():
        if operation.type not in CALLS:
            return False
        called = graph._get_function(operation.get_attr("f").name).cached_definition
        implements = called.attr["_implements"].func.name
        if not implements.startswith(conversion.OPERATOR_PREFIX):
            return False
    return True


def _with_constants(
    traced: Any,
    specs: Mapping[str, tf.TensorSpec],
    arrays: Mapping[str, np.ndarray],
    linked: set[str],
    constants: Mapping[str, tf.Variable],
) -> Any:
    """`traced` as a function of `specs` and the linked weights that it reads."""

    def call(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        for name, array in arrays.items():
            if name in constants:
                inputs[name] = constants[name].read_value()
            elif name not in inputs:  # nothing reads it
                inputs[name] = tf.zeros(array.shape, array.dtype)
        return traced(**inputs)

    arguments = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in specs.items()}
    for name in sorted(linked):
        if _is_read(traced, name):
            arguments[name] = tf.TensorSpec(arrays[name].shape, arrays[name].dtype, name)
    return tf.function(call, autograph=False).get_concrete_function(**arguments)
