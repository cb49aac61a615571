"""Questions about scenes, with their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfmot_ternary.demo import scenes

PLACES = ("top left", "top right", "bottom left", "bottom right")
LINES = {"top row": (0, 1), "bottom row": (2, 3), "left column": (0, 2), "right column": (1, 3)}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = tuple(name + ("es" if name == "six" else "s") for name in NAMES)
NOTHING = "nothing"  # the word for an empty cell
CAPTION_PROMPT = "describe the image"

# Kind of question -> its share among questions. Captions are no question: `ask` leaves them to its
# caller.
KINDS = {
    "digit": 0.14,
    "count": 0.20,
    "sum": 0.24,
    "largest": 0.09,
    "smallest": 0.09,
    "presence": 0.12,
    "where": 0.08,
    "total": 0.04,
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with a prompt and the right answer.

    Attributes:
      image: uint8 [32, 32, 3], RGB.
      prompt: what the user types.
      answer: what the model should say.
      kind: a key of `KINDS`, or "caption".
    """

    image: np.ndarray
    prompt: str
    answer: str
    kind: str


def caption(cells: np.ndarray) -> str:
    """Returns for example "three and seven above nothing and five"; `cells`: int [4] in reading
    order."""
    words = [NOTHING if cell == scenes.EMPTY else NAMES[cell] for cell in cells]
    return f"{words[0]} and {words[1]} above {words[2]} and {words[3]}"


def ask(cells: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[str, str]:
    """Makes one question about a scene.

    Args:
      cells: int [4], digits in reading order, `scenes.EMPTY` where there is none; at least one
        digit.
      kind: a key of `KINDS`.
      rng: picks the place, line or digit that is asked about.

    Returns:
      (prompt, answer).

    Raises:
      ValueError: unknown kind.
    """
    present = cells[cells != scenes.EMPTY]
    if kind == "digit":
        place = int(rng.integers(scenes.CELLS))
        answer = NOTHING if cells[place] == scenes.EMPTY else str(cells[place])
        return f"what digit is {PLACES[place]}?", answer
    if kind == "count":
        # Mostly about digits that are there: otherwise nearly every answer would be 0.
        digit = int(rng.choice(present)) if rng.random() < 0.7 else int(rng.integers(10))
        return f"how many {PLURALS[digit]}?", str(int((cells == digit).sum()))
    if kind == "sum":
        line = list(LINES)[int(rng.integers(len(LINES)))]
        total = sum(max(int(cells[i]), 0) for i in LINES[line])
        return f"what is the sum of the {line}?", str(total)
    if kind == "largest":
        return "what is the largest digit?", str(present.max())
    if kind == "smallest":
        return "what is the smallest digit?", str(present.min())
    if kind == "presence":
        digit = int(rng.choice(present)) if rng.random() < 0.4 else int(rng.integers(10))
        return f"is there a {NAMES[digit]}?", "yes" if (cells == digit).any() else "no"
    if kind == "where":
        # Only about a digit with one place; where each digit is there twice, `total` stands in.
        values, counts = np.unique(present, return_counts=True)
        if not (counts == 1).any():
            return ask(cells, "total", rng)
        digit = int(rng.choice(values[counts == 1]))
        return f"where is the {NAMES[digit]}?", PLACES[int(np.flatnonzero(cells == digit)[0])]
    if kind == "total":
        return "how many digits?", str(present.size)
    raise ValueError(f"expected a kind of question of {tuple(KINDS)}, got {kind!r}")


def texts(
    cells: np.ndarray,
    caption_share: float,
    rng: np.random.Generator,
    shares: Mapping[str, float] = KINDS,
) -> list[tuple[str, str, str]]:
    """Makes one (prompt, answer, kind) for each scene.

    Args:
      cells: int [n, 4].
      caption_share: probability of a caption rather than a question.
      rng: decides the kinds and the questions.
      shares: the share of each kind among the questions; they sum to 1.
    """
    kinds = list(shares)
    count = cells.shape[0]
    chosen = np.asarray(rng.choice(len(kinds), size=count, p=list(shares.values())))
    captions = np.asarray(rng.random(count)) < caption_share
    result = []
    for row, index, is_caption in zip(cells, chosen, captions, strict=True):
        if is_caption:
            result.append((CAPTION_PROMPT, caption(row), "caption"))
        else:
            result.append((*ask(row, kinds[index], rng), kinds[index]))
    return result


def split(name: str, count: int = 1000, seed: int = 0, caption_share: float = 0.2) -> list[Sample]:
    """Makes held-out (or training) samples: `split("test")` is what the demo measures on.

    Args:
      name: "train", "validation" or "test": which digits the scenes show.
      count: samples, each with a scene of its own.
      seed: the same arguments give the same samples, bit for bit.
      caption_share: share of captions among the samples.
    """
    rng = np.random.default_rng([scenes.SPLITS.index(name) if name in scenes.SPLITS else 0, seed])
    made = scenes.render(scenes.digits(name), count, rng)
    asked = texts(made.cells, caption_share, rng)
    return [Sample(image, *text) for image, text in zip(made.images, asked, strict=True)]


def corpus() -> list[str]:
    """Returns every prompt and a covering set of answers, for training the tokenizer."""
    prompts = [f"what digit is {place}?" for place in PLACES]
    # The plurals are left out on purpose: "threes" then is "three" and "s", and shares what
    # "three" has learned.
    prompts.append("how many digits?")
    prompts += [f"what is the sum of the {line}?" for line in LINES]
    prompts += [f"what is the {which} digit?" for which in ("largest", "smallest")]
    prompts += [f"is there a {name}?" for name in NAMES]
    prompts += [f"where is the {name}?" for name in NAMES]
    prompts.append(CAPTION_PROMPT)
    answers = [str(number) for number in range(19)] + ["yes", "no", *PLACES]
    cells = [scenes.EMPTY, *range(10)]
    answers += [caption(np.roll(cells, shift)[:4]) for shift in range(len(cells))]
    return prompts + answers
