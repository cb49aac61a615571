"""Chunks: how a prompt is cut for the prefill signatures of a file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

# What a call costs beside its positions: it reads all weights, as long as so many positions take.
CALL_COST = 8


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One prefill call.

    Attributes:
      begin: the first token of the prompt in it, which is also its position in the context.
      count: how many tokens of the prompt are in it.
      length: how many the signature computes; the rest is padding.
    """

    begin: int
    count: int
    length: int


def plan(count: int, lengths: Sequence[int], cache_length: int) -> list[Chunk]:
    """Cuts a prompt so that its calls cost least: positions that are computed, padding included,
    and `CALL_COST` for each call.

    Only the last call is padded. Where its padding would lie behind the end of the context, it
    begins earlier instead and computes some positions a second time, with the same result.

    Args:
      count: tokens of the prompt, 1 to `cache_length`.
      lengths: of the signatures, ascending, at least one of them at most `cache_length`.
      cache_length: positions of the context.

    Returns:
      Chunks in order; together they hold each token.
    """
    fitting = tuple(length for length in lengths if length <= cache_length)
    chunks: list[Chunk] = []
    begin = 0
    # The long ones first: the last one's padding is then least likely to meet the end.
    for length in _cover(count, fitting):
        start = min(begin, cache_length - length)
        stop = min(begin + length, count)
        chunks.append(Chunk(start, stop - start, length))
        begin = stop
    return chunks


@functools.lru_cache(maxsize=256)
def _cover(count: int, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Returns lengths with a sum of at least `count` that cost least, longest first."""
    # best[n]: (cost, the last length taken) for a prompt of n tokens.
    best: list[tuple[int, int]] = [(0, 0)]
    for n in range(1, count + 1):
        best.append(
            min((best[max(n - length, 0)][0] + length + CALL_COST, length) for length in lengths)
        )
    taken: list[int] = []
    while count > 0:
        taken.append(best[count][1])
        count -= taken[-1]
    return tuple(sorted(taken, reverse=True))
