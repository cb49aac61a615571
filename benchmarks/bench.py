"""The project against its peers and against the machine, in one run.

Measures the machine's limits, our operators, LiteRT's and llama.cpp's, one process for each peer,
rounds interleaved; prints the goals with pass or fail, writes build/bench/bench.json and plots.
Takes about 15 minutes on two cores, under 2 with --quick. Nothing else should run meanwhile.

    python -m benchmarks.bench
    python -m benchmarks.bench --only 'walk|8192' --threads 1
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import sys

from absl import app, flags
from tqdm import tqdm

from benchmarks import burst, cases, goals, limits, plot, report, shapes
from benchmarks.cases import Case, Contender
from benchmarks.results import Results
from tfmot_ternary import model_file

_QUICK = flags.DEFINE_bool("quick", False, "Few rounds, a short walk, no layers: a smoke test.")
_ONLY = flags.DEFINE_string("only", "", "Regular expression: cases to measure, by name.")
_CONTENDERS = flags.DEFINE_string("contenders", "", "Regular expression: contenders, by name.")
_THREADS = flags.DEFINE_list("threads", None, "Thread counts; default 1 and 2, as far as cores go.")
_ROUNDS = flags.DEFINE_integer("rounds", 21, "Interleaved rounds; figures are medians.", 1)
_ROUND_MS = flags.DEFINE_float("round_ms", 5.0, "Time of a contender in a round, at least.", 0.1)
_WALK_MIB = flags.DEFINE_integer(
    "walk_mib", 0, "Packed weights of a walk through memory; 0: over six third-level caches.", 0
)
_SHAPES = flags.DEFINE_string("shapes", str(shapes.DEFAULT_PATH), "Layers of models; '': none.")
_LAYER_ROWS = flags.DEFINE_list("layer_rows", ["1", "128"], "Rows m of x for these layers.")
_OUTPUT = flags.DEFINE_string("output", "build/bench", "Folder of bench.json and the plots.")

_QUICK_ROUNDS, _QUICK_WALK_MIB, _QUICK_ROUND_MS = 3, 64, 2.0
# Of the memory that is available; models on their way into it need room too.
_MEMORY_SHARE = 0.85
_TRANSIENT_BYTES = 2 << 30


def _thread_counts() -> list[int]:
    if _THREADS.value is None:
        return [count for count in (1, 2) if count <= limits.cores()]
    try:
        counts = sorted({int(text) for text in _THREADS.value})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise app.UsageError(f"--threads: expected counts such as 1,2, got {_THREADS.value}")
    return counts


def _layer_cases() -> list[Case]:
    if _QUICK.value or not _SHAPES.value:
        return []
    try:
        layers = shapes.parse_layers(pathlib.Path(_SHAPES.value).read_text())
        rows = [int(text) for text in _LAYER_ROWS.value]
    except (OSError, ValueError) as error:
        raise app.UsageError(f"--shapes, --layer_rows: {error}") from None
    return [cases.product(m, n, k) for n, k in shapes.distinct_sizes(layers) for m in rows]


def _plan(walk: int) -> list[tuple[Case, list[Contender]]]:
    """The cases with their contenders, as the flags choose them."""
    plan = [cases.EMPTY, cases.SMALL, *cases.DECODE, cases.walk(walk), *cases.PREFILL]
    plan += [*cases.CONVOLUTIONS, cases.EMBEDDING, *_layer_cases()]
    try:
        only, names = re.compile(_ONLY.value), re.compile(_CONTENDERS.value)
    except re.error as error:
        raise app.UsageError(
            f"--only, --contenders: expected a regular expression: {error}"
        ) from None
    chosen = []
    for case in dict.fromkeys(plan):
        contenders = [c for c in cases.contenders(case) if names.search(c.name)]
        if only.search(case.name) and contenders:
            chosen.append((case, contenders))
    if not chosen:
        raise app.UsageError("--only, --contenders: expected a case and a contender, got none")
    return chosen


def _measure(
    plan: list[tuple[Case, list[Contender]]], results: Results, walk: int, memory: int
) -> dict[str, dict[str, str]]:
    """Fills `results`; returns what each peer is. Interrupted, it keeps what it has."""
    threads = _thread_counts()
    rounds = _QUICK_ROUNDS if _QUICK.value else _ROUNDS.value
    seconds = (_QUICK_ROUND_MS if _QUICK.value else _ROUND_MS.value) * 1e-3
    machine = limits.Limits()
    log = pathlib.Path(_OUTPUT.value) / "workers.log"
    log.unlink(missing_ok=True)
    peers: dict[str, dict[str, str]] = {}
    with tqdm(total=len(threads) * len(plan) + 1, unit="case") as bar:
        runner = burst.Runner(results, machine, log, rounds, seconds, bar.set_postfix_str)
        with contextlib.ExitStack() as stack:
            stack.callback(machine.close)
            stack.callback(runner.close)
            try:
                peers = {name: worker.describe() for name, worker in runner.workers.items()}
                bar.set_postfix_str("limits of the machine")
                results.limits += burst.machine_limits(machine, threads, walk, rounds)
                bar.update()
                for case, contenders in plan:
                    for count in threads:
                        runner.run(case, contenders, count, memory)
                        bar.update()
            except KeyboardInterrupt:
                bar.write("interrupted: the report covers what was measured until here")
    return peers


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"expected no positional arguments, got {argv[1:]}")
    if sys.platform != "linux":
        raise app.UsageError(
            f"expected Linux, got {sys.platform}: memory and caches are read there"
        )
    memory = int(_MEMORY_SHARE * limits.available_memory()) - _TRANSIENT_BYTES
    walk, walk_text = burst.walk_bytes(
        _WALK_MIB.value or (_QUICK_WALK_MIB if _QUICK.value else 0), memory
    )
    machine = limits.machine()
    results = Results()
    peers = _measure(_plan(walk), results, walk, memory)

    rows = goals.evaluate(results)
    print(f"\n{machine['cpu']}, {machine['cores']} core(s); a walk reads {walk_text}")
    for name, versions in peers.items():
        print(f"{cases.PEER_NAMES[name]}: {', '.join(f'{k} {v}' for k, v in versions.items())}")
    print(f"\n{report.results_tables(results)}")
    partial = bool(_ONLY.value or _CONTENDERS.value)
    print(f"\n{report.limits_table(results)}\n\n{report.goals_table(rows, partial)}")

    folder = pathlib.Path(_OUTPUT.value)
    record: dict[str, object] = {
        "command": ["python", "-m", "benchmarks.bench", *sys.argv[1:]],
        "machine": machine,
        "peers": peers,
        "walk": walk_text,
        "rounds": _QUICK_ROUNDS if _QUICK.value else _ROUNDS.value,
        "limits": [limit.to_json() for limit in results.limits if limit.samples],
        "results": [
            result.to_json() for result in results.results if result.samples or result.reason
        ],
        "goals": [goal.to_json() for goal in rows],
    }
    model_file.write_atomically(folder / "bench.json", json.dumps(record, indent=1).encode())
    written = ["bench.json"]
    for count in results.threads():
        name = f"roofline_{count}.png"
        if plot.roofline(results, count, folder / name):
            written.append(name)
    print(f"\nWritten to {folder}: {', '.join(written)}")
    broken = {
        r.case.name: r.reason for r in results.results if r.contender.peer == "ours" and r.reason
    }
    if broken:
        sys.exit(
            "ours must run everywhere, but: " + "; ".join(f"{k}: {v}" for k, v in broken.items())
        )


if __name__ == "__main__":
    app.run(main)
