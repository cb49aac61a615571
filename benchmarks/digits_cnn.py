"""A CNN on handwritten digits by tfmot's guide: float, ternary, binary, in Keras and as .tflite.

    python -m benchmarks.digits_cnn

Annotates and applies as tfmot's quantization guide does, with our schemes; then freezes, converts
and runs the files in LiteRT's and TensorFlow's interpreters. Data: scikit-learn's `load_digits`.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
import tqdm
from absl import app, flags, logging
from sklearn.datasets import load_digits

import tfmot_ternary as tt

_SEED = flags.DEFINE_integer("seed", 0, "Seed of split, weights and training.")
_EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs, of the float model and of each recovery.", 1)
_GROUP_SIZE = flags.DEFINE_enum(
    "group_size", "channel", ["channel", "tensor", "32", "64", "128", "256"], "Weights of a scale."
)
_OUTPUT = flags.DEFINE_string("output", "build/digits_cnn.json", "Where the JSON goes.")

_BATCH = 64
_TEST = 497
_BACKENDS = ("litert", "tf")


def _data(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x = (digits.images[order, :, :, None] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    return x[:-_TEST], y[:-_TEST], x[-_TEST:], y[-_TEST:]


def _float_model() -> tf_keras.Model:
    layers = tf_keras.layers
    # The averages of 20 batches an epoch: Keras' default momentum of 0.99 would lag behind.
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


class _Progress(tf_keras.callbacks.Callback):
    def __init__(self, bar: tqdm.tqdm) -> None:
        super().__init__()
        self._bar = bar

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._bar.update()


def _fit(model: tf_keras.Model, x: np.ndarray, y: np.ndarray, rate: float, bar: tqdm.tqdm) -> None:
    steps = _EPOCHS.value * -(-len(x) // _BATCH)
    schedule = tf_keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(
        tf_keras.optimizers.Adam(schedule),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = [_Progress(bar)]
    model.fit(x, y, _BATCH, _EPOCHS.value, verbose=0, callbacks=callbacks)


def _run(content: bytes, x: np.ndarray, backend: str) -> np.ndarray:
    """Logits of a .tflite file, one image at a time as on a device."""
    interpreter = tt.runtime.make_interpreter(content, num_threads=1, backend=backend)
    interpreter.allocate_tensors()
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]
    logits = []
    for image in x:
        interpreter.set_tensor(input_index, image[None])
        interpreter.invoke()
        logits.append(interpreter.get_tensor(output_index)[0].copy())
    return np.stack(logits)


def _float_tflite(model: tf_keras.Model) -> bytes:
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def _row(
    name: str, start: float | None, keras_logits: np.ndarray, x: Any, y: Any, content: bytes
) -> dict[str, Any]:
    """One variant; `keras_logits` are those of the model that was converted, run by Keras."""
    row: dict[str, Any] = {
        "name": name,
        "accuracy_before_training": start,
        "accuracy_keras": float((keras_logits.argmax(1) == y).mean()),
        "file_bytes": len(content),
        "largest_logit": float(np.abs(keras_logits).max()),
    }
    for backend in _BACKENDS:
        logits = _run(content, x, backend)
        row[f"accuracy_{backend}"] = float((logits.argmax(1) == y).mean())
        row[f"max_abs_difference_{backend}"] = float(np.abs(logits - keras_logits).max())
    return row


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)  # the converter tells a lot
    began = time.perf_counter()
    tf_keras.utils.set_random_seed(_SEED.value)
    x, y, test_x, test_y = _data(_SEED.value)
    named = {"channel": None, "tensor": "tensor"}
    group_size = named.get(_GROUP_SIZE.value, _GROUP_SIZE.value)
    group_size = int(group_size) if group_size not in (None, "tensor") else group_size
    rows = []
    with tqdm.tqdm(total=3 * _EPOCHS.value, unit="epoch", desc="training") as bar:
        model = _float_model()
        _fit(model, x, y, 5e-3, bar)
        logits = model.predict(test_x, verbose=0)
        rows.append(_row("float32", None, logits, test_x, test_y, _float_tflite(model)))
        for name, scheme in (("ternary", tt.TernaryScheme), ("binary", tt.BinaryScheme)):
            annotated = tfmot.quantization.keras.quantize_annotate_model(model)
            quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme(group_size))
            start = float((quantized.predict(test_x, verbose=0).argmax(1) == test_y).mean())
            _fit(quantized, x, y, 5e-3, bar)
            frozen = tt.freeze(quantized)
            # The frozen model quantizes activations as the operators do, but one image is one
            # batch element there and here, so that the batch size does not matter.
            logits = frozen.predict(test_x, verbose=0)
            row = _row(name, start, logits, test_x, test_y, tt.convert(frozen))
            trained = quantized.predict(test_x, verbose=0)
            row["accuracy_float_activations"] = float((trained.argmax(1) == test_y).mean())
            rows.append(row)
    _print(rows)
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    result = {
        "command": "python -m benchmarks.digits_cnn",
        "seed": _SEED.value,
        "epochs": _EPOCHS.value,
        "group_size": _GROUP_SIZE.value,
        "test_images": len(test_y),
        "seconds": time.perf_counter() - began,
        "cpus": os.cpu_count(),
        "versions": {"numpy": np.__version__, "tf_keras": tf_keras.__version__},
        "rows": rows,
    }
    temporary.write_text(json.dumps(result, indent=2))
    temporary.replace(path)
    print(f"{result['seconds']:.0f} s; written to {path}")


def _print(rows: list[dict[str, Any]]) -> None:
    heading = ["model", "k-means start", "Keras", "LiteRT", "TF Lite", "bytes"]
    heading += ["max diff LiteRT", "max diff TF Lite", "max logit"]
    print(" | ".join(heading))
    for row in rows:
        start = row["accuracy_before_training"]
        cells = [
            row["name"],
            "" if start is None else f"{start:.4f}",
            *(f"{row[f'accuracy_{where}']:.4f}" for where in ("keras", *_BACKENDS)),
            str(row["file_bytes"]),
            *(f"{row[f'max_abs_difference_{backend}']:.1e}" for backend in _BACKENDS),
            f"{row['largest_logit']:.1f}",
        ]
        print(" | ".join(c.rjust(len(h)) for c, h in zip(cells, heading, strict=True)))


if __name__ == "__main__":
    app.run(main)
