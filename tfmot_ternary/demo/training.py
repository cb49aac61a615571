"""One training loop for the demo: batches by step, a schedule, progress and checkpoints around
Keras' own `fit`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tqdm

from tfmot_ternary.demo import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tfmot_ternary.checkpoint import Checkpoint


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate: linear rise over `warmup` steps to `peak`, then half a cosine down to `end`
    at `steps`."""

    def __init__(self, peak: float, steps: int, warmup: int, end: float = 0.0):
        self.peak, self.steps, self.warmup, self.end = peak, steps, warmup, end

    def __call__(self, step: Any) -> Any:
        ops = keras.ops
        step = ops.cast(step, "float32")
        rise = (step + 1) / max(self.warmup, 1)
        part = ops.clip((step - self.warmup) / max(self.steps - self.warmup, 1), 0.0, 1.0)
        fall = self.end / self.peak + (1 - self.end / self.peak) * 0.5 * (
            1 + ops.cos(math.pi * part)
        )
        return self.peak * ops.minimum(rise, fall)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup, "end": self.end}


class _Watch(keras.callbacks.Callback):
    """Shows progress, keeps the history and writes checkpoints."""

    def __init__(
        self,
        bar: tqdm.tqdm,
        step: int,
        history: list[dict[str, float]],
        every: int,
        checkpoint: Checkpoint | None,
        variables: Callable[[], list[Any]],
    ):
        super().__init__()
        self.bar, self.step, self.history = bar, step, history
        self.every, self.checkpoint, self.variables = every, checkpoint, variables

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += 1
        self.bar.update()
        if self.step % self.every and self.step != self.bar.total:
            return
        # Keras' logs are means since the epoch began: taken every so often and then reset, they
        # follow the training.
        entry = {"step": self.step, **{name: float(value) for name, value in (logs or {}).items()}}
        self.model.reset_metrics()
        self.history.append(entry)
        self.bar.set_postfix(loss=f"{entry['loss']:.3f}")
        if self.checkpoint is not None:
            self.checkpoint.save(self.step, self.variables(), self.history)


def train(
    model: keras.Model,
    make_batch: Callable[[int], batches.Batch],
    steps: int,
    *,
    checkpoint: Checkpoint | None = None,
    every: int = 100,
    progress: bool = True,
    description: str = "training",
) -> list[dict[str, float]]:
    """Trains a compiled model for `steps` steps, going on from the checkpoint where there is one.

    Args:
      model: compiled Keras model.
      make_batch: step -> batch; a pure function, so that an interrupted training sees the same
        data.
      steps: in all, those before the interruption counted.
      checkpoint: where the state is kept while training lasts; None keeps nothing.
      every: steps between history entries, checkpoints and changes of the progress bar's text.
      progress: whether to show a progress bar (on standard error).
      description: its title.

    Returns:
      History: one entry every `every` steps with "step", "loss" and the model's other metrics.
    """
    model.optimizer.build(model.trainable_variables)

    def variables() -> list[Any]:
        return [
            *model.trainable_variables,
            *model.non_trainable_variables,
            *model.optimizer.variables,
        ]

    first, history = checkpoint.load(variables()) if checkpoint is not None else (0, [])
    if first >= steps:
        return history
    bar = tqdm.tqdm(
        total=steps,
        initial=first,
        desc=description,
        unit="step",
        disable=not progress,
        mininterval=0.5,
    )
    watch = _Watch(bar, first, history, every, checkpoint, variables)

    def stream() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        for batch in batches.ahead(make_batch, first, steps):
            yield batch.inputs, batch.labels, batch.weights

    with bar:
        model.fit(
            stream(),
            epochs=1,
            steps_per_epoch=steps - first,
            verbose=0,
            shuffle=False,
            callbacks=[watch],
        )
    return history
