"""Writes the golden vectors of this folder: python tests/golden/write_golden.py

The packer and the product here follow the words of g3doc/packing.md and g3doc/kernels.md weight by
weight, without a line of the library: C++ and Python tests hold their own code against the files.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
FIELDS = {"t2": 4, "t5": 5, "b1": 8, "i8": 1, "i4": 2}
BASE = {"t2": 4, "t5": 3, "b1": 2, "i8": 256, "i4": 16}
OFFSET = {"t2": 1, "t5": 1, "i8": 128, "i4": 8}  # digit - code
SIGNS = {-1: "-", 0: "0", 1: "+"}
SEED = 20251120


def pack_row(codes: list[int], weight_format: str) -> bytes:
    """One row, weight by weight."""
    fields, base, k = FIELDS[weight_format], BASE[weight_format], len(codes)
    out = bytearray()
    for begin in range(0, k, 64 * fields):
        rest = min(k - begin, 64 * fields)
        size = 64
        if rest < 64 * fields:
            size = -(-rest // fields)
            while size % 4 != 0:
                size += 1
        for j in range(size):
            byte = 0
            for field in range(fields):
                index = field * size + j
                if index >= rest:
                    digit = 0 if weight_format == "b1" else OFFSET[weight_format]
                elif weight_format == "b1":
                    digit = {-1: 0, 1: 1}[codes[begin + index]]
                else:
                    digit = codes[begin + index] + OFFSET[weight_format]
                byte += digit * base**field
            out.append(byte)
    return bytes(out)


def draw_codes(rng: np.random.Generator, k: int, weight_format: str) -> list[int]:
    """Random codes of one row."""
    if weight_format in ("i8", "i4"):
        half = OFFSET[weight_format]
        return [int(code) for code in rng.integers(-half, half, k)]
    values = [-1, 1] if weight_format == "b1" else [-1, 0, 1]
    return [int(code) for code in rng.choice(values, k)]


def packing_lines() -> list[str]:
    """One line a row: format, k, codes, bytes."""
    rng = np.random.default_rng(SEED)
    lines = ["# format k codes bytes"]
    for weight_format in FIELDS:
        for k in (1, 3, 4, 5, 31, 33, 63, 64, 65, 255, 256, 257, 319, 320, 321, 511, 512, 513, 700):
            codes = draw_codes(rng, k, weight_format)
            integers = weight_format in ("i8", "i4")
            text = ",".join(map(str, codes)) if integers else "".join(SIGNS[c] for c in codes)
            lines.append(f"{weight_format} {k} {text} {pack_row(codes, weight_format).hex()}")
    return lines


def product(
    x: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    layout: str,
    group_size: int,
    bias: np.ndarray | None,
    activation: str,
) -> np.ndarray:
    """fully_connected with int8 activations, one output at a time, in float32 scalars."""
    f = np.float32
    m, (n, k) = len(x), codes.shape
    y = np.empty((m, n), np.float32)
    for i in range(m):
        largest = f(max(abs(value) for value in x[i]))
        scale_x = largest / f(127)
        inverse = f(127) / largest if largest >= f(1e-30) else f(0)
        q = [max(-127, min(127, int(np.rint(f(value) * inverse)))) for value in x[i]]
        for j in range(n):
            if layout == "group":
                total = f(0)
                for g, begin in enumerate(range(0, k, group_size)):
                    end = min(k, begin + group_size)
                    acc = sum(q[p] * int(codes[j, p]) for p in range(begin, end))
                    total = total + f(acc) * scales[j, g]
                value = total * scale_x
            else:
                acc = sum(q[p] * int(codes[j, p]) for p in range(k))
                value = f(acc) * (scale_x * scales[0 if layout == "tensor" else j])
            if bias is not None:
                value = value + bias[j]
            if activation != "none":
                value = max(value, f(0))
            if activation == "relu6":
                value = min(value, f(6))
            y[i, j] = value
    return y


def words(values: np.ndarray) -> str:
    """float32 values as the hexadecimal digits of their bits."""
    all_bits = values.astype(np.float32).ravel().view(np.uint32)
    return " ".join(f"{int(bits):08x}" for bits in all_bits)


def fully_connected_lines() -> list[str]:
    """Six lines a case: its description, x, bytes, scales, bias, y."""
    rng = np.random.default_rng(SEED + 1)
    lines = ["# case: format layout group_size m n k activation has_bias"]
    cases = [
        ("tensor", 0, 1, 3, 70, "none"),
        ("channel", 0, 2, 5, 256, "relu"),
        ("channel", 0, 1, 1, 1, "none"),
        ("group", 32, 2, 3, 100, "relu6"),
        ("group", 64, 1, 4, 321, "none"),
        ("group", 128, 1, 2, 300, "relu"),
        ("group", 256, 1, 2, 520, "none"),
    ]
    for weight_format in FIELDS:
        for number, (layout, group_size, m, n, k, activation) in enumerate(cases):
            codes = np.array([draw_codes(rng, k, weight_format) for _ in range(n)])
            shape = {"tensor": (1,), "channel": (n,)}.get(layout) or (n, -(-k // group_size))
            scales = rng.uniform(0.01, 1, shape).astype(np.float32)
            x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
            has_bias = number % 2 == 1
            bias = rng.standard_normal(n).astype(np.float32) if has_bias else None
            y = product(x, codes, scales, layout, group_size, bias, activation)
            packed = b"".join(pack_row([int(c) for c in row], weight_format) for row in codes)
            lines += [
                f"case {weight_format} {layout} {group_size} {m} {n} {k} {activation}"
                f" {int(has_bias)}",
                f"x {words(x)}",
                f"packed {packed.hex()}",
                f"scales {words(scales)}",
                f"bias {'' if bias is None else words(bias)}".rstrip(),
                f"y {words(y)}",
            ]
    return lines


def contents() -> dict[str, str]:
    """File name -> text."""
    return {
        "packing.txt": "\n".join(packing_lines()) + "\n",
        "fully_connected.txt": "\n".join(fully_connected_lines()) + "\n",
    }


def main() -> int:
    for name, text in contents().items():
        temporary = FOLDER / (name + ".tmp")
        temporary.write_text(text)
        temporary.replace(FOLDER / name)
        print(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
