"""Fused rotary: the rotary embeddings of KerasHub as an operator of `fused_ops`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ternary import fused_ops
from tfmot_ternary.layer_replacement import Arguments, Call, Replacement, find_class, is_float32

ROTARY_EMBEDDINGS = {
    ("modeling.rotary_embedding", "RotaryEmbedding"),
    ("llama.llama_rotary_embedding", "LlamaRotaryEmbedding"),
}
# Attention layers whose `_apply_rope(x, start_index, positions=None)` rotates halves and then puts
# the two values of a pair side by side.
PAIRING_ATTENTIONS = {("gemma.gemma_attention", "CachedGemmaAttention")}


def replacement(layer: Any) -> Replacement | None:
    """Returns how `fused_ops` rotate what this layer rotates; None: another layer."""
    kind = type(layer)
    if _is_fusable(layer):
        return Replacement("call", _call(layer, layer.call), (kind, layer.rope_type), _probe)
    rotary: Any = getattr(layer, "rope_layer", None)
    if find_class(kind, PAIRING_ATTENTIONS) is not None and _is_fusable(rotary):
        call = _call(rotary, layer._apply_rope, output_layout="pairs")
        return Replacement("_apply_rope", call, (kind, rotary.rope_type), _probe)
    return None


def _is_fusable(layer: Any) -> bool:
    known = layer is not None and find_class(type(layer), ROTARY_EMBEDDINGS) is not None
    return known and layer.sequence_axis == 1 and layer.feature_axis == -1


def _call(layer: Any, original: Call, output_layout: str = "halves") -> Call:
    import tensorflow as tf

    tables: dict[int, np.ndarray] = {}

    def table(width: int) -> np.ndarray:
        if width not in tables:
            with tf.init_scope():
                tables[width] = np.asarray(layer._get_inverse_freq(width), np.float32)
        return tables[width]

    def call(inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
        position = None
        if _is_sequence(inputs):
            length = inputs.shape[1]
            position = (
                _position(start_index, 1) if positions is None else _position(positions, length)
            )
        if position is None:
            return original(inputs, start_index, positions=positions)
        return fused_ops.rotary(
            inputs,
            position,
            table(inputs.shape[-1]),
            amplitude=_amplitude(layer),
            output_layout=output_layout,
        )

    return call


def _amplitude(layer: Any) -> float:
    if layer.rope_type != "yarn":
        return 1.0
    return float(0.1 * np.log(np.float32(layer.scaling_factor)) + 1.0)


def _is_sequence(x: Any) -> bool:
    known = is_float32(x) and x.shape.rank >= 3 and None not in x.shape[2:]
    return known and x.shape[-1] % 2 == 0


def _position(value: Any, count: int | None) -> Any | None:
    """The value as int32 [count]; None where it is not that many integers for sure."""
    import tensorflow as tf

    if isinstance(value, int):
        value = tf.constant(value)
    if not isinstance(value, tf.Tensor) or not value.dtype.is_integer:
        return None
    if count is None or value.shape.num_elements() != count:
        return None
    return tf.reshape(tf.cast(value, tf.int32), [count])


def _probe(rng: np.random.Generator) -> list[Arguments]:
    x = rng.normal(0, 1, (1, 5, 2, 16)).astype(np.float32)
    return [((x, 7), {}), ((x, 0), {"positions": np.array([9, 1, 4, 4, 300])})]
