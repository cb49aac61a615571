"""Times our fully_connected against LiteRT's own, through the interpreter, in one process.

Every model holds the same ternary matrix (binary for `b1`): LiteRT gets it as float32 and quantized
by ai-edge-quantizer to INT8, INT4 and INT2 per channel; we get it packed. Rounds are interleaved,
so that a drift of the machine's speed meets every model alike; the table gives medians and ratios.

    python benchmarks/fully_connected.py --shapes 1x2048x2048,1x8192x2048 --threads 1
"""

from __future__ import annotations

import json
import pathlib
import platform
import statistics
import time
from typing import NamedTuple

import numpy as np
from absl import app, flags
from tqdm import tqdm

from tfmot_ternary import packing, runtime

_SHAPES = flags.DEFINE_list("shapes", ["1x2048x2048", "1x8192x2048"], "m x n x k of each product.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of each interpreter.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 31, "Interleaved rounds; the table gives medians.", 3)
_ROUND_MS = flags.DEFINE_float("round_ms", 5.0, "Time of one model in one round, milliseconds.")
_OUTPUT = flags.DEFINE_string("output", "build/bench/fully_connected.json", "Where the JSON goes.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and activations.")

# LiteRT's recipes in ai-edge-quantizer, by the name in the table. INT2 needs the algorithm that
# recovers a grid from weights that already lie on one; the others find it by minimum and maximum.
_RECIPES = {
    "LiteRT INT8": ("dynamic_wi8_afp32", "MIN_MAX_UNIFORM_QUANT"),
    "LiteRT INT4": ("dynamic_wi4c_afp32", "MIN_MAX_UNIFORM_QUANT"),
    "LiteRT INT2": ("dynamic_wi2c_afp32", "DEQUANTIZED_WEIGHT_RECOVERY"),
}


class Shape(NamedTuple):
    """A product x[m, k] times W[n, k] transposed."""

    m: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Reads "1x2048x2048"."""
        try:
            m, n, k = (int(part) for part in text.split("x"))
        except ValueError:
            raise app.UsageError(
                f"--shapes: expected MxNxK such as 1x2048x2048, got {text!r}"
            ) from None
        if min(m, n, k) < 1:
            raise app.UsageError(f"--shapes: expected sizes of at least 1, got {text!r}")
        return cls(m, n, k)


class Contender(NamedTuple):
    """One model in the race, with the matrix it really holds."""

    name: str
    model: bytes
    weights: np.ndarray  # float32 [n, k]


def _float_model(weights: np.ndarray, m: int) -> bytes:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([m, weights.shape[1]], tf.float32)])
    def product(x):
        return tf.matmul(x, tf.constant(weights), transpose_b=True)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([product.get_concrete_function()])
    return converter.convert()


def _litert_quantized(float_model: bytes, recipe_name: str, algorithm: str) -> bytes:
    from ai_edge_quantizer import quantizer, recipe

    recipe_function = getattr(recipe, recipe_name)
    steps = recipe_function(algorithm_key=getattr(recipe.AlgorithmName, algorithm))
    return bytes(quantizer.Quantizer(bytearray(float_model), steps).quantize().quantized_model)


def _our_model(
    codes: np.ndarray, scales: np.ndarray, weight_format: str, m: int, group: int | None
) -> bytes:
    import tensorflow as tf

    from tfmot_ternary import ops
    from tfmot_ternary.conversion import convert_functions

    packed = packing.pack(codes, weight_format)

    @tf.function(input_signature=[tf.TensorSpec([m, codes.shape[1]], tf.float32)])
    def product(x):
        return ops.fully_connected(
            x, packed, scales, weight_format=weight_format, group_size=group or 0
        )

    return convert_functions({"serving_default": product.get_concrete_function()})


def contenders(shape: Shape, rng: np.random.Generator) -> list[Contender]:
    """All models for one shape: LiteRT's four and our four."""
    m, n, k = shape
    ternary = rng.integers(-1, 2, (n, k)).astype(np.int8)
    ternary[:, 0] = 1  # every row holds +a and -a, so that each quantizer finds the same grid
    ternary[:, 1] = -1
    binary = np.where(rng.integers(0, 2, (n, k)) > 0, 1, -1).astype(np.int8)
    scales = rng.uniform(0.01, 0.03, n).astype(np.float32)
    grouped = rng.uniform(0.01, 0.03, packing.scale_shape(n, k, 128)).astype(np.float32)
    weights = ternary * scales[:, None]

    float_model = _float_model(weights, m)
    entries = [Contender("LiteRT float32", float_model, weights)]
    for name, (recipe_name, algorithm) in _RECIPES.items():
        entries.append(
            Contender(name, _litert_quantized(float_model, recipe_name, algorithm), weights)
        )
    for weight_format in ("t2", "t5"):
        model = _our_model(ternary, scales, weight_format, m, None)
        entries.append(Contender(f"ours {weight_format}", model, weights))
    entries.append(
        Contender(
            "ours t2 g128",
            _our_model(ternary, grouped, "t2", m, 128),
            ternary * packing.expand_scales(grouped, n, k, 128),
        )
    )
    entries.append(
        Contender("ours b1", _our_model(binary, scales, "b1", m, None), binary * scales[:, None])
    )
    return entries


def race(shape: Shape, entries: list[Contender], x: np.ndarray) -> list[dict[str, object]]:
    """Runs every model in turn, round by round.

    Returns one row per model: microseconds (median, best), megabytes of the file and the largest
    error against the float64 product, relative to the largest output.
    """
    calls, interpreters, rows = [], [], []
    for entry in entries:
        interpreter = runtime.make_interpreter(entry.model, num_threads=_THREADS.value)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        expected = x.astype(np.float64) @ entry.weights.astype(np.float64).T
        error = float(np.abs(y - expected).max() / np.abs(expected).max())
        if not error < 0.05:  # 8-bit activations cost about 1 %; more means a wrong product
            raise RuntimeError(
                f"{entry.name} at {shape}: expected a relative error < 0.05, got {error:.3g}"
            )
        start = time.perf_counter()
        for _ in range(5):
            interpreter.invoke()
        once = (time.perf_counter() - start) / 5
        interpreters.append(interpreter)
        calls.append(max(1, int(_ROUND_MS.value * 1e-3 / once)))
        rows.append(
            {"name": entry.name, "megabytes": len(entry.model) / 1e6, "relative_error": error}
        )
    samples: list[list[float]] = [[] for _ in entries]
    for _ in tqdm(range(_ROUNDS.value), desc="x".join(map(str, shape)), leave=False):
        for i, interpreter in enumerate(interpreters):
            start = time.perf_counter()
            for _ in range(calls[i]):
                interpreter.invoke()
            samples[i].append((time.perf_counter() - start) / calls[i] * 1e6)
    for row, sample in zip(rows, samples, strict=True):
        row["microseconds"] = statistics.median(sample)
        row["best_microseconds"] = min(sample)
    int8 = next(row["microseconds"] for row in rows if row["name"] == "LiteRT INT8")
    for row in rows:
        row["speed_over_int8"] = int8 / row["microseconds"]
    return rows


def _print_table(shape: Shape, rows: list[dict]) -> None:
    size = "x".join(map(str, shape))
    print(f"\n| {size} | us (median) | us (best) | speed over INT8 | MB | error |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['name']} | {row['microseconds']:.1f} | {row['best_microseconds']:.1f} | "
            f"{row['speed_over_int8']:.2f} | {row['megabytes']:.2f} | {row['relative_error']:.4f} |"
        )


def _cpu_name() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"expected no positional arguments, got {argv[1:]}")
    rng = np.random.default_rng(_SEED.value)
    results = []
    for text in _SHAPES.value:
        shape = Shape.parse(text)
        x = rng.standard_normal((shape.m, shape.k)).astype(np.float32)
        rows = race(shape, contenders(shape, rng), x)
        _print_table(shape, rows)
        results.append({"shape": shape._asdict(), "rows": rows})
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    record = {
        "machine": _cpu_name(),
        "threads": _THREADS.value,
        "seed": _SEED.value,
        "results": results,
    }
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(path)
    print(f"\n{_cpu_name()}, {_THREADS.value} thread(s); written to {path}")


if __name__ == "__main__":
    app.run(main)
