"""Scenes and questions: deterministic, disjoint, and right by an independent reading of each
question."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tfmot_ternary.demo import questions, scenes


def test_splits_share_no_digit_and_cover_all() -> None:
    indices = [scenes.digits(name).indices for name in scenes.SPLITS]
    together = np.concatenate(indices)
    assert together.size == np.unique(together).size == 1797
    images, labels = load_digits(return_X_y=True)
    for name in scenes.SPLITS:
        part = scenes.digits(name)
        np.testing.assert_array_equal(part.images.reshape(-1, 64) * 16, images[part.indices])
        np.testing.assert_array_equal(part.labels, labels[part.indices])
        # Stratified: no class is more than 3 digits away from its even share (classes have 174 to
        # 183 digits).
        counts = np.bincount(part.labels, minlength=10)
        assert abs(counts - part.labels.size / 10).max() <= 10


def test_no_image_is_in_two_splits() -> None:
    seen = [{image.tobytes() for image in scenes.digits(name).images} for name in scenes.SPLITS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not seen[one] & seen[other]


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="expected a split .* got 'dev'"):
        scenes.digits("dev")
    with pytest.raises(ValueError, match="expected a split .* got 'dev'"):
        questions.split("dev")


@pytest.mark.parametrize("variation", [scenes.PLAIN, scenes.AUGMENTED])
def test_render_is_deterministic(variation: scenes.Variation) -> None:
    source = scenes.digits("test")
    first = scenes.render(source, 20, np.random.default_rng(3), variation)
    again = scenes.render(source, 20, np.random.default_rng(3), variation)
    other = scenes.render(source, 20, np.random.default_rng(4), variation)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.cells, again.cells)
    assert (first.images != other.images).any()
    assert first.images.shape == (20, 32, 32, 3)
    assert first.images.dtype == np.uint8


def test_empty_cells_are_paper_and_full_cells_have_ink() -> None:
    made = scenes.render(scenes.digits("validation"), 300, np.random.default_rng(5))
    assert (made.cells != scenes.EMPTY).any(axis=1).all()
    assert (made.cells == scenes.EMPTY).any()
    for image, cells in zip(made.images.astype(int), made.cells, strict=True):
        for place, cell in enumerate(cells):
            y, x = 16 * (place // 2), 16 * (place % 2)
            spread = np.ptp(image[y : y + 16, x : x + 16, 0])
            # Ink is at least 0.55 * 0.75 of full range brighter than paper, less what sampling
            # blurs.
            assert spread == 0 if cell == scenes.EMPTY else spread > 50


def test_upright_digit_without_variation_keeps_its_shape() -> None:
    still = scenes.Variation(shift=0, scale=0)
    source = scenes.digits("test")
    made = scenes.render(source, 50, np.random.default_rng(6), still)
    # Averaging a cell down to 8 x 8 must correlate best with a digit of the cell's label, nearly
    # always.
    right = total = 0
    flat = source.images.reshape(-1, 64)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    for image, cells in zip(made.images.astype(np.float64), made.cells, strict=True):
        for place, cell in enumerate(cells):
            if cell == scenes.EMPTY:
                continue
            y, x = 16 * (place // 2), 16 * (place % 2)
            # 14 pixels hold the 8 digit pixels: sample their centres.
            at = np.rint(7.5 + (np.arange(8) - 3.5) * 1.75).astype(int)
            patch = image[y + at][:, x + at].mean(axis=-1).reshape(-1)
            best = int(np.argmax(flat @ (patch - patch.mean())))
            right += source.labels[best] == cell
            total += 1
    assert right / total > 0.97


NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def _independent_answer(prompt: str, cells: list[int]) -> str:
    """Reads the prompt as a person would; shares no code with `questions.ask`."""
    grid = np.array(cells).reshape(2, 2)
    present = [cell for cell in cells if cell >= 0]
    word = prompt.rstrip("?").split()[-1]
    if prompt == "describe the image":
        text = [NAMES[cell] if cell >= 0 else "nothing" for cell in cells]
        return "{} and {} above {} and {}".format(*text)
    if match := re.fullmatch(r"what digit is (top|bottom) (left|right)\?", prompt):
        cell = grid[int(match[1] == "bottom"), int(match[2] == "right")]
        return str(cell) if cell >= 0 else "nothing"
    if match := re.fullmatch(r"what is the sum of the (top|bottom) row\?", prompt):
        row = grid[["top", "bottom"].index(match[1])]
        return str(row[row > 0].sum())
    if match := re.fullmatch(r"what is the sum of the (left|right) column\?", prompt):
        column = grid[:, ["left", "right"].index(match[1])]
        return str(column[column > 0].sum())
    if prompt == "how many digits?":
        return str(len(present))
    if prompt == "what is the largest digit?":
        return str(sorted(present)[-1])
    if prompt == "what is the smallest digit?":
        return str(sorted(present)[0])
    if prompt.startswith("how many "):
        singular = "six" if word == "sixes" else word.removesuffix("s")
        return str(present.count(NAMES.index(singular)))
    if prompt.startswith("is there a "):
        return "yes" if NAMES.index(word) in present else "no"
    if prompt.startswith("where is the "):
        assert present.count(NAMES.index(word)) == 1
        y, x = np.argwhere(grid == NAMES.index(word))[0]
        return f"{['top', 'bottom'][y]} {['left', 'right'][x]}"
    raise AssertionError(f"unknown prompt {prompt!r}")


def test_answers_are_right() -> None:
    rng = np.random.default_rng(7)
    made = scenes.render(scenes.digits("train"), 3000, rng)
    asked = questions.texts(made.cells, 0.2, rng)
    for cells, (prompt, answer, kind) in zip(made.cells.tolist(), asked, strict=True):
        assert answer == _independent_answer(prompt, cells), (prompt, cells, kind)
    assert {kind for _, _, kind in asked} == {*questions.KINDS, "caption"}
    assert sum(questions.KINDS.values()) == pytest.approx(1)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="got 'colour'"):
        questions.ask(np.array([1, 2, 3, 4]), "colour", np.random.default_rng(0))


def test_split_is_deterministic_and_differs_by_seed() -> None:
    first, again = questions.split("test", 50), questions.split("test", 50)
    assert [(s.prompt, s.answer) for s in first] == [(s.prompt, s.answer) for s in again]
    np.testing.assert_array_equal([s.image for s in first], [s.image for s in again])
    other = questions.split("test", 50, seed=1)
    assert [(s.prompt, s.answer) for s in first] != [(s.prompt, s.answer) for s in other]
