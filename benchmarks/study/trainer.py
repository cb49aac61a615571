"""One training loop for every model of the study: compiled once, then run from many starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from tfmot_ternary.distill import distillation_loss

if TYPE_CHECKING:
    from benchmarks.study.subjects import Data

__all__ = ["Phase", "Quality", "Trainer"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Settings of a training.

    Attributes:
      steps: of training.
      rate: highest learning rate of Adam; a linear rise over `warmup` steps, then half a cosine.
      warmup: steps; at most a tenth of `steps`.
      scale_rate: learning rate of the scales, as a multiple of `rate`; 0 keeps them.
      rest_rate: the same for what is not quantized: norms, biases, embeddings.
      scales_until: part of the steps after which the scales are kept.
      distill: share of distillation in the loss; the rest is cross entropy.
      temperature: of the distillation.
      gradual: part of the steps over which the kernels move from float to quantized; 0: at once.
    """

    steps: int
    rate: float = 1e-3
    warmup: int = 50
    scale_rate: float = 1.0
    rest_rate: float = 1.0
    scales_until: float = 1.0
    distill: float = 0.9
    temperature: float = 2.0
    gradual: float = 0.0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        warmup = min(self.warmup, self.steps // 10)
        rise = (step + 1) / max(warmup, 1)
        part = max(step - warmup, 0) / max(self.steps - warmup, 1)
        return self.rate * min(rise, 0.5 * (1 + math.cos(math.pi * part)))


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a model scores on held-out data.

    Attributes:
      perplexity: exp of the mean negative log likelihood (nats) of the labels that count.
      accuracy: share of right answers in [0, 1]: every label of an example where examples count,
        else of the labels.
    """

    perplexity: float
    accuracy: float


class Trainer:
    """Trains one model again and again; the compiled step is made once.

    Gradients are clipped to a global norm of 1; Adam with beta_2 = 0.98.
    """

    def __init__(
        self,
        model: keras.Model,
        teacher: keras.Model | None = None,
        groups: Mapping[str, list[Any]] | None = None,
        fraction: Any = None,
    ) -> None:
        """Makes the trainer.

        Args:
          model: gives logits [n, ..., classes].
          teacher: gives logits of the same shape; None: phases with distill = 0 only.
          groups: "weights", "scales", "rest" -> trainable variables; None: all are "weights".
          fraction: variable, how far the kernels are quantized (see `Phase.gradual`), or None.
        """
        self.model, self.teacher, self._fraction = model, teacher, fraction
        self._groups = dict(groups or {"weights": model.trainable_variables})
        self._optimizers = {}
        for name, variables in self._groups.items():
            self._optimizers[name] = keras.optimizers.Adam(1e-3, beta_2=0.98)
            self._optimizers[name].build(variables)
        self._plain = tf.function(self._step, jit_compile=True, reduce_retracing=True)
        self._forward = tf.function(self._score, jit_compile=True, reduce_retracing=True)

    def reset_optimizers(self) -> None:
        """Forgets the moments of the last run."""
        for optimizer in self._optimizers.values():
            for variable in optimizer.variables:
                variable.assign(tf.zeros(variable.shape, variable.dtype))

    def run(self, batch: Callable[[int], Data], phase: Phase, description: str = "") -> list[float]:
        """Trains from where the model is; returns the loss of each step."""
        self.reset_optimizers()
        bar = tqdm.tqdm(
            range(phase.steps), desc=description, unit="step", mininterval=1, leave=False
        )
        losses = []
        for step in bar:
            data = batch(step)
            rate = phase.rate_at(step)
            scales_rate = rate * phase.scale_rate
            if step >= phase.scales_until * phase.steps:
                scales_rate = 0.0
            rates = {"weights": rate, "scales": scales_rate, "rest": rate * phase.rest_rate}
            for name, optimizer in self._optimizers.items():
                optimizer.learning_rate.assign(rates[name])
            if self._fraction is not None:
                self._fraction.assign(
                    min(1.0, step / (phase.gradual * phase.steps)) if phase.gradual else 1.0
                )
            loss = self._plain(
                _tensors(data.inputs),
                tf.constant(data.labels),
                tf.constant(data.weights),
                tf.constant(phase.distill, tf.float32),
                tf.constant(phase.temperature, tf.float32),
            )
            losses.append(loss)
            if step % 50 == 0:
                bar.set_postfix(loss=f"{float(loss):.3f}")
        if self._fraction is not None:
            self._fraction.assign(1.0)
        return [float(loss) for loss in losses]

    def _step(self, inputs: Any, labels: Any, weights: Any, share: Any, temperature: Any) -> Any:
        total = tf.reduce_sum(weights)
        target = None
        if self.teacher is not None:
            target = tf.stop_gradient(self.teacher(inputs, training=False))
        with tf.GradientTape() as tape:
            logits = tf.cast(self.model(inputs, training=True), tf.float32)
            cross = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(cross * weights) / total
            if target is not None:
                learnt = distillation_loss(target, logits, temperature, from_logits=True)
                distilled = tf.reduce_sum(learnt * weights) / total
                loss = share * distilled + (1 - share) * loss
        variables = [v for group in self._groups.values() for v in group]
        gradients = tape.gradient(loss, [v.value for v in variables])
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        start = 0
        for name, group in self._groups.items():
            self._optimizers[name].apply(gradients[start : start + len(group)], group)
            start += len(group)
        return loss

    def _score(self, inputs: Any, labels: Any) -> tuple[Any, Any]:
        logits = tf.cast(self.model(inputs, training=False), tf.float32)
        cross = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return cross, tf.argmax(logits, axis=-1, output_type=tf.int32) == labels

    def score(self, data: Data, batch_size: int = 140) -> Quality:
        """Scores the model on held-out data."""
        losses, right = [], []
        for start in range(0, len(data.labels), batch_size):
            part = slice(start, start + batch_size)
            loss, hit = self._forward(_tensors(data.inputs, part), tf.constant(data.labels[part]))
            losses.append(loss.numpy())
            right.append(hit.numpy())
        return quality_of(data, np.concatenate(losses), np.concatenate(right))


def quality_of(data: Data, losses: np.ndarray, right: np.ndarray) -> Quality:
    """Quality from the loss (nats) and the correctness of each label; both of the labels' shape."""
    weights = data.weights.astype(np.float64)
    perplexity = float(np.exp((losses * weights).sum() / weights.sum()))
    if data.counted is None:
        accuracy = float((right * weights).sum() / weights.sum())
    else:
        whole = (right | (weights == 0)).reshape(len(right), -1).all(axis=1)
        accuracy = float(whole[data.counted].mean())
    return Quality(perplexity, accuracy)


def _tensors(inputs: Any, part: slice = slice(None)) -> Any:
    if isinstance(inputs, dict):
        return {name: tf.constant(value[part]) for name, value in inputs.items()}
    return tf.constant(inputs[part])
