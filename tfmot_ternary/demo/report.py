"""Report: the demo's results as a table, as results.json and results.md, and as plots."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfmot_ternary import model_file

if TYPE_CHECKING:
    from tfmot_ternary.demo.command import Settings, Variant

_PACKAGES = (
    "tensorflow",
    "tf-keras",
    "tensorflow-model-optimization",
    "keras",
    "keras-hub",
    "ai-edge-litert",
    "numpy",
)
# What the quantized versions should keep of the original: at most so many times its perplexity
# (None: no goal), and at most so much less of its accuracy.
GOALS = {"ternary": (1.05, 0.01), "binary": (None, 0.05)}


def write(
    settings: Settings, variants: Sequence[Variant], started: Sequence[Variant], command: str
) -> None:
    """Writes results.json, results.md, quality.png, speed.png and size.png to the output folder.

    Args:
      settings: what the run was asked to do.
      variants: measured versions.
      started: the versions before training, evaluated only.
      command: the command line of the run.
    """
    folder = settings.output_dir
    record: dict[str, Any] = {
        "variants": [_record(v) for v in variants],
        "not_trained": [_quality(v) for v in started],
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "seed": settings.seed,
        "num_threads": settings.num_threads,
        "examples": variants[0].evaluation.examples,
    }
    _write_text(folder / "results.json", json.dumps(record, indent=2) + "\n")
    lines = [
        "# Results of the demo",
        "",
        f"Made by `{command}` on {record['machine']['cpu']} with {record['machine']['cores']} "
        f"cores; models run on {settings.num_threads} thread(s); seed {settings.seed}, "
        f"{record['examples']} test scenes.",
        "",
        table(variants, started, markdown=True),
        "",
        *(f"- {line}" for line in verdicts(variants)),
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in record["versions"].items()) + ".",
        "",
    ]
    _write_text(folder / "results.md", "\n".join(lines))
    _plot(folder, variants, started)


def table(variants: Sequence[Variant], started: Sequence[Variant], markdown: bool = False) -> str:
    """Returns the table as aligned text, or as Markdown (which is aligned too)."""
    header = [
        "version", "file kB", "peak MB", "model MB", "load ms", "prefill tok/s", "decode tok/s",
        "perplexity", "accuracy %",
    ]  # fmt: skip
    rows = []
    for variant in variants:
        m = variant.measurement
        rows.append(
            [
                variant.name,
                f"{m.file_bytes / 1e3:,.0f}",
                f"{m.peak_rss_bytes / 1e6:.1f}",
                f"{(m.peak_rss_bytes - m.baseline_rss_bytes) / 1e6:.1f}",
                f"{1e3 * m.load_seconds:.1f}",
                f"{m.prefill_tokens_per_s:,.0f}",
                f"{m.decode_tokens_per_s:,.0f}",
                f"{variant.evaluation.perplexity:.4f}",
                f"{100 * variant.evaluation.task_accuracy:.2f}",
            ]
        )
    for variant in started:
        quality = variant.evaluation
        rows.append(
            [
                variant.name.replace("_", " ").replace("kmeans", "k-means"),
                *["-"] * 6,
                f"{quality.perplexity:.4f}",
                f"{100 * quality.task_accuracy:.2f}",
            ]
        )
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str], between: str) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return between.join(padded)

    if not markdown:
        return "\n".join([line(header, "  "), *(line(row, "  ") for row in rows)])
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(f"| {line(cells, ' | ')} |" for cells in [header, rule, *rows])


def verdicts(variants: Sequence[Variant]) -> list[str]:
    """Returns a line for each quantized version: what it kept of the original; the goals."""
    original = next(v for v in variants if v.name == "float32").evaluation
    lines = []
    for variant in variants:
        goal = GOALS.get(variant.name.split("_")[0])
        if goal is None:
            continue
        max_ratio, max_loss = goal
        ratio = variant.evaluation.perplexity / original.perplexity
        loss = original.task_accuracy - variant.evaluation.task_accuracy
        kept = loss <= max_loss and (max_ratio is None or ratio <= max_ratio)
        bound = "" if max_ratio is None else f" (goal: at most {max_ratio:.2f})"
        lines.append(
            f"{variant.name}: perplexity {ratio:.3f} times float32's{bound}, accuracy "
            f"{-100 * loss:+.2f} points (goal: at least {-100 * max_loss:.0f}): "
            f"{'reached' if kept else 'MISSED'}"
        )
    return lines


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        names = [x.split(":", 1)[1] for x in info.read_text().splitlines() if "model name" in x]
        cpu = names[0].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
    }


def _quality(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "perplexity": variant.evaluation.perplexity,
        "task_accuracy": variant.evaluation.task_accuracy,
        "accuracy_by_kind": variant.evaluation.accuracy_by_kind,
    }


def _record(variant: Variant) -> dict[str, Any]:
    from tfmot_ternary import inspection

    return {
        **_quality(variant),
        **dataclasses.asdict(variant.measurement),
        "weights": inspection.inspect(variant.path).totals(),
    }


def _write_text(path: pathlib.Path, text: str) -> None:
    model_file.write_atomically(path, text.encode())


def _plot(folder: pathlib.Path, variants: Sequence[Variant], started: Sequence[Variant]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = [v.name for v in variants]
    colours = {name: f"C{i}" for i, name in enumerate(names)}

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for variant in variants:
        kilobytes = variant.measurement.file_bytes / 1e3
        for axis, value in zip(
            axes,
            (100 * variant.evaluation.task_accuracy, variant.evaluation.perplexity),
            strict=True,
        ):
            axis.scatter(kilobytes, value, color=colours[variant.name], label=variant.name)
    for axis, label in zip(axes, ("accuracy, %", "perplexity"), strict=True):
        axis.set(xscale="log", xlabel="file size, kB", ylabel=label)
        axis.margins(x=0.15)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("Quality against size, held-out scenes")
    save_figure(figure, folder / "quality.png")

    _bars(
        folder / "speed.png",
        "Speed",
        names,
        colours,
        {
            "prefill, tokens/s": [v.measurement.prefill_tokens_per_s for v in variants],
            "decode, tokens/s": [v.measurement.decode_tokens_per_s for v in variants],
        },
    )
    _bars(
        folder / "size.png",
        "Size",
        names,
        colours,
        {
            "file, kB": [v.measurement.file_bytes / 1e3 for v in variants],
            "peak resident memory, MB": [v.measurement.peak_rss_bytes / 1e6 for v in variants],
        },
    )


def _bars(
    path: pathlib.Path,
    title: str,
    names: list[str],
    colours: dict[str, Any],
    panels: dict[str, list[float]],
) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 4.2))
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        bars = axis.bar(names, values, color=[colours[n] for n in names])
        axis.bar_label(bars, fmt="{:,.0f}", fontsize=8)
        axis.set_ylabel(label)
        axis.tick_params(axis="x", rotation=20)
    figure.suptitle(title)
    save_figure(figure, path)


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure as PNG, under a temporary name first, and closes it."""
    from matplotlib import pyplot

    figure.tight_layout()
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    os.replace(temporary, path)
