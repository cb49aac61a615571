"""Ternarization: a pre-trained model -> ternary or binary weights -> `.tflite`, in one go."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from tfmot_ternary import model_source, recovery
from tfmot_ternary.checkpoint import Checkpoint, digest
from tfmot_ternary.ternarization_request import CALIBRATION_BATCHES, Request


def run(request: Request) -> None:
    """Does what the request says and prints what came out.

    Raises:
      ValueError, FileNotFoundError: bad input; nothing is written then.
      OSError: the disk is full; the same request goes on from what is done.
    """
    _check(request)
    is_preset = model_source.kind_of(request.preset) == "preset"
    if is_preset and request.data is None and not request.recognize:
        _stream(request)
    else:
        _run_in_memory(request)
    size = os.path.getsize(request.output)
    print(f"{request.output}: {size:,} bytes; see `tfmot-ternary inspect {request.output}`")


def _stream(request: Request) -> None:
    """A preset that is not trained passes through memory one matrix at a time."""
    from tfmot_ternary.streaming import pack_preset

    print(f"quantize {request.preset}: {_description(request)}")
    packed = pack_preset(
        request.preset,
        request.output,
        _scheme(request),
        request.weight_format,
        tables=request.stored_tables,
        others=request.stored_others,
    )
    print(
        f"{packed.matrices} matrices, {packed.elements:,} weights packed in {packed.seconds:.1f} s "
        f"({packed.cpu_seconds:.1f} s of processor time)"
    )
    print("convert")
    _convert_causal_lm(packed.causal_lm, request, weights=packed.weights)
    packed.folder.remove()


def _run_in_memory(request: Request) -> None:
    print(f"load {request.preset}")
    model = model_source.load(request.preset)
    if hasattr(model, "call_with_cache"):
        _check_causal_lm(request)
        make_batches = recovery.causal_lm_batches
    else:
        _check_no_causal_lm(request, type(model).__name__)
        make_batches = recovery.array_batches
    training = _training(request)
    calibration = None
    if training is not None:
        make_batch = make_batches(model, training)
        if training.calibration_batches:
            print(
                f"calibrate: {training.calibration_batches} batches of {training.batch_size} "
                "examples"
            )
        calibration = recovery.calibrated(model, make_batch, training)

    if request.recognize:
        from tfmot_ternary.freezing import freeze

        print("recognize")
        student = freeze(model, request.weight_format, recognize=True, **_storage(request, model))
        request = dataclasses.replace(request, weight_format=None)  # it is in the layers now
    else:
        from tfmot_ternary.apply import quantize_apply

        print(f"quantize: {_description(request)}")
        student = quantize_apply(model, _scheme(request, calibration))
        del calibration  # its memory, before training
    if training is not None:
        checkpoint = _checkpoint(student, training, request)
        recovery.train(student, model, make_batch, training, checkpoint)
    print("freeze and convert")
    _convert(student, request)
    if training is not None:
        checkpoint.remove()


def _training(request: Request) -> recovery.Training | None:
    if request.data is None:
        return None
    batches = request.calibration_batches
    return recovery.Training(
        request.data,
        request.steps,
        request.batch_size,
        request.learning_rate,
        request.seed,
        CALIBRATION_BATCHES if batches is None else batches,
    )


def _check(request: Request) -> None:
    allowed = {"ternary": (None, "t2", "t5"), "binary": (None, "b1")}[request.weights]
    if request.recognize and request.data is not None:
        raise ValueError(
            f"expected no data with recognize (weights stay as they are), got {request.data!r}"
        )
    if request.calibration_batches is not None and request.data is None:
        raise ValueError(
            f"expected data with calibration_batches {request.calibration_batches}, got none; give "
            "--data, or leave --calibration_batches out"
        )
    if request.weight_format not in allowed:
        raise ValueError(
            f"expected format {' or '.join(f for f in allowed if f)} for {request.weights} "
            f"weights, got {request.weight_format}"
        )
    if request.tables not in (None, "float32"):
        from tfmot_ternary import weight_storage

        weight_storage.storage_of(request.tables)
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


def _check_no_causal_lm(request: Request, name: str) -> None:
    given = {
        "prefill_lengths": request.prefill_lengths,
        "cache_length": request.cache_length,
        "cache_type": request.cache_type,
        "tables": request.tables,
    }
    for flag, value in given.items():
        if value:
            raise ValueError(f"expected {flag} only with a language model, got {name}")


def _description(request: Request) -> str:
    unit: Any = request.group_size or "channel"
    if isinstance(unit, int):
        unit = f"group of {unit} inputs"
    return f"{request.weights}, {request.initializer} scales per {unit}"


def _storage(request: Request, model: Any) -> dict[str, Any]:
    """What `freeze` is told of a causal LM's float weights; of others the converter takes care."""
    if not hasattr(model, "call_with_cache"):
        return {}
    return {"tables": request.stored_tables, "others": request.stored_others}


def _scheme(request: Request, calibration: Any = None) -> Any:
    from tfmot_ternary.scheme import BinaryScheme, TernaryScheme

    cls = TernaryScheme if request.weights == "ternary" else BinaryScheme
    return cls(
        group_size=request.group_size,
        initializer=request.initializer,
        skip=request.skip,
        importance=calibration,
    )


def _convert(student: Any, request: Request) -> None:
    if hasattr(student, "call_with_cache"):
        if not request.recognize:
            from tfmot_ternary.freezing import freeze

            student = freeze(student, request.weight_format, **_storage(request, student))
        _convert_causal_lm(student, request)
        return
    import tensorflow as tf

    from tfmot_ternary.conversion import convert

    optimizations = [tf.lite.Optimize.DEFAULT] if request.float_weights == "int8" else None
    convert(student, optimizations, weight_format=request.weight_format, path=request.output)


def _convert_causal_lm(causal_lm: Any, request: Request, weights: Any = None) -> None:
    from tfmot_ternary.vlm import convert_causal_lm

    convert_causal_lm(
        causal_lm,
        request.output,
        prefill_lengths=request.prefill_lengths or None,
        cache_length=request.cache_length,
        cache_type=request.cache_type or "float32",
        weights=weights,
    )
