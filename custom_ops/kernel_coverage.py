"""Which kernels of the tables (kernels/*.inc) ran in the tests; fails where one ran in none.

    python custom_ops/kernel_coverage.py build/tests/*.json

Each file holds the build events of one `bazel test` (--build_event_json_file), which name the logs
of its tests, those from the cache too. The tests write a line for each kernel (test_cpu.h). Kernels
that no machine at hand can run are left out by the name of their level: --skipped_levels=amx.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence

TABLES = sorted((pathlib.Path(__file__).resolve().parent / "kernels").glob("*.inc"))

# The level of TFMOT_TERNARY_CPU that a flag belongs to, in the order of cpu.cc, low to high.
LEVEL_OF_FLAG = {
    "kCpuPortable": "portable",
    "kCpuAvx2": "avx2",
    "kCpuFma": "avx2",
    "kCpuAvxVnni": "avxvnni",
    "kCpuAvx512Bw": "avx512bw",
    "kCpuAvx512Vnni": "avx512vnni",
    "kCpuAvx512Vbmi": "avx512vnni",
    "kCpuAmxInt8": "amx",
    "kCpuNeon": "neon",
    "kCpuDotProd": "dotprod",
    "kCpuI8mm": "i8mm",
}
LEVELS = list(dict.fromkeys(LEVEL_OF_FLAG.values()))

# One line of the table. The macros' definitions and comments have no string.
LINE = re.compile(r'TFMOT_TERNARY_[A-Z]+\(\s*"(\w+)"([^)]*)\)')
RECORD = re.compile(r"^kernel (\w+): (\d+) comparisons$", re.MULTILINE)


class CoverageError(Exception):
    """What is wrong, and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    name: str
    flags: tuple[str, ...]

    @property
    def level(self) -> str:
        return max((LEVEL_OF_FLAG[flag] for flag in self.flags), key=LEVELS.index)


def read_tables(paths: Sequence[pathlib.Path] = TABLES) -> list[Kernel]:
    """The lines of all tables, of all architectures."""
    return [kernel for path in paths for kernel in read_table(path)]


def read_table(path: pathlib.Path) -> list[Kernel]:
    """The lines of a table."""
    kernels = []
    for name, arguments in LINE.findall(path.read_text()):
        flags = tuple(re.findall(r"\bkCpu\w+", arguments))
        unknown = [flag for flag in flags if flag not in LEVEL_OF_FLAG]
        if unknown or not flags:
            raise CoverageError(
                f"{path}: expected flags among {', '.join(LEVEL_OF_FLAG)} for {name}, got "
                f"{', '.join(unknown) or 'none'}; add a new flag to LEVEL_OF_FLAG"
            )
        kernels.append(Kernel(name, flags))
    if not kernels:
        raise CoverageError(f"{path}: expected lines like TFMOT_TERNARY_GEMM(...), got none")
    return kernels


def passed_logs(events: pathlib.Path) -> Iterable[tuple[str, pathlib.Path]]:
    """(label, log) of each test that passed, from a file of build events."""
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event.get("testResult", {}).get("status") != "PASSED":
            continue
        for output in event["testResult"]["testActionOutput"]:
            if output["name"] == "test.log":
                path = urllib.request.url2pathname(urllib.parse.urlparse(output["uri"]).path)
                yield event["id"]["testResult"]["label"], pathlib.Path(path)


def read_runs(files: Iterable[pathlib.Path]) -> dict[str, dict[str, int]]:
    """Kernel -> run -> comparisons. A run is a file's name; AMX in software is one of its own."""
    runs: dict[str, dict[str, int]] = {}
    for file in files:
        for label, log in passed_logs(file):
            run = file.stem + (" (AMX in software)" if label.endswith("_amx_model") else "")
            for name, count in RECORD.findall(log.read_text(errors="replace")):
                of_kernel = runs.setdefault(name, {})
                of_kernel[run] = of_kernel.get(run, 0) + int(count)
    return runs


def check(
    kernels: Sequence[Kernel], runs: dict[str, dict[str, int]], skipped_levels: Sequence[str]
) -> list[str]:
    """The lines of the report. Raises where a kernel ran nowhere and its level is not skipped."""
    unknown = [level for level in skipped_levels if level not in LEVELS]
    if unknown:
        raise CoverageError(
            f"expected levels among {', '.join(LEVELS)} to skip, got {', '.join(unknown)}"
        )
    strangers = sorted(set(runs) - {kernel.name for kernel in kernels})
    if strangers:
        raise CoverageError(
            f"the logs name kernels that the table has not: {', '.join(strangers)}; run the tests "
            "again"
        )
    lines = []
    missing = []
    for kernel in kernels:
        where = [run for run, count in runs.get(kernel.name, {}).items() if count > 0]
        if where:
            lines.append(f"{kernel.name:<26}{', '.join(where)}")
        elif kernel.level in skipped_levels:
            lines.append(f"{kernel.name:<26}skipped: level {kernel.level}")
        else:
            missing.append(kernel)
    if missing:
        levels = sorted({kernel.level for kernel in missing}, key=LEVELS.index)
        names = "\n".join(f"  {k.name:<26}needs {' and '.join(k.flags)}" for k in missing)
        raise CoverageError(
            f"{len(missing)} of {len(kernels)} kernels ran in no test:\n{names}\n"
            "Test them on a machine that can run them. To leave them out on this one:\n"
            f"  make test SKIPPED_LEVELS={','.join([*skipped_levels, *levels])}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("events", nargs="+", type=pathlib.Path, help="build events, JSON")
    parser.add_argument(
        "--skipped_levels", default="", help=f"separated by commas: {', '.join(LEVELS)}"
    )
    options = parser.parse_args(arguments)
    skipped = [level for level in options.skipped_levels.replace(" ", "").split(",") if level]
    try:
        lines = check(read_tables(), read_runs(options.events), skipped)
    except CoverageError as error:
        print(f"kernel coverage: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
