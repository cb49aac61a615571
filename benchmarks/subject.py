"""A subject: one contender of one case, ready to be timed again and again."""

from __future__ import annotations

import abc
import time


class NotMeasured(Exception):
    """This contender cannot run this case here; the message says why."""


class Subject(abc.ABC):
    """What a worker holds and times.

    Attributes:
      weight_bytes: bytes of weights and scales that one product reads.
      error: the result's largest error against float64, relative to the largest output.
      products: of one `run`.
      calls: of `run` in one round, at least; set by `calibrate`.
    """

    weight_bytes: int
    error: float
    products: int = 1
    calls: int = 1

    @abc.abstractmethod
    def run(self) -> None:
        """The work that is timed."""

    def close(self) -> None:  # noqa: B027  (most subjects have nothing to close)
        """Gives memory back that Python does not know of."""

    def calibrate(self, seconds: float) -> None:
        """Finds how many runs fill a round of `seconds`."""
        self.run()
        runs, elapsed = 0, 0.0
        start = time.perf_counter()
        while elapsed < seconds / 4:
            self.run()
            runs += 1
            elapsed = time.perf_counter() - start
        self.calls = max(1, round(seconds * runs / elapsed))

    def time(self) -> float:
        """Seconds of a product, the mean over one round; where runs are short, one warms up."""
        if self.calls > 1:
            self.run()
        start = time.perf_counter()
        for _ in range(self.calls):
            self.run()
        return (time.perf_counter() - start) / (self.calls * self.products)
