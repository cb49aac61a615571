"""Sampling: which token follows, out of the logits. NumPy only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

# How many of the most likely tokens are looked at first for top-p; mostly more than enough.
_FIRST_CANDIDATES = 64
_BLOCK = 512  # weights whose sum is taken at once


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    In this order: the logits are divided by the temperature; the `top_k` most likely tokens are
    kept; of those, with their probabilities made to sum to 1 again, the fewest most likely ones
    that reach `top_p` together are kept; one of them is drawn. Of tokens that are equally likely
    the smaller id counts as the more likely one.

    Attributes:
      temperature: 0 takes the most likely token always (greedy); 1 draws with the model's own
        probabilities; more is more random.
      top_k: how many tokens to keep, or None for all.
      top_p: share of the probability to keep, above 0 and up to 1, or None for all.
      seed: of the random numbers; the same seed gives the same text. None: another one each time.

    Raises:
      ValueError: a value out of its range, or `top_k` or `top_p` with temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(
                f"expected a temperature of 0 (greedy) or more, got {self.temperature!r}"
            )
        if self.top_k is not None and not (_is_integer(self.top_k) and self.top_k >= 1):
            raise ValueError(f"expected top_k of at least 1, or None, got {self.top_k!r}")
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"expected top_p above 0 and at most 1, or None, got {self.top_p!r}")
        if self.seed is not None and not (_is_integer(self.seed) and self.seed >= 0):
            raise ValueError(f"expected a seed of at least 0, or None, got {self.seed!r}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                "expected a temperature above 0 with top_k or top_p, got 0, which always takes the "
                "most likely token: set the temperature (1 for the model's own probabilities)"
            )


GREEDY = Sampling()


class Sampler:
    """Draws tokens as a `Sampling` says, with a random stream of its own.

    Args:
      sampling: the rule.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """Returns a token id.

        Args:
          logits: float [vocabulary].

        Raises:
          ValueError: the logits hold NaN or plus infinity, or nothing but minus infinity.
        """
        best = int(logits.argmax())  # the place of a NaN, where there is one
        if not np.isfinite(logits[best]):
            raise ValueError(
                f"expected finite logits from the model, got {logits[best]} for token {best}: its "
                "weights or its input are broken; check the model that was converted"
            )
        if self.sampling.temperature == 0:
            return best
        ids, weights = kept(logits, self.sampling)
        return int(ids[_place(weights, self._random.random())])


def _place(weights: np.ndarray, share: float) -> int:
    """Returns the place where the running sum of the weights passes `share` of its end.

    Sums of blocks first: a running sum over a whole vocabulary takes milliseconds.
    """
    whole = len(weights) // _BLOCK * _BLOCK
    blocks = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    if whole < len(weights):
        blocks = np.append(blocks, weights[whole:].sum(dtype=np.float64))
    total = np.cumsum(blocks)
    wanted = share * total[-1]
    # A product that rounds up to the whole sum itself would lie behind the last weight.
    block = min(int(np.searchsorted(total, wanted, side="right")), len(blocks) - 1)
    begin = block * _BLOCK
    inside = np.cumsum(weights[begin : begin + _BLOCK], dtype=np.float64)
    rest = wanted - (total[block] - blocks[block])
    place = min(int(np.searchsorted(inside, rest, side="right")), len(inside) - 1)
    while weights[begin + place] == 0:  # what cannot be drawn lies on the seam of two roundings
        place -= 1
    return begin + place


def kept(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens that may be drawn: (ids [n], weights float [n], not normalized).

    A vocabulary has a quarter of a million tokens: what is done to all of them is done in float32.

    Args:
      logits: float32 [vocabulary], the largest one finite.
      sampling: a rule with a temperature above 0.
    """
    count = min(sampling.top_k or len(logits), len(logits))
    top_p = None if sampling.top_p == 1 else sampling.top_p
    best = logits.max()
    # Below this temperature float32 logits that differ at all never share a draw.
    temperature = max(sampling.temperature, 1e-6)
    if count < len(logits):  # the share counts within the top k
        ids = _most_likely(logits, count)
        weights = _weights(logits[ids].astype(np.float64), best, temperature)
        return _share(ids, weights, weights.sum(), top_p)
    everything = _weights(logits, best, np.float32(temperature))
    if top_p is None:
        return np.arange(count), everything
    whole = everything.sum(dtype=np.float64)
    candidates = min(_FIRST_CANDIDATES, count)
    while True:
        ids = _most_likely(logits, candidates)
        weights = _weights(logits[ids].astype(np.float64), best, temperature)
        if weights.sum() >= top_p * whole or candidates == count:
            return _share(ids, weights, whole, top_p)
        candidates = min(8 * candidates, count)


def _weights(logits: np.ndarray, best: np.floating, temperature: float | np.float32) -> np.ndarray:
    """Returns the probabilities relative to the most likely token's."""
    return np.exp((logits - best) / temperature)


def _share(
    ids: np.ndarray, weights: np.ndarray, whole: float, top_p: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first tokens that reach `top_p` of the `whole` together."""
    if top_p is None:
        return ids, weights
    enough = min(int(np.searchsorted(np.cumsum(weights), top_p * whole)) + 1, len(ids))
    return ids[:enough], weights[:enough]


def _most_likely(logits: np.ndarray, count: int) -> np.ndarray:
    """Returns the ids of the `count` largest values, largest first, ties by id."""
    if count == len(logits):
        return np.argsort(-logits, kind="stable")
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    # In the order of their ids: the stable sort leaves ties so, and the cut drops the last ones.
    ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")][:count]
