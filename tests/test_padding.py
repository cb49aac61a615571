"""Calibrations of language models do not count padding: batches against texts one by one."""

from __future__ import annotations

import causal_lms
import family_models
import numpy as np
import pytest
import tensorflow as tf

import tfmot_ternary as tt
from tfmot_ternary.padding import TextPositions

SEED = 61
LENGTHS = (3, 9, 6)


def inputs_of(lengths, length, images=None):
    rng = np.random.default_rng(SEED)
    tokens = rng.integers(1, 60, (len(lengths), length)).astype(np.int32)
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)
    inputs = {"token_ids": tokens * mask, "padding_mask": mask}
    if images is not None:
        inputs |= {"images": images, "response_mask": np.zeros_like(mask)}
    return inputs


def one_by_one(inputs):
    for row, length in enumerate(inputs["padding_mask"].sum(axis=1)):
        yield {
            name: value[row : row + 1, :length] if value.ndim == 2 else value[row : row + 1]
            for name, value in inputs.items()
        }


@pytest.mark.parametrize("kind", ["activations", "hessian"])
@pytest.mark.parametrize("family", ["GPT2", "pali_gemma"])
def test_padding_does_not_count(family, kind):
    images = None
    if family == "GPT2":
        model = family_models.build(family)
    else:
        model = causal_lms.pali_gemma()
        images = np.stack([causal_lms.scene(i) for i in range(3)]).astype(np.float32) / 255
    padded = inputs_of(LENGTHS, 14, images)
    batch = tt.calibrate(model, [padded], kind, progress=False)
    singly = tt.calibrate(model, list(one_by_one(padded)), kind, progress=False)
    assert set(batch) == set(singly)
    assert len(batch) > 6
    for path, expected in singly.items():
        got, expected = (getattr(value, "matrix", value) for value in (batch[path], expected))
        # Float32 sums in another order, over activations that attention makes over masked keys.
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_positions():
    class Backbone:
        image_sequence_length = 2

    positions = TextPositions(Backbone())
    x = tf.reshape(tf.range(2 * 5 * 3), [2, 5, 3])
    assert positions.of(x) is x
    positions.read({"padding_mask": np.array([[1, 0, 0], [1, 1, 0]])})
    text = positions.of(x)
    np.testing.assert_array_equal(
        text[0], np.asarray(x)[[0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 0, 1, 2, 3]]
    )
    assert positions.of(x) is text
    image = tf.zeros([2, 2, 3])  # what the image encoder sees
    assert positions.of(image) is image
    positions.read({"token_ids": np.zeros((2, 3))})
    assert positions.of(x) is x
    positions.read({"padding_mask": np.ones((2, 3))})
    assert positions.of(x) is x
