"""What few bits in tables cost: perplexity of trained models by the format of their token table.

The study's language model (GPT-2 on English text, vocabulary 1024, width 192) and the demo's
vision-language model, both with a tied table; the body float, or ternary after a short recovery.
A ternary table is also measured where the recovery trains it.
Perplexity on the study's test split, through the ops' TensorFlow bodies (the same numbers).

    python -m benchmarks.tables [--subject=lm] [--steps=200]
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.study.runs import Run
from benchmarks.study.student import Student
from benchmarks.study.subjects import SUBJECTS, Data
from benchmarks.study.trainer import Quality, quality_of
from tfmot_ternary import packing
from tfmot_ternary.freezing import freeze
from tfmot_ternary.weight_storage import WeightStorage, storage_of

FORMATS = ("i8", "i4:64", "i4", "t2:128", "t2", "t2:32", "b1")
BATCH = 70

_SUBJECT = flags.DEFINE_multi_enum("subject", ["lm", "vlm"], ["lm", "vlm"], "the models")
_STEPS = flags.DEFINE_integer(
    "steps", 200, "of the ternary body's recovery; 0: none", lower_bound=0
)
_FOLDER = flags.DEFINE_string("folder", "build/study", "where the study keeps trained models")
_OUTPUT = flags.DEFINE_string("output", "build/tables.json", "the results")


def score(model: Any, data: Data) -> Quality:
    """Scores a model, float or packed; the study's own way is XLA, which packed layers refuse."""

    @tf.function
    def forward(inputs: Any, labels: Any) -> tuple[Any, Any]:
        logits = tf.cast(model(inputs, training=False), tf.float32)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return loss, tf.argmax(logits, axis=-1, output_type=tf.int32) == labels

    losses, right = [], []
    for start in range(0, len(data.labels), BATCH):
        part = slice(start, start + BATCH)
        loss, hit = forward(
            {name: tf.constant(value[part]) for name, value in data.inputs.items()},
            tf.constant(data.labels[part]),
        )
        losses.append(loss.numpy())
        right.append(hit.numpy())
    return quality_of(data, np.concatenate(losses), np.concatenate(right))


def measure(name: str, steps: int) -> list[dict[str, Any]]:
    """Rows of one subject."""
    subject = SUBJECTS[name](pathlib.Path(_FOLDER.value))
    test = subject.held_out("test")
    width = int(subject.model.backbone.token_embedding.output_dim)
    rows: list[dict[str, Any]] = []

    def add(body: str, tables: str, model: Any, stored: WeightStorage | None) -> None:
        bits = 32.0
        if stored:
            bits = packing.bits_per_weight(width, stored.weight_format, stored.group_size)
            bits += 32 / width if stored.group_size is None else 0
        quality = score(model, test)
        row = {"subject": name, "body": body, "tables": tables, "bits_per_weight": bits}
        rows.append({**row, "perplexity": quality.perplexity, "accuracy": quality.accuracy})
        print(
            f"{name:<5}{body:<9}{tables:<12}{bits:6.2f} bits  perplexity "
            f"{quality.perplexity:8.4f}  accuracy {quality.accuracy:.4f}",
            flush=True,
        )

    def recovered(embeddings: bool) -> Any:
        student = Student(subject, 3, 64, embeddings=embeddings)
        student.run(Run(name, steps=steps, group_size=64))
        return student.model

    bodies = {"float": subject.model}
    if steps:
        bodies["ternary"] = recovered(embeddings=False)
    for body, model in bodies.items():
        add(body, "float32", model if model is subject.model else freeze(model), None)
        for token in FORMATS:
            add(body, token, freeze(model, tables=token), storage_of(token))
    if steps:  # the same recovery, of the table too
        add("ternary", "t2, trained", freeze(recovered(embeddings=True)), storage_of("t2"))
    return rows


def main(argv: list[str]) -> None:
    del argv
    rows = [row for name in _SUBJECT.value for row in measure(name, _STEPS.value)]
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    record = {"command": f"python -m benchmarks.tables --steps={_STEPS.value}", "rows": rows}
    temporary.write_text(json.dumps({**record, "load": os.getloadavg()[0]}, indent=2))
    temporary.replace(path)


if __name__ == "__main__":
    app.run(main)
