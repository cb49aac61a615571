"""One process per peer: it prepares subjects and times them when asked, a JSON line each way.

    python -m benchmarks.worker litert

Nothing of one peer (thread pools, allocators, instruction sets) is in the process of another.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any, TextIO

from benchmarks import memory
from benchmarks.cases import Case, Contender
from benchmarks.subject import NotMeasured, Subject

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class Worker:
    """The process of a peer, as the benchmark sees it. It starts with the first request, and again
    after it has died."""

    def __init__(self, peer: str, log: pathlib.Path) -> None:
        self._peer = peer
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def describe(self) -> dict[str, str]:
        """Versions, by what they are of."""
        return self._ask({"do": "describe"})

    def prepare(self, case: Case, contender: Contender, threads: int, seconds: float) -> dict:
        """Makes a subject whose rounds take about `seconds`.

        Returns:
          "id", "weight_bytes" and "error".

        Raises:
          NotMeasured: the peer cannot run it.
        """
        request = {"do": "prepare", "case": case.to_json(), "variant": contender.variant}
        return self._ask({**request, "threads": threads, "seconds": seconds})

    def time(self, subject: int) -> float:
        """Seconds of a product, in one round."""
        return self._ask({"do": "time", "id": subject})["seconds"]

    def release(self, subjects: list[int]) -> None:
        if self._process is not None:
            self._ask({"do": "release", "ids": subjects})

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", self._peer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=_ROOT,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
                start_new_session=True,  # Ctrl-C is for the command, which then reports
            )

    def _ask(self, request: dict) -> Any:
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = process.wait()
            self._process = None
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            raise NotMeasured(f"the process of {self._peer} died: {how}, see {self._log}")
        record = json.loads(answer)
        if "not measured" in record and request["do"] == "prepare":
            raise NotMeasured(record["not measured"])
        return record


def _serve(peer: Any, requests: TextIO, answers: TextIO) -> None:
    subjects: dict[int, Subject] = {}
    next_id = 0
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "describe":
            answer = peer.describe()
        elif request["do"] == "prepare":
            try:
                case = Case.from_json(request["case"])
                subject = peer.prepare(case, request["variant"], request["threads"])
                subject.calibrate(request["seconds"])
                subjects[next_id] = subject
                answer = {"id": next_id, "weight_bytes": subject.weight_bytes}
                answer["error"] = subject.error
                next_id += 1
            except NotMeasured as reason:
                answer = {"not measured": str(reason)}
            except (RuntimeError, ValueError, MemoryError) as error:
                answer = {"not measured": f"{type(error).__name__}: {error}"}
        elif request["do"] == "time":
            answer = {"seconds": subjects[request["id"]].time()}
        else:
            for subject_id in request["ids"]:
                subjects.pop(subject_id).close()
            subject = None
            memory.give_back()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    # Libraries print to standard output what they like: it goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(importlib.import_module(f"benchmarks.peers.{sys.argv[1]}"), sys.stdin, answers)


if __name__ == "__main__":
    main()
