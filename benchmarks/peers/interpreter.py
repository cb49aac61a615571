"""Subjects that run in the interpreter that `tfmot_ternary.runtime` makes: ours and LiteRT's."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from benchmarks import memory, tflite_models
from benchmarks.cases import Case, Kind
from benchmarks.subject import Subject
from benchmarks.weights import activations, relative_error
from tfmot_ternary import runtime

# Of one file of a chain: well below the 2 GiB of a FlatBuffer, and few interpreters for a walk.
_CHAIN_BYTES = 512 << 20


def _interpreter(path: str, threads: int, x: np.ndarray) -> Any:
    interpreter = runtime.make_interpreter(path, num_threads=threads)
    (detail,) = interpreter.get_input_details()
    if tuple(detail["shape"]) != x.shape:
        interpreter.resize_tensor_input(detail["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], x)
    return interpreter


def _output(interpreter: Any) -> np.ndarray:
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


class InterpreterSubject(Subject):
    """One model in one interpreter; the file is mapped, as an application would have it."""

    def __init__(
        self, case: Case, path: str, threads: int, dense: np.ndarray, weight_bytes: int
    ) -> None:
        x = activations(case)
        interpreter = _interpreter(path, threads, x)
        self.error = relative_error(case, dense, x, _output(interpreter))
        self.weight_bytes = weight_bytes
        self.run = interpreter.invoke  # type: ignore[method-assign]  # no frame of ours is timed

    def run(self) -> None:
        raise AssertionError("replaced in __init__")


class WalkSubject(Subject):
    """Chains of the operator in as many files as hold the bytes of the walk; a run is one file.

    The error is that of a chain of two: longer ones add up the rounding of every layer.
    """

    def __init__(
        self,
        case: Case,
        content: bytes,
        threads: int,
        dense: np.ndarray,
        weight_bytes: int,
        own_weights: bool,
    ) -> None:
        x = activations(case)
        with memory.file_of(tflite_models.chain(content, 2, own_weights)) as path:
            y = _output(_interpreter(path, threads, x))
        squared = dense.astype(np.float64) @ dense.astype(np.float64)
        self.error = relative_error(case, squared, x, y)
        self.weight_bytes = weight_bytes
        files = max(2, -(-case.walk_bytes // _CHAIN_BYTES))
        self.products = -(-case.walk_bytes // (files * weight_bytes))
        chained = tflite_models.chain(content, self.products, own_weights)
        del squared, y
        memory.give_back()
        before = memory.resident_bytes()
        self._interpreters = []
        for _ in range(files):
            with memory.file_of(chained) as path:
                self._interpreters.append(_interpreter(path, threads, x))
            self._interpreters[-1].invoke()
        held = memory.resident_bytes() - before
        # Weights that operators share would come from a cache. Some memory is used anew meanwhile.
        if held < 0.75 * case.walk_bytes:
            raise RuntimeError(
                f"expected {case.walk_bytes} bytes of weights in memory, got {held} more than"
                " before"
            )
        self._turn = 0

    def run(self) -> None:
        self._interpreters[self._turn].invoke()
        self._turn = (self._turn + 1) % len(self._interpreters)


def subject(
    case: Case,
    content: bytes,
    threads: int,
    dense: np.ndarray,
    weight_bytes: int,
    own_weights: bool,
) -> Subject:
    """The subject of a model of one operator."""
    if case.kind is Kind.WALK:
        return WalkSubject(case, content, threads, dense, weight_bytes, own_weights)
    with memory.file_of(content) as path:
        return InterpreterSubject(case, path, threads, dense, weight_bytes)


def describe() -> dict[str, str]:
    """Which interpreter this is."""
    interpreter = runtime.make_interpreter(
        tflite_models.empty_model(Case(Kind.EMPTY, 1, 1, 1)), num_threads=1
    )
    module = type(interpreter).__module__.partition(".")[0]
    return {"interpreter": f"{module} {metadata.version(module.replace('_', '-'))}"}
