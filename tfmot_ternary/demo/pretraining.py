"""Pretraining: makes the demo's preset from nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from tfmot_ternary.checkpoint import Checkpoint
from tfmot_ternary.demo import batches, model, questions, scores


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of pretraining with its own mix of samples.

    Attributes:
      share: of all steps.
      captions: share of captions among the samples.
      caption_weight: weight of each caption token.
      shares: the share of each kind among the questions.
    """

    share: float
    captions: float
    caption_weight: float = 1.0
    shares: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(questions.KINDS))


# All kinds at once from the start is several times slower: questions about a named digit ("how
# many threes?") stay at the most frequent answer until the model reads digits and has found out
# how to look for one.
PHASES = (
    # Reading: captions teach eight tokens a sample.
    Phase(share=0.08, captions=0.85),
    # Looking for a named digit: "where is the three?" teaches most about that.
    Phase(
        share=0.17,
        captions=0.1,
        caption_weight=0.5,
        shares={"where": 0.45, "presence": 0.15, "count": 0.25, "digit": 0.15},
    ),
    Phase(share=0.75, captions=0.12, caption_weight=0.5),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of pretraining.

    Attributes:
      steps: training steps.
      batch_size: samples a step.
      learning_rate: highest, after `warmup` steps; then half a cosine to zero.
      warmup: steps.
      weight_decay: of kernels, not of biases, norms and embeddings.
      phases: one after another; their shares sum to 1.
    """

    steps: int = 9000
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.02
    phases: tuple[Phase, ...] = PHASES

    def phase(self, step: int) -> Phase:
        """Returns the phase that a step is in."""
        end = 0.0
        for phase in self.phases:
            end += phase.share
            if step < round(end * self.steps):
                return phase
        return self.phases[-1]


def _optimizer(recipe: Recipe, variables: list[Any]) -> Any:
    import keras

    from tfmot_ternary.demo.training import WarmupCosine

    optimizer = keras.optimizers.AdamW(
        WarmupCosine(recipe.learning_rate, recipe.steps, recipe.warmup),
        weight_decay=recipe.weight_decay,
        beta_2=0.98,
        global_clipnorm=1.0,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale", "gamma", "beta", "embeddings"])
    optimizer.build(variables)
    return optimizer


def pretrain(
    output_dir: str | pathlib.Path = model.PRESET,
    seed: int = 0,
    *,
    recipe: Recipe | None = None,
    checkpoint_dir: str | pathlib.Path = "build/demo",
    progress: bool = True,
) -> scores.Scores:
    """Trains the demo's model from nothing and saves it as a KerasHub preset.

    An interrupted run goes on from `checkpoint_dir` if it is started again with the same settings.

    Args:
      output_dir: folder of the preset; replaced as a whole once the new one is complete.
      seed: of the weights and of the training scenes.
      recipe: settings; None: those that made the preset in the package.
      checkpoint_dir: where the state is kept until training is done.
      progress: whether to show a progress bar.

    Returns:
      The model's scores on test scenes, also written to `pretraining.json` in the preset.
    """
    import keras

    from tfmot_ternary.demo.training import train

    recipe = recipe or Recipe()
    causal_lm = model.build(seed)
    settings = {"seed": seed, "recipe": dataclasses.asdict(recipe), "backbone": model.BACKBONE}
    checkpoint = Checkpoint(pathlib.Path(checkpoint_dir) / "pretraining.npz", settings)
    encoder = batches.TextEncoder(causal_lm.preprocessor.tokenizer)

    def make_batch(step: int) -> batches.Batch:
        phase = recipe.phase(step)
        return batches.training_batch(
            encoder,
            recipe.batch_size,
            seed,
            step,
            phase.captions,
            phase.caption_weight,
            phase.shares,
        )

    # The same layers without the preprocessor: `fit` of a KerasHub task would want raw strings.
    trained = keras.Model(causal_lm.input, causal_lm.output)
    trained.compile(
        _optimizer(recipe, trained.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        jit_compile=True,  # on two cores a third faster than without
    )
    train(
        trained,
        make_batch,
        recipe.steps,
        checkpoint=checkpoint,
        every=250,
        progress=progress,
        description="pretraining",
    )
    result = scores.measure(causal_lm, questions.split("test"))
    _save(causal_lm, pathlib.Path(output_dir), {**settings, "test": dataclasses.asdict(result)})
    checkpoint.remove()
    return result


def _save(causal_lm: Any, output_dir: pathlib.Path, about: dict[str, Any]) -> None:
    """Writes the preset next to its place and then moves it there."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=".preset-", dir=output_dir.parent))
    try:
        causal_lm.save_to_preset(str(fresh))
        (fresh / "pretraining.json").write_text(json.dumps(about, indent=2) + "\n")
        fresh.chmod(0o755)  # mkdtemp makes folders that nobody else may read
        if output_dir.exists():
            shutil.rmtree(output_dir)
        os.replace(fresh, output_dir)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
