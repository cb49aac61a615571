"""Freezing of recurrent layers of tf_keras: kernels and biases of a cell -> packed products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packed_rnn import packed_rnn_class
from tfmot_ternary.packing import PackedWeights

__all__ = ["config_for_tf_lite", "freeze_rnn", "is_rnn"]

# Layer to fill in -> its weights in the order of `layer.weights`.
Values = list[tuple[Any, list[Any]]]
# By name in `packed_rnn.PRODUCTS`: weights, and bias [n] or None.
Products = dict[str, tuple[PackedWeights, "np.ndarray | None"]]


def is_rnn(layer: Any) -> bool:
    """Whether `freeze_rnn` takes the layer (if its kernels are quantized)."""
    return isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))


def config_for_tf_lite(layer: Any) -> dict[str, Any]:
    """The layer's config, without half precision: TF Lite lacks most operations in it."""
    config, policy = layer.get_config(), layer.dtype_policy
    if policy.compute_dtype != policy.variable_dtype:
        config["dtype"] = policy.variable_dtype
    return config


def freeze_rnn(
    layer: Any, kernels: Mapping[str, PackedWeights], activations: str
) -> tuple[Any, Values]:
    """A packed layer in place of a recurrent one.

    Args:
      layer: LSTM, GRU or SimpleRNN of tf_keras, or Bidirectional around one.
      kernels: packed weights by the attribute of `layer_kernels.kernel_layouts`.
      activations: what the operators multiply, "int8" or "float32".

    Returns:
      (unbuilt layer, its parts with the weights that they get once it is built).
    """
    if not isinstance(layer, keras.layers.Bidirectional):
        products = _products(layer, kernels["cell.kernel"], kernels["cell.recurrent_kernel"])
        made = _packed(layer, config_for_tf_lite(layer), products, activations)
        return made, _values(made, products)
    parts, both = {}, []
    for direction in ("forward", "backward"):
        part = getattr(layer, f"{direction}_layer")
        products = _products(
            part,
            kernels[f"{direction}_layer.cell.kernel"],
            kernels[f"{direction}_layer.cell.recurrent_kernel"],
        )
        config = config_for_tf_lite(part)
        config["name"] = config["name"].removeprefix(f"{direction}_")  # Bidirectional puts it back
        parts[direction] = _packed(part, config, products, activations)
        both.append(products)
    config = config_for_tf_lite(layer)
    config.update(layer=parts["forward"], backward_layer=parts["backward"])
    made = keras.layers.Bidirectional(**config)
    forward, backward = both
    return made, _values(made.forward_layer, forward) + _values(made.backward_layer, backward)


def _products(layer: Any, kernel: PackedWeights, recurrent: PackedWeights) -> Products:
    bias = None if layer.cell.bias is None else np.asarray(layer.cell.bias)
    if not isinstance(layer, keras.layers.GRU):
        return {"input": (kernel, bias), "recurrent": (recurrent, None)}
    if layer.cell.reset_after:  # a bias for each of the two products
        of_input, of_state = (None, None) if bias is None else bias
        return {"input": (kernel, of_input), "recurrent": (recurrent, of_state)}
    gates = 2 * layer.cell.units
    return {
        "input": (kernel, bias),
        "recurrent": (_rows(recurrent, slice(None, gates)), None),
        "candidate": (_rows(recurrent, slice(gates, None)), None),
    }


def _rows(weights: PackedWeights, rows: slice) -> PackedWeights:
    scales = weights.scales if weights.group_size == "tensor" else weights.scales[rows]
    return PackedWeights(
        weights.packed[rows], scales, weights.k, weights.weight_format, weights.group_size
    )


def _packed(layer: Any, config: dict[str, Any], products: Products, activations: str) -> Any:
    packing = {
        name: {
            "kernel_layout": KernelLayout.dense((weights.k, weights.n)).get_config(),
            "weight_format": weights.weight_format,
            "group_size": weights.group_size,
            "activations": activations,
            "bias_shape": None if bias is None else list(bias.shape),
        }
        for name, (weights, bias) in products.items()
    }
    return packed_rnn_class(type(layer)).from_config({**config, "packing": packing})


def _values(layer: Any, products: Products) -> Values:
    return [
        (layer.products[name], [*([] if bias is None else [bias]), weights.packed, weights.scales])
        for name, (weights, bias) in products.items()
    ]
