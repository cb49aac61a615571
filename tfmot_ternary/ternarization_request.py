"""Request: what the user of `tfmot-ternary ternarize` asked for, and its flags."""

from __future__ import annotations

import dataclasses

from absl import flags

from tfmot_ternary.packing import GROUP_SIZE_TOKENS, GroupSize, group_size_of

# With the default batch size 512 examples.
CALIBRATION_BATCHES = 32


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
      float_weights: "int8" or "float32": how the weights that stay float are stored.
      tables: how a causal LM's token table and head are stored: "float32", or a token of
        `weight_storage.storage_of`; None: "i8" with float_weights "int8", else "float32".
      data: examples to calibrate and to train on, or None: the k-means start is what is written.
      calibration_batches: batches of `data` that the start is calibrated on (see
        `recovery.calibrated`); 0: the start is that of k-means; None: 32 where there is data.
      steps: training steps; 0: the calibrated start is what is written.
      batch_size: examples per step and per batch of the calibration.
      learning_rate: its highest value.
      seed: order of the examples.
      prefill_lengths, cache_length, cache_type: see `vlm.convert_causal_lm`; causal LMs only.
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
    tables: str | None = None
    data: str | None = None
    calibration_batches: int | None = None
    steps: int = 500
    batch_size: int = 16
    learning_rate: float = 5e-4
    seed: int = 0
    prefill_lengths: tuple[int, ...] = ()
    cache_length: int | None = None
    cache_type: str | None = None

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
            tables=values.tables,
            data=values.data,
            calibration_batches=values.calibration_batches,
            steps=values.steps,
            batch_size=values.batch_size,
            learning_rate=values.learning_rate,
            seed=values.seed,
            prefill_lengths=tuple(values.prefill_lengths),
            cache_length=values.cache_length,
            cache_type=values.cache_type,
        )

    @property
    def stored_tables(self) -> str | None:
        """`tables` as `freeze` takes it."""
        chosen = self.tables or {"int8": "i8", "float32": "float32"}[self.float_weights]
        return None if chosen == "float32" else chosen

    @property
    def stored_others(self) -> str | None:
        """`float_weights` as `freeze` takes it."""
        return "i8" if self.float_weights == "int8" else None


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
        "tables",
        None,
        "how a language model's token table and head are stored: float32, i8 (default), i4, t2, "
        "t5, or with a group size: t2:128",
    )
    text(
        "data",
        None,
        'examples to recover quality on: "digits:train", a JSON-lines file (language models; see '
        "`evaluate --help`), or an .npz file with x and optionally y (other models)",
    )
    count(
        "calibration_batches",
        None,
        "batches of --data whose second moments choose the codes and scales that training starts "
        "from: outputs nearest to the original's, better than k-means; takes 4 k^2 bytes of memory "
        f"per kernel of k inputs; 0: start from k-means; default: {CALIBRATION_BATCHES}",
        least=0,
    )
    count("steps", 500, "training steps, with --data; 0: calibrate only", least=0)
    count("batch_size", 16, "examples per step, and per batch of the calibration")
    flags.DEFINE_float(
        "learning_rate", 5e-4, "highest learning rate", lower_bound=0.0, flag_values=values
    )
    count("seed", 0, "order of the examples", least=0)
    flags.DEFINE_multi_integer(
        "prefill_lengths",
        [],
        "tokens of a prompt that one call takes; may be repeated: short prompts go through the "
        "shortest that holds them; default: chosen by the kind of model",
        lower_bound=1,
        flag_values=values,
    )
    count("cache_length", None, "context in tokens, image included; default: the preset's")
    choice(
        "cache_type",
        None,
        ["float32", "float16", "int8"],
        "how keys and values of the context are kept; default: float32",
    )
