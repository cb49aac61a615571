"""A decoder in a `.tflite` file: ours, or LiteRT's operators in the place of ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfmot_ternary.vlm.generator import Generator


class TfliteSession:
    """A file in the interpreter, run by the package's own `Generator`."""

    def __init__(self, path: str, threads: int) -> None:
        self._generator = Generator(path, num_threads=threads)
        self._position = 0

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Runs a prompt from position 0. Returns the logits behind it."""
        self._position = len(tokens)
        return self._generator.prefill(tokens)

    def decode(self, token: int) -> np.ndarray:
        """Runs one token behind the last. Returns the logits behind it."""
        logits = self._generator.decode(token, self._position)
        self._position += 1
        return logits

    def close(self) -> None:
        del self._generator
