"""Distiller: one loss for tf_keras and Keras 3, held against NumPy, and errors for models that do
not fit."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from scipy import special

from tfmot_ternary import distill

FLAVOURS = ("keras", "tf_keras")
SEED = 11


def _classifier(keras: Any, width: int, activation: str | None = None, classes: int = 5) -> Any:
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(width, activation="tanh"),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


def _language_model(keras: Any, width: int) -> Any:
    tokens = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, width)(tokens)
    x = keras.layers.Dense(width, activation="tanh")(x)
    return keras.Model(tokens, keras.layers.Dense(20)(x))


def _numpy_loss(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    p = special.softmax(teacher.astype(np.float64) / temperature, axis=-1)
    q = special.softmax(student.astype(np.float64) / temperature, axis=-1)
    return special.rel_entr(p, q).sum(axis=-1) * temperature**2


@pytest.fixture(params=FLAVOURS)
def keras(request: pytest.FixtureRequest) -> Any:
    module = importlib.import_module(request.param)
    module.utils.set_random_seed(SEED)
    return module


def test_loss_matches_numpy() -> None:
    rng = np.random.default_rng(SEED)
    teacher, student = rng.normal(size=(2, 7, 9)).astype(np.float32) * 4
    for temperature in (0.5, 1.0, 3.0):
        ours = distill.distillation_loss(teacher, student, temperature, True).numpy()
        # float32 logits of size 12 through exp and log: relative error of some 1e-6, on sums near
        # 10.
        np.testing.assert_allclose(ours, _numpy_loss(teacher, student, temperature), atol=2e-5)
        probabilities = [special.softmax(x, axis=-1) for x in (teacher, student)]
        also = distill.distillation_loss(*probabilities, temperature, False).numpy()
        np.testing.assert_allclose(also, ours, atol=5e-5)  # one rounding of each probability more


def test_total_is_the_mix_of_both_losses(keras: Any) -> None:
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(32, 8)).astype(np.float32)
    y = rng.integers(0, 5, 32)
    weight = rng.uniform(0, 2, 32).astype(np.float32)
    teacher, student = _classifier(keras, 16), _classifier(keras, 4)
    distiller = distill.Distiller(student, teacher, temperature=3.0, alpha=0.3)
    assert isinstance(distiller, keras.Model)
    assert isinstance(distiller, distill.Distiller)
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = distiller.evaluate(
        x, y, sample_weight=weight, batch_size=32, verbose=0, return_dict=True
    )
    logits = student.predict(x, verbose=0)
    distilled = (_numpy_loss(teacher.predict(x, verbose=0), logits, 3.0) * weight).mean()
    task = -(special.log_softmax(logits, axis=-1)[np.arange(32), y] * weight).mean()
    # Float32 sums of 32 terms of size 1.
    assert logs["distillation_loss"] == pytest.approx(distilled, rel=1e-5)
    assert logs["task_loss"] == pytest.approx(task, rel=1e-5)
    assert logs["loss"] == pytest.approx(0.3 * distilled + 0.7 * task, rel=1e-5)


def test_classifier_comes_closer_to_its_teacher(keras: Any) -> None:
    x = np.random.default_rng(SEED).normal(size=(256, 8)).astype(np.float32)
    teacher, student = _classifier(keras, 32), _classifier(keras, 16)
    before = [w.copy() for w in teacher.get_weights()]
    distiller = distill.Distiller(student, teacher, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(1e-2))
    history = distiller.fit(x, np.zeros(256), epochs=12, batch_size=32, verbose=0).history
    assert history["distillation_loss"][-1] < 0.2 * history["distillation_loss"][0]
    assert "task_loss" not in history
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(distiller.weights) == len(student.weights) or keras.__name__ == "tf_keras"
    assert [id(w) for w in distiller.trainable_weights] == [
        id(w) for w in student.trainable_weights
    ]


def test_language_model_learns_only_where_weighted(keras: Any) -> None:
    rng = np.random.default_rng(SEED)
    tokens = rng.integers(0, 20, (64, 6))
    weight = np.zeros((64, 6), np.float32)
    weight[:, 3:] = 1
    teacher, student = _language_model(keras, 16), _language_model(keras, 16)
    distiller = distill.Distiller(student, teacher, temperature=1.0, alpha=0.9)
    distiller.compile(
        keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    first = distiller.evaluate(tokens, tokens, sample_weight=weight, verbose=0, return_dict=True)
    losses = _numpy_loss(
        teacher.predict(tokens, verbose=0), student.predict(tokens, verbose=0), 1.0
    )
    # Keras' default reduction divides by all positions.
    expected = (losses * weight).sum() / weight.size
    assert first["distillation_loss"] == pytest.approx(expected, rel=1e-4)
    distiller.fit(tokens, tokens, sample_weight=weight, epochs=5, verbose=0)
    last = distiller.evaluate(tokens, tokens, sample_weight=weight, verbose=0, return_dict=True)
    assert last["loss"] < first["loss"]


def test_probabilities_are_recognized(keras: Any) -> None:
    x = np.random.default_rng(SEED).normal(size=(16, 8)).astype(np.float32)
    teacher, student = (_classifier(keras, width, "softmax") for width in (8, 4))
    distiller = distill.Distiller(student, teacher, temperature=2.0, alpha=1.0)
    assert not distiller.from_logits
    distiller.compile("sgd")
    logs = distiller.evaluate(x, np.zeros(16), batch_size=16, verbose=0, return_dict=True)
    logits = [np.log(m.predict(x, verbose=0)) for m in (teacher, student)]
    # The probabilities were rounded to float32 before the logarithm.
    assert logs["loss"] == pytest.approx(_numpy_loss(*logits, 2.0).mean(), rel=1e-3)


def test_interrupted_training_goes_on(keras: Any, tmp_path: Any) -> None:
    x = np.random.default_rng(SEED).normal(size=(64, 8)).astype(np.float32)
    y = np.zeros(64)

    def fresh() -> Any:
        keras.utils.set_random_seed(SEED)
        teacher, student = _classifier(keras, 16), _classifier(keras, 8)
        distiller = distill.Distiller(student, teacher, alpha=1.0)
        distiller.compile(keras.optimizers.Adam(1e-2))
        return distiller

    class Interruption(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    whole = fresh()
    whole.fit(x, y, epochs=4, shuffle=False, verbose=0)
    first = fresh()
    with pytest.raises(KeyboardInterrupt):
        first.fit(x, y, epochs=4, shuffle=False, verbose=0, callbacks=[backup(), Interruption()])
    second = fresh()
    second.fit(x, y, epochs=4, shuffle=False, verbose=0, callbacks=[backup()])
    for a, b in zip(whole.student.get_weights(), second.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # the same steps, in another graph


def test_weights_file_holds_the_student_alone(keras: Any, tmp_path: Any) -> None:
    x = np.zeros((4, 8), np.float32)
    teacher, student = _classifier(keras, 64), _classifier(keras, 4)
    distiller = distill.Distiller(student, teacher, alpha=1.0)
    distiller.compile("sgd")
    distiller.fit(x, np.zeros(4), verbose=0)
    path = tmp_path / "w.weights.h5"
    distiller.save_weights(str(path))
    saved = student.get_weights()
    student.set_weights([w + 1 for w in saved])
    distiller.load_weights(str(path))
    for a, b in zip(saved, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_models_that_do_not_fit_are_refused(keras: Any) -> None:
    student = _classifier(keras, 4)
    with pytest.raises(ValueError, match=r"one shape, got \(None, 5\) .* \(None, 6\)"):
        distill.Distiller(student, _classifier(keras, 4, classes=6))
    with pytest.raises(ValueError, match="got the same one twice"):
        distill.Distiller(student, student)
    with pytest.raises(ValueError, match="end alike, got logits .* and probabilities"):
        distill.Distiller(student, _classifier(keras, 4, "softmax"))
    with pytest.raises(ValueError, match="temperature > 0, got 0"):
        distill.Distiller(student, _classifier(keras, 4), temperature=0)
    with pytest.raises(ValueError, match="alpha from 0 to 1, got 1.5"):
        distill.Distiller(student, _classifier(keras, 4), alpha=1.5)
    with pytest.raises(TypeError, match="expected the student to be a keras.Model"):
        distill.Distiller("model", student)
    inputs = keras.Input((8,))
    two = keras.Model(inputs, [keras.layers.Dense(5)(inputs), keras.layers.Dense(5)(inputs)])
    with pytest.raises(ValueError, match="expected the teacher to have one output"):
        distill.Distiller(student, two)


def test_missing_task_loss_is_named(keras: Any) -> None:
    distiller = distill.Distiller(_classifier(keras, 4), _classifier(keras, 4), alpha=0.5)
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="expected a task loss, as alpha is 0.5"):
        distiller.fit(np.zeros((4, 8), np.float32), np.zeros(4), verbose=0)


def test_flavours_do_not_mix() -> None:
    models = [_classifier(importlib.import_module(name), 4) for name in FLAVOURS]
    with pytest.raises(TypeError, match="got a keras student and a tf_keras teacher"):
        distill.Distiller(*models)


def test_student_quantized_by_tfmot() -> None:
    import tensorflow_model_optimization as tfmot

    from tfmot_ternary import scheme

    keras = importlib.import_module("tf_keras")
    keras.utils.set_random_seed(SEED)
    x = np.random.default_rng(SEED).normal(size=(256, 8)).astype(np.float32)
    teacher = _classifier(keras, 32, "softmax")
    annotated = tfmot.quantization.keras.quantize_annotate_model(teacher)
    student = tfmot.quantization.keras.quantize_apply(annotated, scheme.TernaryScheme())
    distiller = distill.Distiller(student, teacher, alpha=1.0)
    assert not distiller.from_logits
    distiller.compile(keras.optimizers.Adam(5e-3))
    losses = distiller.fit(x, np.zeros(256), epochs=8, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
