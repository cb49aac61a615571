"""The runs of the quality study: which model is quantized how, and trained how long.

An experiment is a list of runs; two experiments may share one, which is then made once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from benchmarks.study.trainer import Phase
from tfmot_ternary.packing import GroupSize

__all__ = ["EXPERIMENTS", "Run", "all_runs", "runs_of"]

# Where training starts from, by the name in the tables.
STARTS: dict[str, dict[str, Any]] = {
    "compensated": {"importance": "hessian"},
    **{name: {"initializer": name} for name in ("kmeans", "lloyd", "absmean", "twn", "absmax")},
    "random": {"initializer": "random"},
}
GROUP_SIZES: tuple[GroupSize, ...] = ("tensor", None, 256, 128, 64)
STEPS = (20, 50, 200, 1000)
EARLY, SHORT = 50, 500  # of the experiments that compare many settings
# Part of every run's key: raise it when subjects or training change, and old records do not count.
VERSION = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """One model, quantized, trained and judged.

    Attributes:
      subject: key of `subjects.SUBJECTS`.
      seed: of the order of the training data, and of random weights.
      levels: 3 (ternary), 2 (binary) or None (the float model, not trained).
      steps: of training.
      group_size: as in a scheme.
      initializer: of the scales; "random": kernels drawn anew, with k-means scales.
      importance: None, or the kind of calibration: "activations", "gradients" (k-means is weighted
        by them), "hessian" (errors are compensated).
      rotated: whether values and attention outputs are rotated by a Hadamard matrix first.
      settings: changes to the subject's `Phase`, as sorted pairs.
      deployed: whether the frozen model is converted and judged in LiteRT as well.
      int8: of a float model: whether it is converted with 8-bit weights.
    """

    subject: str
    seed: int = 0
    levels: int | None = 3
    steps: int = 1000
    group_size: GroupSize = None
    initializer: str = "kmeans"
    importance: str | None = None
    rotated: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    deployed: bool = False
    int8: bool = False

    @property
    def key(self) -> str:
        """A short digest of everything that decides the result."""
        text = json.dumps({**dataclasses.asdict(self), "version": VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def compiled(self) -> tuple[Any, ...]:
        """Runs that agree on this share one compiled training step."""
        return self.subject, self.levels, self.group_size, "gradual" in dict(self.settings)

    def phase(self, base: Phase, binary_rate: float) -> Phase:
        """The training of this run, from its subject's settings."""
        if self.levels == 2:
            base = dataclasses.replace(base, rate=binary_rate)
        return dataclasses.replace(base, steps=self.steps, **dict(self.settings))


def _with(**settings: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(settings.items()))


# What the recipes change, by the name in the table. Granularity, losses, importance and recipes are
# compared on the language model, the hardest of the three.
RECIPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "scales fixed": {"settings": _with(scale_rate=0.0)},
    "scales at a tenth of the rate": {"settings": _with(scale_rate=0.1)},
    "scales fixed after half": {"settings": _with(scales_until=0.5)},
    "norms, biases and embeddings fixed": {"settings": _with(rest_rate=0.0)},
    "gradual over the first 30 %": {"settings": _with(gradual=0.3)},
    "learning rate 0.0005": {"settings": _with(rate=5e-4)},
    "learning rate 0.002": {"settings": _with(rate=2e-3)},
    "learning rate 0.004": {"settings": _with(rate=4e-3)},
    "values rotated by a Hadamard matrix": {"rotated": True},
}
LOSSES: dict[str, dict[str, Any]] = {
    "cross entropy": {"settings": _with(distill=0.0)},
    "half and half": {"settings": _with(distill=0.5)},
    "distillation 0.9": {},
    "distillation alone": {"settings": _with(distill=1.0)},
}


def _initializers(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for subject in ("lm", "vlm", "cnn"):
            for name, start in STARTS.items():
                for steps in STEPS:
                    # A step of the VLM is dear: short runs, the longer for those that matter.
                    longest = 200 if name in ("compensated", "kmeans", "absmean") else 50
                    if subject != "vlm" or steps <= longest:
                        yield Run(subject, seed, steps=steps, **start)
                if subject != "vlm" and name in ("compensated", "kmeans"):
                    yield Run(subject, seed, steps=SHORT, **start)


def _granularity(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for group_size in GROUP_SIZES:
            yield Run("lm", seed, steps=SHORT, group_size=group_size)


def _losses(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for change in LOSSES.values():
            yield Run("lm", seed, steps=SHORT, **change)


def _importance(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for importance in (None, "activations", "gradients", "hessian"):
            for steps in (EARLY, SHORT):
                yield Run("lm", seed, steps=steps, importance=importance)


def _recipes(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for change in RECIPES.values():
            yield Run("lm", seed, steps=SHORT, **change)


def _binary(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for importance in (None, "hessian"):
            for steps in (EARLY, SHORT):
                yield Run("lm", seed, 2, steps, importance=importance)


def _comparison(seeds: int) -> Iterator[Run]:
    # The demo compares the versions of the VLM.
    for subject in ("lm", "cnn"):
        for int8 in (False, True):
            yield Run(subject, levels=None, steps=0, deployed=True, int8=int8)
        for levels in (3, 2):
            yield deployed(subject, 0, levels, 0)
            for seed in range(seeds):
                yield deployed(subject, seed, levels, 1000)


def deployed(subject: str, seed: int, levels: int, steps: int) -> Run:
    """A run of the comparison of versions; 0 steps: calibrated, not trained."""
    return Run(subject, seed, levels, steps, group_size=64, importance="hessian", deployed=True)


EXPERIMENTS = {
    "initializers": _initializers,
    "granularity": _granularity,
    "losses": _losses,
    "importance": _importance,
    "recipes": _recipes,
    "binary": _binary,
    "comparison": _comparison,
}


def runs_of(experiment: str, seeds: int) -> list[Run]:
    """The runs of one experiment, in the table's order."""
    return list(EXPERIMENTS[experiment](seeds))


def all_runs(experiments: list[str], seeds: int) -> list[Run]:
    """The runs of several experiments, each once."""
    return list(dict.fromkeys(run for name in experiments for run in runs_of(name, seeds)))
