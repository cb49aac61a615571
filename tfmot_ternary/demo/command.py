"""Command: the demo, from the pre-trained model to a table of its versions and three answers."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from tfmot_ternary import packing

if TYPE_CHECKING:
    from tfmot_ternary.calibration import Calibration
    from tfmot_ternary.evaluation import Evaluation, Example

# Positions of the context: the image's 16, a prompt of at most 16 tokens and as much again for the
# answer (the longest caption has 11 tokens).
CACHE_LENGTH = 48
MEASURING_ROUNDS = 3
# One question per image for the end of the demo, as users would ask them.
QUESTIONS = ("how many digits?", "what is the sum of the top row?", "describe the image")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
      output_dir: where everything is written.
      preset: folder of the float model; None: the one in the package, or with `pretrain` a new one
        in `output_dir`.
      pretrain: make the preset again from nothing first (tens of minutes).
      seed: of training and of the test scenes.
      steps: training steps of each recovery; None: the recipe's.
      samples: test scenes.
      num_threads: threads of the interpreter in all measurements.
      group_size: inputs per scale, or "channel" or "tensor".
    """

    output_dir: pathlib.Path
    preset: pathlib.Path | None = None
    pretrain: bool = False
    seed: int = 0
    steps: int | None = None
    samples: int = 1000
    num_threads: int = 1
    group_size: str = "channel"

    @classmethod
    def from_flags(cls, values: flags.FlagValues) -> Settings:
        return cls(
            output_dir=pathlib.Path(values.output_dir),
            preset=pathlib.Path(values.preset) if values.preset else None,
            pretrain=values.pretrain,
            seed=values.seed,
            steps=values.steps,
            samples=values.samples,
            num_threads=values.num_threads,
            group_size=values.group_size,
        )


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags on `values`."""
    flags.DEFINE_string(
        "output_dir", "build/demo", "where everything is written", flag_values=values
    )
    flags.DEFINE_string(
        "preset",
        None,
        "folder of the pre-trained KerasHub preset; default: the one in the package, or with "
        "--pretrain OUTPUT_DIR/preset",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "pretrain",
        False,
        "make the preset from nothing first; takes about 10 minutes on 2 cores",
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "of training and of the test scenes", flag_values=values)
    flags.DEFINE_integer(
        "steps",
        None,
        "training steps of each recovery; default: the recipe's; 0: none, the calibrated start",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "samples", 1000, "test scenes to evaluate on", lower_bound=3, flag_values=values
    )
    flags.DEFINE_integer(
        "num_threads", 1, "threads of the interpreter", lower_bound=1, flag_values=values
    )
    flags.DEFINE_enum(
        "group_size",
        "channel",
        list(packing.GROUP_SIZE_TOKENS),
        "inputs per scale",
        flag_values=values,
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """One version of the model, as measured in this run.

    Attributes:
      name: as in results.json.
      path: its `.tflite`.
      evaluation: in LiteRT, token by token, on the test scenes.
      measurement: in a process of its own; None for the versions before training.
    """

    name: str
    path: pathlib.Path
    evaluation: Evaluation
    measurement: Any = None


def scheme_for(weights: str, group_size: str, calibration: Calibration | None = None) -> Any:
    """Returns the scheme for "ternary" or "binary" weights, nothing skipped.

    Args:
      weights: "ternary" or "binary".
      group_size: "channel", "tensor" or a number of inputs.
      calibration: what training starts from; None: k-means.
    """
    from tfmot_ternary import scheme

    cls = scheme.TernaryScheme if weights == "ternary" else scheme.BinaryScheme
    return cls(group_size=packing.group_size_of(group_size), importance=calibration)


def run(settings: Settings) -> list[Variant]:
    """Runs the demo.

    Writes into the output folder: a `.tflite` and its tokenizer for each version, results.json,
    results.md, quality.png, speed.png, size.png, answers.png, and the state of the trainings.
    An interrupted run goes on where its training stopped; conversion, evaluation and measurement
    are done anew each time, so that every figure is of this run.

    Returns:
      The versions in the order of the table.
    """
    from tfmot_ternary import evaluation
    from tfmot_ternary.demo import model, picture, recovery, report

    start = time.perf_counter()
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    stage = _stages(7 + settings.pretrain)
    preset = settings.preset or model.PRESET
    if settings.pretrain:
        from tfmot_ternary.demo import pretraining

        preset = settings.preset or settings.output_dir / "preset"
        print(f"{next(stage)} pretrain from nothing into {preset}")
        pretraining.pretrain(preset, settings.seed, checkpoint_dir=settings.output_dir)

    print(f"{next(stage)} load {preset}")
    causal_lm = model.load_preset(preset)
    examples = evaluation.load_examples("digits:test", settings.samples, settings.seed)

    print(f"{next(stage)} convert and evaluate the original: float32, int8")
    variants = _convert_and_evaluate(
        settings, examples, [("float32", causal_lm, False), ("int8", causal_lm, True)]
    )
    started: list[Variant] = []
    print(f"{next(stage)} calibrate")
    calibration = recovery.calibrate(causal_lm, settings.seed)
    for weights, formats in (("ternary", ("t2", "t5")), ("binary", ("b1",))):
        print(f"{next(stage)} {weights}: k-means start, calibrated start, recovery, freezing")
        for name, known in (("kmeans", None), ("calibrated", calibration)):
            start_model = _recovered(settings, causal_lm, weights, known, steps=0)
            start_model = _freeze(start_model, formats[0])
            started += _convert_and_evaluate(
                settings, examples, [(f"{weights}_{name}_start", start_model, False)]
            )
        trained = _recovered(settings, causal_lm, weights, calibration, steps=settings.steps)
        frozen = [(f"{weights}_{f}", _freeze(trained, f), False) for f in formats]
        variants += _convert_and_evaluate(settings, examples, frozen)

    print(f"{next(stage)} measure speed and memory, a process each time")
    variants = _measured(variants, settings)

    print(f"{next(stage)} write results to {settings.output_dir}")
    command = shlex.join(["tfmot-ternary", *sys.argv[1:]])
    report.write(settings, variants, started, command)
    print()
    print(report.table(variants, started))
    print()
    for line in report.verdicts(variants):
        print(line)
    print()
    ternary = next(v for v in variants if v.name == "ternary_t2")
    picture.show_answers(ternary.path, examples, QUESTIONS, settings.output_dir)
    print(f"\n{time.perf_counter() - start:.0f} s; everything is in {settings.output_dir}")
    return variants


def _stages(count: int) -> Iterator[str]:
    return (f"[{number}/{count}]" for number in range(1, count + 1))


def _recovered(
    settings: Settings,
    causal_lm: Any,
    weights: str,
    calibration: Calibration | None,
    steps: int | None,
) -> Any:
    from tfmot_ternary.demo import recovery

    return recovery.recover(
        causal_lm,
        scheme_for(weights, settings.group_size, calibration),
        steps=steps,
        seed=settings.seed,
        cache_dir=settings.output_dir / "training",
    ).causal_lm


def _freeze(trained: Any, weight_format: str) -> Any:
    """Packs the kernels as trained; the token table and what else is float gets 8 bits."""
    from tfmot_ternary.freezing import freeze

    return freeze(trained, weight_format, tables="i8", others="i8")


def _convert_and_evaluate(
    settings: Settings, examples: Sequence[Example], models: Sequence[tuple[str, Any, bool]]
) -> list[Variant]:
    """Converts (name, model, whether the converter makes 8 bits of it) and evaluates in LiteRT."""
    import tensorflow as tf

    from tfmot_ternary import evaluation
    from tfmot_ternary.vlm import Generator, convert_causal_lm

    variants = []
    for name, causal_lm, eight_bits in models:
        path = settings.output_dir / f"{name}.tflite"
        convert_causal_lm(
            causal_lm,
            path,
            cache_length=CACHE_LENGTH,
            optimizations=[tf.lite.Optimize.DEFAULT] if eight_bits else None,
        )
        generator = Generator(path, num_threads=settings.num_threads)
        variants.append(
            Variant(name, path, evaluation.evaluate(generator, examples, label=f"  {name}"))
        )
    return variants


def _measured(variants: Sequence[Variant], settings: Settings) -> list[Variant]:
    """Measures all variants in turn, several rounds, and keeps each one's median round.

    What else the machine does meanwhile then slows all of them alike.
    """
    from tqdm import tqdm

    from tfmot_ternary import measurement

    rounds: dict[str, list[Any]] = {variant.name: [] for variant in variants}
    order = [variant for _ in range(MEASURING_ROUNDS) for variant in variants]
    for variant in tqdm(order, desc="  measure", unit="process"):
        rounds[variant.name].append(
            measurement.measure(variant.path, num_threads=settings.num_threads)
        )
    middle = MEASURING_ROUNDS // 2
    return [
        dataclasses.replace(
            variant,
            measurement=sorted(rounds[variant.name], key=lambda m: m.decode_tokens_per_s)[middle],
        )
        for variant in variants
    ]
