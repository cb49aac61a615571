"""The demo's preset, tokenizer, batches, scores and recovery."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from scipy import special

from tfmot_ternary import checkpoint, scheme
from tfmot_ternary.demo import batches, model, questions, recovery, scenes, scores


@pytest.fixture(scope="module")
def causal_lm() -> Any:
    return model.load_preset()


@pytest.fixture(scope="module")
def samples() -> list[questions.Sample]:
    return questions.split("validation", 60, seed=5)


def _preprocessed(causal_lm: Any, samples: list[questions.Sample]) -> Any:
    return causal_lm.preprocessor(
        {
            "images": np.stack([sample.image for sample in samples]).astype(np.float32),
            "prompts": [sample.prompt for sample in samples],
            "responses": [sample.answer for sample in samples],
        }
    )


def test_tokenizer_is_the_one_that_training_makes(causal_lm: Any) -> None:
    tokenizer = causal_lm.preprocessor.tokenizer
    assert tokenizer.proto == model.train_tokenizer()
    assert tokenizer.vocabulary_size() == causal_lm.backbone.vocabulary_size == 256
    special_ids = [tokenizer.token_to_id(token) for token in ("<pad>", "<eos>", "<bos>")]
    assert special_ids == [0, 1, 2]


def test_tokenizer_round_trip(causal_lm: Any) -> None:
    tokenizer = causal_lm.preprocessor.tokenizer
    texts = questions.corpus() + [f"how many {name}?" for name in questions.PLURALS]
    for text in [*texts, "is it raining, or not?"]:
        assert tokenizer.detokenize(tokenizer(text)) == text


def test_longest_text_fits(causal_lm: Any) -> None:
    tokenizer = causal_lm.preprocessor.tokenizer
    made = scenes.render(scenes.digits("train"), 2000, np.random.default_rng(1))
    asked = questions.texts(made.cells, 0.1, np.random.default_rng(2))
    texts = sorted({text for pair in asked for text in pair[:2]})
    size = {text: len(ids) for text, ids in zip(texts, tokenizer(texts), strict=True)}
    longest = max(size[prompt] + size[answer] + 2 for prompt, answer, _ in asked)
    assert longest == batches.TEXT_LENGTH <= model.SEQUENCE_LENGTH


def test_preset_fits_the_code(causal_lm: Any) -> None:
    backbone = causal_lm.backbone
    assert {name: getattr(backbone, name) for name in model.BACKBONE} == model.BACKBONE
    assert causal_lm.preprocessor.sequence_length == model.SEQUENCE_LENGTH
    assert causal_lm.preprocessor.image_converter.image_size == (32, 32)
    files = [path for path in model.PRESET.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    about = json.loads((model.PRESET / "pretraining.json").read_text())
    assert about["backbone"] == model.BACKBONE


def test_missing_preset_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a KerasHub preset .* found none"):
        model.load_preset(tmp_path)


def test_encoder_packs_as_the_preprocessor_does(
    causal_lm: Any, samples: list[questions.Sample]
) -> None:
    encoder = batches.TextEncoder(causal_lm.preprocessor.tokenizer, model.SEQUENCE_LENGTH)
    ours = batches.held_out(encoder, samples)
    inputs, labels, weights = _preprocessed(causal_lm, samples)
    for name in ("token_ids", "padding_mask", "response_mask"):
        np.testing.assert_array_equal(ours.inputs[name], np.asarray(inputs[name]))
    np.testing.assert_array_equal(ours.labels, np.asarray(labels))
    np.testing.assert_array_equal(ours.weights, np.asarray(weights))
    # One multiplication and one addition in float32 on values up to 1.
    np.testing.assert_allclose(ours.inputs["images"], np.asarray(inputs["images"]), atol=3e-7)


def test_too_long_a_text_is_refused(causal_lm: Any) -> None:
    encoder = batches.TextEncoder(causal_lm.preprocessor.tokenizer)
    image = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="expected at most 13 tokens"):
        encoder(image, [("what is the sum of the sum of the sum of the top row?", "3")])


def test_training_batches_are_deterministic_and_ahead_keeps_order(causal_lm: Any) -> None:
    encoder = batches.TextEncoder(causal_lm.preprocessor.tokenizer)

    def make(step: int) -> batches.Batch:
        return batches.training_batch(encoder, 8, seed=3, step=step, caption_share=0.5)

    for step, batch in enumerate(batches.ahead(make, 4, 9), start=4):
        again = make(step)
        np.testing.assert_array_equal(batch.inputs["images"], again.inputs["images"])
        np.testing.assert_array_equal(batch.labels, again.labels)


def test_errors_in_the_thread_arrive() -> None:
    def make(step: int) -> Any:
        if step == 2:
            raise ValueError("step 2 is bad")
        return step

    stream = batches.ahead(make, 0, 5)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="step 2 is bad"):
        next(stream)


def test_model_knows_the_task(causal_lm: Any) -> None:
    result = scores.measure(causal_lm, questions.split("test", 400))
    # The bar is 0.90 on 1000 samples; 320 questions have a standard deviation of 0.017 there.
    assert result.accuracy >= 0.90
    assert result.samples == 400


def test_scores_match_the_preprocessor_and_numpy(
    causal_lm: Any, samples: list[questions.Sample]
) -> None:
    inputs, labels, weights = _preprocessed(causal_lm, samples)
    logits = np.asarray(causal_lm(inputs))
    labels, weights = np.asarray(labels), np.asarray(weights)
    chosen = np.take_along_axis(special.log_softmax(logits, axis=-1), labels[..., None], -1)[..., 0]
    result = scores.measure(causal_lm, samples, batch_size=25)
    # float32 logits near 10 with 16 rather than 12 positions: some 1e-5 a token.
    assert result.perplexity == pytest.approx(np.exp(-chosen[weights > 0].mean()), rel=1e-4)


def test_scores_agree_with_greedy_generation(
    causal_lm: Any, samples: list[questions.Sample]
) -> None:
    # The k-means start of a binary model is wrong about half of the time, so both cases are seen.
    binary = recovery.recover(causal_lm, scheme.BinaryScheme(), steps=0).causal_lm
    right = []
    for sample in samples[:8]:
        text = binary.generate(
            {"images": sample.image.astype(np.float32), "prompts": sample.prompt},
            strip_prompt=True,
        )
        right.append(str(text).strip() == sample.answer)
    _, forced = scores.judge(binary, samples[:8])
    assert right == forced.tolist()
    assert 0 < sum(right) < 8


def test_no_samples_is_an_error(causal_lm: Any) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        scores.measure(causal_lm, [])


def test_checkpoint_round_trip_and_fingerprint(tmp_path: pathlib.Path) -> None:
    import keras

    path = tmp_path / "state.npz"
    variables = [keras.Variable(np.arange(3.0)), keras.Variable(np.ones((2, 2)))]
    checkpoint.Checkpoint(path, {"steps": 5}).save(3, variables, [{"loss": 1.0}])
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]
    others = [keras.Variable(np.zeros(3)), keras.Variable(np.zeros((2, 2)))]
    assert checkpoint.Checkpoint(path, {"steps": 6}).load(others) == (0, [])
    assert not np.asarray(others[0]).any()
    assert checkpoint.Checkpoint(path, {"steps": 5}).load(others) == (3, [{"loss": 1.0}])
    np.testing.assert_array_equal(np.asarray(others[0]), [0, 1, 2])
    path.write_bytes(path.read_bytes()[:-40])  # cut off, as by a full disk
    assert checkpoint.Checkpoint(path, {"steps": 5}).load(others) == (0, [])


def test_recovery_lowers_the_loss_and_is_kept(tmp_path: pathlib.Path) -> None:
    # A model of one layer each, untrained: XLA compiles it in a fifth of the time.
    causal_lm = model.build(seed=3, num_layers=1, vit_num_layers=1)
    before = [np.asarray(weight).copy() for weight in causal_lm.weights]
    recipe = dataclasses.replace(recovery.BINARY, steps=30, batch_size=16, warmup=5, every=10)
    binary = scheme.BinaryScheme()
    done = recovery.recover(causal_lm, binary, progress=False, recipe=recipe, cache_dir=tmp_path)
    assert [entry["step"] for entry in done.history] == [10, 20, 30]
    assert done.history[-1]["loss"] < 0.8 * done.history[0]["loss"]
    for old, weight in zip(before, causal_lm.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(weight))
    # A second call finds the finished state: the same weights, no training.
    again = recovery.recover(causal_lm, binary, progress=False, recipe=recipe, cache_dir=tmp_path)
    assert again.history == done.history
    for a, b in zip(done.causal_lm.weights, again.causal_lm.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
