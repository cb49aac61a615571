"""What was measured of the contenders of a shape, and the goals that follow from it."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from benchmarks.lm.contenders import Contender
from benchmarks.lm.shapes import LMShape


@dataclasses.dataclass
class Result:
    """A contender of a shape: one record of `worker.run` for each round.

    Attributes:
      reason: why there is no record; "" where there are.
    """

    shape: LMShape
    contender: Contender
    file_bytes: int = 0
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reason: str = ""

    @property
    def step_seconds(self) -> float:
        """Median over all decode steps of all rounds."""
        return statistics.median(s for record in self.records for s in record["decode"])

    @property
    def decode_rate(self) -> float:
        """Tokens per second."""
        return 1 / self.step_seconds

    @property
    def prefill_rate(self) -> float:
        """Tokens per second; median over the rounds."""
        return self.shape.prompt / statistics.median(r["prefill"] for r in self.records)

    @property
    def peak_bytes(self) -> float:
        return statistics.median(record["peak_bytes"] for record in self.records)

    @property
    def first_seconds(self) -> float:
        """From nothing to the first token of a prompt of one."""
        return statistics.median(record["first"] for record in self.records)

    def bound(self, bandwidth: float) -> float:
        """Tokens per second if reading weights and cache at `bandwidth` (bytes/s) were all."""
        return bandwidth / self.contender.step_bytes(self.shape)

    def op_shares(self) -> dict[str, float]:
        """Share of a decode step by op, median over the rounds."""
        kept = [record["ops"] for record in self.records if "ops" in record]
        names = dict.fromkeys(name for ops in kept for name in ops)
        return {name: statistics.median(ops.get(name, 0.0) for ops in kept) for name in names}

    def to_json(self) -> dict[str, Any]:
        record = {"shape": self.shape.name, "contender": self.contender.name}
        return {**record, "file_bytes": self.file_bytes, "reason": self.reason} | {
            "rounds": self.records
        }


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound that a figure has to reach; None: it was not measured."""

    subject: str
    required: float
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "pass" if self.measured >= self.required else "FAIL"


# The bandwidth for which the goal of decode is set: it scales with the machine's.
_REFERENCE_BANDWIDTH = 75e9
_DECODE_GOAL, _PREFILL_GOAL = 100.0, 350.0


def goals(results: list[Result], bandwidth: float) -> list[Goal]:
    """The goals of every shape. `bandwidth` is the machine's, bytes/s."""
    found = []
    for shape in dict.fromkeys(result.shape for result in results):
        measured = [r for r in results if r.shape == shape and r.records]
        ours = [r for r in measured if r.contender.peer == "ours" and r.contender.weights == "t2"]
        best = max(ours, key=lambda r: r.decode_rate, default=None)
        # Peers keep 16-bit caches: they are compared with ours that does so too.
        like = next((r for r in ours if r.contender.cache_type == "float16"), best)
        name = shape.name
        if shape.name == "moondream2-text":
            decode = best and best.decode_rate * _REFERENCE_BANDWIDTH / bandwidth
            found.append(Goal(f"{name}: decode, tokens/s at 75 GB/s", _DECODE_GOAL, decode))
            prefill = best and best.prefill_rate
            found.append(Goal(f"{name}: prefill, tokens/s", _PREFILL_GOAL, prefill))
        share = best and best.decode_rate / best.bound(bandwidth)
        required = 0.65 if shape.family == "gpt2" else 0.60
        found.append(Goal(f"{name}: decode, share of the bandwidth bound", required, share))
        for peer, at_least in (("llama_cpp", (1.5, 1.5)), ("litert", (1.3, 1.0))):
            others = [r for r in measured if r.contender.peer == peer]
            title = {"llama_cpp": "llama.cpp", "litert": "LiteRT"}[peer]
            for what, bound in zip(("decode", "prefill"), at_least, strict=True):
                rates = [getattr(r, f"{what}_rate") for r in others]
                ratio = getattr(like, f"{what}_rate") / max(rates) if like and rates else None
                found.append(Goal(f"{name}: {what}, times the fastest of {title}", bound, ratio))
        peaks = [r.peak_bytes for r in measured if r.contender.peer != "ours"]
        ratio = min(peaks) / like.peak_bytes if like and peaks else None
        found.append(Goal(f"{name}: lowest peak memory of the others over ours", 1.0, ratio))
        beside = like and 1 - sum(
            share for op, share in like.op_shares().items() if op == "fully_connected"
        )
        room = None if beside is None else 0.15 / beside if beside > 0 else 1.0
        if shape.name == "moondream2-text":
            found.append(Goal(f"{name}: 15 % over the share beside the weights", 1.0, room))
    return found
