"""Commands of `tfmot-ternary`: the flags of each, and what it does.

The modules that a command needs are imported when it runs: `generate` needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from absl import flags

PROGRAM = "tfmot-ternary"


class CommandLineError(Exception):
    """A wrong command line; the text says what was expected."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      summary: what it does, one line.
      define: defines its flags on a FlagValues.
      run: runs it, with the parsed flags and the arguments that are no flags.
      example: a command line that works.
      arguments: how arguments that are no flags are called in the help; "" where there are none.
      required: flags that must be given.
    """

    summary: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues, list[str]], None]
    example: str
    arguments: str = ""
    required: tuple[str, ...] = ()


def _define_interpreter(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "num_threads", None, "threads of the interpreter", lower_bound=1, flag_values=values
    )
    flags.DEFINE_enum("backend", None, ["litert", "tf"], "interpreter package", flag_values=values)


def _define_generate(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "the .tflite, its tokenizer beside it", flag_values=values)
    flags.DEFINE_string("prompt", None, "the question or instruction", flag_values=values)
    flags.DEFINE_string("image", None, "image file (vision-language models)", flag_values=values)
    flags.DEFINE_integer(
        "max_new_tokens",
        None,
        "stop after so many tokens; default: at the model's end token, or when the context is full",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "temperature",
        None,
        "how random: 0 always takes the most likely token, 1 draws with the model's own "
        "probabilities; default: 0, with --top_k or --top_p 1",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k",
        None,
        "draw from so many of the most likely tokens only",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "top_p",
        None,
        "draw from the fewest tokens that are this likely together (0 to 1), after --top_k",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed",
        None,
        "of the draws: the same seed gives the same text; default: another text each time",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "stop", [], "end the text before this string; may be repeated", flag_values=values
    )
    flags.DEFINE_bool("stream", True, "print each piece as soon as it is there", flag_values=values)
    _define_interpreter(values)


def _run_generate(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary.vlm import Generator, Sampling

    temperature = values.temperature
    if temperature is None:
        temperature = 0.0 if values.top_k is None and values.top_p is None else 1.0
    sampling = Sampling(temperature, values.top_k, values.top_p, values.seed)
    generator = Generator(values.model, num_threads=values.num_threads, backend=values.backend)
    text = generator.generate(
        values.prompt,
        values.image,
        values.max_new_tokens,
        stream=values.stream,
        sampling=sampling,
        stop=values.stop,
    )
    for piece in [text] if isinstance(text, str) else text:
        print(piece, end="", flush=True)
    print()
    if generator.finish_reason == "context":
        print(
            f"{PROGRAM}: the context of {generator.metadata.cache_length} tokens is full",
            file=sys.stderr,
        )


def _define_evaluate(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "the .tflite", flag_values=values)
    flags.DEFINE_string(
        "data",
        None,
        'examples: "digits:test" (the demo\'s scenes), or a JSON-lines file with "prompt", '
        '"answer" and "image" (a path) in each line',
        flag_values=values,
    )
    flags.DEFINE_integer("limit", None, "use at most so many examples", flag_values=values)
    flags.DEFINE_integer("seed", 0, "which built-in scenes", flag_values=values)
    flags.DEFINE_bool("json", False, "print JSON", flag_values=values)
    _define_interpreter(values)


def _run_evaluate(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary import evaluation
    from tfmot_ternary.vlm import Generator

    examples = evaluation.load_examples(values.data, values.limit, values.seed)
    generator = Generator(values.model, num_threads=values.num_threads, backend=values.backend)
    result = evaluation.evaluate(generator, examples)
    if values.json:
        _print_json(dataclasses.asdict(result))
        return
    print(f"examples       {result.examples} ({result.tokens} answer tokens)")
    print(f"perplexity     {result.perplexity:.4f}")
    print(f"task accuracy  {100 * result.task_accuracy:.2f} %")
    for kind, share in result.accuracy_by_kind.items():
        print(f"  {kind:<12} {100 * share:.2f} %")


def _define_benchmark(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "the .tflite", flag_values=values)
    flags.DEFINE_integer("repeats", 10, "prefills and generations to measure", flag_values=values)
    flags.DEFINE_integer("decode_steps", 64, "tokens per generation", flag_values=values)
    flags.DEFINE_bool("json", False, "print JSON", flag_values=values)
    _define_interpreter(values)


def _run_benchmark(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary import measurement

    result = measurement.measure(
        values.model, values.num_threads, values.backend, values.repeats, values.decode_steps
    )
    if values.json:
        _print_json(dataclasses.asdict(result))
        return
    print(f"file           {result.file_bytes:,} bytes")
    print(f"load           {1000 * result.load_seconds:.1f} ms")
    print(f"first prefill  {1000 * result.first_token_seconds:.1f} ms")
    print(
        f"prefill        {result.prefill_tokens_per_s:,.1f} tokens/s "
        f"({result.prefill_tokens} in {1000 * result.prefill_seconds:.2f} ms)"
    )
    print(
        f"decode         {result.decode_tokens_per_s:,.1f} tokens/s "
        f"({1000 * result.decode_seconds:.3f} ms each)"
    )
    print(
        f"peak memory    {result.peak_rss_bytes:,} bytes "
        f"({result.peak_rss_bytes - result.baseline_rss_bytes:,} above Python and the runtime; "
        f"{result.cache_bytes:,} the KV cache)"
    )


def _define_inspect(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "the .tflite, instead of F.tflite", flag_values=values)
    flags.DEFINE_integer(
        "min_elements",
        1024,
        "list constants from this size on; packed weights always",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_bool("json", False, "print JSON", flag_values=values)


def _run_inspect(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary import inspection, inspection_table

    paths = [*([values.model] if values.model else []), *arguments]
    if len(paths) != 1:
        raise CommandLineError(f"expected one .tflite file to inspect, got {len(paths)}")
    result = inspection.inspect(paths[0], values.min_elements)
    if values.json:
        _print_json(result.to_dict())
    else:
        print(inspection_table.format_table(result))


def _define_ternarize(values: flags.FlagValues) -> None:
    from tfmot_ternary import ternarization_request

    ternarization_request.define_flags(values)


def _run_ternarize(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary import ternarization, ternarization_request

    _import_quietly()
    ternarization.run(ternarization_request.Request.from_flags(values))


def _define_demo(values: flags.FlagValues) -> None:
    from tfmot_ternary.demo import command

    command.define_flags(values)


def _run_demo(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary.demo import command

    _import_quietly()
    command.run(command.Settings.from_flags(values))


def _import_quietly() -> None:
    """Imports TensorFlow and KerasHub without the notes that their libraries write at start-up.

    The notes come from C++ before any log level counts, on file descriptor 2. They are kept and
    shown if the import fails.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
            importlib.import_module("keras_hub")
        except ImportError:
            notes.seek(0)
            os.write(saved, notes.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, indent=2))


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "ternarize the built-in vision-language model and compare all versions",
        _define_demo,
        _run_demo,
        f"{PROGRAM} demo --output_dir build/demo",
    ),
    "ternarize": Command(
        "turn a KerasHub preset or a saved Keras model into a ternary or binary .tflite",
        _define_ternarize,
        _run_ternarize,
        f"{PROGRAM} ternarize --preset my_preset --output my_model.tflite --format t5",
        required=("preset", "output"),
    ),
    "generate": Command(
        "generate text with a converted model",
        _define_generate,
        _run_generate,
        f'{PROGRAM} generate --model build/demo/ternary_t2.tflite --prompt "how many threes?" '
        "--image scene.png",
        required=("model", "prompt"),
    ),
    "evaluate": Command(
        "perplexity and task accuracy of a converted model",
        _define_evaluate,
        _run_evaluate,
        f"{PROGRAM} evaluate --model build/demo/ternary_t2.tflite --data digits:test",
        required=("model", "data"),
    ),
    "benchmark": Command(
        "load time, prefill and decode tokens per second, peak memory",
        _define_benchmark,
        _run_benchmark,
        f"{PROGRAM} benchmark --model build/demo/ternary_t2.tflite --num_threads 2",
        required=("model",),
    ),
    "inspect": Command(
        "list every weight of a .tflite: op, shape, format, bits per weight, bytes",
        _define_inspect,
        _run_inspect,
        f"{PROGRAM} inspect build/demo/ternary_t2.tflite",
        arguments="F.tflite",
    ),
}
