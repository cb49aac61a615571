"""The machine: its physical limits (machine_limits.cc), caches, memory and names."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess

from custom_ops import build

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SOURCES = (
    "benchmarks/dot_peak.cc",
    "benchmarks/machine_limits.cc",
    "benchmarks/read_bandwidth.cc",
    "custom_ops/kernels/cpu.cc",
)
PROGRAM = _ROOT / "build" / "bench" / "machine_limits"

# What machine_limits.cc can time, with the words of the tables; a CPU has some of them.
DOT_KINDS = {
    "amx": "AMX tdpbusd",
    "avx512vnni": "vpdpbusd zmm",
    "avx512vnni_and": "vpdpbusd zmm, one vpand for each",
    "avxvnni": "vpdpbusd ymm (AVX-VNNI)",
    "avx2": "vpmaddubsw ymm",
    "i8mm": "smmla",
    "dotprod": "sdot",
    "neon": "smull, smlal2, sadalp",
}
# The dot product that decode kernels stand on, best first. AMX is left out: one row of x fills a
# sixteenth of its tile.
DECODE_DOTS = ("avx512vnni", "avxvnni", "avx2", "i8mm", "dotprod", "neon")

_DEFAULT_CACHES = {2: 1 << 20, 3: 32 << 20}


class Limits:
    """The process of machine_limits; each figure is one short measurement."""

    def __init__(self) -> None:
        build.build_program([_ROOT / path for path in _SOURCES], PROGRAM, with_library=False)
        self._process = subprocess.Popen(
            [str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command
        )

    def _ask(self, request: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"machine_limits ended at {request!r}: {self._process.wait()}")
        return answer

    def read(self, size: int, threads: int, seconds: float, huge_pages: bool = True) -> float:
        """GB/s of reading `size` bytes over and over; 0 where there is no such memory."""
        pages = "huge" if huge_pages else "small"
        return float(self._ask(f"read {pages} {size} {threads} {seconds * 1e3}"))

    def dot(self, kind: str, threads: int, seconds: float) -> float | None:
        """GOPS, 2 for each multiply-accumulate; None where the CPU lacks the instruction."""
        answer = self._ask(f"dot {kind} {threads} {seconds * 1e3}")
        return None if answer == "unsupported" else float(answer)

    def handoff(self, seconds: float) -> float:
        """Microseconds from a thread to another."""
        return float(self._ask(f"handoff {seconds * 1e3}"))

    def free(self) -> None:
        """Gives the memory of `read` back."""
        self._ask("free")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def cache_bytes(level: int) -> int:
    """Of the cache at `level` that the first core uses; a usual size where the system hides it."""
    for folder in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (folder / "level").read_text().strip() == str(level):
            text = (folder / "size").read_text().strip()
            return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]]
    return _DEFAULT_CACHES[level]


def available_memory() -> int:
    """Bytes that can be used without swapping."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("expected MemAvailable in /proc/meminfo, found none")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, object]:
    """What to name beside every figure."""
    name = platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):  # not on every ARM64
            name = line.partition(":")[2].strip()
            break
    return {
        "cpu": name,
        "cores": cores(),
        "l2_bytes": cache_bytes(2),
        "l3_bytes": cache_bytes(3),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
    }
