"""Measurement: load time, speed and memory of a converted model, in a process of its own.

`measure` starts a fresh Python process that imports the runtime and nothing else of this package,
so that all models are measured alike and nothing that the caller has done counts.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

# What the user can mend: passed from the measuring process to the caller. The narrow one first.
_ERRORS: dict[str, type[Exception]] = {
    "FileNotFoundError": FileNotFoundError,
    "OSError": OSError,
    "ImportError": ImportError,
    "ValueError": ValueError,
}
# Small models take milliseconds: their medians need more than a handful of them.
_SECONDS = 1.0
# Backend -> the module that loads the interpreter's libraries.
_INTERPRETER_MODULES = {
    "litert": "ai_edge_litert.interpreter",
    "tf": "tensorflow.lite.python.interpreter",
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How fast a model runs and what memory it takes.

    Attributes:
      load_seconds: opening file, tokenizer and interpreter; their packages are imported before.
      first_token_seconds: the first prefill, with all that the runtime prepares then.
      prefill_seconds: median of the later prefills of a full-length prompt.
      prefill_tokens: positions of image and prompt that a prefill computes.
      prefill_tokens_per_s: their quotient.
      decode_seconds: median of one decode step.
      decode_tokens_per_s: its inverse.
      peak_rss_bytes: highest resident memory of the whole process (VmHWM), Python included.
      baseline_rss_bytes: resident memory before the model is opened (Python, NumPy, the packages of
        interpreter and tokenizer), to tell what the model adds.
      cache_bytes: memory of the KV cache, a part of the peak.
      file_bytes: size of the `.tflite`; what is read of it is resident too.
      num_threads: threads of the interpreter; None: its default.
      backend: "litert" or "tf", or None: the default.
      repeats: measured prefills and generations; at least as many as asked for.
    """

    load_seconds: float
    first_token_seconds: float
    prefill_seconds: float
    prefill_tokens: int
    prefill_tokens_per_s: float
    decode_seconds: float
    decode_tokens_per_s: float
    peak_rss_bytes: int
    baseline_rss_bytes: int
    cache_bytes: int
    file_bytes: int
    num_threads: int | None
    backend: str | None
    repeats: int


def measure(
    path: str | os.PathLike[str],
    num_threads: int | None = None,
    backend: str | None = None,
    repeats: int = 10,
    decode_steps: int = 64,
) -> Measurement:
    """Measures the model at `path` in a fresh process.

    The prompt is as long as the longest prefill; its tokens and the image are random, which
    changes nothing in the work. Figures are medians; the machine should do nothing else meanwhile.

    Args:
      path: a file written by `vlm.convert_causal_lm`.
      num_threads, backend: as for `Generator`.
      repeats: prefills and generations to measure, at least 1; small models are measured for a
        second in all, which makes more.
      decode_steps: tokens decoded per generation, fewer where the context ends.

    Raises:
      FileNotFoundError, ValueError, ImportError: as `Generator`; the message is the same.
      RuntimeError: the process died.
    """
    if repeats < 1 or decode_steps < 1:
        raise ValueError(
            f"expected repeats >= 1 and decode_steps >= 1, got {repeats} and {decode_steps}"
        )
    request = {
        "path": os.fspath(path),
        "num_threads": num_threads,
        "backend": backend,
        "repeats": repeats,
        "decode_steps": decode_steps,
    }
    # The package is found where it was found here, and not in the current folder.
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    search = os.pathsep.join([package_parent, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    process = subprocess.run(
        [sys.executable, "-m", "tfmot_ternary.measurement", json.dumps(request)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search, "PYTHONSAFEPATH": "1"},
        check=False,
    )
    answer = process.stdout.strip().splitlines()[-1:] or [""]
    try:
        record = json.loads(answer[0])
    except ValueError:
        raise RuntimeError(
            f"expected a measurement of {request['path']!r}, but the process ended with code "
            f"{process.returncode}: {process.stderr.strip()[-500:]}"
        ) from None
    if "error" in record:
        raise _ERRORS[record["error"]](record["message"])
    return Measurement(**record)


def _measure_here(
    path: str, num_threads: int | None, backend: str | None, repeats: int, decode_steps: int
) -> Measurement:
    """Measures in this process, which should have done nothing else."""
    import sentencepiece  # noqa: F401  (its size is no part of the model's)

    from tfmot_ternary import runtime
    from tfmot_ternary.vlm.generator import Generator

    installed = [b for b in runtime.BACKENDS if importlib.util.find_spec(runtime.PACKAGES[b])]
    # An unknown or missing backend is Generator's to complain about.
    for name in [b for b in installed if backend in (None, b)][:1]:
        importlib.import_module(_INTERPRETER_MODULES[name])
    baseline = _resident_bytes("VmRSS")
    start = time.perf_counter()
    generator = Generator(path, num_threads=num_threads, backend=backend)
    load_seconds = time.perf_counter() - start

    metadata = generator.metadata
    rng = np.random.default_rng(0)
    # A full-length prompt, unless the context is so short that little could be decoded behind it;
    # a prefill computes all its padded positions either way.
    text_length = metadata.cache_length - metadata.image_sequence_length
    room = min(decode_steps, 16, text_length // 2)
    length = min(metadata.prefill_lengths[-1], max(1, text_length - room))
    prompt = rng.integers(0, metadata.tokenizer.vocabulary_size, length).tolist()
    image = None
    if metadata.image is not None:
        size = (metadata.image.height, metadata.image.width, 3)
        image = rng.integers(0, 256, size, dtype=np.uint8)
    first = metadata.image_sequence_length + len(prompt)
    steps = min(decode_steps, metadata.cache_length - first)

    start = time.perf_counter()
    logits = generator.prefill(prompt, image)
    first_token_seconds = time.perf_counter() - start
    prefills, decodes = [], []
    begin = time.perf_counter()
    repeat = 0
    while repeat < repeats or time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        logits = generator.prefill(prompt, image)
        prefills.append(time.perf_counter() - start)
        for step in range(steps):
            start = time.perf_counter()
            logits = generator.decode(int(logits.argmax()), first + step)
            # The first step ever prepares the decode graph, as the first prefill did its own.
            if repeat or step:
                decodes.append(time.perf_counter() - start)
        repeat += 1
    prefill, decode = float(np.median(prefills)), _median(decodes)
    return Measurement(
        load_seconds=load_seconds,
        first_token_seconds=first_token_seconds,
        prefill_seconds=prefill,
        prefill_tokens=first,
        prefill_tokens_per_s=first / prefill,
        decode_seconds=decode,
        decode_tokens_per_s=1 / decode,
        peak_rss_bytes=_resident_bytes("VmHWM"),
        baseline_rss_bytes=baseline,
        cache_bytes=metadata.cache_bytes,
        file_bytes=os.path.getsize(path),
        num_threads=num_threads,
        backend=backend,
        repeats=repeat,
    )


def _median(seconds: list[float]) -> float:
    if not seconds:
        raise ValueError(
            "expected room for at least two decode steps behind a prompt of one token, got a "
            "context without: convert with a larger cache_length"
        )
    return float(np.median(seconds))


def _resident_bytes(field: str) -> int:
    """Returns VmRSS (now) or VmHWM (highest so far) of this process, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        # No /proc: the kernel's own peak, in bytes on macOS and kibibytes elsewhere.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    raise RuntimeError(f"expected {field} in /proc/self/status, found none")


def _main(request: str) -> None:
    try:
        record = dataclasses.asdict(_measure_here(**json.loads(request)))
    except tuple(_ERRORS.values()) as error:
        kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
        record = {"error": kind, "message": str(error)}
    print(json.dumps(record))


if __name__ == "__main__":
    _main(sys.argv[1])
