"""Results: what was measured, and how two of them compare."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator

from benchmarks.cases import Case, Contender


@dataclasses.dataclass
class Result:
    """One contender of one case in one burst.

    Attributes:
      burst: results of one burst took turns, and may be compared.
      samples: seconds of a product, one for each round.
      reason: why there are no samples.
    """

    case: Case
    contender: Contender
    threads: int
    burst: int
    weight_bytes: int = 0
    error: float = 0.0
    samples: list[float] = dataclasses.field(default_factory=list)
    reason: str = ""

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    def to_json(self) -> dict:
        record = {
            "case": self.case.name,
            "kind": self.case.kind.value,
            "contender": self.contender.name,
            "threads": self.threads,
            "burst": self.burst,
        }
        if self.reason:
            return {**record, "not measured": self.reason}
        return {
            **record,
            "microseconds": self.seconds * 1e6,
            "best_microseconds": min(self.samples) * 1e6,
            "weight_bytes": self.weight_bytes,
            "relative_error": self.error,
        }


@dataclasses.dataclass
class Limit:
    """A limit of the machine: GB/s of reads, GOPS of dot products or microseconds.

    burst is None for the figures that were taken before all bursts.
    """

    name: str
    threads: int
    unit: str
    samples: list[float] = dataclasses.field(default_factory=list)
    burst: int | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    def to_json(self) -> dict:
        record = {"name": self.name, "threads": self.threads, "burst": self.burst}
        return {**record, "unit": self.unit, "value": self.value, "samples": self.samples}


# Names of limits.
DRAM = "DRAM read"
DRAM_SMALL_PAGES = "DRAM read, small pages as a mapped file has them"
L2, L3 = "L2 read", "L3 read"


class Results:
    """All that one command measured."""

    def __init__(self, results: Iterable[Result] = (), limits: Iterable[Limit] = ()) -> None:
        self.results = list(results)
        self.limits = list(limits)

    def find(self, case: Case, name: str, threads: int) -> Iterator[Result]:
        """The measured results of a contender, in all bursts."""
        for result in self.results:
            same = result.case == case and result.contender.name == name
            if same and result.threads == threads and result.samples:
                yield result

    def cases(self) -> list[Case]:
        return list(dict.fromkeys(result.case for result in self.results))

    def threads(self) -> list[int]:
        return sorted({result.threads for result in self.results})

    def ratio(self, case: Case, slower: str, faster: str, threads: int) -> float | None:
        """How many times as fast `faster` is, both of one burst; None where one is missing."""
        for a in self.find(case, slower, threads):
            for b in self.find(case, faster, threads):
                if a.burst == b.burst:
                    return a.seconds / b.seconds
        return None

    def limit(self, name: str, threads: int, burst: int | None = None) -> float | None:
        for limit in self.limits:
            if (limit.name, limit.threads, limit.burst) == (name, threads, burst) and limit.samples:
                return limit.value
        return None

    def reason(self, case: Case, name: str) -> str:
        """Why a contender has no figures in a case."""
        for result in self.results:
            if result.case == case and result.contender.name == name and result.reason:
                return result.reason
        return "not run"
