"""The decoders that are measured: full shapes of published models, with random weights."""

from __future__ import annotations

import dataclasses

# Longest context of the models: rows of a table of positions, where there is one.
POSITIONS = 1024


@dataclasses.dataclass(frozen=True)
class LMShape:
    """A decoder-only language model.

    Attributes:
      name: of the row in the tables.
      family: "gpt2" or "gemma": which KerasHub backbone and which llama.cpp architecture.
      blocks, width, ffn: transformer blocks, hidden size, inner size of the feed-forward layer.
      heads, kv_heads, head_size: of the attention.
      vocabulary: rows of the token table, which is the head too.
      context: position at which decode is measured.
      prompt: tokens of the prefill that is measured.
    """

    name: str
    family: str
    blocks: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    prompt: int

    @property
    def block_matrices(self) -> list[tuple[str, int, int]]:
        """(name, n, k) of the weight matrices of a block."""
        attended = self.heads * self.head_size
        kv = self.kv_heads * self.head_size
        gated = self.family == "gemma"
        return [
            ("query", attended, self.width),
            ("key", kv, self.width),
            ("value", kv, self.width),
            ("attention output", self.width, attended),
            *([("gate", self.ffn, self.width)] if gated else []),
            ("up", self.ffn, self.width),
            ("down", self.width, self.ffn),
        ]

    @property
    def block_weights(self) -> int:
        """Weights in the matrices of all blocks."""
        return self.blocks * sum(n * k for _, n, k in self.block_matrices)

    @property
    def table_weights(self) -> int:
        return self.vocabulary * self.width

    def cache_bytes(self, positions: int, bytes_per_value: int) -> int:
        """Keys and values of `positions`, as one decode step reads them."""
        return 2 * self.blocks * self.kv_heads * self.head_size * positions * bytes_per_value


SHAPES = {
    shape.name: shape
    for shape in (
        # https://huggingface.co/vikhyatk/moondream2: the matrices of its text model. KerasHub has
        # no Phi-1.5; GPT-2 has the same ones (layer norms with biases, no gate), a tied head, and
        # positions from a table in place of rotations. 729 image positions and 32 of text are the
        # prompt.
        LMShape(
            "moondream2-text",
            "gpt2",
            blocks=24,
            width=2048,
            ffn=8192,
            heads=32,
            kv_heads=32,
            head_size=64,
            vocabulary=51200,
            context=768,
            prompt=729 + 32,
        ),
        # The decoder of PaliGemma 3B; 256 image positions and 32 of text.
        LMShape(
            "paligemma-3b-decoder",
            "gemma",
            blocks=18,
            width=2048,
            ffn=16384,
            heads=8,
            kv_heads=1,
            head_size=256,
            vocabulary=257216,
            context=288,
            prompt=256 + 32,
        ),
        # Small enough for a test of the benchmark itself.
        LMShape(
            "tiny",
            "gpt2",
            blocks=2,
            width=256,
            ffn=512,
            heads=4,
            kv_heads=4,
            head_size=64,
            vocabulary=512,
            context=48,
            prompt=40,
        ),
        LMShape(
            "tiny-gemma",
            "gemma",
            blocks=2,
            width=256,
            ffn=512,
            heads=2,
            kv_heads=1,
            head_size=128,
            vocabulary=512,
            context=48,
            prompt=40,
        ),
    )
}
