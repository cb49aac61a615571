"""Distiller: trains a student on its teacher's outputs.

The loss is `alpha * T^2 * KL(teacher || student)`, both softened by the temperature T, plus `(1 -
alpha)` times the task's own loss (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
Network", arXiv:1503.02531).
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

# Probabilities below this are taken for it, so that their logarithms stay finite: below what a
# float32 softmax over any usual number of classes gives to a class that matters.
_SMALLEST_PROBABILITY = 1e-9


class _Untracked:
    """Hides the teacher from Keras' attribute tracking: it is neither trained nor saved with the
    student."""

    def __init__(self, model: Any):
        self.model = model


def _flavour(model: Any, role: str) -> str:
    """Returns "keras" (Keras 3) or "tf_keras"."""
    # Looked up in what is loaded rather than imported: nobody's model is of a Keras that is not
    # imported yet.
    import sys

    for name in ("keras", "tf_keras"):
        module = sys.modules.get(name)
        # Where TF_USE_LEGACY_KERAS is set, Keras 2 is called tf_keras, too: the module's own name
        # decides.
        if module is not None and isinstance(model, module.Model):
            return name
    raise TypeError(
        f"expected the {role} to be a keras.Model (Keras 3) or a tf_keras.Model, "
        f"got {type(model).__name__}"
    )


def _ends_in_softmax(model: Any) -> bool:
    """Tells whether a model's last layer gives probabilities."""
    layer = model
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    # tfmot's QuantizeWrapperV2 (and any other wrapper) keeps the real layer in `.layer`.
    layer = getattr(layer, "layer", layer)
    if type(layer).__name__ == "Softmax":
        return True
    activation = getattr(layer, "activation", None)
    # tfmot's QuantizeAwareActivation keeps the real activation in `.activation`.
    activation = getattr(activation, "activation", activation)
    return getattr(activation, "__name__", "") == "softmax"


def _static_shape(model: Any) -> Any:
    """Returns the output shape where the model knows it, else None."""
    try:
        return model.output_shape
    except (AttributeError, RuntimeError, NotImplementedError):
        return None  # a subclassed model: shapes are checked when it is called


def _check_shapes(student: Any, teacher: Any) -> None:
    for role, shape in (("student", student), ("teacher", teacher)):
        if isinstance(shape, (dict, list)) or (
            isinstance(shape, tuple) and any(isinstance(part, (tuple, list)) for part in shape)
        ):
            raise ValueError(
                f"expected the {role} to have one output, got outputs of shapes {shape}"
            )
    if student is None or teacher is None:
        return
    known = all(a is None or b is None or a == b for a, b in zip(student, teacher, strict=False))
    if len(student) != len(teacher) or not known:
        raise ValueError(
            f"expected student and teacher to give outputs of one shape, got "
            f"{tuple(student)} from the student and {tuple(teacher)} from the teacher; both need "
            "the same classes (or vocabulary) and positions"
        )


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


class Distiller:
    """Trains a student on a teacher's outputs: a Keras model to `compile` and `fit`.

        distiller = tt.Distiller(student, teacher, temperature=2.0, alpha=0.9)
        distiller.compile(optimizer, loss=task_loss, metrics=["accuracy"])
        distiller.fit(x, y)
        student  # is trained

    For tf_keras models this is a `tf_keras.Model`, for Keras 3 models (TensorFlow backend) a
    `keras.Model`: callbacks, checkpoints, distribution, XLA and sample weights work as in any
    other. Classifiers give [batch, classes], language models [batch, positions, classes]; sample
    weights and Keras masks count for both parts of the loss, with the same reduction. The student
    alone is trained and saved; regularization losses of the student are added.

    `fit` logs `loss` (both parts), `distillation_loss` (with T^2, before alpha) and, where alpha <
    1, `task_loss`.

    Args:
      student: the model to train; the same Keras flavour as the teacher.
      teacher: the model to learn from; called with `training=False`, never changed.
      temperature: softens both distributions; > 0.
      alpha: share of distillation in the loss, 0 to 1. With 1, `compile` needs no loss.
      from_logits: whether the outputs are logits (True) or probabilities (False). None: told from
        the last layers, probabilities where they end in a softmax.

    Raises:
      TypeError: not Keras models, or one of each flavour.
      ValueError: temperature or alpha out of range, student and teacher the same, more than one
        output, or outputs that do not fit (shape; logits against probabilities).
    """

    student: Any
    temperature: float
    alpha: float
    from_logits: bool

    def __new__(cls, student: Any = None, teacher: Any = None, *args: Any, **kwargs: Any) -> Any:
        if cls is not Distiller:
            return super().__new__(cls)
        flavours = _flavour(student, "student"), _flavour(teacher, "teacher")
        if flavours[0] != flavours[1]:
            raise TypeError(
                f"expected student and teacher of one Keras, got a {flavours[0]} "
                f"student and a {flavours[1]} teacher; rebuild one of them in the other's Keras"
            )
        made = _distiller_class(flavours[0])
        return made.__new__(made, student, teacher, *args, **kwargs)


def _check(
    student: Any, teacher: Any, temperature: float, alpha: float, from_logits: bool | None
) -> bool:
    """Validates the constructor's arguments and returns whether outputs are logits."""
    if student is teacher:
        raise ValueError("expected student and teacher to be two models, got the same one twice")
    if not temperature > 0:
        raise ValueError(f"expected temperature > 0, got {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha from 0 to 1, got {alpha}")
    _check_shapes(_static_shape(student), _static_shape(teacher))
    if from_logits is not None:
        return from_logits
    ends = _ends_in_softmax(student), _ends_in_softmax(teacher)
    if ends[0] != ends[1]:
        words = {True: "probabilities (a softmax)", False: "logits (no softmax)"}
        raise ValueError(
            f"expected student and teacher to end alike, got {words[ends[0]]} from the student and "
            f"{words[ends[1]]} from the teacher; end both alike, or say from_logits=True or "
            "False if both are"
        )
    return not ends[0]


@functools.cache
def _distiller_class(flavour: str) -> type:
    """Makes the class for one Keras; the other Keras is not imported."""
    import importlib

    keras: Any = importlib.import_module(flavour)

    class DistillationLoss(keras.losses.Loss):
        """The distillation part as a Keras loss, so that Keras weighs, masks and reduces it like
        the task's."""

        def __init__(self, temperature: float, from_logits: bool):
            super().__init__(name="distillation_loss")
            self.temperature = temperature
            self.from_logits = from_logits

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return distillation_loss(y_true, y_pred, self.temperature, self.from_logits)

    class KerasDistiller(Distiller, keras.Model):
        def __init__(
            self,
            student: Any,
            teacher: Any,
            temperature: float = 2.0,
            alpha: float = 0.5,
            from_logits: bool | None = None,
            **kwargs: Any,
        ):
            logits = _check(student, teacher, temperature, alpha, from_logits)
            super().__init__(**kwargs)
            self.student = student
            self._teacher = _Untracked(teacher)
            self.temperature = temperature
            self.alpha = alpha
            self.from_logits = logits
            self._distillation_loss = DistillationLoss(temperature, logits)
            self._total_tracker = keras.metrics.Mean(name="total_loss")
            self._distillation_tracker = keras.metrics.Mean(name="distillation_loss")
            self._task_tracker = keras.metrics.Mean(name="task_loss")
            if student.built:
                self.built = True

        @property
        def teacher(self) -> Any:
            return self._teacher.model

        def build(self, input_shape: Any = None) -> None:
            if not self.student.built:
                self.student.build(input_shape)
            self.built = True

        def call(self, inputs: Any, training: bool | None = None) -> Any:
            return self.student(inputs, training=training)

        def _task_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            """The task's loss and the student's regularization losses."""
            if not self.loss:  # tf_keras keeps an empty dict for no loss
                raise ValueError(
                    f"expected a task loss, as alpha is {self.alpha} (< 1), got none; give "
                    "compile(loss=...), or alpha=1.0 to learn from the teacher alone"
                )
            return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)

        def compute_loss(
            self,
            x: Any = None,
            y: Any = None,
            y_pred: Any = None,
            sample_weight: Any = None,
            training: bool = True,
        ) -> Any:
            """Returns the scalar loss of one batch; called by Keras in train and test steps."""
            target = self.teacher(x, training=False)
            _check_shapes(tuple(y_pred.shape), tuple(target.shape))
            distilled = self._distillation_loss(
                tf.stop_gradient(target), y_pred, sample_weight=sample_weight
            )
            self._distillation_tracker.update_state(distilled)
            if self.alpha < 1:
                task = self._task_loss(x, y, y_pred, sample_weight)
                self._task_tracker.update_state(task)
                total = self.alpha * distilled + (1 - self.alpha) * task
            else:
                total = distilled
                for extra in self.losses:
                    total = total + tf.cast(tf.reduce_sum(extra), total.dtype)
            self._total_tracker.update_state(total)
            return total

        def get_metrics_result(self) -> dict[str, Any]:
            """Renames the total to `loss`: tf_keras would show the task's part under that name."""
            results = super().get_metrics_result()
            results["loss"] = results.pop("total_loss")
            if self.alpha == 1:
                results.pop("task_loss", None)
            return results

    KerasDistiller.__name__ = KerasDistiller.__qualname__ = "Distiller"
    return KerasDistiller
