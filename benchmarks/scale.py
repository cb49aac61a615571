"""Models of full size from a preset to a `.tflite`: time, peak memory, file size, and loading.

The weights are random: this shows size, memory and speed, never quality. Each conversion is a
process of its own, `tfmot-ternary ternarize`, and so is each measurement of the file.

python -m benchmarks.scale
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from benchmarks.report import table
from benchmarks.scale_presets import PRESETS
from tfmot_ternary import measurement

_MODEL = flags.DEFINE_enum("model", None, sorted(PRESETS), "Only this model.")
_FORMAT = flags.DEFINE_enum("format", None, ["t2", "t5"], "Only rows of this format.")
_TABLES = flags.DEFINE_string("tables", None, "Store tables so in place of what the rows say.")
_KEEP = flags.DEFINE_boolean("keep", False, "Keep the presets and the .tflite files.")
_FOLDER = flags.DEFINE_string("folder", "build/scale", "Where presets, files and the report go.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of the interpreter.")

NOTE = "Random weights: size, memory and speed; these figures say nothing about quality."
# What a run may take: for the larger model; the smaller one is held to the same.
SECONDS, KMEANS_SECONDS, PEAK = 15 * 60, 2 * 60, 14 * 2**30
LOAD_SECONDS, RESIDENT_BESIDE_FILE = 2.0, 150e6


@dataclasses.dataclass(frozen=True)
class Case:
    """One conversion.

    Attributes:
      model: a key of `PRESETS`.
      weight_format, tables: flags of `ternarize`.
      most_bytes: goal for the file; None: none.
    """

    model: str
    weight_format: str
    tables: str
    most_bytes: float | None


CASES = (
    Case("moondream", "t2", "t5:256", 330e6),
    Case("moondream", "t5", "t5:256", 280e6),
    Case("moondream", "t2", "i8", None),
    Case("pali_gemma", "t2", "t2", 800e6),
)


def main(argv: Sequence[str]) -> None:
    del argv
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [
        dataclasses.replace(case, tables=_TABLES.value or case.tables)
        for case in CASES
        if _MODEL.value in (None, case.model) and _FORMAT.value in (None, case.weight_format)
    ]
    print(f"{NOTE}\n")
    results = []
    for i, case in enumerate(cases):
        preset = folder / case.model
        if not preset.exists():
            print(f"write the preset {preset}", flush=True)
            PRESETS[case.model].write(preset)
        results.append(_result(case, preset, folder))
        if not _KEEP.value and case.model not in {later.model for later in cases[i + 1 :]}:
            shutil.rmtree(preset)
        _report(results, folder)
    print(f"\n{folder / 'scale.md'}:\n")
    print((folder / "scale.md").read_text())


def _result(case: Case, preset: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    output = folder / f"{case.model}_{case.weight_format}_{case.tables.replace(':', '_')}.tflite"
    output.unlink(missing_ok=True)
    shutil.rmtree(f"{output}.partial", ignore_errors=True)
    result = dataclasses.asdict(case) | _ternarize(case, preset, output)
    result["file_bytes"] = output.stat().st_size
    measured = measurement.measure(output, num_threads=_THREADS.value, repeats=1, decode_steps=8)
    result["measurement"] = dataclasses.asdict(measured)
    result["load_average"] = os.getloadavg()[0]
    if not _KEEP.value:
        output.unlink()
    return result


def _ternarize(case: Case, preset: pathlib.Path, output: pathlib.Path) -> dict[str, float]:
    """Runs the command; what it prints goes on to the terminal."""
    command = [sys.executable, "-m", "tfmot_ternary.cli", "ternarize"]
    command += ["--preset", str(preset), "--output", str(output)]
    command += ["--format", case.weight_format, "--tables", case.tables]
    print(f"\n{' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    packing = None
    for line in process.stdout:
        print(line, end="", flush=True)
        packing = re.search(r"packed in ([\d.]+) s \(([\d.]+) s of", line) or packing
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or packing is None:
        raise RuntimeError(f"expected the command to succeed, got exit code {process.returncode}")
    return {
        "seconds": time.monotonic() - start,
        "packing_seconds": float(packing[1]),
        "packing_cpu_seconds": float(packing[2]),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def _report(results: Sequence[dict[str, Any]], folder: pathlib.Path) -> None:
    """Writes scale.json and scale.md."""
    header = (
        *("model", "weights", "tables", "all, s", "k-means and packing, s", "CPU, s", "peak, GB"),
        *("file, MB", "goal", "load, s", "first token, s", "resident, MB", "goals"),
    )
    text = f"{NOTE}\n\n{table(header, [_row(result) for result in results], left=3)}\n"
    (folder / "scale.md").write_text(text)
    content = {
        "command": "python -m benchmarks.scale",
        "note": NOTE,
        "cpus": os.cpu_count(),
        "threads": _THREADS.value,
        "rows": results,
    }
    temporary = folder / "scale.json.tmp"
    temporary.write_text(json.dumps(content, indent=2))
    temporary.replace(folder / "scale.json")


def _row(result: dict[str, Any]) -> list[str]:
    measured, goal = result["measurement"], result["most_bytes"]
    failed = [name for name, met in _goals(result).items() if not met]
    return [
        *(PRESETS[result["model"]].title, result["weight_format"], result["tables"]),
        *(f"{result['seconds']:.0f}", f"{result['packing_seconds']:.0f}"),
        *(f"{result['cpu_seconds']:.0f}", f"{result['peak_bytes'] / 1e9:.2f}"),
        *(f"{result['file_bytes'] / 1e6:.1f}", "-" if goal is None else f"{goal / 1e6:.0f}"),
        *(f"{measured['load_seconds']:.2f}", f"{measured['first_token_seconds']:.2f}"),
        f"{measured['peak_rss_bytes'] / 1e6:.0f}",
        "met" if not failed else f"NOT MET: {', '.join(failed)}",
    ]


def _goals(result: dict[str, Any]) -> dict[str, bool]:
    """Goal -> whether it is met."""
    measured = result["measurement"]
    resident = measured["peak_rss_bytes"] - result["file_bytes"] - measured["cache_bytes"]
    return {
        "time": result["seconds"] <= SECONDS,
        "k-means": result["packing_seconds"] <= KMEANS_SECONDS,
        "peak": result["peak_bytes"] <= PEAK,
        "file": result["most_bytes"] is None or result["file_bytes"] <= result["most_bytes"],
        "load": measured["load_seconds"] <= LOAD_SECONDS,
        "resident": resident <= RESIDENT_BESIDE_FILE,
    }


if __name__ == "__main__":
    app.run(main)
