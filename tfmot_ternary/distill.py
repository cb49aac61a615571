"""Distiller: trains a student on its teacher's outputs.

The loss is `alpha * T^2 * KL(teacher || student)`, both softened by the temperature T, plus `(1 -
alpha)` times the task's own loss, plus `feature_weight` times the distance of named layers'
outputs. The teacher runs beside the student, or its outputs come from disk (`TeacherOutputs`).
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tfmot_ternary.distillation_loss import distillation_loss
from tfmot_ternary.feature_matching import (
    FeatureCapture,
    Features,
    feature_pairs,
    matched_loss,
)
from tfmot_ternary.model_outputs import check_shapes, ends_in_softmax, flavour, static_shape
from tfmot_ternary.teacher_outputs import Targets, TeacherOutputs

__all__ = ["Distiller", "distillation_loss"]


class _Untracked:
    """Hides what is no part of the student from Keras' attribute tracking: it is neither trained
    nor saved with it."""

    def __init__(self, value: Any):
        self.value = value


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

    With `features`, layers in the middle are compared, too: the mean squared difference of their
    outputs [batch, ..., channels] over the mean square of the teacher's, averaged over the pairs.
    Keras masks and sample weights say how much each position counts in both means; weights of
    another shape than the feature's positions are left out. A layer that is called several times
    in one forward pass is compared call by call.

    A teacher that is a `TeacherOutputs` costs no time in training: `fit` then takes its `dataset`.

    `fit` logs `loss` (all parts), `distillation_loss` (with T^2, before alpha), where alpha < 1
    `task_loss`, and with features `feature_loss` (before feature_weight).

    Args:
      student: the model to train; the same Keras flavour as the teacher.
      teacher: the model to learn from; called with `training=False`, never changed. Or the
        `TeacherOutputs` that it gave.
      temperature: softens both distributions; > 0.
      alpha: share of distillation in the loss, 0 to 1. With 1, `compile` needs no loss.
      from_logits: whether the outputs are logits (True) or probabilities (False). None: told from
        the last layers, probabilities where they end in a softmax.
      features: names of layers that student and teacher share, or {student layer: teacher layer}.
        A layer inside another has the path "outer/inner"; a layer that tfmot wrapped is found
        under its own name.
      feature_weight: of the feature part in the loss; >= 0.

    Raises:
      TypeError: not Keras models, or one of each flavour.
      ValueError: temperature, alpha or feature_weight out of range, student and teacher the same,
        an unknown layer, more than one output, or outputs that do not fit (shape; logits against
        probabilities; features that are not stored).
    """

    student: Any
    temperature: float
    alpha: float
    from_logits: bool
    feature_weight: float

    def __new__(cls, student: Any = None, teacher: Any = None, *args: Any, **kwargs: Any) -> Any:
        if cls is not Distiller:
            return super().__new__(cls)
        flavours = [flavour(student, "student")]
        if not isinstance(teacher, TeacherOutputs):
            flavours.append(flavour(teacher, "teacher"))
        if flavours[0] != flavours[-1]:
            raise TypeError(
                f"expected student and teacher of one Keras, got a {flavours[0]} "
                f"student and a {flavours[1]} teacher; rebuild one of them in the other's Keras, "
                "or store the teacher's outputs (tt.TeacherOutputs), which serve both"
            )
        made = _distiller_class(flavours[0])
        return made.__new__(made, student, teacher, *args, **kwargs)


def _check(
    student: Any,
    teacher: Any,
    temperature: float,
    alpha: float,
    from_logits: bool | None,
    feature_weight: float,
) -> bool:
    """Validates the constructor's arguments and returns whether outputs are logits."""
    if student is teacher:
        raise ValueError("expected student and teacher to be two models, got the same one twice")
    if not temperature > 0:
        raise ValueError(f"expected temperature > 0, got {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha from 0 to 1, got {alpha}")
    if not 0 <= feature_weight < float("inf"):
        raise ValueError(f"expected a finite feature_weight >= 0, got {feature_weight}")
    stored = isinstance(teacher, TeacherOutputs)
    check_shapes(static_shape(student), teacher.output_shape if stored else static_shape(teacher))
    if from_logits is not None:
        return from_logits
    ends = ends_in_softmax(student), not teacher.from_logits if stored else ends_in_softmax(teacher)
    if ends[0] != ends[1]:
        words = {True: "probabilities (a softmax)", False: "logits (no softmax)"}
        raise ValueError(
            f"expected student and teacher to end alike, got {words[ends[0]]} from the student and "
            f"{words[ends[1]]} from the teacher; end both alike, or say from_logits=True or "
            "False if both are"
        )
    return not ends[0]


@functools.cache
def _distiller_class(name: str) -> type:
    """Makes the class for one Keras; the other Keras is not imported."""
    import importlib

    keras: Any = importlib.import_module(name)

    class DistillationLoss(keras.losses.Loss):
        """The distillation part as a Keras loss, so that Keras weighs, masks and reduces it like
        the task's."""

        def __init__(self, temperature: float, from_logits: bool):
            super().__init__(name="distillation_loss")
            # tf_keras else refuses to average under a distribution strategy, as it cannot know
            # that the caller divides by the number of replicas.
            self._allow_sum_over_batch_size = True
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
            features: Any = None,
            feature_weight: float = 1.0,
            **kwargs: Any,
        ):
            logits = _check(student, teacher, temperature, alpha, from_logits, feature_weight)
            pairs = feature_pairs(features)
            capture = FeatureCapture(student, list(pairs), "student")
            if isinstance(teacher, TeacherOutputs):
                teacher.require_features(list(pairs.values()))
                run_teacher = None
            else:
                run_teacher = FeatureCapture(
                    teacher, list(dict.fromkeys(pairs.values())), "teacher"
                )
            super().__init__(**kwargs)
            self.student = student
            self._teacher = _Untracked(teacher)
            self._run_teacher = _Untracked(run_teacher)
            self._run_student = _Untracked(capture)
            self._features = _Untracked(pairs)
            self.temperature = temperature
            self.alpha = alpha
            self.from_logits = logits
            self.feature_weight = feature_weight
            self._distillation_loss = DistillationLoss(temperature, logits)
            self._total_tracker = keras.metrics.Mean(name="total_loss")
            self._distillation_tracker = keras.metrics.Mean(name="distillation_loss")
            self._task_tracker = keras.metrics.Mean(name="task_loss")
            if pairs:
                self._feature_tracker = keras.metrics.Mean(name="feature_loss")
            if student.built:
                self.built = True

        @property
        def teacher(self) -> Any:
            return self._teacher.value

        @property
        def features(self) -> dict[str, str]:
            """Student layer -> teacher layer."""
            return self._features.value

        def build(self, input_shape: Any = None) -> None:
            if not self.student.built:
                self.student.build(input_shape)
            self.built = True

        def call(self, inputs: Any, training: bool | None = None) -> Any:
            predictions, captured = self._run_student.value(inputs, training=training)
            if captured:
                # As Keras does with masks: whoever holds the predictions holds what belongs to
                # them, in each thread and each graph.
                predictions._tfmot_ternary_features = captured
            return predictions

        def _task_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            """The task's loss and the student's regularization losses."""
            if not self.loss:  # tf_keras keeps an empty dict for no loss
                raise ValueError(
                    f"expected a task loss, as alpha is {self.alpha} (< 1), got none; give "
                    "compile(loss=...), or alpha=1.0 to learn from the teacher alone"
                )
            return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)

        def _feature_loss(
            self, x: Any, y_pred: Any, teacher: Features, sample_weight: Any, training: bool
        ) -> Any:
            captured = getattr(y_pred, "_tfmot_ternary_features", None)
            if captured is None:  # predictions from elsewhere, as where Keras tries out shapes
                _, captured = self._run_student.value(x, training=training)
            weights = [getattr(y_pred, "_keras_mask", None), sample_weight]
            return matched_loss(self.features, teacher, captured, weights)

        def compute_loss(
            self,
            x: Any = None,
            y: Any = None,
            y_pred: Any = None,
            sample_weight: Any = None,
            training: bool = True,
        ) -> Any:
            """Returns the scalar loss of one batch; called by Keras in train and test steps.

            Under a distribution strategy it is the replica's part of the sum over replicas.
            """
            if self._run_teacher.value is None:
                y, target, theirs = self.teacher.unpack(y)
            else:
                if isinstance(y, Targets):
                    raise ValueError(
                        "expected plain labels, as the teacher is a model, got stored outputs; "
                        "give tt.Distiller the TeacherOutputs in the model's place"
                    )
                target, theirs = self._run_teacher.value(x, training=False)
            check_shapes(tuple(y_pred.shape), tuple(target.shape))
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            distilled = self._distillation_loss(
                tf.stop_gradient(target), y_pred, sample_weight=sample_weight
            )
            if name == "tf_keras":  # Keras 3 has divided already
                distilled = distilled / replicas
            self._distillation_tracker.update_state(distilled * replicas)
            if self.alpha < 1:
                task = self._task_loss(x, y, y_pred, sample_weight)
                self._task_tracker.update_state(task * replicas)
                total = self.alpha * distilled + (1 - self.alpha) * task
            else:
                total = distilled
                for extra in self.losses:
                    total = total + tf.cast(tf.reduce_sum(extra), total.dtype) / replicas
            if self.features:
                matched = self._feature_loss(x, y_pred, theirs, sample_weight, training)
                self._feature_tracker.update_state(matched)
                total = total + tf.cast(self.feature_weight * matched / replicas, total.dtype)
            self._total_tracker.update_state(total * replicas)
            return total

        def compute_metrics(
            self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
        ) -> dict[str, Any]:
            """Updates and returns the compiled metrics, of the labels."""
            if isinstance(y, Targets):
                y = y.task_labels
            return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

        def get_metrics_result(self) -> dict[str, Any]:
            """Renames the total to `loss`: tf_keras would show the task's part under that name."""
            results = super().get_metrics_result()
            results["loss"] = results.pop("total_loss")
            if self.alpha == 1:
                results.pop("task_loss", None)
            return results

    KerasDistiller.__name__ = KerasDistiller.__qualname__ = "Distiller"
    return KerasDistiller
