"""The contenders: a runtime, a weight format, and how the KV cache is stored."""

from __future__ import annotations

import dataclasses

from benchmarks.lm.shapes import LMShape

_TABLE_BITS = {"float32": 32, "i8": 8, "Q8_0": 8.5, "int8": 8}
# Bits of a weight, its scales aside, which are one per channel or in the block.
_WEIGHT_BITS = {
    "t2": 2,
    "t5": 1.625,
    "TQ2_0": 2.0625,
    "TQ1_0": 1.6875,
    "int8": 8,
    "int4": 4,
    "int2": 2,
    "float32": 32,
}
CACHE_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run a decoder.

    Attributes:
      peer: "ours", "llama_cpp" or "litert".
      weights: format of the matrices of the blocks, in the words of the peer.
      cache_type: "float32", "float16" or "int8".
    """

    peer: str
    weights: str
    cache_type: str

    @property
    def name(self) -> str:
        runtime = {"ours": "ours", "llama_cpp": "llama.cpp", "litert": "LiteRT"}[self.peer]
        return f"{runtime} {self.weights}, {self.cache_type} cache"

    @property
    def table(self) -> str:
        """Format of the token table and head: 8 bits, unless all is float."""
        if self.weights == "float32":
            return "float32"
        return {"ours": "i8", "llama_cpp": "Q8_0", "litert": "int8"}[self.peer]

    def weight_bytes(self, shape: LMShape) -> float:
        """Weights that a decode step reads: the blocks and the head."""
        blocks = shape.block_weights * _WEIGHT_BITS[self.weights]
        return (blocks + shape.table_weights * _TABLE_BITS[self.table]) / 8

    def step_bytes(self, shape: LMShape) -> float:
        """Weights and KV cache that a decode step at `shape.context` reads."""
        values = CACHE_BYTES[self.cache_type]
        return self.weight_bytes(shape) + shape.cache_bytes(shape.context, values)


CONTENDERS = (
    Contender("ours", "t2", "int8"),
    Contender("ours", "t2", "float16"),
    Contender("ours", "t5", "float16"),
    Contender("llama_cpp", "TQ2_0", "float16"),
    Contender("llama_cpp", "TQ1_0", "float16"),
    # The same model as ours, matrix products in LiteRT's builtin operator.
    Contender("litert", "int2", "float16"),
    Contender("litert", "int4", "float16"),
    Contender("litert", "int8", "float16"),
    Contender("litert", "float32", "float16"),
)
