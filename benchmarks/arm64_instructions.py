"""Counts what the ARM64 kernels execute, for CPUs that are not here to be timed.

Builds one small program with the cross compiler, runs every kernel on one tile of 32 rows of W
under qemu-user, one instruction at a time, and prints a Markdown table: for 1000 multiply-adds the
instructions, the loads of 16 bytes, the instructions on the vector pipes, and the cycles that the
busiest part of a core needs for them. A product with more rows of W repeats the tile.

    python -m benchmarks.arm64_instructions --k 2048 --group_sizes 0,128
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple

from absl import app, flags

from custom_ops import build

_K = flags.DEFINE_integer("k", 2048, "Weights per row.", lower_bound=1)
_PREFILL_M = flags.DEFINE_integer("m", 16, "Rows of x for the prefill kernels.", lower_bound=1)
_DECODE_M = flags.DEFINE_integer("decode_m", 1, "Rows of x for the others.", lower_bound=1)
_GROUP_SIZES = flags.DEFINE_list("group_sizes", ["0", "128"], "0: one group.")
_KERNELS = flags.DEFINE_string("kernels", "neon|dotprod|i8mm", "Regular expression of the names.")
_COMPILER = flags.DEFINE_string("compiler", "aarch64-linux-gnu-g++", "The C++ cross compiler.")
_OBJDUMP = flags.DEFINE_string("objdump", "aarch64-linux-gnu-objdump", "Its disassembler.")
_QEMU = flags.DEFINE_string("qemu", "qemu-aarch64-static", "QEMU's user mode for ARM64.")
_OUTPUT = flags.DEFINE_string("output", "build/bench/arm64_instructions.json", "The JSON.")

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_PROGRAM = _ROOT / "build" / "bench" / "arm64_kernel"
_TILE_ROWS = 32

# SDOT and SMMLA run in all vector pipes of the cores below, these in some of them.
_MULTIPLIER = ("mul", "mla", "mls", "smull", "smull2", "smlal", "smlal2", "umull", "umull2")
_SHIFTER = ("ushr", "sshr", "shl", "ssra", "sadalp", "saddlp")


class Core(NamedTuple):
    """What a core starts in a cycle, from its vendor's optimization guide or measurements."""

    name: str
    kernels: tuple[str, ...]  # ends of the names of the kernels that it is shown for
    instructions: int
    loads: int
    vector: int
    multiplier: int  # vector pipes that multiply, SDOT apart
    shifter: int
    two_tables: int  # what TBL with two registers of table counts for


_CORES = (
    Core("Cortex-A72", ("neon",), 3, 1, 2, 1, 1, 1),
    Core("Cortex-A76", ("dotprod",), 4, 2, 2, 1, 1, 1),
    Core("Apple M", ("dotprod", "i8mm"), 8, 3, 4, 4, 4, 2),
)


class Counts(NamedTuple):
    """Executed instructions of one tile."""

    instructions: int
    loads: int  # of 16 bytes
    vector: int  # on the vector pipes
    multiplier: int
    shifter: int
    two_tables: int

    def cycles(self, core: Core) -> tuple[float, str]:
        """The least that `core` needs, and the part that needs it."""
        vector = self.vector + self.two_tables * (core.two_tables - 1)
        return max(
            (self.instructions / core.instructions, "instructions"),
            (self.loads / core.loads, "loads"),
            (self.multiplier / core.multiplier, "multiplier"),
            (self.shifter / core.shifter, "shifter"),
            (vector / core.vector, "vector pipes"),
        )


def kernel_names() -> list[str]:
    """The ARM64 lines of kernels.inc that --kernels takes."""
    text = (_ROOT / "custom_ops" / "kernels" / "kernels.inc").read_text()
    names = re.findall(r'^TFMOT_TERNARY_GEMM\("(\w+_(?:neon|dotprod|i8mm))"', text, re.MULTILINE)
    return [name for name in names if re.search(_KERNELS.value, name)]


def build_program() -> pathlib.Path:
    """The statically linked program, built anew where a source is newer."""
    os.environ["CXX"] = _COMPILER.value
    kernels = build.source_lists()["KERNEL_SOURCES"]
    sources = [_ROOT / "benchmarks" / "arm64_kernel.cc"]
    sources += [_ROOT / "custom_ops" / path for path in kernels]
    return build.build_program(sources, _PROGRAM, link_flags=["-static"], with_library=False)


def disassemble(program: pathlib.Path) -> dict[int, tuple[str, str]]:
    """Mnemonic and operands at each address."""
    command = [_OBJDUMP.value, "-d", "--no-show-raw-insn", str(program)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^ +([0-9a-f]+):\t(\S+)(?:\t([^<\n]*))?", text, re.MULTILINE)
    return {int(address, 16): (name, operands) for address, name, operands in lines}


def trace(name: str, m: int, group_size: int, repeats: int) -> collections.Counter[int]:
    """How often each address is executed."""
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        one_at_a_time = ["-cpu", "max", "-singlestep", "-d", "exec,nochain", "-D", log.name]
        arguments = [name, m, _K.value, group_size, repeats]
        command = [_QEMU.value, *one_at_a_time, _PROGRAM, *arguments]
        subprocess.run([str(part) for part in command], check=True)
        return collections.Counter(
            int(line.split("/", 2)[1], 16) for line in log if line.startswith("Trace")
        )


def count(name: str, m: int, group_size: int, code: dict[int, tuple[str, str]]) -> Counts:
    """One tile: two runs, of two tiles and of one, so that all around them drops out."""
    executed = trace(name, m, group_size, 2)
    executed.subtract(trace(name, m, group_size, 1))
    totals: collections.Counter[str] = collections.Counter()
    for address, times in executed.items():
        mnemonic, operands = code[address]
        totals["instructions"] += times
        wide = re.match(r"q\d|\{v", operands) is not None
        if mnemonic.startswith("ld") and wide:
            totals["loads"] += times * (2 if mnemonic == "ldp" else 1)
        elif not mnemonic.startswith(("ld", "st")) and re.search(r"\bv\d+\.", operands):
            # Copies of registers and zeros are done in renaming.
            zero = mnemonic == "movi" and operands.endswith("#0x0")
            totals["vector"] += 0 if mnemonic == "mov" or zero else times
            totals["multiplier"] += times if mnemonic in _MULTIPLIER else 0
            totals["shifter"] += times if mnemonic in _SHIFTER else 0
            totals["two_tables"] += times if re.search(r"\{v\d+\.16b(-|, )v", operands) else 0
    return Counts(**{field: totals[field] for field in Counts._fields})


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    code = disassemble(build_program())
    rows = []
    print("| kernel | m | group | instructions | loads | vector | cycles |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in kernel_names():
        m = _PREFILL_M.value if "prefill" in name else _DECODE_M.value
        for group_size in map(int, _GROUP_SIZES.value):
            counts = count(name, m, group_size, code)
            thousands = m * _TILE_ROWS * _K.value / 1000
            cells = []
            for core in _CORES:
                if name.endswith(core.kernels):
                    cycles, part = counts.cycles(core)
                    cells.append(f"{core.name} {cycles / thousands:.1f} ({part})")
            figures = [counts.instructions, counts.loads, counts.vector]
            middle = " | ".join(f"{figure / thousands:.1f}" for figure in figures)
            group = group_size or "-"
            print(f"| {name} | {m} | {group} | {middle} | {', '.join(cells)} |", flush=True)
            rows.append({"kernel": name, "m": m, "group_size": group_size, **counts._asdict()})
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"k": _K.value, "tile_rows": _TILE_ROWS, "rows": rows}, indent=2))


if __name__ == "__main__":
    app.run(main)
