"""Picture: scenes with a model's answers, in the terminal and as a PNG file."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import numpy as np

if TYPE_CHECKING:
    from tfmot_ternary.evaluation import Example

_UPPER_HALF = "\u2580"
_SHADES = " \u2591\u2592\u2593\u2588"  # from no ink to full


def in_blocks(image: np.ndarray, colour: bool) -> str:
    """Draws an image with block characters, two rows of pixels a line.

    Args:
      image: uint8 [height, width, 3], height even.
      colour: with 24-bit terminal colours; else in five shades, bright pixels dense.
    """
    upper, lower = image[0::2], image[1::2]
    if not colour:
        grey = (upper.astype(float) + lower).mean(axis=-1) / 2
        shades = np.minimum(grey / 256 * len(_SHADES), len(_SHADES) - 1).astype(int)
        return "\n".join("".join(_SHADES[s] for s in row) for row in shades)
    lines = []
    for top, bottom in zip(upper, lower, strict=True):
        cells = [
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m{_UPPER_HALF}"
            for a, b in zip(top, bottom, strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def show_answers(
    model: str | os.PathLike[str],
    examples: Sequence[Example],
    questions: Sequence[str],
    output_dir: pathlib.Path,
    out: TextIO | None = None,
) -> list[str]:
    """Asks one question about each of the first images, prints and draws images and answers.

    Args:
      model: `.tflite` of the model that answers.
      examples: at least as many as questions; their images are shown.
      questions: what is asked.
      output_dir: where `answers.png` is written.
      out: where to print; default: stdout.

    Returns:
      The answers.
    """
    from tfmot_ternary.vlm import Generator

    out = out or sys.stdout
    # NO_COLOR and a pipe both ask for plain text (https://no-color.org).
    colour = out.isatty() and "NO_COLOR" not in os.environ
    generator = Generator(model)
    answers = []
    for example, question in zip(examples, questions, strict=False):
        print(in_blocks(example.image, colour), file=out)
        print(f"{question}  ", end="", file=out, flush=True)
        pieces = []
        for piece in generator.generate(question, example.image, stream=True):
            pieces.append(piece)
            print(piece, end="", file=out, flush=True)
        print("\n", file=out)
        answers.append("".join(pieces))
    _draw([e.image for e in examples], questions, answers, output_dir / "answers.png")
    return answers


def _draw(
    images: Sequence[np.ndarray],
    questions: Sequence[str],
    answers: Sequence[str],
    path: pathlib.Path,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(answers), figsize=(4 * len(answers), 4.6), squeeze=False, layout="constrained"
    )
    for axis, image, question, answer in zip(axes[0], images, questions, answers, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(f"{question}\n{answer}", fontsize=10)
        axis.axis("off")
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    os.replace(temporary, path)
