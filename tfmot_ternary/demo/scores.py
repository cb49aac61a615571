"""Scores: how well a causal language model answers held-out samples, measured in Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmot_ternary.demo import batches, questions


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model scores on samples.

    Attributes:
      perplexity: exp of the mean negative log likelihood (nats) over all answer and caption
        tokens, end markers counted.
      accuracy: share of questions whose answer is exactly right, in [0, 1]; captions are not
        counted.
      caption_accuracy: share of captions that are exactly right, in [0, 1].
      by_kind: the accuracy of each kind of question.
      samples: how many samples were measured.
    """

    perplexity: float
    accuracy: float
    caption_accuracy: float
    by_kind: dict[str, float]
    samples: int


def judge(
    causal_lm: Any, samples: Sequence[questions.Sample], batch_size: int = 200
) -> tuple[float, np.ndarray]:
    """Forces each sample's answer on a model (teacher forcing), one forward pass a batch.

    An answer counts as right if the most likely token is the right one at each of its positions,
    end marker included. That is the same as greedy decoding giving exactly this answer: as long as
    greedy decoding has followed the answer, its next step sees the same tokens as the forced pass
    and takes the same argmax, so either all steps agree or both ways differ from the answer at the
    same first token.

    Args:
      causal_lm: PaliGemmaCausalLM, quantized or not, with its preprocessor.
      samples: what `questions.split` gives.
      batch_size: samples of one forward pass; does not change the result but for rounding.

    Returns:
      (mean negative log likelihood in nats over all answer tokens, end markers counted;
      bool [n], which answers are right).

    Raises:
      ValueError: no samples.
    """
    import tensorflow as tf

    if not samples:
        raise ValueError("expected at least one sample to measure, got none")
    encoder = batches.TextEncoder(causal_lm.preprocessor.tokenizer)
    everything = batches.held_out(encoder, samples)

    @tf.function(reduce_retracing=True)
    def forced(inputs: Any, labels: Any) -> tuple[Any, Any]:
        logits = causal_lm(inputs, training=False)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return loss, tf.argmax(logits, axis=-1, output_type=labels.dtype)

    losses, guesses = [], []
    for start in range(0, len(samples), batch_size):
        stop = start + batch_size
        inputs = {name: tf.constant(x[start:stop]) for name, x in everything.inputs.items()}
        loss, guess = forced(inputs, tf.constant(everything.labels[start:stop]))
        losses.append(loss.numpy())
        guesses.append(guess.numpy())
    weights = everything.weights
    mean_loss = (np.concatenate(losses).astype(np.float64) * weights).sum() / weights.sum()
    right = ((np.concatenate(guesses) == everything.labels) | (weights == 0)).all(axis=1)
    return float(mean_loss), right


def measure(causal_lm: Any, samples: Sequence[questions.Sample], batch_size: int = 200) -> Scores:
    """Scores a Keras model on samples; arguments and errors as in `judge`."""
    mean_loss, right = judge(causal_lm, samples, batch_size)
    kinds = np.array([sample.kind for sample in samples])

    def share(of: np.ndarray) -> float:
        return float(right[of].mean()) if of.any() else float("nan")

    return Scores(
        perplexity=float(np.exp(mean_loss)),
        accuracy=share(kinds != "caption"),
        caption_accuracy=share(kinds == "caption"),
        by_kind={str(kind): share(kinds == kind) for kind in np.unique(kinds) if kind != "caption"},
        samples=len(samples),
    )
