"""Folding: BatchNormalization or ReLU after a packed layer becomes part of it (tf_keras)."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.packing import PackedWeights

__all__ = ["fold_batch_normalization", "followers", "relu_name"]


def followers(model: Any) -> dict[int, Any]:
    """id(layer) -> the layer that alone takes its output, for layers called once in `model`.

    Left out: layers whose output is an output of the model, goes to several layers, or comes from
    several calls; then what follows one call may not be true of the other.
    """
    if isinstance(model, keras.Sequential):
        return {id(a): b for a, b in zip(model.layers, model.layers[1:], strict=False)}
    consumers: dict[int, list[Any]] = collections.defaultdict(list)
    calls: collections.Counter[int] = collections.Counter()
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            calls[id(node.layer)] += 1
            for parent in node.parent_nodes:
                consumers[id(parent.layer)].append(node.layer)
    for output in model.outputs:
        consumers[id(output._keras_history.layer)].append(None)
    return {
        key: taken[0]
        for key, taken in consumers.items()
        if len(taken) == 1 and taken[0] is not None and calls[key] == calls[id(taken[0])] == 1
    }


def fold_batch_normalization(
    weights: PackedWeights, bias: np.ndarray | None, normalization: Any
) -> tuple[PackedWeights, np.ndarray]:
    """Weights and bias of `normalization(x @ W.T + bias)` in inference mode.

    Scales stay positive: a row whose factor is negative changes the sign of its codes. One scale
    per tensor becomes one per channel.

    Args:
      weights: W[n, k].
      bias: float32 [n] or None.
      normalization: a built BatchNormalization over n channels.

    Returns:
      (weights, bias float32 [n]).
    """
    zeros, ones = np.zeros(weights.n, np.float64), np.ones(weights.n, np.float64)

    def values(variable: Any, default: np.ndarray) -> np.ndarray:
        return default if variable is None else np.asarray(variable, np.float64)

    mean, variance = np.asarray(normalization.moving_mean), normalization.moving_variance
    gamma = values(normalization.gamma if normalization.scale else None, ones)
    beta = values(normalization.beta if normalization.center else None, zeros)
    factor = gamma / np.sqrt(np.asarray(variance, np.float64) + normalization.epsilon)
    codes = weights.codes() * np.where(factor < 0, -1, 1).astype(np.int8)[:, None]
    scales = weights.scales
    group_size = weights.group_size
    if group_size == "tensor":
        scales, group_size = np.repeat(scales, weights.n), None
    magnitude = np.abs(factor).reshape((-1,) + (1,) * (scales.ndim - 1))
    folded = PackedWeights.from_codes(
        codes, (scales * magnitude).astype(np.float32), weights.weight_format, group_size
    )
    shift = (values(bias, zeros) - mean) * factor + beta
    return folded, shift.astype(np.float32)


def relu_name(layer: Any) -> str | None:
    """ "relu" or "relu6" if the layer does that and nothing else, else None."""
    if type(layer) is keras.layers.Activation:
        name = getattr(layer.activation, "__name__", None)
        return name if name in ("relu", "relu6") else None
    if type(layer) is keras.layers.ReLU and not layer.negative_slope and not layer.threshold:
        if layer.max_value is None:
            return "relu"
        # A loaded layer has it as an array of rank 0.
        return "relu6" if float(layer.max_value) == 6.0 else None
    return None


@dataclasses.dataclass(frozen=True)
class Tail:
    """The layers after a packed one that it takes over.

    Attributes:
      normalization: a BatchNormalization or None.
      activation: a layer that is a ReLU, or None.
    """

    normalization: Any = None
    activation: Any = None


def tail_of(layer: Any, output_layer: Any, following: dict[int, Any]) -> Tail:
    """What a Dense or convolution layer can take over.

    Args:
      layer: the float layer, whose last output axis is its n outputs.
      output_layer: the layer of the model that stands for it (a wrapper).
      following: see `followers`.
    """
    if not _is_linear(layer):
        return Tail()
    normalization = following.get(id(output_layer))
    if not _normalizes_last_axis(normalization):
        normalization = None
    after = output_layer if normalization is None else normalization
    activation = following.get(id(after))
    if activation is None or relu_name(activation) is None:
        activation = None
    return Tail(normalization, activation)


def _is_linear(layer: Any) -> bool:
    return layer.activation is None or getattr(layer.activation, "__name__", "") == "linear"


def _normalizes_last_axis(layer: Any) -> bool:
    if type(layer) is not keras.layers.BatchNormalization or not layer.built:
        return False
    return list(layer.axis) == [layer.input_spec.ndim - 1]
