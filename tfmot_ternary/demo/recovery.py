"""Recovery: quantization-aware training of the demo's model, distilled from the float model."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from tfmot_ternary.checkpoint import Checkpoint, digest
from tfmot_ternary.demo import batches

if TYPE_CHECKING:
    import keras_hub

    from tfmot_ternary.calibration import Calibration

CALIBRATION_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a recovery.

    Attributes:
      steps: training steps.
      batch_size: samples a step.
      learning_rate: highest, after `warmup` steps; then half a cosine to zero.
      warmup: steps.
      temperature: of the distillation.
      alpha: share of distillation in the loss.
      captions: share of captions among the samples.
      every: steps between history entries and writes of the cache.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    temperature: float = 2.0
    alpha: float = 0.9
    captions: float = 0.2
    every: int = 100


@dataclasses.dataclass(frozen=True)
class Recovered:
    """A quantized model after training.

    Attributes:
      causal_lm: the quantized PaliGemmaCausalLM, still with float weights behind its codes (freeze
        or convert it next).
      history: one entry every `recipe.every` steps with "step", "loss", "distillation_loss" and
        "task_loss".
    """

    causal_lm: keras_hub.models.PaliGemmaCausalLM
    history: list[dict[str, float]]


def calibrate(
    causal_lm: keras_hub.models.PaliGemmaCausalLM, seed: int = 0, progress: bool = True
) -> Calibration:
    """Second moments of the inputs of every kernel, on scenes of training digits.

    Args:
      causal_lm: the float model; stays as it was.
      seed: of the scenes; recoveries with this seed see others.
      progress: whether to show a progress bar.

    Returns:
      The calibration, for the `importance` of a scheme.
    """
    from tfmot_ternary import calibration

    encoder = batches.TextEncoder(causal_lm.preprocessor.tokenizer)
    recipe, data_seed = TERNARY, seed + 2_000_003
    data = (
        batches.training_batch(encoder, recipe.batch_size, data_seed, step, recipe.captions)
        for step in range(CALIBRATION_BATCHES)
    )
    return calibration.calibrate(
        causal_lm,
        ((batch.inputs, batch.labels, batch.weights) for batch in data),
        "hessian",
        steps=CALIBRATION_BATCHES,
        progress=progress,
    )


def recover(
    causal_lm: keras_hub.models.PaliGemmaCausalLM,
    scheme: Any,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    *,
    recipe: Recipe | None = None,
    cache_dir: str | pathlib.Path | None = None,
) -> Recovered:
    """Quantizes a trained model and trains it on the float model's outputs, on scenes of training
    digits.

    Args:
      causal_lm: the float model and teacher; stays as it was.
      scheme: `TernaryScheme` or `BinaryScheme`; with the `importance` that `calibrate` returns,
        training starts from there, without one from k-means.
      steps: training steps; None: the recipe's. 0: none.
      seed: of the training scenes.
      progress: whether to show a progress bar.
      recipe: the other settings; None: `TERNARY` or `BINARY`, after the scheme's levels.
      cache_dir: where the state is kept, while training lasts and afterwards: with the same model,
        scheme and settings the next call goes on from there, or returns the finished result. None
        keeps nothing.

    Returns:
      The trained model and its history.
    """
    import keras

    from tfmot_ternary import distill, keras3
    from tfmot_ternary.demo.training import WarmupCosine, train

    if recipe is None:
        recipe = TERNARY if scheme.levels == 3 else BINARY
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=steps)
    student = keras3.quantize(causal_lm, scheme)
    if recipe.steps == 0:
        return Recovered(student, [])

    name = "ternary" if scheme.levels == 3 else "binary"
    checkpoint = None
    if cache_dir is not None:
        # The student's weights before training say all about the teacher and the scheme's start.
        settings = {
            "seed": seed,
            "recipe": dataclasses.asdict(recipe),
            "start": digest(student.weights),
            "levels": scheme.levels,
            "group_size": scheme.group_size,
        }
        checkpoint = Checkpoint(pathlib.Path(cache_dir) / f"recovery_{name}.npz", settings)

    distiller = distill.Distiller(
        student, causal_lm, temperature=recipe.temperature, alpha=recipe.alpha, from_logits=True
    )
    distiller.compile(
        optimizer=keras.optimizers.Adam(
            WarmupCosine(recipe.learning_rate, recipe.steps, recipe.warmup),
            beta_2=0.98,
            global_clipnorm=1.0,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,  # on two cores a third faster than without
    )
    encoder = batches.TextEncoder(causal_lm.preprocessor.tokenizer)
    # Pretraining with this seed has seen the scenes of [seed, step]: take others.
    data_seed = seed + 1_000_003

    def make_batch(step: int) -> batches.Batch:
        return batches.training_batch(encoder, recipe.batch_size, data_seed, step, recipe.captions)

    history = train(
        distiller,
        make_batch,
        recipe.steps,
        checkpoint=checkpoint,
        every=recipe.every,
        progress=progress,
        description=f"{name} recovery",
    )
    return Recovered(student, history)


# The binary start is much further from the float model than the ternary one: it takes larger steps.
TERNARY = Recipe()
BINARY = Recipe(steps=1200, learning_rate=2e-3)
