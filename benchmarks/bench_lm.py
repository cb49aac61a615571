"""Whole language models, ours against llama.cpp and LiteRT, in one run.

Makes the files (random weights in the shapes of published models: they show speed, memory and
size, never quality), runs each contender in a process of its own, rounds interleaved, and prints
tokens per second, the share of the bandwidth bound, peak memory, a profile of a decode step, and
the goals with pass or fail. Takes about 20 minutes on two cores. Nothing else should run meanwhile.

    python -m benchmarks.bench_lm
    python -m benchmarks.bench_lm --shapes moondream2-text --contenders 'ours|llama'
"""

from __future__ import annotations

import json
import pathlib
import re
import statistics
import sys

from absl import app, flags
from tqdm import tqdm

from benchmarks import limits
from benchmarks.lm import files, report, worker
from benchmarks.lm.contenders import CONTENDERS
from benchmarks.lm.results import Result, goals
from benchmarks.lm.shapes import SHAPES
from benchmarks.subject import NotMeasured
from tfmot_ternary import model_file

_SHAPES = flags.DEFINE_list(
    "shapes", ["moondream2-text", "paligemma-3b-decoder"], f"Of {', '.join(SHAPES)}."
)
_CONTENDERS = flags.DEFINE_string("contenders", "", "Regular expression: contenders, by name.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of every contender.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Interleaved rounds; figures are medians.", 1)
_STEPS = flags.DEFINE_integer("steps", 24, "Decode steps in a round.", 1)
_OUTPUT = flags.DEFINE_string("output", "build/bench_lm", "Folder of bench_lm.json and the plot.")
_FILES = flags.DEFINE_string("files", "build/bench_lm/files", "Folder of the models; kept.")
_DELETE = flags.DEFINE_bool("delete_files", False, "Delete each model once it has been measured.")

_BANDWIDTH_SECONDS = 1.0
# The weights in the mapped file, a runtime's copy of them, and room for the rest.
_COPIES = 2.5
_BANDWIDTH_BYTES = 1 << 30


def _plan() -> list[Result]:
    try:
        chosen = re.compile(_CONTENDERS.value)
    except re.error as error:
        raise app.UsageError(f"--contenders: expected a regular expression: {error}") from None
    unknown = [name for name in _SHAPES.value if name not in SHAPES]
    if unknown:
        raise app.UsageError(f"--shapes: expected some of {', '.join(SHAPES)}, got {unknown}")
    plan = [
        Result(SHAPES[name], contender)
        for name in _SHAPES.value
        for contender in CONTENDERS
        if chosen.search(contender.name)
    ]
    if not plan:
        raise app.UsageError(f"--contenders: expected a contender, got none: {_CONTENDERS.value}")
    return plan


def _measure(plan: list[Result], bandwidths: dict[bool, list[float]], log: pathlib.Path) -> None:
    """Fills the plan, and the bandwidths by whether pages are huge. Interrupted, it keeps all."""
    machine = limits.Limits()
    folder = pathlib.Path(_FILES.value)
    with tqdm(total=len(plan) * (_ROUNDS.value + 1), unit="run") as bar:
        try:
            for result in plan:
                bar.set_postfix_str(f"write {result.shape.name}, {result.contender.name}")
                try:
                    _require_memory(result)
                    path = files.make(result.shape, result.contender, folder)
                    result.file_bytes = path.stat().st_size
                except NotMeasured as reason:
                    result.reason = str(reason)
                bar.update()
            for turn in range(_ROUNDS.value):
                for huge, rates in bandwidths.items():
                    seconds = _BANDWIDTH_SECONDS
                    rate = machine.read(_BANDWIDTH_BYTES, _THREADS.value, seconds, huge)
                    rates.append(1e9 * rate)
                machine.free()
                # Each round begins with another contender: none has always the same neighbour.
                for result in plan[turn:] + plan[:turn]:
                    bar.set_postfix_str(f"{result.shape.name}, {result.contender.name}")
                    if not result.reason:
                        _run(result, folder, log)
                    bar.update()
        except KeyboardInterrupt:
            bar.write("interrupted: the report covers what was measured until here")
        finally:
            machine.close()
    if _DELETE.value:
        for result in plan:
            files.path(result.shape, result.contender, folder).unlink(missing_ok=True)


def _require_memory(result: Result) -> None:
    """Raises NotMeasured where the weights, and a runtime's copy of them, do not fit."""
    needed = _COPIES * result.contender.weight_bytes(result.shape)
    available = limits.available_memory()
    if needed > available:
        raise NotMeasured(f"needs {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} are there")


def _run(result: Result, folder: pathlib.Path, log: pathlib.Path) -> None:
    path = str(files.path(result.shape, result.contender, folder))
    try:
        record = worker.run(path, result.contender, result.shape, _THREADS.value, _STEPS.value, log)
        result.records.append(record)
    except NotMeasured as reason:
        result.reason = str(reason)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"expected no positional arguments, got {argv[1:]}")
    if sys.platform != "linux":
        raise app.UsageError(f"expected Linux, got {sys.platform}: memory is read there")
    machine = limits.machine()
    plan = _plan()
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "workers.log"
    log.unlink(missing_ok=True)
    bandwidths: dict[bool, list[float]] = {True: [], False: []}
    _measure(plan, bandwidths, log)
    if not all(bandwidths.values()):
        sys.exit("nothing was measured")

    bandwidth, small_pages = (statistics.median(bandwidths[huge]) for huge in (True, False))
    found = goals(plan, bandwidth)
    print(
        f"\n{machine['cpu']}, {_THREADS.value} thread(s); memory reads {bandwidth / 1e9:.1f} GB/s"
    )
    print("Random weights: speed, memory and size, not quality. Tables and heads have 8 bits.")
    for name in dict.fromkeys(_SHAPES.value):
        own = [result for result in plan if result.shape.name == name]
        print(f"\n{report.shape_table(own, bandwidth, small_pages)}\n\n{report.profile_table(own)}")
    print(f"\n{report.goals_table(found)}")
    record = {
        "command": ["python", "-m", "benchmarks.bench_lm", *sys.argv[1:]],
        "machine": machine,
        "threads": _THREADS.value,
        "bandwidths": {"huge pages": bandwidths[True], "small pages": bandwidths[False]},
        "results": [result.to_json() for result in plan],
        "goals": [{**vars(goal), "verdict": goal.verdict} for goal in found],
    }
    model_file.write_atomically(folder / "bench_lm.json", json.dumps(record, indent=1).encode())
    report.plot(plan, folder / "bench_lm.png")
    print(f"\nWritten to {folder}: bench_lm.json, bench_lm.png")


if __name__ == "__main__":
    app.run(main)
