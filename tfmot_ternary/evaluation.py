"""Evaluation: perplexity and task accuracy of a converted model on examples with known answers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from tfmot_ternary.vlm.generator import Generator

# Data that needs no file: "digits:test", "digits:validation", "digits:train".
BUILT_IN_PREFIX = "digits:"
# The kind of example that counts for perplexity but is no question: many captions are right.
CAPTION = "caption"


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with the answer that is right.

    Attributes:
      prompt: what the user types.
      answer: what the model should say.
      image: path or array [height, width, 3], or None for a text model.
      kind: group for the accuracy by kind; "caption" is left out of the task accuracy.
    """

    prompt: str
    answer: str
    image: Any = None
    kind: str = "question"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model scores on examples.

    Attributes:
      perplexity: exp of the mean negative log likelihood per answer token, end tokens included.
      task_accuracy: share of the questions whose greedy answer is exactly right, in [0, 1]; NaN
        where there are none.
      accuracy_by_kind: the share for each kind of example, captions too.
      examples: how many examples were evaluated.
      tokens: how many answer tokens the perplexity is over.
    """

    perplexity: float
    task_accuracy: float
    accuracy_by_kind: dict[str, float]
    examples: int
    tokens: int


def load_examples(data: str, limit: int | None = None, seed: int = 0) -> list[Example]:
    """Reads examples.

    Args:
      data: "digits:test" (or "validation", "train"), the demo's scenes, or the path of a
        JSON-lines file: one object per line with "prompt", "answer", for a vision-language model
        "image" (a path, relative to the file), and optionally "kind".
      limit: at most so many examples; None: all lines, or 1000 built-in scenes.
      seed: which built-in scenes.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown built-in name, a line that is not such an object, or no example.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1 example, got {limit}")
    if data.startswith(BUILT_IN_PREFIX):
        from tfmot_ternary.demo import questions

        samples = questions.split(
            data.removeprefix(BUILT_IN_PREFIX), **({"count": limit} if limit else {}), seed=seed
        )
        return [Example(s.prompt, s.answer, s.image, s.kind) for s in samples]
    if not os.path.isfile(data):
        raise FileNotFoundError(
            f'expected "{BUILT_IN_PREFIX}test" or a JSON-lines file, found no file at {data!r}'
        )
    with open(data, encoding="utf-8") as file:
        lines = [(i, line) for i, line in enumerate(file, 1) if line.strip()][:limit]
    examples = [_parse_line(line, f"{data!r} line {i}", os.path.dirname(data)) for i, line in lines]
    if not examples:
        raise ValueError(f"{data!r}: expected at least one example, got an empty file")
    return examples


def _parse_line(line: str, where: str, folder: str) -> Example:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    known = {field.name for field in dataclasses.fields(Example)}
    for key in ("prompt", "answer"):
        if key not in record:
            raise ValueError(f'{where}: expected the key "{key}", got keys {sorted(record)}')
    for key, value in record.items():
        if key in known and not isinstance(value, str):
            raise ValueError(f'{where}: expected "{key}" as text, got {type(value).__name__}')
    kept = {key: value for key, value in record.items() if key in known}
    if "image" in kept:
        kept["image"] = os.path.join(folder, kept["image"])
        if not os.path.isfile(kept["image"]):
            raise FileNotFoundError(
                f"{where}: expected an image file, found none at {kept['image']!r}"
            )
    return Example(**kept)


def evaluate(
    generator: Generator, examples: Sequence[Example], progress: bool = True, label: str = ""
) -> Evaluation:
    """Runs every example through `generator`, token by token.

    The answer is scored with its own tokens as input (`Generator.score`). Greedy decoding gives
    exactly the answer if the most likely token is the right one at each of its positions; where
    it is not, the model generates and the texts are compared.

    Args:
      generator: the model.
      examples: at least one.
      progress: show a progress bar.
      label: its label.

    Raises:
      ValueError: no examples, or one that `Generator.score` refuses.
    """
    if not examples:
        raise ValueError("expected at least one example, got none")
    bar: Iterable[Example] = tqdm(
        examples, desc=label or "evaluate", unit="example", disable=not progress
    )
    log_probs: list[np.ndarray] = []
    right: dict[str, list[bool]] = {}
    for example in bar:
        score = generator.score(example.prompt, example.image, example.answer)
        log_probs.append(score.log_probs)
        correct = bool(score.greedy.all())
        if not correct:
            room = generator.room(example.prompt)
            # A right answer may take other, at most twice as many pieces.
            text = generator.generate(
                example.prompt, example.image, min(room, 2 * len(score.token_ids))
            )
            correct = str(text).strip() == example.answer.strip()
        right.setdefault(example.kind, []).append(correct)
    everything = np.concatenate(log_probs)
    questions = [c for kind, results in right.items() if kind != CAPTION for c in results]
    return Evaluation(
        perplexity=float(np.exp(-everything.mean())),
        task_accuracy=float(np.mean(questions)) if questions else float("nan"),
        accuracy_by_kind={kind: float(np.mean(c)) for kind, c in sorted(right.items())},
        examples=len(examples),
        tokens=int(everything.size),
    )
