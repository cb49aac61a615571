"""Recovery: a quantized model trained on the outputs of the model that it came from.

The plain recipe behind `tfmot-ternary ternarize --data`; for more, use `Distiller` itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_ternary import evaluation
from tfmot_ternary.checkpoint import Checkpoint

if TYPE_CHECKING:
    from tfmot_ternary.calibration import Calibration

# Mild settings that suit small models.
TEMPERATURE = 2.0
ALPHA = 0.9
CHECKPOINT_STEPS = 50  # between two writes of the state


@dataclasses.dataclass(frozen=True)
class Training:
    """What to train on and how long.

    Attributes:
      data: "digits:train", a JSON-lines file, or an .npz file.
      steps: training steps; 0: none.
      batch_size: examples per step, and per batch of the calibration.
      learning_rate: its highest value; it falls to zero.
      seed: order of the examples.
      calibration_batches: batches behind those of the steps, for `calibrated`.
    """

    data: str
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    calibration_batches: int = 0


Batch = tuple[Any, Any, Any]  # x, y, sample weights (y and weights None: distillation alone)


def causal_lm_batches(model: Any, training: Training) -> Callable[[int], Batch]:
    """Returns step -> batch, made by the model's own preprocessor."""
    built_in = training.data.startswith(evaluation.BUILT_IN_PREFIX)
    batches = max(training.steps + training.calibration_batches, 1)
    limit = min(batches * training.batch_size, 20_000) if built_in else None
    examples = evaluation.load_examples(training.data, limit, training.seed)
    with_images = hasattr(model.backbone, "vit_encoder")

    def make_batch(step: int) -> Batch:
        rng = np.random.default_rng([training.seed, step])
        chosen = [examples[i] for i in rng.integers(0, len(examples), training.batch_size)]
        prompts = [e.prompt for e in chosen]
        answers = [e.answer for e in chosen]
        if not with_images:
            texts = [f"{p} {a}" for p, a in zip(prompts, answers, strict=True)]
            return model.preprocessor(texts)
        from tfmot_ternary.vlm.image import read_image

        images = model.preprocessor.image_converter
        pixels = np.stack([np.asarray(images(read_image(e.image))) for e in chosen])
        return _without_image_converter(model.preprocessor)(
            {"images": pixels, "prompts": prompts, "responses": answers}
        )

    return make_batch


def _without_image_converter(preprocessor: Any) -> Any:
    """Returns the same preprocessor for images that are ready: they differ in size before."""
    return type(preprocessor)(
        tokenizer=preprocessor.tokenizer,
        sequence_length=preprocessor.sequence_length,
        add_start_token=preprocessor.add_start_token,
        add_end_token=preprocessor.add_end_token,
    )


def array_batches(model: Any, training: Training) -> Callable[[int], Batch]:
    """Returns step -> batch out of an .npz file with `x` and optionally `y`."""
    path = training.data
    if not path.endswith(".npz"):
        raise ValueError(
            f"expected an .npz file with x (and y) to train {type(model).__name__}, got {path!r}"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"expected an .npz file at {path!r}, got {error}") from error
    x, y = arrays.get("x"), arrays.get("y")
    if x is None or (y is not None and len(y) != len(x)) or not len(x):
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        raise ValueError(
            f"{path!r}: expected an array x and optionally y of the same length, got {shapes}"
        )
    expected = list(model.input_shape[1:])
    if [None if e is None else d for d, e in zip(x.shape[1:], expected, strict=False)] != expected:
        raise ValueError(
            f"{path!r}: expected x of shape [examples, {expected}] as the model takes it, got "
            f"{list(x.shape)}"
        )

    def make_batch(step: int) -> Batch:
        rng = np.random.default_rng([training.seed, step])
        chosen = rng.integers(0, len(x), training.batch_size)
        return x[chosen], None if y is None else y[chosen], None

    return make_batch


def calibrated(
    model: Any, make_batch: Callable[[int], Batch], training: Training
) -> Calibration | None:
    """Second moments of the inputs of each kernel, for the start of a quantized model.

    The batches are those behind the last step, so that training sees others: a pure function of
    `training`, so that an interrupted run finds its start again.

    Args:
      model: the float model.
      make_batch: step -> batch.
      training: how many batches, and behind which step.

    Returns:
      What a scheme takes as `importance` (4 k^2 bytes for a kernel of k inputs), or None without
      calibration batches.

    Raises:
      ValueError: for NaN or Inf in the data or in an activation.
    """
    if not training.calibration_batches:
        return None
    from tfmot_ternary.calibration import calibrate

    steps = range(training.steps, training.steps + training.calibration_batches)
    inputs = (make_batch(step)[0] for step in steps)
    return calibrate(model, inputs, "hessian", steps=len(steps))


def train(
    student: Any,
    teacher: Any,
    make_batch: Callable[[int], Batch],
    training: Training,
    checkpoint: Checkpoint,
) -> None:
    """Trains `student` in place on the outputs of `teacher`, and on labels where there are any.

    Args:
      student: a quantized model of either Keras.
      teacher: the model it came from.
      make_batch: step -> batch; a pure function, so that an interrupted training sees the same
        data.
      training: steps and learning rate; without steps nothing is done.
      checkpoint: where the state is kept while training lasts; training goes on from it.
    """
    if not training.steps:
        return
    import keras
    import tf_keras
    from tqdm import tqdm

    from tfmot_ternary.distill import Distiller

    causal = hasattr(teacher, "call_with_cache")
    flavour = keras if isinstance(student, keras.Model) else tf_keras
    labelled = make_batch(0)[1] is not None
    distiller = Distiller(
        student,
        teacher,
        temperature=TEMPERATURE,
        alpha=ALPHA if labelled else 1.0,
        from_logits=True if causal else None,
    )
    schedule = flavour.optimizers.schedules.PolynomialDecay(
        training.learning_rate, training.steps, end_learning_rate=0.0
    )
    loss = flavour.losses.SparseCategoricalCrossentropy(from_logits=distiller.from_logits)
    distiller.compile(
        optimizer=flavour.optimizers.Adam(schedule, clipnorm=1.0),
        loss=loss if labelled else None,
    )
    distiller.optimizer.build(student.trainable_variables)
    variables = [*student.weights, *_variables(distiller.optimizer)]
    first, _ = checkpoint.load(variables)
    bar = tqdm(
        range(first, training.steps),
        desc="recover",
        unit="step",
        initial=first,
        total=training.steps,
    )
    for step in bar:
        x, y, weights = make_batch(step)
        logs = distiller.train_on_batch(x, y, sample_weight=weights, return_dict=True)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        if (step + 1) % CHECKPOINT_STEPS == 0:
            checkpoint.save(step + 1, variables, [])


def _variables(optimizer: Any) -> list[Any]:
    """The optimizer's variables: a list in Keras 3, a method in tf_keras."""
    variables = optimizer.variables
    return list(variables() if callable(variables) else variables)
