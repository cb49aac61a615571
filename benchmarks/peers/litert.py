"""LiteRT's builtin operators; ai-edge-quantizer makes the integer ones from float32 models.

Quantizing takes seconds for large layers: the files are kept in build/bench/models.
"""

from __future__ import annotations

import importlib.util
import pathlib
from importlib import metadata

from benchmarks import tflite_models, weights
from benchmarks.cases import Case, Kind
from benchmarks.peers import interpreter
from benchmarks.subject import NotMeasured, Subject
from tfmot_ternary import model_file

MODELS = pathlib.Path(__file__).resolve().parents[2] / "build" / "bench" / "models"
# Part of the name of a kept file: a change here makes the files anew.
_VERSION = 1

# Recipe and algorithm of ai-edge-quantizer. INT2 needs the one that recovers a grid from weights
# that lie on one already; the others find it by minimum and maximum.
_RECIPES = {
    "int8": ("dynamic_wi8c_afp32", "MIN_MAX_UNIFORM_QUANT"),
    "int4": ("dynamic_wi4c_afp32", "MIN_MAX_UNIFORM_QUANT"),
    "int4 b32": ("dynamic_wi4b32_afp32", "MIN_MAX_UNIFORM_QUANT"),
    "int2": ("dynamic_wi2c_afp32", "DEQUANTIZED_WEIGHT_RECOVERY"),
}
_BITS = {"float32": 32, "int8": 8, "int4": 4, "int4 b32": 4, "int2": 2}


def describe() -> dict[str, str]:
    record = interpreter.describe()
    if importlib.util.find_spec("ai_edge_quantizer") is not None:
        record["quantizer"] = f"ai-edge-quantizer {metadata.version('ai-edge-quantizer')}"
    return record


def prepare(case: Case, variant: str, threads: int) -> Subject:
    if importlib.util.find_spec("ai_edge_quantizer") is None and variant != "float32":
        raise NotMeasured("the package ai-edge-quantizer is not installed")
    dense = weights.matrix(case).dense()
    rows = case.m if case.kind is Kind.EMBEDDING else case.n
    scale_bytes = 4 * rows
    if variant == "int4 b32":
        if case.k % 32:
            raise NotMeasured("k is not a multiple of 32")
        scale_bytes = 2 * rows * (case.k // 32)  # bfloat16, as XNNPACK keeps them
    weight_bytes = rows * case.k * _BITS[variant] // 8 + scale_bytes
    if variant == "float32":
        content = tflite_models.float_model(case, dense)
    else:
        content = _quantized_file(case, variant).read_bytes()
    return interpreter.subject(case, content, threads, dense, weight_bytes, False)


def _quantized_file(case: Case, variant: str) -> pathlib.Path:
    """The kept file; the batch is left out of its name, because interpreters resize inputs."""
    kind = Kind.PRODUCT if case.kind is Kind.WALK else case.kind
    geometry = f"_{case.image}_{case.kernel}" if case.kind is Kind.CONV2D else ""
    name = f"v{_VERSION}_{kind.value}_{case.n}x{case.k}{geometry}_{variant.replace(' ', '_')}"
    path = MODELS / f"{name}.tflite"
    if not path.is_file():
        model_file.write_atomically(path, _quantize(case, variant))
    return path


def _quantize(case: Case, variant: str) -> bytes:
    from ai_edge_quantizer import quantizer, recipe

    recipe_name, algorithm = _RECIPES[variant]
    steps = getattr(recipe, recipe_name)(algorithm_key=getattr(recipe.AlgorithmName, algorithm))
    content = tflite_models.float_model(case, weights.matrix(case).dense())
    return bytes(quantizer.Quantizer(bytearray(content), steps).quantize().quantized_model)
