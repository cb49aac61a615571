"""The quality study: its data, its runs, its training loop and its tables."""

from __future__ import annotations

import dataclasses
import json
import math

import keras
import keras_hub
import numpy as np
import pytest

from benchmarks import quality
from benchmarks.study import report, runs, student, text, trainer
from benchmarks.study.runs import Run
from benchmarks.study.subjects import Data, Subject
from tfmot_ternary.keras3_structure import nested_layers

SEED = 5


def test_text_splits_share_no_document(tmp_path, monkeypatch):
    documents = {f"document {i}": f"word{i} " * 40 for i in range(400)}
    monkeypatch.setattr(text, "_documents", lambda: documents)
    monkeypatch.setattr(text, "VOCABULARY_SIZE", 300)
    made = text.load(tmp_path)
    again = text.load(tmp_path)  # from the file
    assert made.digest == again.digest
    for name, tokens in made.splits.items():
        np.testing.assert_array_equal(tokens, again.splits[name])
    held_out = {name: text._split_of(name) for name in documents}
    shares = [list(held_out.values()).count(s) / 400 for s in ("validation", "test")]
    assert all(0.01 < share < 0.12 for share in shares), shares  # 5 % each, of 400
    windows = made.windows("train", 16)
    np.testing.assert_array_equal(windows[0, 1:], made.splits["train"][1:17])
    np.testing.assert_array_equal(windows[0, -1], windows[1, 0])


def test_every_python_has_text():
    documents = text._documents()
    assert len(documents) > 300
    assert any(name.startswith("topic ") for name in documents)
    assert sum(map(len, documents.values())) > 1_000_000


def test_run_keys():
    all_runs = runs.all_runs(list(runs.EXPERIMENTS), 3)
    assert len({run.key for run in all_runs}) == len(all_runs) == len(set(all_runs))
    assert len(all_runs) < sum(len(runs.runs_of(name, 3)) for name in runs.EXPERIMENTS)
    changed = dataclasses.replace(all_runs[0], settings=(("rate", 1.0),))
    assert changed.key != all_runs[0].key
    # A record made earlier must still be found: the key may change with VERSION only.
    assert Run("lm").key == dataclasses.replace(Run("vlm"), subject="lm").key


def test_phase_of_a_run():
    phase = Run("lm", levels=2, steps=70, settings=(("distill", 0.0),)).phase(
        trainer.Phase(steps=1000), 2e-3
    )
    assert (phase.steps, phase.rate, phase.distill) == (70, 2e-3, 0.0)
    rates = [phase.rate_at(step) for step in range(71)]
    assert max(rates) == pytest.approx(2e-3)
    assert rates[0] == pytest.approx(2e-3 / 7)  # warm-up: a tenth of the steps
    assert rates[70] == pytest.approx(0, abs=1e-9)


def test_quality_of():
    data = Data(
        None,
        np.zeros((3, 2), np.int32),
        np.array([[1, 1], [1, 0], [1, 1]], np.float32),
        np.array([True, True, False]),
    )
    losses = np.array([[1.0, 2.0], [3.0, 99.0], [4.0, 5.0]])
    right = np.array([[True, False], [True, False], [True, True]])
    got = trainer.quality_of(data, losses, right)
    assert got.perplexity == pytest.approx(math.exp(15 / 5))
    assert got.accuracy == 0.5  # the second: its wrong label does not count
    assert trainer.quality_of(
        dataclasses.replace(data, counted=None), losses, right
    ).accuracy == pytest.approx(4 / 5)


class Tiny(Subject):
    """A linear classifier of two classes: quick to train."""

    name = "tiny"
    batch_size = 16
    phase = trainer.Phase(steps=5, rate=1e-2)

    def __init__(self, folder):
        super().__init__(folder)
        keras.utils.set_random_seed(SEED)
        self._model = keras.Sequential(
            [keras.layers.Input((8,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(2)]
        )
        self._model = self._pretrained(
            self._model, trainer.Phase(steps=200, rate=1e-2, distill=0), 32
        )

    @property
    def model(self):
        return self._model

    def batch(self, seed, step, size=None):
        x = np.random.default_rng([seed, step]).standard_normal((size or self.batch_size, 8))
        labels = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
        return Data(x.astype(np.float32), labels, np.ones(len(x), np.float32))

    def held_out(self, split):
        return self.batch(10**6 + len(split), 0, 210)


def test_student_runs(tmp_path):
    subject = Tiny(tmp_path)
    before = [np.array(v) for v in subject.model.variables]
    assert trainer.Trainer(subject.model).score(subject.held_out("test")).accuracy > 0.8
    again = Tiny(tmp_path)  # pre-trained already
    for a, b in zip(before, again.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)

    twin = student.Student(subject, 3, None)
    first = twin.run(Run("tiny", steps=40))
    twin.run(Run("tiny", 1, steps=40, initializer="random"))
    second = twin.run(Run("tiny", steps=40, deployed=True))
    for record in (first, second):
        del record["seconds"]
    deployed, judged = second.pop("deployed"), second.pop("test")
    assert first == second  # a run does not depend on those before it
    assert first["after"]["perplexity"] < first["before"]["perplexity"]
    # int8 activations of an 8-bit range: a hundredth of logits of size 5.
    assert deployed["perplexity"] == pytest.approx(judged["perplexity"], rel=0.05)
    for a, b in zip(before, subject.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    fixed = twin.run(Run("tiny", steps=3, settings=(("rest_rate", 0.0), ("scale_rate", 0.0))))
    assert fixed["after"] != fixed["before"]
    biases = [v for v in twin.model.variables if v.path.endswith("bias")]
    assert len(biases) == 2
    for bias in biases:
        np.testing.assert_array_equal(bias, next(b for b in before if b.shape == bias.shape))
    gradual = student.Student(subject, 3, None, gradual=True)
    slowly = gradual.run(Run("tiny", steps=40, settings=(("gradual", 0.5),)))
    assert slowly["before"]["perplexity"] == pytest.approx(first["before"]["perplexity"])
    assert slowly["after"] != first["after"]
    for kind in ("activations", "gradients", "hessian"):
        weighted = twin.run(Run("tiny", steps=1, importance=kind))
        assert weighted["before"] != first["before"]
    assert weighted["before"]["perplexity"] < first["before"]["perplexity"]
    # A run that starts where another has started takes the same start.
    assert twin.run(Run("tiny", steps=40))["after"] == first["after"]


def test_rotation_keeps_the_function():
    keras.utils.set_random_seed(SEED)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=32, num_layers=2, num_heads=2, hidden_dim=32, intermediate_dim=48,
        dropout=0.0, max_sequence_length=8,
    )  # fmt: skip
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    rng = np.random.default_rng(SEED)
    for variable in model.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape) * 0.3)
    twin = student.keras3.quantize(model, student.tt.TernaryScheme())
    # Compare the float kernels: the quantized ones are another function after the rotation.
    inputs = {
        "token_ids": rng.integers(0, 32, (3, 8)),
        "padding_mask": np.ones((3, 8), np.int32),
    }
    expected = np.asarray(model(inputs))
    student._rotate_values(twin)
    changed = 0
    for (_, source), (_, target) in zip(nested_layers(twin), nested_layers(model), strict=True):
        if student.is_quantized(source):
            new = np.asarray(source.float_weights)
            changed += not np.allclose(new, np.asarray(target.kernel))
            target.kernel.assign(new)
            target.bias.assign(source.bias)
    assert changed == 4  # value and output of two blocks
    # Sums of 48 products in another order.
    np.testing.assert_allclose(np.asarray(model(inputs)), expected, rtol=1e-4, atol=1e-4)
    matrix = student._hadamard(48)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(48), atol=1e-6)


def test_steps_to_reach():
    curve = {0: 100.0, 50: 10.0, 200: 5.0, 1000: 4.0}
    assert report.steps_to_reach(curve, 5.0) == pytest.approx(200)
    assert report.steps_to_reach(curve, 3.9) == math.inf
    assert report.steps_to_reach(curve, 200.0) == 0
    half = report.steps_to_reach(curve, math.sqrt(50.0))  # half way in both logarithms
    assert half == pytest.approx(100.0)


def test_report_of_done_runs(tmp_path):
    """Whatever is done is in the tables; what is not, is a dash or left out."""
    done = {}
    for number, run in enumerate(runs.all_runs(list(runs.EXPERIMENTS), 2)):
        quality_of = {"perplexity": 10.0 + number % 7, "accuracy": 0.5}
        done[run] = {"before": quality_of, "seconds": 60.0, "bits_per_weight": 2.25}
        if run.levels is not None:
            done[run] |= {"after": quality_of}
        if run.deployed:
            done[run]["deployed"] = {**quality_of, "file_bytes": 4321}
    names = list(runs.EXPERIMENTS)
    report.write(tmp_path, names, 2, done.get)
    record = json.loads((tmp_path / "study.json").read_text())
    assert record["run_minutes"] == len(done)
    page = (tmp_path / "study.md").read_text()
    for title in report.TITLES.values():
        assert f"Initializers: {title}" in page
        assert title == report.TITLES["vlm"] or f"Versions: {title}" in page
    for name in (*runs.RECIPES, *runs.LOSSES, *runs.STARTS, "g64", "error compensation"):
        assert f"| {name} " in page, name
    for plot in ("initializers", "granularity", "versions"):
        assert (tmp_path / f"{plot}.png").stat().st_size > 5000
    some = {run: record for run, record in done.items() if run.subject == "cnn"}
    report.write(tmp_path, names, 2, some.get)
    assert "GPT-2" not in (tmp_path / "study.md").read_text()


def test_portions_keep_runs_together():
    todo = runs.all_runs(["initializers"], 3)
    portions = quality._portions(todo)
    assert sorted(map(hash, todo)) == sorted(hash(run) for p in portions for run in p)
    for portion in portions:
        assert len({run.compiled for run in portion}) == 1
        assert sum(run.steps for run in portion) <= quality._PORTION
