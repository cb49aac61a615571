"""Embedding: a token table that is also the head, stored once in 8 bits.

TF Lite's dynamic-range quantization stores a tied table twice: for the look-up with one scale, for
the head with one scale per token. Here the look-up reads the head's codes and scales.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np


def eight_bit_table(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes a table as TFLiteConverter quantizes the head: symmetric, one scale per row.

    The codes equal the converter's bit for bit (a test holds them against it), so that both are
    one buffer in the file.

    Args:
      table: float32 [vocabulary, dim].

    Returns:
      (codes int8 [vocabulary, dim] in -127..127, scales float32 [vocabulary]).
    """
    scales = np.abs(table).max(axis=1) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0)).astype(np.float32)
    scaled = table * inverse[:, np.newaxis]
    # Ties go away from zero, as std::round does.
    rounded = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)
    return np.clip(rounded, -127, 127).astype(np.int8), scales.astype(np.float32)


@contextlib.contextmanager
def stored_once(causal_lm: Any) -> Iterator[None]:
    """While active, look-ups in the model's tied token table read 8-bit codes and their scales.

    For tracing a model that is then converted with 8-bit weights. The layer changes its class for
    that time; a table that is packed, or not tied to the head, is left alone.

    Args:
      causal_lm: a KerasHub CausalLM.
    """
    import keras

    layer: Any = getattr(causal_lm.backbone, "token_embedding", None)
    # A packed table is a subclass with a look-up of its own.
    if type(layer) is not keras.layers.ReversibleEmbedding or not layer.tie_weights:
        yield
        return
    original = type(layer)
    layer.__class__ = _eight_bit_class(original, keras.ops.convert_to_numpy(layer.embeddings))
    try:
        yield
    finally:
        layer.__class__ = original


def _eight_bit_class(base: type, table: np.ndarray) -> type:
    import tensorflow as tf

    codes, scales = eight_bit_table(table)

    class EightBitEmbedding(base):
        def call(self, inputs: Any, reverse: bool = False) -> Any:
            if reverse:
                return super().call(inputs, reverse=True)
            found = tf.cast(tf.gather(codes, inputs), tf.float32)
            return found * tf.gather(scales, inputs)[..., tf.newaxis]

    return EightBitEmbedding
