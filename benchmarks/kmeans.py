"""Speed per core and memory of the one-dimensional k-means.

Seconds are those of the processor (the code is single-threaded), so that other work on the machine
counts little.

python -m benchmarks.kmeans
"""

from __future__ import annotations

import json
import os
import pathlib
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from tfmot_ternary import kmeans

_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each case; the fastest counts.")
_OUTPUT = flags.DEFINE_string("output", "build/benchmarks/kmeans.json", "Where the JSON goes.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random weights.")

_SHAPES = {"per channel": (2048, 2048), "group of 128": (32768, 128), "per tensor": (1, 1 << 22)}


def _solve(method: str, weights: np.ndarray, importance: np.ndarray) -> np.ndarray:
    calls: dict[str, Callable[[], np.ndarray]] = {
        "exact": lambda: kmeans.kmeans_scales(weights),
        "exact, weighted": lambda: kmeans.kmeans_scales(weights, importance=importance),
        "lloyd (paper)": lambda: kmeans.lloyd_scales(weights),
        "binary": lambda: kmeans.kmeans_scales(weights, levels=2),
    }
    return calls[method]()


def _case(granularity: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = _SHAPES[granularity]
    return (
        generator.standard_normal(shape, dtype=np.float32),
        generator.random(shape, dtype=np.float32),
    )


def _extra_memory(method: str, weights: np.ndarray, importance: np.ndarray) -> float:
    """Peak of what the call allocates (NumPy reports its buffers to tracemalloc), in tensors."""
    tracemalloc.start()
    try:
        _solve(method, weights, importance)
        return tracemalloc.get_traced_memory()[1] / weights.nbytes
    finally:
        tracemalloc.stop()


def main(argv: list[str]) -> None:
    del argv
    rows: list[dict[str, Any]] = []
    print(f"{'scales':<14}{'method':<18}{'M weights/s':>12}{'peak / tensor':>15}")
    for granularity, shape in _SHAPES.items():
        weights, importance = _case(granularity, _SEED.value)
        for method in ("exact", "exact, weighted", "lloyd (paper)", "binary"):
            seconds = []
            for _ in range(_REPEATS.value):
                start = time.process_time()
                _solve(method, weights, importance)
                seconds.append(time.process_time() - start)
            row: dict[str, Any] = {
                "scales": granularity,
                "shape": list(shape),
                "method": method,
                "weights_per_s": weights.size / min(seconds),
                "peak_over_tensor": _extra_memory(method, weights, importance),
            }
            rows.append(row)
            print(
                f"{granularity:<14}{method:<18}{row['weights_per_s'] / 1e6:>12.1f}"
                f"{row['peak_over_tensor']:>15.2f}"
            )
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        json.dumps(
            {
                "command": "python -m benchmarks.kmeans",
                "seed": _SEED.value,
                "numpy": np.__version__,
                "cpus": os.cpu_count(),
                "load": os.getloadavg()[0],
                "rows": rows,
            },
            indent=2,
        )
    )
    temporary.replace(path)


if __name__ == "__main__":
    app.run(main)
