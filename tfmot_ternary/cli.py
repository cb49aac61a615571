"""Command line: the absl-py application behind `tfmot-ternary`.

Parses, helps and turns errors into one line; the commands themselves are in `commands`.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from absl import app, flags, logging

from tfmot_ternary.commands import COMMANDS, PROGRAM, Command, CommandLineError

USAGE_CODE = 2  # the exit code for a wrong command line; 1 is for everything else
# What a user can mend: one line. The rest are defects of ours, shown with a traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


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
        f"`{PROGRAM} COMMAND --help` lists a command's flags. `--debug` with any command shows the",
        f"traceback of an error. `{PROGRAM} --version` tells the version.",
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
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    lines = [summary, "", f"{usage} [flags]", "", "flags:"]
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
        lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
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
        raise CommandLineError(f"expected --{' and --'.join(missing)}: see {PROGRAM} {name} --help")
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


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):  # the others are for programmers
        print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def main() -> None:
    """Entry point of the `tfmot-ternary` program."""

    def parse_nothing(arguments: Sequence[str]) -> list[str]:
        flags.FLAGS(arguments[:1])  # absl's own global flags keep their defaults
        return list(arguments)

    def run(arguments: Sequence[str]) -> int:
        warnings.showwarning = _show_warning
        logging.set_verbosity(logging.WARNING)  # absl's application starts at INFO
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # in step with the progress on stderr
        return run_command(arguments[1:])

    app.run(run, flags_parser=parse_nothing)


if __name__ == "__main__":
    main()
