"""Command line: the absl-py application behind `tfmot-ternary`.

Each command has flags of its own; the modules that it needs are imported when it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

PROGRAM = "tfmot-ternary"
USAGE_CODE = 2  # the exit code for a wrong command line; 1 is for everything else
# What a user can mend: shown as one line. Anything else is a defect of ours: shown with traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


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
    flags.DEFINE_enum(
        "backend", None, ["litert", "tf"], "interpreter package", flag_values=values
    )


def _define_generate(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "the .tflite; its tokenizer lies beside it", flag_values=values)
    flags.DEFINE_string("prompt", None, "the question or instruction", flag_values=values)
    flags.DEFINE_string("image", None, "image file, for a vision-language model", flag_values=values)
    flags.DEFINE_integer(
        "max_new_tokens", None, "stop after so many tokens", lower_bound=1, flag_values=values
    )
    _define_interpreter(values)


def _run_generate(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary.vlm import Generator

    generator = Generator(values.model, num_threads=values.num_threads, backend=values.backend)
    for piece in generator.generate(
        values.prompt, values.image, values.max_new_tokens, stream=True
    ):
        print(piece, end="", flush=True)
    print()


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
        f"({result.peak_rss_bytes - result.baseline_rss_bytes:,} above Python and the runtime)"
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
    from tfmot_ternary import inspection

    paths = [*([values.model] if values.model else []), *arguments]
    if len(paths) != 1:
        raise CommandLineError(f"expected one .tflite file to inspect, got {len(paths)}")
    result = inspection.inspect(paths[0], values.min_elements)
    if values.json:
        _print_json(result.to_dict())
    else:
        print(inspection.format_table(result))


def _define_ternarize(values: flags.FlagValues) -> None:
    from tfmot_ternary import ternarization

    ternarization.define_flags(values)


def _run_ternarize(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary import ternarization

    _import_quietly()
    ternarization.run(ternarization.Request.from_flags(values))


def _define_demo(values: flags.FlagValues) -> None:
    from tfmot_ternary.demo import command

    command.define_flags(values)


def _run_demo(values: flags.FlagValues, arguments: list[str]) -> None:
    from tfmot_ternary.demo import command

    _import_quietly()
    command.run(command.Settings.from_flags(values))


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


def overview() -> str:
    """Returns the help of the program: all commands."""
    width = max(map(len, COMMANDS))
    lines = [
        "Ternary and binary neural networks for TF Lite.",
        "",
        f"usage: {PROGRAM} COMMAND [flags]",
        "",
        "commands:",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        f"`{PROGRAM} COMMAND --help` lists the flags of a command; `--debug` with any command shows",
        f"the traceback of an error; `{PROGRAM} --version` tells the version.",
    ]
    return "\n".join(lines)


def command_help(name: str) -> str:
    """Returns the help of one command: its flags with their defaults, and an example."""
    command = COMMANDS[name]
    values = _flag_values(command)
    usage = f"usage: {PROGRAM} {name}"
    if command.arguments:
        usage += f" {command.arguments}"
    usage += "".join(f" --{flag} {_placeholder(values[flag])}" for flag in command.required)
    lines = [f"{command.summary[0].upper()}{command.summary[1:]}.", "", f"{usage} [flags]", "", "flags:"]
    for flag in sorted(values, key=lambda f: (f not in command.required, f)):
        spec = values[flag]
        if spec.boolean:
            head = f"  --[no]{flag}"
        else:
            head = f"  --{flag} {_placeholder(spec)}"
        if flag in command.required:
            head += "  (required)"
        elif spec.default or spec.default == 0 and not spec.boolean:
            head += f"  (default: {spec.default})"
        lines.append(head)
        # absl puts the choices of an enum in front of its help, and a note behind that of a list.
        text = (spec.help or "").split(">: ")[-1].split(";\n")[0]
        lines += textwrap.wrap(
            text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    lines += ["", "example:", f"  {command.example}"]
    return "\n".join(lines)


def _placeholder(spec: flags.Flag[Any]) -> str:
    choices = getattr(spec.parser, "enum_values", None)
    if choices:
        return "|".join(choices)
    return {"int": "N", "float": "X", "string": "TEXT"}.get(spec.flag_type(), "VALUE")


def _flag_values(command: Command) -> flags.FlagValues:
    values = flags.FlagValues()
    command.define(values)
    flags.DEFINE_bool("debug", False, "show the traceback of an error", flag_values=values)
    return values


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
    import json

    print(json.dumps(record, indent=2))


def _parse(arguments: Sequence[str]) -> tuple[Command, flags.FlagValues, list[str]] | None:
    """Parses a command line without the program's name; None after printing what was asked for."""
    if not arguments or arguments[0] in ("--help", "-h", "-help", "help"):
        names = [a for a in arguments[1:] if a in COMMANDS]
        print(command_help(names[0]) if names else overview())
        return None
    if arguments[0] == "--version":
        from tfmot_ternary import __version__

        print(f"{PROGRAM} {__version__}")
        return None
    name, rest = arguments[0], list(arguments[1:])
    command = COMMANDS.get(name)
    if command is None:
        raise CommandLineError(
            f"expected a command of {', '.join(COMMANDS)}, got {name!r}: see {PROGRAM} --help"
        )
    flag_part = rest[: rest.index("--")] if "--" in rest else rest
    if {"--help", "-h", "-help"} & set(flag_part):
        print(command_help(name))
        return None
    values = _flag_values(command)
    try:
        positional = values([PROGRAM, *rest])[1:]
    except flags.Error as error:
        raise CommandLineError(f"{error}: see {PROGRAM} {name} --help") from error
    missing = [flag for flag in command.required if values[flag].value in (None, "")]
    if missing:
        raise CommandLineError(
            f"expected --{' and --'.join(missing)}: see {PROGRAM} {name} --help"
        )
    if positional and not command.arguments:
        raise CommandLineError(
            f"expected only flags, got {positional[0]!r}: see {PROGRAM} {name} --help"
        )
    return command, values, positional


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line.

    Args:
      arguments: the command line without the program's name.

    Returns:
      The exit code: 0, 1 for an error (one line on stderr), 2 for a wrong command line, 130 when
      the user has interrupted it.
    """
    # Before TensorFlow is imported: Keras 3 on TensorFlow, without TensorFlow's start-up notes.
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.showwarning = _show_warning
    logging.set_verbosity(logging.WARNING)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in step with stderr
    debug = False
    try:
        parsed = _parse(arguments)
        if parsed is None:
            return 0
        command, values, positional = parsed
        debug = values.debug
        command.run(values, positional)
        return 0
    except CommandLineError as error:
        _complain(error)
        return USAGE_CODE
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing left to say, also not when Python closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        if debug:
            traceback.print_exc()
        _complain(error)
        return 1


def _complain(error: BaseException) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"{PROGRAM}: error: {text}", file=sys.stderr)


def _show_warning(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
    if issubclass(category, UserWarning):  # the others are for programmers
        print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def main() -> None:
    """Entry point of the `tfmot-ternary` program."""

    def parse_nothing(arguments: Sequence[str]) -> list[str]:
        flags.FLAGS(arguments[:1])  # absl's own global flags keep their defaults
        return list(arguments)

    app.run(lambda arguments: run_command(arguments[1:]), flags_parser=parse_nothing)


if __name__ == "__main__":
    main()
