"""The study's plots."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tfmot_ternary.demo.report import save_figure


def draw(folder: pathlib.Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Writes initializers.png, granularity.png and versions.png, as far as there are records."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = {
        "initializers": (
            _initializers,
            [table for table in tables.get("initializers", []) if "curves" in table],
        ),
        "granularity": (_granularity, tables.get("granularity")),
        "versions": (_versions, tables.get("comparison")),
    }
    for name, (draw_one, group) in drawn.items():
        if group:
            save_figure(draw_one(group), folder / f"{name}.png")


def _axes(count: int) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(4.6 * count, 4), squeeze=False)
    return figure, axes[0]


def _error_bar(axis: Any, x: Any, values: list[list[float]], **style: Any) -> None:
    """Means with bars over the range of the seeds."""
    means = [float(np.mean(v)) for v in values]
    # A mean of equal values may be a rounding off.
    below = [max(0.0, m - min(v)) for m, v in zip(means, values, strict=True)]
    above = [max(0.0, max(v) - m) for m, v in zip(means, values, strict=True)]
    axis.errorbar(x, means, [below, above], capsize=2, **style)


def _initializers(group: list[dict[str, Any]]) -> Any:
    figure, axes = _axes(len(group))
    for axis, table in zip(axes, group, strict=True):
        for number, (name, curve) in enumerate(table["curves"].items()):
            points = {int(steps): values for steps, values in curve.items() if values}
            if points:
                steps = sorted(points)
                # No training stands at 10 steps of the logarithmic axis.
                x = [max(n, 10) for n in steps]
                style = {"marker": "o", "markersize": 3, "color": f"C{number}", "label": name}
                _error_bar(axis, x, [points[n] for n in steps], **style)
        axis.set(xscale="log", xlabel="steps (10: none)", ylabel="perplexity")
        axis.set_ylim(*_limits(table["curves"]))
        axis.set_title(table["title"].split(": ")[1].split(",")[0], fontsize=10)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    return figure


def _limits(curves: dict[str, Any]) -> tuple[float | None, float | None]:
    """Where the good starts lie: the bad ones, which begin far above, are in the tables."""
    means = [float(np.mean(v)) for curve in curves.values() for v in curve.values() if v]
    begin = curves.get("kmeans", {}).get(0)
    least = min(means, default=0.0)
    height = 1.5 * (float(np.mean(begin)) - least) if begin else 0.0
    if height <= 0:
        return None, None
    return least - 0.05 * height, least + height


def _granularity(group: list[dict[str, Any]]) -> Any:
    figure, axes = _axes(len(group))
    for axis, table in zip(axes, group, strict=True):
        points = {n: p for n, p in table["points"].items() if p["perplexity"]}
        x = [p["bits_per_weight"][0] for p in points.values()]
        _error_bar(axis, x, [p["perplexity"] for p in points.values()], marker="o", linestyle=":")
        for (name, p), bits in zip(points.items(), x, strict=True):
            position = (bits, float(np.mean(p["perplexity"])))
            axis.annotate(name, position, textcoords="offset points", xytext=(5, 5), fontsize=8)
        axis.set(xlabel="bits per weight, scales included", ylabel="perplexity")
        axis.set_title(table["title"].split(": ")[1], fontsize=10)
        axis.grid(alpha=0.3)
    return figure


def _versions(group: list[dict[str, Any]]) -> Any:
    figure, axes = _axes(len(group))
    for axis, table in zip(axes, group, strict=True):
        for number, (name, p) in enumerate(table["points"].items()):
            if p["accuracy"]:
                kilobytes = [p["bytes"][0] / 1e3]
                style = {"marker": "o", "color": f"C{number}", "label": name}
                _error_bar(axis, kilobytes, [p["accuracy"]], **style)
        axis.set(xscale="log", xlabel="file size, kB", ylabel="accuracy, %")
        axis.set_title(table["title"].split(": ")[1].split(",")[0], fontsize=10)
        axis.margins(0.2)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    return figure
