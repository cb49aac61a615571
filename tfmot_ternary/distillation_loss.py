"""Distillation losses: how far a student is from its teacher, whatever the task.

Both are pure functions of tensors. `distillation_loss` compares predictions (Hinton, Vinyals and
Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531), `feature_loss` the outputs
of a layer in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["distillation_loss", "feature_loss", "position_weights"]

# Probabilities below this are taken for it, so that their logarithms stay finite: below what a
# float32 softmax over any usual number of classes gives to a class that matters.
_SMALLEST_PROBABILITY = 1e-9


def distillation_loss(
    teacher: tf.Tensor, student: tf.Tensor, temperature: float, from_logits: bool
) -> tf.Tensor:
    """Returns `T^2 * KL(teacher || student)` of the softened distributions, at each position.

    Args:
      teacher: float [..., classes], logits or probabilities.
      student: float [..., classes].
      temperature: T > 0; T^2 keeps the gradient's size independent of it.
      from_logits: whether both are logits.

    Returns:
      float32 [...], not negative but for rounding.
    """
    logits = [tf.cast(x, tf.float32) for x in (teacher, student)]
    if not from_logits:
        # The logarithm of a probability is a logit: softmax(log p) is p.
        logits = [tf.math.log(tf.maximum(x, _SMALLEST_PROBABILITY)) for x in logits]
    log_p, log_q = (tf.nn.log_softmax(x / temperature) for x in logits)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1) * temperature**2


def feature_loss(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns the mean squared difference over the mean square of the teacher's feature.

    Args:
      teacher: float [batch, ..., channels]; no gradient reaches it.
      student: float of the same shape.
      weights: float [batch, ...], of the shape without channels or broadcastable to it: how much
        each position counts, in both means. None: all alike.

    Returns:
      float32 scalar: 0 where both are equal, 1 for a student of zeros; 0 where nothing counts.
    """
    teacher = tf.stop_gradient(tf.cast(teacher, tf.float32))
    error = tf.reduce_mean(tf.math.squared_difference(tf.cast(student, tf.float32), teacher), -1)
    size = tf.reduce_mean(tf.square(teacher), -1)
    if weights is not None:
        error, size = error * weights, size * weights
    return tf.math.divide_no_nan(tf.reduce_sum(error), tf.reduce_sum(size))


def position_weights(shape: Sequence[int | None], candidates: Sequence[Any]) -> tf.Tensor | None:
    """Multiplies masks and sample weights into the weight of each position of a feature.

    Args:
      shape: static shape of the positions, [batch, ...], with None for unknown sizes.
      candidates: None, or bool or float tensors [batch, ...]. One of lower rank counts for all
        positions behind; one that does not fit `shape` is left out.

    Returns:
      float32 [batch, ...] of the rank of `shape`, or None where no candidate fits.
    """
    product = None
    for candidate in candidates:
        if candidate is None:
            continue
        weights = tf.cast(tf.convert_to_tensor(candidate), tf.float32)
        sizes = weights.shape.as_list() if weights.shape.rank is not None else None
        if sizes is None or not _broadcasts(sizes, shape):
            continue
        weights = weights[(..., *[tf.newaxis] * (len(shape) - len(sizes)))]
        product = weights if product is None else product * weights
    return product


def _broadcasts(sizes: Sequence[int | None], shape: Sequence[int | None]) -> bool:
    """Tells whether weights of `sizes` say something about positions of `shape`."""
    pairs = zip(sizes, shape, strict=False)
    return 0 < len(sizes) <= len(shape) and all(
        a is None or b is None or a in (1, b) for a, b in pairs
    )
