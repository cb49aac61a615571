"""One contender in a process of its own: loads it, times prefill and decode, prints a JSON line.

    python -m benchmarks.lm.worker '{"path": ..., "peer": ..., ...}'

Nothing of one runtime (threads, allocators, memory) is then in the figures of another.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from benchmarks.lm.contenders import Contender
from benchmarks.lm.shapes import SHAPES, LMShape
from benchmarks.subject import NotMeasured

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of decode steps that warm up; the first one may still prepare memory.
_WARM_UP = 2


def run(
    path: str, contender: Contender, shape: LMShape, threads: int, steps: int, log: pathlib.Path
) -> dict[str, Any]:
    """Starts the process and returns what it has measured.

    Returns:
      "load" and "first" (seconds to load, seconds to load and run a first token), "prefill"
      (seconds of the prompt), "decode" (seconds of each step), "peak_bytes" (highest resident
      memory, mapped file included), "ops" (name -> share of the decode time; ours only).

    Raises:
      NotMeasured: the process failed; the message says why.
    """
    request = {
        "path": path,
        "peer": contender.peer,
        "cache_type": contender.cache_type,
        "shape": shape.name,
        "threads": threads,
        "steps": steps,
    }
    with log.open("a") as errors:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.lm.worker", json.dumps(request)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            check=False,
        )
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        raise NotMeasured(f"its process ended with status {process.returncode}, see {log}")
    record = json.loads(lines[-1])
    if "not measured" in record:
        raise NotMeasured(record["not measured"])
    return record


def _session(request: dict[str, Any], shape: LMShape) -> Any:
    if request["peer"] == "llama_cpp":
        from benchmarks.lm.llama_session import LlamaSession

        positions = max(shape.prompt, shape.context) + 64
        return LlamaSession(request["path"], request["threads"], positions, request["cache_type"])
    from benchmarks.lm.tflite_session import TfliteSession

    return TfliteSession(request["path"], request["threads"])


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    shape = SHAPES[request["shape"]]
    start = time.perf_counter()
    session = _session(request, shape)
    loaded = time.perf_counter() - start
    session.prefill([1])
    first = time.perf_counter() - start
    session.prefill(_tokens(shape, shape.prompt))
    start = time.perf_counter()
    session.prefill(_tokens(shape, shape.prompt))
    prefill = time.perf_counter() - start
    # The context in front of the steps that are measured.
    steps = request["steps"]
    session.prefill(_tokens(shape, shape.context))
    decode = [_step(session) for _ in range(_WARM_UP + steps)][_WARM_UP:]
    record = {"load": loaded, "first": first, "prefill": prefill, "decode": decode}
    record["peak_bytes"] = _peak_bytes()
    if request["peer"] != "llama_cpp":
        record["ops"] = _ops(session, shape, steps)
    session.close()
    return record


def _ops(session: Any, shape: LMShape, steps: int) -> dict[str, float]:
    """Share of a decode step by op; "other" is what is left: builtin operators and Python."""
    from tfmot_ternary.op_times import op_times

    session.prefill(_tokens(shape, shape.context))
    with op_times() as times:
        seconds = sum(_step(session) for _ in range(steps))
    shares = {t.name.removeprefix("tfmot_ternary."): t.seconds / seconds for t in times}
    return {**shares, "other": 1 - sum(shares.values())}


def _step(session: Any) -> float:
    start = time.perf_counter()
    logits = session.decode(1)
    int(logits.argmax())  # greedy sampling is part of a step
    return time.perf_counter() - start


def _tokens(shape: LMShape, count: int) -> list[int]:
    return [2 + (7 * i) % (shape.vocabulary - 2) for i in range(count)]


def _peak_bytes() -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("expected VmHWM in /proc/self/status, found none")


def main() -> None:
    # Libraries print to standard output what they like: it goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        record = _measure(json.loads(sys.argv[1]))
    except (NotMeasured, MemoryError) as reason:
        record = {"not measured": str(reason) or type(reason).__name__}
    answers.write(json.dumps(record) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
