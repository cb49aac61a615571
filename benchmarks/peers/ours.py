"""Our operators."""

from __future__ import annotations

from benchmarks import tflite_models, weights
from benchmarks.cases import Case, Kind
from benchmarks.peers import interpreter
from benchmarks.subject import Subject
from tfmot_ternary import packing

describe = interpreter.describe


def prepare(case: Case, variant: str, threads: int) -> Subject:
    """`variant` is a weight format, "t2 g128" for example with groups, or "empty"."""
    if case.kind is Kind.EMPTY:
        content = tflite_models.empty_model(case)
        return interpreter.subject(case, content, threads, weights.matrix(case).dense(), 0, False)
    weight_format, _, group = variant.partition(" g")
    levels = packing.weight_format_of(weight_format).levels
    matrix = weights.matrix(case, levels, int(group or 0))
    rows = case.m if case.kind is Kind.EMBEDDING else case.n
    weight_bytes = rows * packing.row_bytes(case.k, weight_format)
    weight_bytes += matrix.scales.nbytes * rows // case.n
    content = tflite_models.packed_model(case, matrix, weight_format)
    return interpreter.subject(case, content, threads, matrix.dense(), weight_bytes, True)
