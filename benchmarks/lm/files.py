"""The model files of the contenders: made once, kept, deterministic."""

from __future__ import annotations

import pathlib

from benchmarks.lm import gguf_file, litert_file, ternary_file
from benchmarks.lm.contenders import Contender
from benchmarks.lm.shapes import LMShape
from benchmarks.subject import NotMeasured

# Part of the name of a kept file: a change of the files' contents makes them anew.
_VERSION = 1


def path(shape: LMShape, contender: Contender, folder: pathlib.Path) -> pathlib.Path:
    """Where the file of a contender lies; llama.cpp chooses its cache's type when it runs."""
    suffix = ".gguf" if contender.peer == "llama_cpp" else ".tflite"
    cache = "" if contender.peer == "llama_cpp" else f"_{contender.cache_type}"
    return folder / f"v{_VERSION}_{shape.name}_{contender.weights}{cache}{suffix}"


def make(shape: LMShape, contender: Contender, folder: pathlib.Path) -> pathlib.Path:
    """Writes the contender's file unless it is there, and returns its path.

    Raises:
      NotMeasured: a package is missing.
    """
    own = path(shape, contender, folder)
    if own.is_file():
        return own
    if contender.peer == "ours":
        ternary_file.write(shape, contender.weights, contender.cache_type, own)
    elif contender.peer == "litert":
        model = Contender("ours", "t2", contender.cache_type)
        litert_file.write(make(shape, model, folder), contender.weights, own)
    else:
        try:
            gguf_file.write(shape, contender.weights, contender.table, own)
        except ImportError as error:
            raise NotMeasured(f"{error}: pip install -e '.[bench]'") from error
    return own
