"""The goals: which ratio of one run must reach what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from benchmarks import cases
from benchmarks.cases import OUR_FORMATS, Case, Kind
from benchmarks.limits import DECODE_DOTS, DOT_KINDS
from benchmarks.results import DRAM, DRAM_SMALL_PAGES, Results


@dataclasses.dataclass(frozen=True)
class Goal:
    """One row of the goals table.

    Attributes:
      subject: what is compared, with the case.
      required, measured: the bound and the figure; None where a part was not measured.
      at_most: whether the bound is an upper one.
      note: which contender decides, or why there is no figure.
    """

    subject: str
    threads: int
    required: float
    measured: float | None
    note: str = ""
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.required if self.at_most else self.measured >= self.required
        return "pass" if met else "FAIL"

    def to_json(self) -> dict:
        return {**dataclasses.asdict(self), "verdict": self.verdict}


def evaluate(results: Results) -> list[Goal]:
    """All goals on all thread counts of the run."""
    goals: list[Goal] = []
    for threads in results.threads():
        for group in (_memory, _cache, _groups, _prefill, _small, _others):
            goals += group(results, threads)
    return goals + list(_threads(results))


def _worst(pairs: Iterable[tuple[str, float | None]]) -> tuple[float | None, str]:
    """The smallest figure with what it belongs to; None, and which, where one is missing."""
    pairs = list(pairs)
    missing = [name for name, value in pairs if value is None]
    if missing or not pairs:
        return None, f"missing: {', '.join(missing) or 'all'}"
    name, value = min((pair for pair in pairs), key=lambda pair: pair[1] or 0.0)
    return value, name


def _speed(results: Results, case: Case, ours: str, peer: str, threads: int) -> float | None:
    """How many times as fast as `peer` our format is."""
    return results.ratio(case, peer, f"ours {ours}", threads)


def bandwidth(results: Results, case: Case, name: str, threads: int) -> float | None:
    """GB/s of weights over the read bandwidth of the same burst."""
    for result in results.find(case, name, threads):
        limit = results.limit(DRAM, threads, result.burst)
        if limit:
            return result.weight_bytes / result.seconds * 1e-9 / limit
    return None


def _memory(results: Results, threads: int) -> Iterator[Goal]:
    for case in (c for c in results.cases() if c.kind is Kind.WALK):
        name = "decode from DRAM, 1 x 2048 x 2048"
        for ours in ("t2", "t2 g128"):
            share = bandwidth(results, case, f"ours {ours}", threads)
            text = f"{name}: {ours}, share of the DRAM read bandwidth"
            yield Goal(text, threads, 0.85, share, _of_small_pages(results, share, threads))
        peers = ("LiteRT int2", "LiteRT int4", "llama.cpp TQ2_0", "llama.cpp TQ1_0")
        for ours in ("t2", "t2 g128"):
            speed = {peer: _speed(results, case, ours, peer, threads) for peer in peers}
            value, note = _fastest(results, case, speed)
            text = f"{name}: {ours} over the fastest of LiteRT int2, int4, llama.cpp TQ2_0, TQ1_0"
            yield Goal(text, threads, 1.5 if threads == 1 else 1.2, value, note)
        share = bandwidth(results, case, "ours t2", threads)
        note = "" if share is None else f"t2 takes {share:.0%} of the bandwidth"
        for ours, required in (("t5", 1.1), ("b1", 1.6)):
            value = _speed(results, case, ours, "ours t2", threads)
            yield Goal(f"{name}: {ours} over t2", threads, required, value, note)


def _of_small_pages(results: Results, share: float | None, threads: int) -> str:
    """The limit is taken in huge pages; a mapped file has small ones, which give less."""
    huge, small = (results.limit(name, threads) for name in (DRAM, DRAM_SMALL_PAGES))
    if share is None or not huge or not small:
        return ""
    return f"{share * huge / small:.0%} of reads in small pages"


def _fastest(
    results: Results, case: Case, speed: dict[str, float | None]
) -> tuple[float | None, str]:
    """Against the fastest of the peers that run here; the note says which are missing, and why."""
    missing = [f"{peer}: {results.reason(case, peer)}" for peer, v in speed.items() if v is None]
    measured = [(peer, value) for peer, value in speed.items() if value is not None]
    value, name = _worst(measured)
    notes = [f"fastest: {name}"] if measured else []
    return value, "; ".join(notes + [f"without {text}" for text in missing])


def _cache(results: Results, threads: int) -> Iterator[Goal]:
    for case in cases.DECODE:
        for peer, required in (("LiteRT int4", 1.6), ("LiteRT int2", 2.5)):
            value = _speed(results, case, "t2", peer, threads)
            yield Goal(f"decode in cache, {case.name}: t2 over {peer}", threads, required, value)
    case = cases.DECODE[-1]
    value, note = None, "no dot product of this CPU was measured"
    for result in results.find(case, "ours t2", threads):
        for kind in DECODE_DOTS:
            peak = results.limit(DOT_KINDS[kind], threads, result.burst)
            if peak:
                value = 2e-9 * case.macs / result.seconds / peak
                note = f"limit: {DOT_KINDS[kind]}, {peak:.0f} GOPS"
                break
    text = f"decode in cache, {case.name}: t2, share of the dot-product peak"
    yield Goal(text, threads, 0.7, value, note)


def _groups(results: Results, threads: int) -> Iterator[Goal]:
    for case in (*cases.DECODE, *cases.PREFILL):
        for group, required in ((64, 1.5), (128, 1.25), (256, 1.15)):
            value = results.ratio(case, f"ours t2 g{group}", "ours t2", threads)
            text = f"{case.name}: t2 g{group}, time over per channel"
            yield Goal(text, threads, required, value, at_most=True)


def _prefill(results: Results, threads: int) -> Iterator[Goal]:
    for case in cases.PREFILL:
        for peer, required in (("LiteRT int8", 0.97), ("LiteRT int4", 0.93), ("LiteRT int2", 1.8)):
            speeds = ((ours, _speed(results, case, ours, peer, threads)) for ours in OUR_FORMATS)
            value, note = _worst(speeds)
            text = f"prefill, {case.name}: slowest of t2, t5, b1 over {peer}"
            yield Goal(text, threads, required, value, note)


def _small(results: Results, threads: int) -> Iterator[Goal]:
    empty = [r.seconds for r in results.find(cases.EMPTY, "ours empty", threads)]
    costs = []
    for ours in OUR_FORMATS:
        call = [r.seconds for r in results.find(cases.SMALL, f"ours {ours}", threads)]
        # The smallest of the negatives is the largest cost.
        costs.append((ours, -(call[0] - empty[0]) * 1e6 if call and empty else None))
    value, note = _worst(costs)
    text = "fixed cost at 1 x 64 x 64 over an empty op, microseconds"
    yield Goal(text, threads, 2.0, None if value is None else -value, note, at_most=True)


def _others(results: Results, threads: int) -> Iterator[Goal]:
    for case in (*cases.CONVOLUTIONS, cases.EMBEDDING):
        speeds = (
            (ours, _speed(results, case, ours, "LiteRT int8", threads)) for ours in OUR_FORMATS
        )
        value, note = _worst(speeds)
        text = f"{case.name}: slowest of t2, t5, b1 over LiteRT int8"
        yield Goal(text, threads, 1.0, value, note)


def _threads(results: Results) -> Iterator[Goal]:
    """Two threads against one: the only ratio of two bursts."""
    case = cases.DECODE[-1]
    one, two = (
        next((r.seconds for r in results.find(case, "ours t2", threads)), None)
        for threads in (1, 2)
    )
    value = one / two if one and two else None
    yield Goal(f"decode in cache, {case.name}: t2, 2 threads over 1", 2, 1.85, value)
