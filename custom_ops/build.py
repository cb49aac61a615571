"""Builds the library of custom ops with nothing but a C++17 compiler.

    python custom_ops/build.py            # -> tfmot_ternary/libtfmot_ternary_ops.so

The sources are those of custom_ops/sources.bzl, which Bazel reads too. Compiles what is older than
its source or a header of it, on all cores; the compiler is $CXX (default c++, g++ or clang++). The
setuptools commands at the end do the same for `pip install`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES_FILE = ROOT / "custom_ops" / "sources.bzl"
LIBRARY = ROOT / "tfmot_ternary" / "libtfmot_ternary_ops.so"
OBJECTS = ROOT / "build" / "custom_ops"

# The same as custom_ops/BUILD's. No -march: kernels carry target attributes and are chosen at run
# time. No contraction: the float epilogue must give the same bits from every compiler.
COMPILE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=off",
    "-pthread",
    "-Wall",
    "-Wextra",
)
LINK_FLAGS = ("-pthread", "-ldl")


class BuildError(Exception):
    """The compiler is missing or failed; the message says which command and why."""


def source_lists() -> dict[str, list[str]]:
    """The lists of custom_ops/sources.bzl by name; paths relative to custom_ops/."""
    lists: dict[str, list[str]] = {}
    exec(compile(SOURCES_FILE.read_text(), str(SOURCES_FILE), "exec"), {}, lists)
    return lists


def library_sources() -> list[pathlib.Path]:
    lists = source_lists()
    return [ROOT / "custom_ops" / p for p in lists["KERNEL_SOURCES"] + lists["TFLITE_SOURCES"]]


def compiler() -> list[str]:
    """The C++ compiler with its leading arguments: $CXX, else the first that is installed."""
    chosen = os.environ.get("CXX")
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]) is None:
            raise BuildError(f"expected a C++17 compiler in CXX, got {chosen!r}: no such command")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError(
        "expected a C++17 compiler (c++, g++ or clang++), got none; install one or set CXX"
    )


def _run(command: Sequence[str | os.PathLike[str]]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        text = " ".join(shlex.quote(str(part)) for part in command)
        raise BuildError(
            f"expected the compiler to succeed, got status {result.returncode} of\n"
            f"  {text}\n{result.stdout}{result.stderr}"
        )
    sys.stderr.write(result.stderr)


def _newest(paths: Iterable[pathlib.Path]) -> float:
    return max((path.stat().st_mtime for path in paths), default=0.0)


def _is_stale(path: pathlib.Path) -> bool:
    """Whether an object file is older than anything that the compiler read for it last time."""
    record = path.with_suffix(".d")
    if not path.is_file() or not record.is_file():
        return True
    # The compiler's own record, in make's syntax: "object: source header header ...".
    _, _, read = record.read_text().replace("\\\n", " ").partition(": ")
    paths = [pathlib.Path(name) for name in shlex.split(read)]
    return not all(p.is_file() for p in paths) or path.stat().st_mtime < _newest(paths)


def _temporary(path: pathlib.Path) -> pathlib.Path:
    """A name in the same folder, of this process alone: concurrent builds do not meet."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def compile_objects(
    sources: Sequence[pathlib.Path],
    extra_flags: Sequence[str] = (),
    jobs: int | None = None,
    force: bool = False,
) -> list[pathlib.Path]:
    """Object files of `sources` (below ROOT), compiled in parallel where anything they are made of
    is newer."""
    user_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
    command = [*compiler(), *COMPILE_FLAGS, *user_flags, *extra_flags]
    folder = OBJECTS / hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    objects = [folder / s.resolve().relative_to(ROOT).with_suffix(".o") for s in sources]
    pairs = zip(sources, objects, strict=True)
    stale = [(source, path) for source, path in pairs if force or _is_stale(path)]

    def compile_one(pair: tuple[pathlib.Path, pathlib.Path]) -> pathlib.Path:
        source, path = pair
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.time()
        temporary, record = _temporary(path), _temporary(path.with_suffix(".d"))
        outputs = ["-o", str(temporary), "-MMD", "-MF", str(record)]
        _run([*command, "-I", str(ROOT), "-c", str(source), *outputs])
        os.utime(temporary, (start, start))  # a source changed meanwhile is newer than its object
        record.replace(path.with_suffix(".d"))
        temporary.replace(path)
        return source

    with concurrent.futures.ThreadPoolExecutor(jobs or _cores()) as pool:
        for done, source in enumerate(pool.map(compile_one, stale), start=1):
            print(f"[{done}/{len(stale)}] {source.name}", file=sys.stderr)
    return objects


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _link(objects: Sequence[pathlib.Path], output: pathlib.Path, flags: Sequence[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(output)
    try:
        # Flags last: linkers look into libraries only for what the objects before them lack.
        _run([*compiler(), *map(str, objects), "-o", str(temporary), *flags, *LINK_FLAGS])
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def build_library(
    output: pathlib.Path = LIBRARY,
    extra_flags: Sequence[str] = (),
    jobs: int | None = None,
    force: bool = False,
) -> pathlib.Path:
    """Builds the shared library at `output` unless it is newer than everything it is made of."""
    objects = compile_objects(library_sources(), extra_flags, jobs, force)
    # Which objects the library was linked from: another compiler's may be older than the library.
    recipe = "\n".join(map(str, objects))
    record = OBJECTS / f"{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:12]}.linked"
    same = record.is_file() and record.read_text() == recipe
    if force or not same or not output.is_file() or output.stat().st_mtime < _newest(objects):
        record.unlink(missing_ok=True)
        _link(objects, output, ["-shared", *extra_flags])
        record.write_text(recipe)
    return output


def build_program(
    sources: Sequence[pathlib.Path],
    output: pathlib.Path,
    extra_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    with_library: bool = True,
) -> pathlib.Path:
    """Builds a program (or, with "-shared" in link_flags, a library) from `sources` and the ops."""
    own = compile_objects(sources, extra_flags)
    ops = compile_objects(library_sources(), extra_flags) if with_library else []
    _link([*own, *ops], output, [*extra_flags, *link_flags])
    return output


# Commands for [tool.setuptools.cmdclass]. `build_py` puts the library into the package, and
# `bdist_wheel` names the wheel after the platform but after no Python version: the library needs
# none. Made on demand (PEP 562), so that the script above runs where setuptools is not installed.


def __getattr__(name: str) -> Any:
    commands = {"BuildPy": _build_py_command, "BdistWheel": _bdist_wheel_command}
    if name not in commands:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return commands[name]()


def _build_py_command() -> type:
    from setuptools.command.build_py import build_py

    class BuildPy(build_py):
        """build_py that also builds the library: beside the sources, and copied to build_lib."""

        def run(self) -> None:
            library = build_library()
            super().run()
            if not self.editable_mode:
                self.mkpath(str(self._built_library().parent))
                self.copy_file(str(library), str(self._built_library()))

        def get_outputs(self, *arguments: Any, **options: Any) -> list[str]:
            outputs = super().get_outputs(*arguments, **options)
            return outputs if self.editable_mode else [*outputs, str(self._built_library())]

        def _built_library(self) -> pathlib.Path:
            return pathlib.Path(self.build_lib) / LIBRARY.relative_to(ROOT)

    return BuildPy


def _bdist_wheel_command() -> type:
    from setuptools.command.bdist_wheel import bdist_wheel

    class BdistWheel(bdist_wheel):
        """bdist_wheel for a package with a library that no Python header went into."""

        def finalize_options(self) -> None:
            # Setuptools decides by this whether a package is for one platform.
            self.distribution.has_ext_modules = lambda: True
            super().finalize_options()

        def get_tag(self) -> tuple[str, str, str]:
            return ("py3", "none", super().get_tag()[2])

    return BdistWheel


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds the library of custom ops.")
    parser.add_argument("--output", type=pathlib.Path, default=LIBRARY, help="the shared library")
    parser.add_argument("--jobs", type=int, default=None, help="compilers at a time (all cores)")
    parser.add_argument("--force", action="store_true", help="compile everything anew")
    parser.add_argument(
        "--system_tflite_headers",
        metavar="DIR",
        help="use the real TF Lite headers below DIR (see third_party/tflite/c_api.h)",
    )
    options = parser.parse_args(arguments)
    flags: list[str] = []
    if options.system_tflite_headers:
        flags = ["-DTFMOT_TERNARY_USE_SYSTEM_TFLITE_HEADERS", "-I", options.system_tflite_headers]
    start = time.monotonic()
    try:
        path = build_library(options.output, flags, options.jobs, options.force)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path} ({path.stat().st_size} bytes, {time.monotonic() - start:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
