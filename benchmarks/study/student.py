"""A quantized twin of a subject's model: compiled once, then reset and trained by many runs."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfmot_ternary as tt
from benchmarks.study.runs import Run
from benchmarks.study.subjects import Data, Subject
from benchmarks.study.trainer import Quality, Trainer, quality_of
from tfmot_ternary import keras3
from tfmot_ternary.conversion import convert_functions
from tfmot_ternary.keras3_layers import is_quantized
from tfmot_ternary.keras3_structure import nested_layers
from tfmot_ternary.packing import GroupSize
from tfmot_ternary.starting_point import starting_point

__all__ = ["Student", "judge_float"]

CALIBRATION_BATCHES = 32
DEPLOYED_BATCH = 20


@dataclasses.dataclass
class _Start:
    """A starting point of all layers: path -> (matrix, or None for the trained one; scales).

    `quality` is the one before training, as soon as it is known.
    """

    points: dict[str, tuple[np.ndarray | None, np.ndarray]]
    quality: Quality | None = None


class Student:
    """The quantized twin of one subject, at one granularity."""

    def __init__(
        self,
        subject: Subject,
        levels: int,
        group_size: GroupSize,
        gradual: bool = False,
        embeddings: bool = False,
    ) -> None:
        """Makes the twin.

        Args:
          subject: what it is a twin of.
          levels: 3 or 2.
          group_size: as in a scheme.
          gradual: whether its kernels can be quantized in part (`Phase.gradual`).
          embeddings: whether its token table is quantized too.
        """
        scheme_class = tt.TernaryScheme if levels == 3 else tt.BinaryScheme
        scheme = scheme_class(group_size, embeddings=embeddings)
        self.subject, self._levels, self._group_size = subject, levels, group_size
        self.model = keras3.quantize(subject.model, scheme)
        self._layers = {p: x for p, x in nested_layers(self.model) if is_quantized(x)}
        self._pretrained = [np.array(v) for v in self.model.variables]
        self._importance: dict[str, Any] = {}
        self._starts: dict[Any, _Start] = {}
        kernels = [layer.float_weights for layer in self._layers.values()]
        scales = [layer.kernel_scale for layer in self._layers.values()]
        known = {id(v) for v in (*kernels, *scales)}
        rest = [v for v in self.model.trainable_variables if id(v) not in known]
        fraction = tf.Variable(1.0, trainable=False) if gradual else None
        for layer in self._layers.values() if gradual else ():
            # As GradualQuantization does for a step; not setattr: Keras would track it.
            vars(layer)["quantized_fraction"] = fraction
        self._trainer = Trainer(
            self.model,
            subject.model,
            {"weights": kernels, "scales": scales, "rest": rest},
            fraction,
        )

    def run(self, run: Run) -> dict[str, Any]:
        """Does one run from the pre-trained weights; returns its record."""
        began = time.perf_counter()
        point = self._reset(run)
        validation = self.subject.held_out("validation")
        if point.quality is None:
            point.quality = self._trainer.score(validation)
        record: dict[str, Any] = {"before": _record(point.quality)}
        phase = run.phase(self.subject.phase, self.subject.binary_rate)
        self._trainer.run(
            lambda step: self.subject.batch(run.seed, step), phase, f"{run.subject} {run.key}"
        )
        record["after"] = _record(self._trainer.score(validation))
        record["bits_per_weight"] = self._bits_per_weight()
        if run.deployed:
            test = self.subject.held_out("test")
            record["test"] = _record(self._trainer.score(test))
            frozen = tt.freeze(self.model)
            record["deployed"] = _deployed_quality(frozen, test, optimize=True)
        record["seconds"] = time.perf_counter() - began
        return record

    def _reset(self, run: Run) -> _Start:
        for variable, value in zip(self.model.variables, self._pretrained, strict=True):
            variable.assign(value)
        if run.rotated:
            _rotate_values(self.model)
        start = self._start_of(run)
        for path, (weights, scales) in start.points.items():
            layer = self._layers[path]
            if weights is not None:
                layer.float_weights.assign(layer.kernel_layout.from_matrix(weights))
            layer.kernel_scale.assign(scales)
        return start

    def _start_of(self, run: Run) -> _Start:
        """Where a run starts; made once for runs that start alike."""
        drawn = run.initializer == "random"
        key = (run.initializer, run.importance, run.rotated, run.seed if drawn else None)
        if key in self._starts:
            return self._starts[key]
        rng = np.random.default_rng(run.seed)
        points: dict[str, tuple[np.ndarray | None, np.ndarray]] = {}
        for path, layer in self._layers.items():
            matrix = layer.kernel_layout.to_matrix(np.asarray(layer.float_weights))
            if drawn:
                matrix = rng.normal(0, matrix.std(), matrix.shape).astype(np.float32)
            weights, scales = starting_point(
                matrix,
                self._levels,
                self._group_size,
                "kmeans" if drawn else run.initializer,
                importance=self._importance_of(run.importance).get(path),
                name=path,
            )
            points[path] = (matrix if drawn else weights, scales)
        self._starts[key] = _Start(points)
        return self._starts[key]

    def _importance_of(self, kind: str | None) -> Any:
        if kind is None:
            return {}
        if kind not in self._importance:
            data = [self.subject.batch(900_001, step) for step in range(CALIBRATION_BATCHES)]
            self._importance[kind] = tt.calibrate(
                self.subject.model,
                [(d.inputs, d.labels, d.weights) for d in data],
                kind,
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                progress=False,
            )
        return self._importance[kind]

    def _bits_per_weight(self) -> float:
        """Bits in the file per quantized weight, scales included."""
        weights = sum(x.kernel_layout.n * x.kernel_layout.k for x in self._layers.values())
        scales = sum(int(np.prod(x.kernel_scale.shape)) for x in self._layers.values())
        return (2 if self._levels == 3 else 1) + 32 * scales / weights


def judge_float(subject: Subject, int8: bool) -> dict[str, Any]:
    """The record of a subject's own model, as it is or with 8-bit weights in the file."""
    began = time.perf_counter()
    test = subject.held_out("test")
    record: dict[str, Any] = {
        "before": _record(Trainer(subject.model).score(subject.held_out("validation"))),
        "deployed": _deployed_quality(subject.model, test, optimize=int8),
    }
    record["seconds"] = time.perf_counter() - began
    return record


def _deployed_quality(model: keras.Model, data: Data, optimize: bool) -> dict[str, Any]:
    """Converts a float or frozen model and judges the file in LiteRT: file_bytes and quality."""
    specs = {
        name: tf.TensorSpec([DEPLOYED_BATCH, *value.shape[1:]], value.dtype, name=name)
        for name, value in _named(data.inputs).items()
    }

    def serve(**inputs: Any) -> dict[str, Any]:
        (bare,) = inputs.values() if len(inputs) == 1 else (inputs,)
        return {"logits": model(bare, training=False)}

    function = tf.function(serve, autograph=False).get_concrete_function(**specs)
    content = convert_functions(
        {"serving_default": function}, [tf.lite.Optimize.DEFAULT] if optimize else None
    )
    runner = tt.runtime.make_interpreter(content, num_threads=1).get_signature_runner()
    losses, right = [], []
    for start in range(0, len(data.labels), DEPLOYED_BATCH):
        part = slice(start, start + DEPLOYED_BATCH)
        labels = data.labels[part]
        inputs = {name: _padded(value[part]) for name, value in _named(data.inputs).items()}
        logits = tf.constant(runner(**inputs)["logits"][: len(labels)])
        cross = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        losses.append(cross.numpy())
        right.append(logits.numpy().argmax(-1) == labels)
    quality = quality_of(data, np.concatenate(losses), np.concatenate(right))
    return {"file_bytes": len(content), **_record(quality)}


def _named(inputs: Any) -> dict[str, np.ndarray]:
    return inputs if isinstance(inputs, dict) else {"x": inputs}


def _padded(values: np.ndarray) -> np.ndarray:
    missing = DEPLOYED_BATCH - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


def _record(quality: Quality) -> dict[str, float]:
    return {"perplexity": quality.perplexity, "accuracy": quality.accuracy}


def _rotate_values(model: keras.Model) -> None:
    """Rotates each head's values and, back, what the output projection reads: the same function.

    Attention averages values over positions, head by head, so that an orthogonal matrix between the
    value and the output projection cancels. GPT-2's layers are meant (EinsumDense `value` and
    `attention_output`).
    """
    nested = dict(nested_layers(model))
    for path, value in nested.items():
        if not path.endswith("/value"):
            continue
        output = nested[path.removesuffix("value") + "attention_output"]
        size = value.float_weights.shape[-1]
        rotation = _hadamard(size)
        kernel, bias = np.asarray(value.float_weights), np.asarray(value.bias)
        value.float_weights.assign(kernel @ rotation)  # [width, heads, size]
        value.bias.assign(bias @ rotation)
        back = np.einsum("hsw,st->htw", np.asarray(output.float_weights), rotation)
        output.float_weights.assign(back)


def _hadamard(size: int) -> np.ndarray:
    """An orthogonal [size, size] matrix: blocks of Hadamard's, for any size that 16 divides."""
    block = np.array([[1.0]])
    while len(block) < 16:
        block = np.block([[block, block], [block, -block]])
    return np.kron(np.eye(size // 16), block / 4).astype(np.float32)
