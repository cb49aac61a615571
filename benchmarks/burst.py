"""Bursts: contenders that are in memory together and take turns, round by round.

A drift of the machine's speed (clock, neighbours on its memory) then meets all of them alike.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks import limits
from benchmarks.cases import PEER_NAMES, Case, Contender, Kind
from benchmarks.limits import DECODE_DOTS, DOT_KINDS, Limits
from benchmarks.results import DRAM, DRAM_SMALL_PAGES, L2, L3, Limit, Result, Results
from benchmarks.subject import NotMeasured
from benchmarks.worker import Worker

# After a round of several threads: the idle ones of OpenMP spin for some milliseconds.
_SETTLE_SECONDS = 5e-3
# In every burst of a walk, so that the others are compared with them and not across bursts.
_PINNED = (Contender("ours", "t2"), Contender("ours", "t2 g128"))


def bursts(
    contenders: Sequence[Contender], pinned: Sequence[Contender], each: int, memory: int
) -> Iterator[list[Contender]]:
    """Splits `contenders` into bursts that fit in memory, `pinned` at the head of each.

    Args:
      each: bytes that one contender holds.
      memory: bytes that a burst may hold; at least one contender joins the pinned ones anyway.
    """
    others = [contender for contender in contenders if contender not in pinned]
    first = [contender for contender in contenders if contender in pinned]
    room = max(1, memory // each - len(first))
    for start in range(0, max(1, len(others)), room):
        yield first + others[start : start + room]


def walk_bytes(requested_mib: int, memory: int) -> tuple[int, str]:
    """Bytes of packed weights that a walk reads, and a sentence on how they were chosen.

    By default more than six times the third-level cache, unless the limit's own memory, the pinned
    contenders and one other do not fit.
    """
    if requested_mib:
        return requested_mib << 20, f"{requested_mib} MiB by --walk_mib"
    l3 = limits.cache_bytes(3)
    wanted = int(6.1 * l3)
    fits = memory // (len(_PINNED) + 2)
    chosen = min(wanted, fits)
    text = f"{chosen >> 20} MiB, {chosen / l3:.1f} times the third-level cache of {l3 >> 20} MiB"
    if chosen < wanted:
        text += f"; six times would be {wanted >> 20} MiB, for which the memory is too small"
    return chosen, text


@dataclasses.dataclass
class Runner:
    """Runs cases and collects what they give.

    Attributes:
      rounds: of every contender in a burst.
      seconds: of one contender in one round, at least.
      progress: called with a few words for each step.
    """

    results: Results
    machine: Limits
    log: pathlib.Path
    rounds: int
    seconds: float
    progress: Callable[[str], None]

    def __post_init__(self) -> None:
        self.workers = {peer: Worker(peer, self.log) for peer in PEER_NAMES}
        self._burst = 0

    def run(self, case: Case, contenders: Sequence[Contender], threads: int, memory: int) -> None:
        """Measures the case, a walk in as many bursts as `memory` asks for."""
        if case.kind is not Kind.WALK:
            held = self._prepare(case, contenders, threads)
            self._race(case, held, threads)
            self._release(held)
            return
        pinned = [c for c in _PINNED if c in contenders]
        # The limit walks over as many bytes of its own.
        room = memory - case.walk_bytes
        held_pinned: list[tuple[Result, int]] = []
        for chosen in bursts(contenders, pinned, case.walk_bytes, room):
            if not held_pinned:
                held_pinned = self._prepare(case, pinned, threads)
            fresh = [
                (dataclasses.replace(result, samples=[]), subject)
                for result, subject in held_pinned
            ]
            held = self._prepare(case, [c for c in chosen if c not in pinned], threads)
            self._race(case, fresh + held, threads)
            self._release(held)
        self._release(held_pinned)
        self.machine.free()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def _prepare(
        self, case: Case, contenders: Sequence[Contender], threads: int
    ) -> list[tuple[Result, int]]:
        held = []
        for contender in contenders:
            self.progress(f"{case.name}, {threads} thread(s): prepares {contender.name}")
            result = Result(case, contender, threads, self._burst)
            try:
                worker = self.workers[contender.peer]
                answer = worker.prepare(case, contender, threads, self.seconds)
            except NotMeasured as reason:
                result.reason = str(reason)
                self.results.results.append(result)
                continue
            result.weight_bytes, result.error = answer["weight_bytes"], answer["error"]
            held.append((result, answer["id"]))
        return held

    def _race(self, case: Case, held: list[tuple[Result, int]], threads: int) -> None:
        probes = self._probes(case, threads)
        for result, _ in held:
            result.burst = self._burst
            self.results.results.append(result)
        for turn in range(self.rounds):
            self.progress(f"{case.name}, {threads} thread(s): round {turn + 1} of {self.rounds}")
            for limit, measure in probes:
                limit.samples.append(measure())
                self._settle(threads)
            for result, subject in held:
                if result.reason:
                    continue
                try:
                    result.samples.append(self.workers[result.contender.peer].time(subject))
                except NotMeasured as reason:
                    result.samples, result.reason = [], str(reason)
                self._settle(threads)
        self._burst += 1

    def _probes(self, case: Case, threads: int) -> list[tuple[Limit, Callable[[], float]]]:
        """The limits that bind the case; they take turns with its contenders."""
        probes: list[tuple[Limit, Callable[[], float]]] = []
        if case.kind is Kind.WALK:
            limit = Limit(DRAM, threads, "GB/s", burst=self._burst)
            seconds = max(self.seconds, 0.03)
            probes.append((limit, lambda: self.machine.read(case.walk_bytes, threads, seconds)))
        elif case.kind is Kind.PRODUCT:
            kind = next((k for k in DECODE_DOTS if self.machine.dot(k, 1, 1e-4)), None)
            if kind is not None:
                limit = Limit(DOT_KINDS[kind], threads, "GOPS", burst=self._burst)
                probes.append((limit, lambda: self.machine.dot(kind, threads, self.seconds) or 0))
        for limit, _ in probes:
            self.results.limits.append(limit)
        return probes

    def _release(self, held: list[tuple[Result, int]]) -> None:
        for peer, worker in self.workers.items():
            own = [s for result, s in held if result.contender.peer == peer and not result.reason]
            if own:
                worker.release(own)

    def _settle(self, threads: int) -> None:
        if threads > 1:
            time.sleep(_SETTLE_SECONDS)


def machine_limits(machine: Limits, threads: Sequence[int], walk: int, rounds: int) -> list[Limit]:
    """The limits alone, rounds interleaved."""
    l2, l3 = limits.cache_bytes(2), limits.cache_bytes(3)
    measures: list[tuple[Limit, Callable[..., float | None], tuple]] = []
    for count in threads:
        for kind, name in DOT_KINDS.items():
            measures.append((Limit(name, count, "GOPS"), machine.dot, (kind, count, 0.01)))
        regions = (
            (L2, l2 // 2 * count, True),
            (L3, min(8 * l2 * count, l3 // 2), True),
            (DRAM, walk, True),
            (DRAM_SMALL_PAGES, walk, False),
        )
        for name, size, huge_pages in regions:
            limit = Limit(name, count, "GB/s")
            measures.append((limit, machine.read, (size, count, 0.03, huge_pages)))
    if max(threads) > 1:
        limit = Limit("thread hand-off", 2, "microseconds")
        measures.append((limit, machine.handoff, (0.02,)))
    for _ in range(rounds):
        for limit, measure, arguments in measures:
            value = measure(*arguments)
            if value is not None:
                limit.samples.append(value)
    machine.free()
    return [limit for limit, _, _ in measures if limit.samples]
