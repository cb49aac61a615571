"""TeacherOutputs: training from disk is that beside the teacher; interruptions, wrong folders."""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any

import causal_lms
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import distill, row_file
from tfmot_ternary.teacher_outputs import TeacherOutputs

FLAVOURS = ("keras", "tf_keras")
SEED = 29
EXAMPLES = 37  # no multiple of a batch


@pytest.fixture(params=FLAVOURS)
def keras(request: pytest.FixtureRequest) -> Any:
    return _module(request.param)


def _module(name: str) -> Any:
    module = importlib.import_module(name)
    module.utils.set_random_seed(SEED)
    return module


def _classifier(keras: Any, width: int = 6, classes: int = 5) -> Any:
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(width, activation="tanh", name="block"),
            keras.layers.Dense(classes, name="head"),
        ]
    )


def _data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(EXAMPLES, 8)).astype(np.float32)
    return x, rng.integers(0, 5, EXAMPLES), rng.uniform(0, 2, EXAMPLES).astype(np.float32)


def _compute(teacher: Any, x: Any, path: Any, **options: Any) -> TeacherOutputs:
    return TeacherOutputs.compute(teacher, x, path, batch_size=8, verbose=False, **options)


def _compiled(keras: Any, student: Any, teacher: Any, **options: Any) -> Any:
    distiller = distill.Distiller(student, teacher, **options)
    distiller.compile(
        keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    return distiller


def test_training_from_disk_is_training_beside_the_teacher(keras: Any, tmp_path: Any) -> None:
    x, y, weights = _data()
    teacher, twins = _classifier(keras), [_classifier(keras) for _ in range(2)]
    twins[1].set_weights(twins[0].get_weights())
    outputs = _compute(teacher, x, tmp_path / "outputs", features=("block",))
    np.testing.assert_allclose(outputs.predictions, teacher.predict(x, verbose=0), atol=1e-6)
    assert len(outputs) == EXAMPLES
    assert outputs.from_logits

    options = {"alpha": 0.7, "features": ("block",)}
    live = _compiled(keras, twins[0], teacher, **options)
    expected = live.fit(
        x, y, sample_weight=weights, batch_size=10, epochs=3, shuffle=False, verbose=0
    )
    stored = _compiled(keras, twins[1], TeacherOutputs(outputs.path), **options)
    dataset = outputs.dataset(x, y, 10, sample_weight=weights)
    got = stored.fit(dataset, epochs=3, verbose=0, validation_data=dataset)
    assert set(got.history) == {*expected.history, *("val_" + name for name in expected.history)}
    for name, values in expected.history.items():
        # Float32 rounding of the teacher in batches of 8 and of 10, through 12 steps of Adam.
        np.testing.assert_allclose(got.history[name], values, rtol=1e-4)
    for a, b in zip(*(twin.get_weights() for twin in twins), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_causal_language_model(tmp_path: Any) -> None:
    """Inputs in a dict, weights per position, a block's output."""
    keras = _module("keras")
    teacher = causal_lms.gemma(SEED)
    student = causal_lms.gemma(SEED + 1)
    x, y, weights = teacher.preprocessor(list(causal_lms.PROMPTS))
    block = f"{teacher.backbone.name}/decoder_block_1"
    features = {f"{student.backbone.name}/decoder_block_1": block}

    def logs(source: Any, batch: Any) -> dict[str, float]:
        distiller = distill.Distiller(
            student, source, from_logits=True, features=features, alpha=0.5
        )
        distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        found = distiller.test_on_batch(*batch, return_dict=True)
        return {name: float(value) for name, value in found.items()}

    outputs = TeacherOutputs.compute(
        teacher,
        x,
        tmp_path / "outputs",
        batch_size=3,
        features=features,
        from_logits=True,
        verbose=False,
    )
    assert outputs.features[block][0].shape == (4, causal_lms.SEQUENCE_LENGTH, 64)
    got = logs(outputs, next(iter(outputs.dataset(x, y, 4, sample_weight=weights))))
    for name, value in logs(teacher, (x, y, weights)).items():
        # Float32, rounded in batches of another size.
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_half_precision_on_disk(keras: Any, tmp_path: Any) -> None:
    x, y, _ = _data()
    teacher, student = _classifier(keras), _classifier(keras)
    stored = [_compute(teacher, x, tmp_path / d, dtype=d) for d in ("float32", "float16")]
    assert [outputs.predictions.itemsize for outputs in stored] == [4, 2]
    distiller = _compiled(keras, student, stored[0])
    full, half = (
        distiller.evaluate(outputs.dataset(x, y), verbose=0, return_dict=True)["loss"]
        for outputs in stored
    )
    assert half == pytest.approx(full, rel=1e-3)  # logits off by up to 1/2048
    assert half != full


def test_teacher_of_the_other_keras(tmp_path: Any) -> None:
    x, _, _ = _data()
    # Both modules draw the same weights from the same seed: the widths differ.
    teacher, student = _classifier(_module("keras")), _classifier(_module("tf_keras"), width=9)
    outputs = _compute(teacher, x, tmp_path / "outputs")
    distiller = distill.Distiller(student, outputs, alpha=1.0)
    distiller.compile("adam")
    dataset = outputs.dataset(x, batch_size=16, shuffle=True, seed=1)
    losses = distiller.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]


def test_rows_stay_together_in_every_order(keras: Any, tmp_path: Any) -> None:
    x = {"a": np.arange(EXAMPLES, dtype=np.float32)[:, np.newaxis], "b": np.zeros((EXAMPLES, 2))}
    inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((2,), name="b")}
    doubled = keras.layers.Dense(3, kernel_initializer="ones", use_bias=False)(inputs["a"])
    teacher = keras.Model(inputs, doubled)
    outputs = _compute(teacher, x, tmp_path / "outputs")
    y, weights = np.arange(EXAMPLES) + 100, np.arange(EXAMPLES, dtype=np.float32) / 2

    def epochs(**options: Any) -> list[list[int]]:
        dataset = outputs.dataset(x, y, 8, sample_weight=weights, **options)
        orders = []
        for _ in range(2):
            order: list[int] = []
            for inputs, targets, weight in dataset:
                rows = inputs["a"].numpy()[:, 0]
                np.testing.assert_array_equal(targets.labels, rows + 100)
                np.testing.assert_array_equal(targets.predictions, np.stack([rows] * 3, axis=-1))
                np.testing.assert_array_equal(weight, rows / 2)
                order += rows.astype(int).tolist()
            orders.append(order)
        return orders

    assert epochs() == [list(range(EXAMPLES))] * 2
    first, second = epochs(shuffle=True, seed=3)
    assert sorted(first) == sorted(second) == list(range(EXAMPLES))
    assert first != second
    assert [first, second] == epochs(shuffle=True, seed=3)
    assert first != epochs(shuffle=True, seed=4)[0]
    assert len(epochs(drop_remainder=True)[0]) == EXAMPLES // 8 * 8
    dataset = outputs.dataset(x, y, 8)
    assert dataset.cardinality() == -(-EXAMPLES // 8)  # fit's progress bar knows the end
    assert dataset.element_spec[1].predictions.shape == (None, 3)


def test_interrupted_run_goes_on(keras: Any, tmp_path: Any, monkeypatch: Any) -> None:
    x, _, _ = _data()
    teacher = _classifier(keras)
    whole = _compute(teacher, x, tmp_path / "whole", features=("block",))
    path, part = tmp_path / "outputs", tmp_path / "outputs.part"
    append, rows = row_file.RowFile.append, []

    def interrupted(self: Any, values: np.ndarray) -> None:
        if len(rows) == 5:  # the second file of the third batch
            raise KeyboardInterrupt
        rows.append(len(values))
        append(self, values)

    monkeypatch.setattr(row_file.RowFile, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _compute(teacher, x, path, features=("block",))
    monkeypatch.setattr(row_file.RowFile, "append", append)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="got an interrupted run in .*outputs.part; call"):
        TeacherOutputs(path)
    with pytest.raises(ValueError, match="damaged or missing file"):  # nor does a part look whole
        TeacherOutputs(part)
    with pytest.raises(ValueError, match="expected outputs of the same teacher"):
        _compute(_classifier(keras), x, path, features=("block",))
    with pytest.raises(ValueError, match=r"expected outputs of the same examples \(digest"):
        _compute(teacher, x[::-1], path, features=("block",))
    # A kill in the middle of a write leaves half a row.
    with (part / "predictions.npy").open("r+b") as file:
        file.truncate((part / "predictions.npy").stat().st_size - 7)

    written: list[int] = []

    def counted(self: Any, values: np.ndarray) -> None:
        written.append(len(values))
        append(self, values)

    monkeypatch.setattr(row_file.RowFile, "append", counted)
    outputs = _compute(teacher, x, path, features=("block",))
    # Whole rows of both files: the features have two batches, the predictions three less a row.
    assert sum(written) == 2 * (EXAMPLES - 16)
    assert not part.exists()
    # Rounding in batches that begin elsewhere.
    np.testing.assert_allclose(outputs.predictions, whole.predictions, atol=1e-6)
    np.testing.assert_allclose(outputs.features["block"][0], whole.features["block"][0], atol=1e-6)

    written.clear()
    again = _compute(teacher, x, path, features=("block",))
    assert not written  # finished: nothing is computed
    np.testing.assert_array_equal(again.predictions, outputs.predictions)


def test_row_file_is_whole_or_refused(tmp_path: Any) -> None:
    path, values = tmp_path / "rows.npy", np.arange(12, dtype=np.float16).reshape(4, 3)
    file = row_file.RowFile(path, (4, 3), "float16")
    for row in values:
        with pytest.raises(ValueError, match="damaged or missing file"):
            row_file.open_rows(path, (4, 3), "float16")
        file.append(row[np.newaxis])
    np.testing.assert_array_equal(row_file.open_rows(path, (4, 3), "float16"), values)
    with pytest.raises(ValueError, match="expected at most 0 rows of shape"):
        file.append(values)
    assert row_file.RowFile(path, (4, 3), "float16").rows == 4
    with pytest.raises(ValueError, match=r"float16\[5, 3\] in .*, got float16\[4, 3\]"):
        row_file.open_rows(path, (5, 3), "float16")
    assert row_file.RowFile(path, (5, 3), "float16").rows == 0  # another header: begun anew


def test_outputs_that_do_not_fit_are_refused(keras: Any, tmp_path: Any) -> None:
    x, y, _ = _data()
    teacher, path = _classifier(keras), tmp_path / "outputs"
    outputs = _compute(teacher, x, path)
    TeacherOutputs(path, teacher=teacher)
    with pytest.raises(ValueError, match="expected outputs of the same teacher"):
        TeacherOutputs(path, teacher=_classifier(keras))
    with pytest.raises(ValueError, match="expected outputs of the same teacher"):
        _compute(_classifier(keras), x, path)
    with pytest.raises(ValueError, match="the same number of examples: 36, got 37"):
        _compute(teacher, x[:-1], path)
    with pytest.raises(ValueError, match="the same dtype: 'float16', got 'float32'"):
        _compute(teacher, x, path, dtype="float16")
    with pytest.raises(ValueError, match="the same features"):
        _compute(teacher, x, path, features=("block",))

    with pytest.raises(ValueError, match="expected 37 examples, as the teacher saw, got 36 in x"):
        outputs.dataset(x[:-1], y)
    with pytest.raises(ValueError, match="got 36 in y"):
        outputs.dataset(x, y[:-1])
    with pytest.raises(ValueError, match="in their order, got others"):
        outputs.dataset(x[::-1], y)
    outputs.dataset(x[:, :2], y, same_x=False)  # a student with inputs of its own
    with pytest.raises(TypeError, match="expected x to be an array, .* got .*Dataset"):
        outputs.dataset(tf.data.Dataset.from_tensor_slices(x), y)

    with pytest.raises(ValueError, match=r"one shape, got \(None, 6\) .* \(None, 5\)"):
        distill.Distiller(_classifier(keras, classes=6), outputs)
    with pytest.raises(ValueError, match=r"teacher layers \['block'\], got \[\]; compute"):
        distill.Distiller(_classifier(keras), outputs, features=("block",))
    softmax = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5, "softmax")])
    with pytest.raises(ValueError, match="end alike, got probabilities .* and logits"):
        distill.Distiller(softmax, outputs)
    distiller = _compiled(keras, _classifier(keras), outputs)
    with pytest.raises(ValueError, match="stored outputs, got labels alone; train with"):
        distiller.fit(x, y, verbose=0)
    distiller = _compiled(keras, _classifier(keras), teacher)
    with pytest.raises(ValueError, match="the teacher is a model, got stored outputs"):
        distiller.fit(outputs.dataset(x, y), verbose=0)
    wide = _compute(_classifier(keras, width=7), x, tmp_path / "wide", features=("block",))
    distiller = _compiled(keras, _classifier(keras), wide, features=("block",))
    with pytest.raises(ValueError, match=r"of one shape, got \(.*6\) and \(.*7\)"):
        distiller.fit(wide.dataset(x, y), verbose=0)


def test_damaged_folders_are_refused(tmp_path: Any) -> None:
    x, _, _ = _data()
    teacher = _classifier(_module("tf_keras"))

    def damaged(name: str) -> pathlib.Path:
        return _compute(teacher, x, tmp_path / name).path

    with pytest.raises(FileNotFoundError, match="got nothing; make them with"):
        TeacherOutputs(tmp_path / "nowhere")
    path = damaged("cut")
    with (path / "predictions.npy").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ValueError, match="predictions.npy, got a damaged or missing file"):
        TeacherOutputs(path)
    path = damaged("missing")
    (path / "predictions.npy").unlink()
    with pytest.raises(ValueError, match="predictions.npy, got a damaged or missing file"):
        TeacherOutputs(path)
    path = damaged("empty")
    (path / "predictions.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="predictions.npy, got a damaged or missing file"):
        TeacherOutputs(path)
    path = damaged("other array")
    np.save(path / "predictions.npy", np.zeros((EXAMPLES, 4), np.float32))
    with pytest.raises(ValueError, match=r"float32\[37, 5\] .*, got float32\[37, 4\]"):
        TeacherOutputs(path)
    path = damaged("no json")
    (path / "outputs.json").unlink()
    with pytest.raises(ValueError, match="got a damaged or other outputs.json"):
        TeacherOutputs(path)
    with pytest.raises(ValueError, match="got a damaged or other outputs.json"):
        _compute(teacher, x, path)  # never written over
    for text in ("{", "[]", "{}", json.dumps({"version": 1}), json.dumps({"version": 9})):
        (path / "outputs.json").write_text(text)
        with pytest.raises(ValueError, match="got a damaged or other outputs.json"):
            TeacherOutputs(path)


def test_values_that_do_not_fit_are_refused(keras: Any, tmp_path: Any) -> None:
    x, _, _ = _data()
    teacher = _classifier(keras)
    teacher.set_weights([w * 1e6 for w in teacher.get_weights()])
    with pytest.raises(ValueError, match=r'float16 .* examples 0 to 7; use dtype="float32"'):
        _compute(teacher, x, tmp_path / "outputs", dtype="float16")
    x[12, 3] = np.nan
    with pytest.raises(ValueError, match="examples 8 to 15; the model itself gives NaN"):
        _compute(_classifier(keras), x, tmp_path / "nan")
    with pytest.raises(ValueError, match="expected dtype float16 or float32, got 'int8'"):
        _compute(teacher, x, tmp_path / "int8", dtype="int8")
    with pytest.raises(TypeError, match="expected the teacher to be a keras.Model"):
        _compute("teacher", x, tmp_path / "none")
    with pytest.raises(ValueError, match="arrays of one length in x"):
        _compute(teacher, [x, x[:3]], tmp_path / "lengths")
    with pytest.raises(ValueError, match="layer of the teacher, got 'blok'; close to it"):
        _compute(teacher, x, tmp_path / "layer", features="blok")
