"""Ternarization: a pre-trained model -> ternary or binary weights -> `.tflite`, in one go."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from absl import flags

from tfmot_ternary import model_source, recovery
from tfmot_ternary.checkpoint import Checkpoint, digest
from tfmot_ternary.packing import GROUP_SIZE_TOKENS, GroupSize, group_size_of


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
      preset: see `model_source.load`.
      output: the `.tflite` to write.
      weights: "ternary" or "binary".
      weight_format: "t2", "t5" or "b1"; None: the default for `weights`.
      group_size: None (per channel), "tensor" or inputs per scale.
      initializer: name of the first scales' rule.
      skip: regular expressions of layers to leave as they are.
      recognize: pack the layers whose weights are ternary or binary already, and change no other:
        `weights`, `group_size`, `initializer` and `skip` say nothing then.
      float_weights: "int8" or "float32": how embeddings and skipped layers are stored.
      data: examples to train on, or None: the k-means start is what is written.
      steps: training steps.
      batch_size: examples per step.
      learning_rate: its highest value.
      seed: order of the examples.
      prefill_length, cache_length: see `vlm.convert_causal_lm`; causal LMs only.
    """

    preset: str
    output: str
    weights: str = "ternary"
    weight_format: str | None = None
    group_size: GroupSize = None
    initializer: str = "kmeans"
    skip: tuple[str, ...] = ()
    recognize: bool = False
    float_weights: str = "int8"
    data: str | None = None
    steps: int = 500
    batch_size: int = 16
    learning_rate: float = 5e-4
    seed: int = 0
    prefill_length: int | None = None
    cache_length: int | None = None

    @classmethod
    def from_flags(cls, values: flags.FlagValues) -> Request:
        return cls(
            preset=values.preset,
            output=values.output,
            weights=values.weights,
            weight_format=values.format,
            group_size=group_size_of(values.group_size),
            initializer=values.initializer,
            skip=tuple(values.skip),
            recognize=values.recognize,
            float_weights=values.float_weights,
            data=values.data,
            steps=values.steps,
            batch_size=values.batch_size,
            learning_rate=values.learning_rate,
            seed=values.seed,
            prefill_length=values.prefill_length,
            cache_length=values.cache_length,
        )


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags on `values`."""

    def text(name: str, default: str | None, what: str) -> None:
        flags.DEFINE_string(name, default, what, flag_values=values)

    def choice(name: str, default: str | None, choices: list[str], what: str) -> None:
        flags.DEFINE_enum(name, default, choices, what, flag_values=values)

    def count(name: str, default: int | None, what: str, least: int = 1) -> None:
        flags.DEFINE_integer(name, default, what, lower_bound=least, flag_values=values)

    text(
        "preset",
        None,
        "the pre-trained model: KerasHub preset (folder or handle), .keras, .h5, or SavedModel",
    )
    text("output", None, "the .tflite to write; a language model's tokenizer goes beside it")
    choice("weights", "ternary", ["ternary", "binary"], "values per weight")
    choice(
        "format",
        None,
        ["t2", "t5", "b1"],
        "how weights are stored: t2 (2 bits; default for ternary), t5 (1.6 bits), b1 (1 bit; "
        "binary)",
    )
    choice(
        "group_size",
        "channel",
        list(GROUP_SIZE_TOKENS),
        "inputs that share a scale",
    )
    choice(
        "initializer",
        "kmeans",
        ["kmeans", "lloyd", "absmean", "absmax", "twn"],
        "rule of the first scales",
    )
    flags.DEFINE_multi_string(
        "skip",
        [],
        "regular expression of layer names to leave as they are; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "recognize",
        False,
        "pack layers whose weights are ternary or binary already, exactly, and leave all others "
        "in float; no training",
        flag_values=values,
    )
    choice(
        "float_weights",
        "int8",
        ["int8", "float32"],
        "how weights that stay float are stored: embeddings, head, skipped layers",
    )
    text(
        "data",
        None,
        'examples to recover quality on: "digits:train", a JSON-lines file (language models; see '
        "`evaluate --help`), or an .npz file with x and optionally y (other models)",
    )
    count("steps", 500, "training steps, with --data")
    count("batch_size", 16, "examples per step")
    flags.DEFINE_float(
        "learning_rate", 5e-4, "highest learning rate", lower_bound=0.0, flag_values=values
    )
    count("seed", 0, "order of the examples", least=0)
    count("prefill_length", None, "longest prompt in tokens; default: the preset's")
    count("cache_length", None, "context in tokens, image included; default: the preset's")


def run(request: Request) -> None:
    """Does what the request says and prints what came out.

    Raises:
      ValueError, FileNotFoundError: bad input; nothing is written then.
    """
    _check(request)
    print(f"load {request.preset}")
    model = model_source.load(request.preset)
    if hasattr(model, "call_with_cache"):
        _check_causal_lm(request)
        make_batches = recovery.causal_lm_batches
    else:
        if request.prefill_length or request.cache_length:
            raise ValueError(
                "expected prefill_length and cache_length only with a language model, got "
                f"{type(model).__name__}"
            )
        make_batches = recovery.array_batches
    training = None
    if request.data is not None:
        training = recovery.Training(
            request.data, request.steps, request.batch_size, request.learning_rate, request.seed
        )
        make_batch = make_batches(model, training)

    if request.recognize:
        from tfmot_ternary.freezing import freeze

        print("recognize")
        student = freeze(model, request.weight_format, recognize=True)
        request = dataclasses.replace(request, weight_format=None)  # it is in the layers now
    else:
        from tfmot_ternary.apply import quantize_apply

        print(f"quantize: {request.weights}, {request.initializer} scales per {_unit(request)}")
        student = quantize_apply(model, _scheme(request))
    if training is not None:
        checkpoint = _checkpoint(student, training, request)
        recovery.train(student, model, make_batch, training, checkpoint)
    print("freeze and convert")
    _convert(student, request)
    if training is not None:
        checkpoint.remove()
    size = os.path.getsize(request.output)
    print(f"{request.output}: {size:,} bytes; see `tfmot-ternary inspect {request.output}`")


def _check(request: Request) -> None:
    allowed = {"ternary": (None, "t2", "t5"), "binary": (None, "b1")}[request.weights]
    if request.recognize and request.data is not None:
        raise ValueError(
            f"expected no data with recognize (weights stay as they are), got {request.data!r}"
        )
    if request.weight_format not in allowed:
        raise ValueError(
            f"expected format {' or '.join(f for f in allowed if f)} for {request.weights} "
            f"weights, got {request.weight_format}"
        )
    if not request.output.endswith(".tflite"):
        raise ValueError(f"expected an output name that ends in .tflite, got {request.output!r}")


def _check_causal_lm(request: Request) -> None:
    if request.data is not None and request.data.endswith(".npz"):
        raise ValueError(
            f"expected a JSON-lines file or digits:train to train a language model, got "
            f"{request.data!r}"
        )


def _checkpoint(student: Any, training: recovery.Training, request: Request) -> Checkpoint:
    """Beside the output until that is written; the same command goes on from it."""
    settings = {
        "training": dataclasses.asdict(training),
        # The student's weights before training say all about the model and the start.
        "start": digest(student.weights),
        "weights": request.weights,
        "group_size": request.group_size,
        "skip": list(request.skip),
    }
    return Checkpoint(f"{request.output}.training.npz", settings)


def _unit(request: Request) -> str:
    if isinstance(request.group_size, int):
        return f"group of {request.group_size} inputs"
    return request.group_size or "channel"


def _scheme(request: Request) -> Any:
    from tfmot_ternary.scheme import BinaryScheme, TernaryScheme

    cls = TernaryScheme if request.weights == "ternary" else BinaryScheme
    return cls(group_size=request.group_size, initializer=request.initializer, skip=request.skip)


def _convert(student: Any, request: Request) -> None:
    import tensorflow as tf

    optimizations = [tf.lite.Optimize.DEFAULT] if request.float_weights == "int8" else None
    if hasattr(student, "call_with_cache"):
        from tfmot_ternary.vlm import convert_causal_lm

        convert_causal_lm(
            student,
            request.output,
            prefill_lengths=[request.prefill_length] if request.prefill_length else None,
            cache_length=request.cache_length,
            weight_format=request.weight_format,
            optimizations=optimizations,
        )
        return
    from tfmot_ternary.conversion import convert

    convert(student, optimizations, weight_format=request.weight_format, path=request.output)
