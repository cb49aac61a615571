"""Layer chains: rebuilds a tf_keras model with several layers, one or none in place of a layer.

`keras.models.clone_model` replaces one layer by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.python.core.keras.compat import keras

__all__ = ["consumers", "with_chains"]


def with_chains(model: Any, chains: Mapping[str, Sequence[Any]]) -> Any:
    """Returns a model that calls, in place of each layer in `chains`, the layers listed there.

    Args:
      model: a built Sequential or Functional model.
      chains: {layer name: layers}. The first takes all arguments of the call, each next one takes
        the first output of the one before; an empty chain passes the first input through. Where
        a layer is called several times, so is its chain.

    Returns:
      A new model with the names of the old inputs. Layers that are not in `chains` are the same
      objects in both.
    """
    if isinstance(model, keras.Sequential):
        made = keras.Sequential(name=model.name)
        for layer in model._flatten_layers(include_self=False, recursive=False):
            if isinstance(layer, keras.layers.InputLayer):
                made.add(keras.layers.InputLayer.from_config(layer.get_config()))
            else:
                for part in chains.get(layer.name, [layer]):
                    made.add(part)
        if not made.built:
            made.build(model.input_shape)
        return made
    inputs = [
        keras.layers.InputLayer.from_config(tensor._keras_history.layer.get_config()).output
        for tensor in model.inputs
    ]
    tensors: dict[str, list[Any]] = {}

    def store(old: Any, new: Any) -> None:
        for before, after in zip(tf.nest.flatten(old), tf.nest.flatten(new), strict=True):
            # Each reading of the tensor takes one of these out of the list.
            uses = model._tensor_usage_count.get(str(id(before)), 0)
            tensors[str(id(before))] = [after] * uses

    store(model.inputs, inputs)
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                args, kwargs = node.map_arguments(tensors)
                chain = chains.get(node.layer.name, [node.layer])
                store(node.outputs, _call(chain, args, kwargs))
    outputs = [tensors[str(id(tensor))].pop() for tensor in model.outputs]
    return keras.Model(
        tf.nest.pack_sequence_as(model._nested_inputs, inputs),
        tf.nest.pack_sequence_as(model._nested_outputs, outputs),
        name=model.name,
    )


def _call(chain: Sequence[Any], args: Any, kwargs: dict[str, Any]) -> Any:
    if not chain:
        return args[0]
    outputs = chain[0](*args, **kwargs)
    if len(chain) == 1:
        return outputs
    first, *others = tf.nest.flatten(outputs)
    for layer in chain[1:]:
        first = layer(first)
    return tf.nest.pack_sequence_as(outputs, [first, *others])


def consumers(model: Any) -> dict[str, set[str]]:
    """{layer name: names of the layers that take an output of it} of a built model."""
    found: dict[str, set[str]] = {}
    if isinstance(model, keras.Sequential):
        layers = list(model._flatten_layers(include_self=False, recursive=False))
        return {a.name: {b.name} for a, b in zip(layers, layers[1:], strict=False)}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            for parent in node.parent_nodes:
                found.setdefault(parent.layer.name, set()).add(node.layer.name)
    return found
