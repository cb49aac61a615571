"""quantize_apply for every Keras model: tf_keras goes through tfmot, Keras 3 through `keras3`."""

from __future__ import annotations

import sys
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras as tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_annotate

from tfmot_ternary.kept_ends import all_but_ends, candidates
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.scheme import BinaryScheme, TernaryScheme, quantize_scope
from tfmot_ternary.stripping import require_stripped

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
      TypeError: for something that is no Keras model, or no scheme of ours.
      ValueError: for a subclassed or unbuilt model, one that is quantized or frozen already, a
        layer that is annotated twice or cannot be quantized, weights that are not finite, or
        nothing to quantize.
    """
    if not isinstance(scheme, (BinaryScheme, TernaryScheme)):
        name = getattr(scheme, "__name__", type(scheme).__name__)
        raise TypeError(
            f"expected a scheme, TernaryScheme() or BinaryScheme(), got {name}; for tfmot's own "
            "schemes use tfmot.quantization.keras.quantize_apply"
        )
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
    for layer in model._flatten_layers():  # `submodules` fails after an RNN with dropout
        require_stripped(layer)
        name = layer.name
        if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
            raise ValueError(
                f"expected a float model, got {model.name!r} whose layer {name!r} is quantized "
                "already; quantize the original model instead"
            )
        if isinstance(layer, PackedLayer):
            raise ValueError(
                f"expected a float model, got {model.name!r} whose layer {name!r} is frozen; "
                "quantize the model that it was made from"
            )
        annotation = quantize_annotate.QuantizeAnnotate
        if isinstance(layer, annotation) and isinstance(layer.layer, annotation):
            raise ValueError(
                f"expected each layer to be annotated once, got {layer.layer.layer.name!r} of "
                f"model {model.name!r} annotated twice; call quantize_annotate_layer on it once"
            )
    with quantize_scope():
        if any(isinstance(layer, quantize_annotate.QuantizeAnnotate) for layer in model.layers):
            return tfmot.quantization.keras.quantize_apply(model, scheme)
        ends: list[Any] = []
        if scheme.keep_ends:
            layers = list(candidates(model, scheme))
            inner = all_but_ends(layers, model.name)
            ends = [layer for layer in layers if layer not in inner]
        quantized = _quantize_plain(model, scheme, ends)
    if quantized is None:
        raise ValueError(
            f"expected at least one layer of model {model.name!r} to quantize, got none; see the "
            "scheme's `skip` and `embeddings`"
        )
    return quantized


def _quantize_plain(model: Any, scheme: Any, ends: list[Any]) -> Any:
    """The quantized model, or None where the scheme quantizes no layer of it.

    `ends` are the layers that the scheme's `keep_ends` keeps.

    This does without annotations: tfmot's QuantizeAnnotate cannot pass a mask to attention.
    """
    scheme = scheme.keeping([layer.name for layer in model.layers if layer in ends])
    copies: dict[str, Any] = {}
    nested: dict[str, Any] = {}

    def copy(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model) and not scheme.skips(layer.name):
            quantized = _quantize_plain(layer, scheme.within(layer.name), ends)
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
        annotated: dict[str, Any] = {
            name: {} for name, layer in copies.items() if not _is_opaque(layer)
        }
        return scheme.get_layout_transformer().apply(twin, annotated)[0]
    registry.require_importance(model)
    return twin if nested else None


def _is_opaque(layer: Any) -> bool:
    return isinstance(layer, (tf_keras.Model, tf_keras.layers.Lambda))
