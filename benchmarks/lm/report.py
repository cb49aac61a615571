"""The tables and the figure of the benchmark of language models."""

from __future__ import annotations

import os
import pathlib
import tempfile

from benchmarks.lm.results import Goal, Result
from benchmarks.report import table


def shape_table(results: list[Result], bandwidth: float, small_pages: float) -> str:
    """One row for each contender of a shape.

    Args:
      results: of one shape.
      bandwidth, small_pages: bytes/s that the machine reads from huge pages, and from pages of
        4 KiB, which are those of a mapped file.
    """
    shape = results[0].shape
    header = (
        shape.name,
        f"decode at {shape.context}, tokens/s",
        "of bound",
        "with small pages",
        f"prefill of {shape.prompt}, tokens/s",
        "file MB",
        "peak MB",
        "first token s",
    )
    rows = []
    for result in results:
        if not result.records:
            rows.append([result.contender.name, "not measured", result.reason, "", "", "", "", ""])
            continue
        rows.append(
            [
                result.contender.name,
                f"{result.decode_rate:.1f}",
                f"{result.decode_rate / result.bound(bandwidth):.0%}",
                f"{result.decode_rate / result.bound(small_pages):.0%}",
                f"{result.prefill_rate:.0f}",
                f"{result.file_bytes / 1e6:.0f}",
                f"{result.peak_bytes / 1e6:.0f}",
                f"{result.first_seconds:.2f}",
            ]
        )
    return table(header, rows)


def profile_table(results: list[Result]) -> str:
    """Share of a decode step by op, one column for each contender that tells."""
    told = [result for result in results if result.records and result.op_shares()]
    shares = [result.op_shares() for result in told]
    names = list(dict.fromkeys(name for share in shares for name in share))
    names.sort(key=lambda name: (name == "other", -max(share.get(name, 0) for share in shares)))
    header = ("share of a decode step", *(result.contender.name for result in told))
    rows = [[name, *(f"{share.get(name, 0):.1%}" for share in shares)] for name in names]
    return table(header, rows)


def goals_table(goals: list[Goal]) -> str:
    rows = [
        [
            goal.subject,
            f">= {goal.required:g}",
            "-" if goal.measured is None else f"{goal.measured:.2f}",
            goal.verdict,
        ]
        for goal in goals
    ]
    return table(("goal", "bound", "measured", ""), rows)


def plot(results: list[Result], path: pathlib.Path) -> None:
    """Bars of decode and prefill for each shape; the file appears when it is whole."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [result for result in results if result.records]
    shapes = list(dict.fromkeys(result.shape for result in measured))
    figure, axes = pyplot.subplots(
        len(shapes), 2, figsize=(11, 1 + 3.2 * len(shapes)), layout="constrained", squeeze=False
    )
    colors = {"ours": "tab:blue", "llama_cpp": "tab:orange", "litert": "tab:gray"}
    for row, shape in zip(axes, shapes, strict=True):
        own = [result for result in measured if result.shape == shape][::-1]
        names = [result.contender.name for result in own]
        bars = [colors[result.contender.peer] for result in own]
        for axis, what in zip(row, ("decode", "prefill"), strict=True):
            rates = [getattr(result, f"{what}_rate") for result in own]
            axis.bar_label(axis.barh(names, rates, color=bars), fmt="%.0f", fontsize=7, padding=2)
            axis.set_title(f"{shape.name}: {what}, tokens/s", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.margins(x=0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".png", dir=path.parent)
    os.close(handle)
    figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    os.replace(temporary, path)
