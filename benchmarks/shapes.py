"""The shape file: the layers of real models, a line each."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

DEFAULT_PATH = pathlib.Path(__file__).with_name("shapes.txt")


class Layer(NamedTuple):
    """A linear layer y[m, n] = x[m, k] W[n, k]^T of a model."""

    model: str
    layer: str
    n: int
    k: int


def parse_layers(text: str) -> list[Layer]:
    """Reads "model layer n k" lines; "#" starts a comment.

    Raises:
      ValueError: a line of another form; the message names it.
    """
    layers = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            model, layer, n, k = words
            sizes = int(n), int(k)
        except ValueError:
            raise ValueError(f"line {number}: expected 'model layer n k', got {line!r}") from None
        if min(sizes) < 1:
            raise ValueError(f"line {number}: expected sizes of at least 1, got {line!r}")
        layers.append(Layer(model, layer, *sizes))
    return layers


def distinct_sizes(layers: list[Layer]) -> dict[tuple[int, int], list[str]]:
    """(n, k) -> the layers that have this size, in the order of the file."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for layer in layers:
        sizes.setdefault((layer.n, layer.k), []).append(f"{layer.model} {layer.layer}")
    return sizes
