"""quantize_apply for every Keras model: tf_keras goes through tfmot, Keras 3 through `keras3`."""

from __future__ import annotations

import sys
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras as tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_annotate

from tfmot_ternary.scheme import BinaryScheme, TernaryScheme, quantize_scope

__all__ = ["quantize_apply"]


def quantize_apply(model: Any, scheme: Any) -> Any:
    """Returns a trainable model with quantized kernels; `model` stays as it was.

    Args:
      model: a built tf_keras Sequential or Functional model, with or without tfmot's annotations,
        or a Keras 3 / KerasHub model. Models nested in a tf_keras model are quantized too, unless
        it has annotations.
      scheme: TernaryScheme or BinaryScheme.

    Returns:
      A new model with the weights of `model` and its first scales; compile it before training. A
      layer that cannot be quantized is left in float, with a warning that names it.

    Raises:
      TypeError: for something that is no Keras model.
      ValueError: for a subclassed or unbuilt model, one that is quantized already, an annotated
        layer that cannot be quantized, weights that are not finite, or nothing to quantize.
    """
    if isinstance(model, tf_keras.Model):
        return _quantize_tf_keras(model, scheme)
    keras3 = sys.modules.get("keras")  # a Keras 3 model cannot exist without it
    if keras3 is not None and isinstance(model, keras3.Model):
        from tfmot_ternary.keras3 import quantize

        return quantize(model, scheme)
    raise TypeError(
        f"expected a tf_keras or Keras 3 model, got {type(model).__module__}.{type(model).__name__}"
    )


def _quantize_tf_keras(model: Any, scheme: Any) -> Any:
    if not isinstance(model, tf_keras.Sequential) and not model._is_graph_network:
        raise ValueError(
            f"expected a Sequential or Functional model, got the subclassed model {model.name!r} "
            f"({type(model).__name__}); build it from tf_keras.Input, or quantize its parts"
        )
    if not model.built:
        raise ValueError(
            f"expected a built model, got {model.name!r} without weights; call "
            "model.build(input_shape) or add an Input layer first"
        )
    for layer in model.submodules:
        if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
            raise ValueError(
                f"expected a float model, got {model.name!r} whose layer {layer.name!r} is "
                "quantized already; quantize the original model instead"
            )
    if not isinstance(scheme, (BinaryScheme, TernaryScheme)):
        raise TypeError(
            f"expected a TernaryScheme or BinaryScheme, got {type(scheme).__name__}; for other "
            "schemes use tfmot.quantization.keras.quantize_apply"
        )
    with quantize_scope():
        if any(isinstance(layer, quantize_annotate.QuantizeAnnotate) for layer in model.layers):
            return tfmot.quantization.keras.quantize_apply(model, scheme)
        quantized = _quantize_plain(model, scheme)
    if quantized is None:
        raise ValueError(
            f"expected at least one layer of model {model.name!r} to quantize, got none; see the "
            "scheme's `skip` and `embeddings`"
        )
    return quantized


def _quantize_plain(model: Any, scheme: Any) -> Any:
    """The quantized model, or None where the scheme quantizes no layer of it.

    This does without annotations: tfmot's QuantizeAnnotate cannot pass a mask to attention.
    """
    copies: dict[str, Any] = {}
    nested: dict[str, Any] = {}

    def copy(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model) and not scheme.skips(layer.name):
            quantized = _quantize_plain(layer, scheme)
            if quantized is not None:
                nested[layer.name] = quantized
                return quantized
        copies[layer.name] = type(layer).from_config(layer.get_config())
        return copies[layer.name]

    twin = tf_keras.models.clone_model(model, clone_function=copy)
    for layer in model.layers:
        if layer.name in copies:
            copies[layer.name].set_weights(layer.get_weights())
    registry = scheme.get_quantize_registry()
    if any(registry.supports(layer) for layer in copies.values()):
        candidates: dict[str, Any] = {
            name: {} for name, layer in copies.items() if not _is_opaque(layer)
        }
        return scheme.get_layout_transformer().apply(twin, candidates)[0]
    return twin if nested else None


def _is_opaque(layer: Any) -> bool:
    return isinstance(layer, (tf_keras.Model, tf_keras.layers.Lambda))
