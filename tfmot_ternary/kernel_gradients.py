"""Kernel gradients: how much the loss of a model depends on each weight of its kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ternary.kernel_inputs import Kernel, call_eagerly
from tfmot_ternary.model_outputs import flavour

__all__ = ["loss_function", "mean_squared_gradients"]

Loss = Callable[[Any, Any, Any, Any], Any]


def mean_squared_gradients(
    model: Any, kernels: Iterable[Kernel], batches: Iterable[tuple[Any, Any, Any]], loss: Loss
) -> dict[str, np.ndarray]:
    """The mean over batches of the squared gradient of the loss with respect to each kernel.

    That is the diagonal of the empirical Fisher information, of batches in the place of samples.

    Args:
      model: a tf_keras or Keras 3 model; called with `training=False`, left as it was.
      kernels: those to measure, tables and frozen kernels included.
      batches: of (x, y, sample_weight).
      loss: (x, y, outputs, sample_weight) -> scalar tensor; see `loss_function`.

    Returns:
      {path: float32 [n, k]} of the kernels that the loss depends on.

    Raises:
      ValueError: for NaN or Inf in the loss or a gradient, where the layer is named; or if every
        gradient is zero.
    """
    kernels = list(kernels)
    variables = [kernel.variable for kernel in kernels]
    sums: dict[str, tf.Tensor] = {}
    steps = 0
    for x, y, weight in batches:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable)
            value = tf.convert_to_tensor(loss(x, y, call_eagerly(model, x), weight))
        if not np.isfinite(np.asarray(tf.cast(value, tf.float32))).all():
            raise ValueError(
                f"expected a finite loss, got {np.asarray(value)} in calibration batch {steps}; "
                "look for NaN or Inf in the weights of the model, and in how the data is scaled"
            )
        gradients = tape.gradient(value, variables)
        for kernel, gradient in zip(kernels, gradients, strict=True):
            if gradient is None:
                continue
            squared = tf.square(tf.cast(tf.convert_to_tensor(gradient), tf.float32))
            # A sum passes NaN on; TensorFlow's maximum need not.
            if not np.isfinite(float(tf.reduce_sum(squared))):
                raise ValueError(
                    "expected finite gradients, got NaN, Inf or squares beyond float32 for layer "
                    f"{kernel.path!r} in calibration batch {steps}"
                )
            before = sums.get(kernel.path)
            sums[kernel.path] = squared if before is None else before + squared
        steps += 1
    if not any(float(tf.reduce_max(total)) > 0 for total in sums.values()):
        raise ValueError(
            "expected a loss with gradients, got zero for every kernel; with the model's own "
            "outputs as labels a loss can be at its minimum (mean squared error is): give labels, "
            "as batches of (x, y)"
        )
    layouts = {kernel.path: kernel.layout for kernel in kernels}
    return {
        path: np.ascontiguousarray(layouts[path].to_matrix(total.numpy() / np.float32(steps)))
        for path, total in sums.items()
    }


def loss_function(model: Any, loss: Any, ends_in_softmax: bool) -> Loss:
    """The loss of one batch, with the model's own predictions where there are no labels.

    Args:
      model: a tf_keras or Keras 3 model.
      loss: None for the compiled loss, a name, a Keras loss, or callable (y, outputs) -> tensor.
      ends_in_softmax: whether the outputs of an uncompiled model are probabilities.

    Returns:
      (x, y, outputs, sample_weight) -> scalar tensor.

    Raises:
      ValueError: when it is called with labels and there is no loss.
    """
    keras: Any = sys.modules[flavour(model, "model")]
    given = loss
    if isinstance(loss, str):
        given = keras.losses.get(loss)
    compiled = getattr(model, "loss", None) if loss is None else None

    def own_entropy(y: Any, outputs: Any) -> Any:
        return keras.losses.sparse_categorical_crossentropy(
            y, outputs, from_logits=not ends_in_softmax
        )

    def value(x: Any, y: Any, outputs: Any, weight: Any) -> Any:
        function = given
        if y is None:
            y, named = _own_labels(outputs, compiled if given is None else given)
            if not named and given is None:
                function = own_entropy
        elif given is None and not compiled:
            raise ValueError(
                f"expected a loss for the gradients of {model.name!r}, got a model that is not "
                "compiled; compile it, or give calibrate(loss=...)"
            )
        if function is None:
            return model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weight)
        if isinstance(function, keras.losses.Loss):
            return function(y, outputs, sample_weight=weight)
        values = tf.convert_to_tensor(function(y, outputs))
        if weight is not None:
            values *= tf.cast(weight, values.dtype)
        return tf.reduce_mean(values)

    return value


def _own_labels(outputs: Any, loss: Any) -> tuple[Any, bool]:
    """(the predicted classes in the form that a loss takes, whether there is a loss)."""
    if not hasattr(outputs, "shape"):
        raise ValueError(
            "expected labels for a model with several outputs, got batches without; give batches "
            "of (x, y)"
        )
    outputs = tf.stop_gradient(tf.convert_to_tensor(outputs))
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name.lower().replace("_", "")
    classes = tf.argmax(outputs, axis=-1)
    if not loss or name == "sparsecategoricalcrossentropy":
        return classes, bool(loss)
    if name == "categoricalcrossentropy":
        return tf.one_hot(classes, outputs.shape[-1], dtype=outputs.dtype), True
    if name == "binarycrossentropy":
        from_logits = getattr(loss, "_fn_kwargs", {}).get("from_logits", False)
        return tf.cast(outputs > (0.0 if from_logits else 0.5), outputs.dtype), True
    return outputs, True
