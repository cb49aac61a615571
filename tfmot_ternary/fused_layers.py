"""Fused layers: while a Keras 3 model is traced, known layers run through `fused_ops`.

    with fused(model):
        concrete = tf.function(decode).get_concrete_function(...)

Norms, rotary embeddings and the activation functions gelu and silu then become one custom operator
each in the converted model. What a layer computes stays the same: each kind of layer is first run
both ways on random numbers, and one that does not agree (another version of KerasHub, another
precision, another axis) is left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tfmot_ternary import fused_norms, fused_ops, fused_rotary
from tfmot_ternary.layer_replacement import Replacement, agrees, is_float32


@contextlib.contextmanager
def fused(model: Any) -> Iterator[None]:
    """While it is active, known layers of `model` and keras' gelu and silu use `fused_ops`.

    Only calls on float32 tensors change; everything is as before on leaving, also by an exception.
    Weights are read during the calls, so `keras.StatelessScope` has its way, and a model without
    values (a skeleton) will do. The activation functions are those of the whole process: trace in
    one thread at a time. May be nested.

    Args:
      model: a built Keras 3 model or layer on the TensorFlow backend.

    Yields:
      Nothing.
    """
    agreed: dict[Any, bool] = {}
    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers():
            found = _replacement(layer)
            if found is None:
                continue
            if found.kind not in agreed:
                agreed[found.kind] = agrees(getattr(layer, found.attribute), found)
            if agreed[found.kind]:
                stack.enter_context(_attribute(layer, found.attribute, found.call))
        stack.enter_context(_fused_activations())
        yield


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of the instance (or module) itself, past Keras' tracking."""
    entries = vars(owner)
    missing = object()
    before = entries.get(name, missing)
    entries[name] = value
    try:
        yield
    finally:
        if before is missing:
            del entries[name]
        else:
            entries[name] = before


def _replacement(layer: Any) -> Replacement | None:
    if getattr(layer, "compute_dtype", None) != "float32":
        return None
    return fused_norms.replacement(layer) or fused_rotary.replacement(layer)


@contextlib.contextmanager
def _fused_activations() -> Iterator[None]:
    """keras.activations, keras.ops and layers all come to these two functions of the backend."""
    from keras.src.backend.tensorflow import nn

    original_gelu, original_silu = nn.gelu, nn.silu

    def gelu(x: Any, approximate: bool = True) -> Any:
        if not is_float32(x):
            return original_gelu(x, approximate)
        return fused_ops.activation(x, "gelu_tanh" if approximate else "gelu")

    def silu(x: Any) -> Any:
        return fused_ops.activation(x, "silu") if is_float32(x) else original_silu(x)

    with _attribute(nn, "gelu", gelu), _attribute(nn, "silu", silu):
        yield
