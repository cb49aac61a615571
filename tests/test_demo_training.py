"""The demo's training loop on a toy: an interrupted training ends like one that was not."""

from __future__ import annotations

import json
import pathlib

import keras
import numpy as np
import pytest

from tfmot_ternary.checkpoint import Checkpoint
from tfmot_ternary.demo import model as demo_model
from tfmot_ternary.demo import pretraining, questions, scores
from tfmot_ternary.demo.batches import Batch
from tfmot_ternary.demo.training import WarmupCosine, train

STEPS = 12


def _toy() -> keras.Model:
    keras.utils.set_random_seed(5)
    inputs = {"x": keras.Input((6,), name="x")}
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs["x"]))
    model.compile(
        keras.optimizers.Adam(WarmupCosine(0.05, STEPS, 3)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _batch(step: int) -> Batch:
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(8, 6)).astype(np.float32)
    return Batch({"x": x}, (x[:, 0] > 0).astype(np.int32), np.ones(8, np.float32))


def _run(checkpoint: Checkpoint, stop_at: int | None = None) -> tuple[list, list]:
    def make(step: int) -> Batch:
        if step == stop_at:
            raise RuntimeError("the power went out")
        return _batch(step)

    model = _toy()
    history = train(model, make, STEPS, checkpoint=checkpoint, every=4, progress=False)
    return model.get_weights(), history


def test_interrupted_training_ends_like_an_uninterrupted_one(tmp_path: pathlib.Path) -> None:
    settings = {"steps": STEPS}
    weights, history = _run(Checkpoint(tmp_path / "whole.npz", settings))
    with pytest.raises(Exception, match="the power went out"):
        _run(Checkpoint(tmp_path / "parts.npz", settings), stop_at=10)
    weights_again, history_again = _run(Checkpoint(tmp_path / "parts.npz", settings))
    assert [entry["step"] for entry in history] == [4, 8, 12]
    assert history_again == history
    for a, b in zip(weights, weights_again, strict=True):
        np.testing.assert_array_equal(a, b)  # the same batches through the same operations


def test_pretraining_writes_a_preset_that_loads(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One layer each: XLA compiles it in a fifth of the time.
    small = {**demo_model.BACKBONE, "num_layers": 1, "vit_num_layers": 1}
    monkeypatch.setattr(demo_model, "BACKBONE", small)
    output = tmp_path / "preset"
    output.mkdir()
    (output / "old").touch()
    result = pretraining.pretrain(
        output,
        seed=4,
        recipe=pretraining.Recipe(steps=4, batch_size=8),
        checkpoint_dir=tmp_path / "state",
        progress=False,
    )
    about = json.loads((output / "pretraining.json").read_text())
    assert about["seed"] == 4
    assert about["test"]["perplexity"] == result.perplexity
    assert not list((tmp_path / "state").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preset", "state"]
    assert not (output / "old").exists()
    loaded = demo_model.load_preset(output)
    assert loaded.backbone.num_layers == 1
    again = scores.measure(loaded, questions.split("test", 100))
    fresh = demo_model.build(seed=4)
    assert again != scores.measure(fresh, questions.split("test", 100))  # it has been trained


def test_schedule_rises_and_falls() -> None:
    schedule = WarmupCosine(peak=2.0, steps=110, warmup=10, end=0.5)
    values = [float(schedule(step)) for step in range(111)]
    assert values[0] == pytest.approx(0.2)
    assert values[9] == pytest.approx(2.0)
    # Half way down the cosine: the mean of peak and end.
    assert values[60] == pytest.approx(1.25, rel=1e-5)
    assert values[110] == pytest.approx(0.5, rel=1e-5)
    assert max(values) == pytest.approx(2.0)


def test_phases_cover_all_steps() -> None:
    recipe = pretraining.Recipe(steps=100)
    assert sum(phase.share for phase in recipe.phases) == pytest.approx(1)
    assert [recipe.phases.index(recipe.phase(step)) for step in (0, 7, 8, 24, 25, 99)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    for phase in recipe.phases:
        assert sum(phase.shares.values()) == pytest.approx(1)
