"""The roofline: time of a product against the bytes of its weights, with the limits as lines."""

from __future__ import annotations

import os
import pathlib
import tempfile

from benchmarks.cases import Kind
from benchmarks.limits import DECODE_DOTS, DOT_KINDS
from benchmarks.results import DRAM, L2, L3, Result, Results

_PEERS = {"ours": "o", "litert": "s", "llama_cpp": "^"}


def _points(results: Results, threads: int) -> dict[tuple[str, str], list[Result]]:
    """Products of one row of x, by contender: in cache and from memory."""
    points: dict[tuple[str, str], list[Result]] = {}
    for result in results.results:
        product = result.case.kind in (Kind.PRODUCT, Kind.WALK) and result.case.m == 1
        if product and result.threads == threads and result.samples:
            key = (result.contender.peer, result.contender.name)
            points.setdefault(key, []).append(result)
    return points


def roofline(results: Results, threads: int, path: pathlib.Path) -> bool:
    """Draws the figure to `path`; False where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = _points(results, threads)
    if not points:
        return False
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    axes.set(xscale="log", yscale="log")
    for index, ((peer, name), entries) in enumerate(sorted(points.items(), reverse=True)):
        in_cache = [e for e in entries if e.case.kind is Kind.PRODUCT]
        walks = [e for e in entries if e.case.kind is Kind.WALK]
        color = pyplot.get_cmap("tab20")(index % 20)
        for chosen, fill in ((in_cache, color), (walks, "none")):
            x = [e.weight_bytes / 1e6 for e in chosen]
            y = [e.seconds * 1e6 for e in chosen]
            label = name if chosen is in_cache or not in_cache else None
            axes.scatter(x, y, 36, marker=_PEERS[peer], color=fill, edgecolor=color, label=label)
    _limit_lines(axes, results, threads)
    axes.set(
        xlabel="weights of a product, MB",
        ylabel="time of a product, microseconds",
        title=f"Decode (m = 1), {threads} thread(s): filled in cache, hollow from DRAM",
    )
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".png", dir=path.parent)
    os.close(handle)
    figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    os.replace(temporary, path)
    return True


def _limit_lines(axes, results: Results, threads: int) -> None:
    """Bytes over bandwidth, and t2's multiply-accumulates over the peak of dot products."""
    low, high = axes.get_xlim()
    ends = [low, high]
    for name, style in ((DRAM, "-"), (L3, "--"), (L2, ":")):
        rate = results.limit(name, threads)
        if rate:
            times = [x * 1e3 / rate for x in ends]
            axes.plot(ends, times, style, color="black", linewidth=1, label=f"{name} {rate:.0f}")
    peaks = ((kind, results.limit(DOT_KINDS[kind], threads)) for kind in DECODE_DOTS)
    kind, peak = next((pair for pair in peaks if pair[1]), ("", None))
    if peak:
        # A byte of t2 holds four weights: eight operations.
        times = [x * 1e6 * 8 / (peak * 1e9) * 1e6 for x in ends]
        label = f"{DOT_KINDS[kind]} on t2"
        axes.plot(ends, times, "-.", color="gray", linewidth=1, label=label)
    axes.set_xlim(low, high)
