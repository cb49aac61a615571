"""The quality study: how much training k-means saves, and which settings keep the most quality.

    python -m benchmarks.quality            # all of it: `make study`
    python -m benchmarks.quality --report   # tables and plots of what is done already

Three real, small models are quantized in many ways and trained on the outputs of their float
versions, several seeds each (`benchmarks/study/runs.py` lists the runs). A run that is done is not
done again: an interrupted study goes on where it was.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import sys
import time
from typing import Any

from absl import app, flags

from benchmarks.study import runs
from tfmot_ternary.model_file import write_atomically

_OUTPUT = flags.DEFINE_string("output", "build/study", "Folder of all that the study writes.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each setting, each with another seed.", 1)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes, one thread each; default: the number of cores.", 1
)
_ONLY = flags.DEFINE_multi_enum("only", [], list(runs.EXPERIMENTS), "Only these experiments.")
_SUBJECTS = flags.DEFINE_multi_enum("subject", [], ["lm", "vlm", "cnn"], "Only these models.")
_SCALE = flags.DEFINE_float(
    "steps", 1.0, "Multiplies the training steps of every run (for a quick look).", 0.01, 1.0
)
_REPORT = flags.DEFINE_bool("report", False, "Do no runs: report what is done.")

# Runs that share a compiled step go to one process together, up to so many training steps: less
# compiling against an even load.
_PORTION = 6000


def _path(folder: pathlib.Path, run: runs.Run) -> pathlib.Path:
    return folder / "runs" / f"{run.key}.json"


def read(folder: pathlib.Path, run: runs.Run) -> dict[str, Any] | None:
    """The record of a run, or None where it is not done."""
    path = _path(folder, run)
    return json.loads(path.read_text()) if path.is_file() else None


def _portions(todo: list[runs.Run]) -> list[list[runs.Run]]:
    """Runs that share a compiled step, cut into portions; the longest first."""
    groups: dict[Any, list[runs.Run]] = {}
    for run in todo:
        groups.setdefault(run.compiled, []).append(run)
    portions = []
    for members in groups.values():
        portions.append([])
        for run in members:
            if portions[-1] and sum(r.steps for r in portions[-1]) + run.steps > _PORTION:
                portions.append([])
            portions[-1].append(run)
    return sorted(portions, key=lambda portion: -sum(run.steps for run in portion))


def _prepare(folder: pathlib.Path, subject: str) -> str:
    """Trains a float model, once; returns a digest of it."""
    import numpy as np

    from benchmarks.study.subjects import SUBJECTS

    digest = hashlib.sha256()
    for variable in SUBJECTS[subject](folder).model.variables:
        digest.update(np.ascontiguousarray(variable).tobytes())
    return digest.hexdigest()[:16]


def _work(folder: pathlib.Path, portion: list[runs.Run]) -> int:
    """Does the runs of one portion; each is written as soon as it is done."""
    import tfmot_ternary as tt
    from benchmarks.study import student
    from benchmarks.study.subjects import SUBJECTS

    first = portion[0]
    subject = SUBJECTS[first.subject](folder)
    twin = None
    for run in portion:
        if run.levels is None:
            record = student.judge_float(subject, run.int8)
        else:
            twin = twin or student.Student(subject, *first.compiled[1:])
            record = twin.run(run)
        record |= {"run": dataclasses.asdict(run), "version": tt.__version__}
        content = json.dumps(record, indent=1).encode()
        path = _path(folder, run)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return len(portion)


# Of the workers: one thread, and no bars of their own.
_ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TQDM_DISABLE": "1",
    "KERAS_BACKEND": "tensorflow",
    # Each process would else take a part of the machine for the code that XLA makes.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


def _quiet() -> None:
    """Of a worker: no warnings, no information."""
    import warnings

    from absl import logging

    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")


def _duration(run: runs.Run) -> int:
    """The order in which float models are prepared: the language model is trained first of all."""
    return ("lm", "cnn", "vlm").index(run.subject)


def _do(folder: pathlib.Path, todo: list[runs.Run], workers: int) -> None:
    import tqdm

    # Here, not in the workers' initializer: a worker imports this module first, and with it what
    # reads the environment once. (The bar of this process is imported already.)
    os.environ |= _ENVIRONMENT
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, spawn, initializer=_quiet, max_tasks_per_child=1
    ) as pool:
        # The float models come first, the one that takes longest in front; then their runs.
        subjects = list(dict.fromkeys(run.subject for run in sorted(todo, key=_duration)))
        preparing = {pool.submit(_prepare, folder, name): name for name in subjects}
        futures: set[concurrent.futures.Future[Any]] = set(preparing)
        waiting = set(todo)
        steps = sum(run.steps for run in todo)
        with tqdm.tqdm(total=steps, unit="step", desc=f"{len(todo)} runs", smoothing=0.1) as bar:
            while futures:
                done, futures = concurrent.futures.wait(futures, 2, "FIRST_COMPLETED")
                for future in done:
                    result = future.result()  # raises what the worker raised
                    if future in preparing:
                        subject = preparing[future]
                        bar.write(f"float model {subject}: {result}")
                        own = [run for run in todo if run.subject == subject]
                        futures |= {pool.submit(_work, folder, part) for part in _portions(own)}
                for run in [run for run in waiting if _path(folder, run).is_file()]:
                    waiting.remove(run)
                    bar.update(run.steps)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    folder = pathlib.Path(_OUTPUT.value)
    names = _ONLY.value or list(runs.EXPERIMENTS)
    chosen = [
        dataclasses.replace(run, steps=max(1, round(run.steps * _SCALE.value)) if run.steps else 0)
        for run in runs.all_runs(names, _SEEDS.value)
        if not _SUBJECTS.value or run.subject in _SUBJECTS.value
    ]
    todo = [run for run in chosen if read(folder, run) is None]
    if todo and not _REPORT.value:
        began = time.perf_counter()
        print(f"{len(chosen) - len(todo)} of {len(chosen)} runs are done; {len(todo)} to do")
        _do(folder, todo, _WORKERS.value or os.cpu_count() or 1)
        print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
    from benchmarks.study import report

    report.write(folder, names, _SEEDS.value, lambda run: read(folder, run))
    print(f"written to {folder}: study.json, study.md and plots", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
