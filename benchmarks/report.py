"""The tables that the benchmark prints, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cases import contenders
from benchmarks.goals import Goal, bandwidth
from benchmarks.results import DRAM, Result, Results


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns hold words, the others figures."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def goals_table(goals: Sequence[Goal], only_measured: bool = False) -> str:
    """Goal, threads, bound, figure, verdict, note; and how many goals are met.

    only_measured: leaves rows without a figure out of the table, but not out of the count.
    """
    rows = [
        [
            goal.subject,
            str(goal.threads),
            f"{'<=' if goal.at_most else '>='} {goal.required:g}",
            "-" if goal.measured is None else f"{goal.measured:.2f}",
            goal.verdict,
            goal.note,
        ]
        for goal in goals
        if goal.measured is not None or not only_measured
    ]
    verdicts = [goal.verdict for goal in goals]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "FAIL", "not measured"))
    header = ("goal", "threads", "bound", "measured", "", "note")
    return f"{table(header, rows)}\n\nGoals: {counts}"


def limits_table(results: Results) -> str:
    """The machine's limits, as measured before the bursts."""
    threads = sorted({limit.threads for limit in results.limits})
    alone = [limit for limit in results.limits if limit.burst is None]
    rows = []
    for name, unit in dict.fromkeys((limit.name, limit.unit) for limit in alone):
        values = [results.limit(name, count) for count in threads]
        rows.append([f"{name}, {unit}", *("-" if v is None else f"{v:.4g}" for v in values)])
    return table(["limit", *(f"{count} thread(s)" for count in threads)], rows)


def results_tables(results: Results) -> str:
    """A table for each case and thread count."""
    parts = []
    for case in results.cases():
        for threads in results.threads():
            own = [r for r in results.results if r.case == case and r.threads == threads]
            if own:
                order = {contender: i for i, contender in enumerate(contenders(case))}
                own.sort(key=lambda result: (result.burst, order[result.contender]))
                header = (case.name, "us", "best us", "weights GB/s", "of DRAM", "GOPS", "error")
                rows = [_row(results, result) for result in own]
                parts.append(f"{threads} thread(s)\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _row(results: Results, result: Result) -> list[str]:
    name = result.contender.name
    if not result.samples:
        return [name, "not measured", result.reason, "", "", "", ""]
    share = None
    if results.limit(DRAM, result.threads, result.burst):
        share = bandwidth(results, result.case, name, result.threads)
    gigabytes = result.weight_bytes / result.seconds * 1e-9
    return [
        name,
        f"{result.seconds * 1e6:.2f}",
        f"{min(result.samples) * 1e6:.2f}",
        f"{gigabytes:.1f}" if result.case.m == 1 and result.weight_bytes else "",
        "" if share is None else f"{share:.0%}",
        f"{2e-9 * result.case.macs / result.seconds:.0f}" if result.case.macs else "",
        f"{result.error:.4f}",
    ]
