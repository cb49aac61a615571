"""Sampling: which token follows, out of the logits. NumPy only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

# How many of the most likely tokens are looked at first for top-p; mostly more than enough.
_FIRST_CANDIDATES = 64


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
        total = np.cumsum(weights)
        place = np.searchsorted(total, self._random.random() * total[-1], side="right")
        # A product that rounds up to the total itself would lie behind the last token.
        return int(ids[min(place, len(ids) - 1)])


def kept(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens that may be drawn: (ids int64 [n], weights float64 [n], not normalized).

    Args:
      logits: finite float [vocabulary].
      sampling: a rule with a temperature above 0.
    """
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    count = min(sampling.top_k or len(weights), len(weights))
    if sampling.top_p is None or sampling.top_p == 1:
        if count == len(weights):
            return np.arange(count), weights
        ids = _most_likely(scaled, count)
        return ids, weights[ids]
    whole = weights.sum() if count == len(weights) else None
    candidates = min(_FIRST_CANDIDATES, count)
    while True:
        if whole is None:  # the share counts within the top k
            candidates = count
        ids = _most_likely(scaled, candidates)
        total = np.cumsum(weights[ids])
        wanted = sampling.top_p * (total[-1] if whole is None else whole)
        if total[-1] >= wanted or candidates == count:
            enough = min(int(np.searchsorted(total, wanted)) + 1, len(ids))
            return ids[:enough], weights[ids[:enough]]
        candidates = min(8 * candidates, count)


def _most_likely(scaled: np.ndarray, count: int) -> np.ndarray:
    """Returns the ids of the `count` largest values, largest first, ties by id."""
    if count == len(scaled):
        return np.argsort(-scaled, kind="stable")
    least = np.partition(scaled, len(scaled) - count)[len(scaled) - count]
    # In the order of their ids: the stable sort leaves ties so, and the cut drops the last ones.
    ids = np.flatnonzero(scaled >= least)
    return ids[np.argsort(-scaled[ids], kind="stable")][:count]
