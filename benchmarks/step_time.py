"""Time of one training step: quantized networks against the float network.

    python -m benchmarks.step_time

Ten Dense layers of 1024 units, mean squared error, the compiled train function that `fit` runs.
All variants live in one process and take turns, so that other work on the machine meets them
alike; each ratio is the median over rounds of (quantized / float of the same round). Processor
time, that of all threads of this process, is given beside the time that passed: other work on the
machine disturbs it less.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import tfmot_ternary as tt

_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds; in each, every variant trains.", 1)
_STEPS = flags.DEFINE_integer("steps", 3, "Timed steps of a variant in a round.", 1)
_LAYERS = flags.DEFINE_integer("layers", 10, "Dense layers.", 1)
_WIDTH = flags.DEFINE_integer("width", 1024, "Units of each.", 128)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adam", ["adam", "sgd"], "Optimizer of the step.")
_FLAVOURS = flags.DEFINE_list("flavours", ["tf_keras", "keras"], "tf_keras, keras (Keras 3).")
_BATCHES = flags.DEFINE_list("batches", ["64", "256"], "Batch sizes.")
_OUTPUT = flags.DEFINE_string("output", "build/benchmarks/step_time.json", "Where the JSON goes.")

_FLOAT = "float"
_GOAL = 1.3  # times the float step, as the project asks of tf_keras


def _schemes() -> dict[str, Any]:
    # The first scales do not matter for time; these are computed fastest.
    return {
        _FLOAT: None,
        "ternary, per channel": tt.TernaryScheme(initializer="absmean"),
        "ternary, per tensor": tt.TernaryScheme("tensor", initializer="absmean"),
        "ternary, groups of 128": tt.TernaryScheme(128, initializer="absmean"),
        "binary, per channel": tt.BinaryScheme(initializer="absmean"),
    }


def _float_model(keras: Any) -> Any:
    width = _WIDTH.value
    dense = [keras.layers.Dense(width, activation="relu") for _ in range(_LAYERS.value)]
    return keras.Sequential([keras.Input((width,)), *dense])


def _steps(keras: Any, scheme: Any, batch: int) -> Callable[[], Any]:
    """A function that runs one step of training, traced and warm."""
    model = _float_model(keras)
    if scheme is not None:
        model = tt.quantize_apply(model, scheme)
    # Steps too small to leave the numbers that training meets.
    optimizer = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[_OPTIMIZER.value]
    model.compile(optimizer(1e-6), "mse")
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, batch, _WIDTH.value)).astype(np.float32)
    made = model.make_train_function()
    function = model.train_function if made is None else made
    iterator = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    for _ in range(3):
        function(iterator)
    return lambda: function(iterator)


def _measure(flavour: str, batch: int) -> list[dict[str, Any]]:
    keras = importlib.import_module(flavour)
    keras.utils.set_random_seed(0)
    steps = {name: _steps(keras, scheme, batch) for name, scheme in _schemes().items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS.value):
        for name, step in steps.items():
            step()  # brings this variant's weights into the caches
            start, start_processor = time.perf_counter(), time.process_time()
            for _ in range(_STEPS.value):
                result = step()
            # What the step returned is there once the step has run.
            float(result["loss"] if isinstance(result, dict) else result[0])
            seconds[name].append((time.perf_counter() - start) / _STEPS.value)
            processor[name].append((time.process_time() - start_processor) / _STEPS.value)
    rows = []
    for name, times in seconds.items():
        ratios = _ratios(times, seconds[_FLOAT])
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        rows.append(
            {
                "keras": flavour,
                "batch": batch,
                "variant": name,
                "milliseconds": statistics.median(times) * 1e3,
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [quartiles[0], quartiles[2]],
                "processor_milliseconds": statistics.median(processor[name]) * 1e3,
                "processor_ratio": statistics.median(_ratios(processor[name], processor[_FLOAT])),
            }
        )
    return rows


def _ratios(times: list[float], others: list[float]) -> list[float]:
    return [a / b for a, b in zip(times, others, strict=True)]


def main(argv: list[str]) -> None:
    del argv
    rows: list[dict[str, Any]] = []
    print(
        f"{'keras':<10}{'batch':>6}  {'variant':<24}{'ms/step':>9}{'ratio':>7}  {'quartiles':<14}"
        f"{'CPU ms':>8}{'ratio':>7}"
    )
    for flavour in _FLAVOURS.value:
        for batch in map(int, _BATCHES.value):
            for row in _measure(flavour, batch):
                rows.append(row)
                low, high = row["ratio_quartiles"]
                print(
                    f"{flavour:<10}{batch:>6}  {row['variant']:<24}{row['milliseconds']:>9.1f}"
                    f"{row['ratio']:>7.2f}  {f'{low:.2f} to {high:.2f}':<14}"
                    f"{row['processor_milliseconds']:>8.1f}{row['processor_ratio']:>7.2f}",
                    flush=True,
                )
    worst = max(row["ratio"] for row in rows)
    if worst > _GOAL:
        logging.warning("a quantized step takes %.2f times the float step; goal %.1f", worst, _GOAL)
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        json.dumps(
            {
                "command": "python -m benchmarks.step_time",
                "layers": _LAYERS.value,
                "width": _WIDTH.value,
                "optimizer": _OPTIMIZER.value,
                "rounds": _ROUNDS.value,
                "tensorflow": tf.__version__,
                "cpus": os.cpu_count(),
                "load": os.getloadavg()[0],
                "goal": _GOAL,
                "rows": rows,
            },
            indent=2,
        )
    )
    temporary.replace(path)


if __name__ == "__main__":
    app.run(main)
