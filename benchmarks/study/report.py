"""The study's tables and plots, from the records of its runs."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.study import plots, runs
from benchmarks.study.runs import Run
from tfmot_ternary.model_file import write_atomically

Read = Callable[[Run], "dict[str, Any] | None"]

TITLES = {
    "lm": "GPT-2 on English text",
    "vlm": "vision-language model on digit scenes",
    "cnn": "CNN on handwritten digits",
}
GRANULARITIES = {"tensor": "tensor", None: "channel", 256: "g256", 128: "g128", 64: "g64"}


def write(folder: pathlib.Path, experiments: Sequence[str], seeds: int, read: Read) -> None:
    """Writes study.json, study.md and the plots of all experiments that have records.

    Args:
      folder: where to.
      experiments: which.
      seeds: runs of each setting; those that are not done yet are left out.
      read: run -> its record, or None.
    """
    tables = {name: _TABLES[name](seeds, read) for name in experiments}
    record = {"command": "python -m benchmarks.quality", "seeds": seeds, "tables": tables}
    records = [r for name in experiments for run in runs.runs_of(name, seeds) if (r := read(run))]
    record["run_minutes"] = sum(r["seconds"] for r in {id(r): r for r in records}.values()) / 60
    write_atomically(folder / "study.json", json.dumps(record, indent=1).encode())
    parts = [f"## {t['title']}\n\n{markdown(t)}\n" for group in tables.values() for t in group]
    write_atomically(folder / "study.md", "\n".join(parts).encode())
    print("\n".join(parts))
    plots.draw(folder, tables)


def markdown(table: dict[str, Any]) -> str:
    """A table of {"header", "rows"} as aligned Markdown; cells are text."""
    rows = [table["header"], *table["rows"]]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(table["header"]))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        first, *others = (str(cell) for cell in row)
        cells = [first.ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """ "mean ± half the range" of the seeds' values."""
    if not values:
        return "-"
    mean, half = float(np.mean(values)), (max(values) - min(values)) / 2
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def _digits(subject: str) -> int:
    """Decimals of a perplexity: those of the text are far from 1."""
    return 2 if subject == "lm" else 4


def _values(read: Read, wanted: Sequence[Run], *path: str) -> list[float]:
    found = []
    for run in wanted:
        value: Any = read(run)
        for key in path:
            value = value.get(key) if value else None
        if value is not None:
            found.append(value)
    return found


def _seeded(seeds: int, subject: str, **settings: Any) -> list[Run]:
    return [Run(subject, seed, **settings) for seed in range(seeds)]


def _initializers(seeds: int, read: Read) -> list[dict[str, Any]]:
    tables = []
    for subject, title in TITLES.items():
        curves = {name: _curves(seeds, read, subject, name) for name in runs.STARTS}
        lengths = sorted({n for curve in curves.values() for n in curve})
        if lengths == [0]:
            continue
        tables.append(
            {
                "title": f"Initializers: {title}, perplexity",
                "subject": subject,
                "header": [
                    "initializer",
                    *(f"{n} steps" if n else "before training" for n in lengths),
                ],
                "rows": [
                    [
                        name,
                        *(spread(list(c.get(n, {}).values()), _digits(subject)) for n in lengths),
                    ]
                    for name, c in curves.items()
                ],
                "curves": {
                    name: {n: list(at.values()) for n, at in curve.items() if at}
                    for name, curve in curves.items()
                },
            }
        )
        for goal in ("absmean", "kmeans"):
            lengths = [n for n in sorted(curves[goal]) if n]
            tables.append(
                {
                    "title": f"Steps to reach what {goal} reaches: {title}",
                    "subject": subject,
                    "header": ["initializer", *(f"{goal}, {n} steps" for n in lengths)],
                    "rows": [
                        [name, *(_steps_for(curve, curves[goal][n]) for n in lengths)]
                        for name, curve in curves.items()
                    ],
                }
            )
    return tables


def _steps_for(curve: dict[int, dict[int, float]], goals: dict[int, float]) -> str:
    """Steps of `curve` to the goal (seed -> perplexity), over the seeds that both have."""
    reached = [
        steps_to_reach({n: at[seed] for n, at in curve.items() if seed in at}, goal)
        for seed, goal in goals.items()
        if seed in curve[0]
    ]
    late = sum(math.isinf(steps) for steps in reached)
    return f"later in {late} of {len(reached)}" if late else spread(reached, 0)


def _curves(seeds: int, read: Read, subject: str, name: str) -> dict[int, dict[int, float]]:
    """steps -> seed -> perplexity; a training of each length for itself, with its own schedule."""
    curve: dict[int, dict[int, float]] = {0: {}}
    for steps in sorted({*runs.STEPS, runs.SHORT}):
        for run in _seeded(seeds, subject, steps=steps, **runs.STARTS[name]):
            record = read(run)
            if record is not None:
                curve[0][run.seed] = record["before"]["perplexity"]
                curve.setdefault(steps, {})[run.seed] = record["after"]["perplexity"]
    return curve


def steps_to_reach(curve: dict[int, float], goal: float) -> float:
    """Steps after which a curve of steps -> perplexity reaches `goal`; inf if it never does.

    Between two measured lengths the logarithm of the perplexity is taken as linear in that of the
    steps (with 1 for none).
    """
    before: tuple[float, float] | None = None
    for steps, perplexity in sorted(curve.items()):
        x, y = math.log(max(steps, 1)), math.log(perplexity)
        if y <= math.log(goal):
            if before is None or y == before[1]:
                return float(steps)
            part = (before[1] - math.log(goal)) / (before[1] - y)
            return math.exp(before[0] + part * (x - before[0]))
        before = x, y
    return math.inf


def _settings_table(
    title: str, subject: str, rows: dict[str, list[Run]], read: Read, before: bool = False
) -> dict[str, Any] | None:
    """One row a setting: perplexity, its ratio to float, accuracy, bits per weight."""
    if not any(_values(read, wanted, "after", "perplexity") for wanted in rows.values()):
        return None
    digits = _digits(subject)
    original = _values(
        read, [Run(subject, levels=None, steps=0, deployed=True)], "before", "perplexity"
    )
    header = ["setting", *(["before training"] if before else []), "perplexity", "over float"]
    header += ["accuracy %", "bits per weight"]
    cells, points = [], {}
    for name, wanted in rows.items():
        after = _values(read, wanted, "after", "perplexity")
        ratio = [value / original[0] for value in after] if original else []
        accuracy = [100 * value for value in _values(read, wanted, "after", "accuracy")]
        bits = _values(read, wanted, "bits_per_weight")
        row = [name]
        if before:
            row.append(spread(_values(read, wanted, "before", "perplexity"), digits))
        row += [spread(after, digits), spread(ratio, 4), spread(accuracy, 2)]
        row.append(f"{bits[0]:.2f}" if bits else "-")
        cells.append(row)
        points[name] = {"perplexity": after, "bits_per_weight": bits[:1]}
    return {"title": title, "subject": subject, "header": header, "rows": cells, "points": points}


def _tables(*made: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [table for table in made if table is not None]


def _granularity(seeds: int, read: Read) -> list[dict[str, Any]]:
    rows = {
        name: _seeded(seeds, "lm", steps=runs.SHORT, group_size=group_size)
        for group_size, name in GRANULARITIES.items()
    }
    title = f"Granularity: {TITLES['lm']}, {runs.SHORT} steps"
    return _tables(_settings_table(title, "lm", rows, read, before=True))


def _losses(seeds: int, read: Read) -> list[dict[str, Any]]:
    rows = {
        name: _seeded(seeds, "lm", steps=runs.SHORT, **change)
        for name, change in runs.LOSSES.items()
    }
    title = f"Loss: {TITLES['lm']}, {runs.SHORT} steps"
    return _tables(_settings_table(title, "lm", rows, read))


def _importance(seeds: int, read: Read) -> list[dict[str, Any]]:
    kinds = {
        None: "plain",
        "activations": "squared activations",
        "gradients": "squared gradients",
        "hessian": "error compensation",
    }
    return _tables(
        *(
            _settings_table(
                f"Importance: {TITLES['lm']}, {steps} steps",
                "lm",
                {
                    name: _seeded(seeds, "lm", steps=steps, importance=kind)
                    for kind, name in kinds.items()
                },
                read,
                before=True,
            )
            for steps in (runs.EARLY, runs.SHORT)
        )
    )


def _recipes(seeds: int, read: Read) -> list[dict[str, Any]]:
    rows = {
        name: _seeded(seeds, "lm", steps=runs.SHORT, **change)
        for name, change in runs.RECIPES.items()
    }
    title = f"Recipes: {TITLES['lm']}, {runs.SHORT} steps"
    return _tables(_settings_table(title, "lm", rows, read, before=True))


def _binary(seeds: int, read: Read) -> list[dict[str, Any]]:
    starts = {"k-means": None, "error compensation": "hessian"}
    rows = {
        f"{name}, {steps} steps": _seeded(seeds, "lm", levels=2, steps=steps, importance=kind)
        for steps in (runs.EARLY, runs.SHORT)
        for name, kind in starts.items()
    }
    title = f"Binary: {TITLES['lm']}"
    return _tables(_settings_table(title, "lm", rows, read, before=True))


def _comparison(seeds: int, read: Read) -> list[dict[str, Any]]:
    tables = []
    for subject, title in TITLES.items():
        digits = _digits(subject)
        versions = {
            "float32": [Run(subject, levels=None, steps=0, deployed=True)],
            "int8": [Run(subject, levels=None, steps=0, deployed=True, int8=True)],
        }
        for levels, name in ((3, "ternary t2"), (2, "binary b1")):
            versions[f"{name}, not trained"] = [runs.deployed(subject, 0, levels, 0)]
            versions[name] = [runs.deployed(subject, seed, levels, 1000) for seed in range(seeds)]
        original = _values(read, versions["float32"], "deployed", "perplexity")
        if not original:
            continue
        rows, points = [], {}
        for name, wanted in versions.items():
            perplexity = _values(read, wanted, "deployed", "perplexity")
            accuracy = [100 * v for v in _values(read, wanted, "deployed", "accuracy")]
            size = _values(read, wanted, "deployed", "file_bytes")
            rows.append(
                [
                    name,
                    f"{size[0] / 1e3:,.0f}" if size else "-",
                    spread(perplexity, digits),
                    spread([p / original[0] for p in perplexity], 4),
                    spread(accuracy, 2),
                ]
            )
            points[name] = {"perplexity": perplexity, "accuracy": accuracy, "bytes": size[:1]}
        tables.append(
            {
                "title": f"Versions: {title}, test data, through LiteRT",
                "subject": subject,
                "header": [
                    "version", "file kB", "perplexity", "over float", "accuracy %",
                ],
                "rows": rows,
                "points": points,
            }
        )  # fmt: skip
    return tables


_TABLES: dict[str, Callable[[int, Read], list[dict[str, Any]]]] = {
    "initializers": _initializers,
    "granularity": _granularity,
    "losses": _losses,
    "importance": _importance,
    "recipes": _recipes,
    "binary": _binary,
    "comparison": _comparison,
}
