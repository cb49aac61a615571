"""What the attention operators refuse, and that they go on afterwards."""

from __future__ import annotations

import attention_models as models
import numpy as np
import pytest
from attention_models import TOKENS, WAYS, Case, interpreter_of
from model_builder import ModelBuilder

from tfmot_ternary import attention_op


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_positions_outside_the_cache(way):
    case = Case()
    interpreter = interpreter_of(models.attention_model(case), way)
    rng = np.random.default_rng(10)
    for position in (-1, case.length, 2**31 - 1, -(2**31)):
        for steps in (1, TOKENS):
            with pytest.raises(RuntimeError, match=r"expected a position in \[0, 40\), got"):
                models.run(interpreter, models.random_call(rng, case, steps, position))
    models.check_sequence(interpreter, case, 11)  # as if nothing had happened


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_layers_of_two_shapes(way):
    builder = ModelBuilder()
    models.add_attention(builder, Case(), "t1", 1, [0])
    models.add_attention(builder, Case(length=41), "other", 1, [0])
    interpreter = interpreter_of(builder.build(), way)
    rng = np.random.default_rng(12)
    models.run(interpreter, models.random_call(rng, Case(), 1, 0))
    with pytest.raises(RuntimeError, match="one shape for the cache of layer 0"):
        interpreter.get_signature_runner("other")(**models.random_call(rng, Case(), 1, 0))


def bad_model(options=None, inputs=None) -> bytes:
    case = Case(masked=True)
    builder = ModelBuilder()
    graph = builder.graph()
    shapes = {**case.shapes(1), **(inputs or {})}
    tensors = [graph.input(*shape) for shape in shapes.values()]
    options = {"layer": 0, **case.options(), **(options or {})}
    output = graph.output([1, 1, case.heads, case.dim])
    graph.custom("tfmot_ternary.cached_attention", tensors, [output], options)
    return builder.build()


@pytest.mark.parametrize(
    ("options", "inputs", "words"),
    [
        ({"layer": -1}, {}, "layer to be an integer from 0"),
        ({"cache_length": 0}, {}, "cache_length to be an integer from 1"),
        ({"cache_type": "int4"}, {}, 'cache_type to be "float32", "float16" or "int8"'),
        ({"scale": float("nan")}, {}, "scale to be a finite real number"),
        ({"soft_cap": -1.0}, {}, "soft_cap to be a finite real number"),
        ({"window": 3}, {}, "only options of this op"),
        ({}, {"query": ([1, 1, 3, 24], np.float32)}, "a divisor of the query's 3"),
        ({}, {"query": ([2, 1, 4, 24], np.float32)}, "query of shape"),
        ({}, {"key": ([1, 1, 2, 23], np.float32)}, "key of shape"),
        ({}, {"value": ([1, 1, 1, 24], np.float32)}, "as many heads"),
        ({}, {"value": ([1, 2, 2, 24], np.float32)}, "value of shape"),
        ({}, {"position": ([2], np.int32)}, "position of shape"),
        ({}, {"position": ([1], np.int64)}, "position of type int32"),
        ({}, {"mask": ([1, 1, 39], np.bool_)}, "mask of shape"),
        ({}, {"mask": ([1, 1, 40], np.uint8)}, "mask of type bool"),
    ],
)
def test_models_that_do_not_fit(options, inputs, words):
    with pytest.raises(RuntimeError, match=words):
        interpreter_of(bad_model(options, inputs)).allocate_tensors()


def test_arguments_that_do_not_fit():
    x = np.zeros((1, 3, 4, 8), np.float32)
    good = {"layer": 0, "cache_length": 8, "scale": 1.0}
    for change, words in (
        ({"layer": -1}, "layer from 0 on"),
        ({"cache_length": 0}, "cache_length of at least 1"),
        ({"scale": -1.0}, "scale and soft_cap from 0 on"),
        ({"cache_type": "int4"}, "cache_type to be one of"),
        ({"mask": np.ones((1, 3, 9), bool)}, "expected mask bool"),
    ):
        with pytest.raises(ValueError, match=words):
            attention_op.cached_attention(x, x, x, [0], **{**good, **change})
    for key in (x[:, :2], x[:, :, :3], x[..., :7], x[0]):
        with pytest.raises(ValueError, match="expected"):
            attention_op.cached_attention(x, key, key, [0], **good)
    with pytest.raises(ValueError, match="expected part to be one of key, value"):
        attention_op.cached_rows(x, [0], layer=0, part="query", cache_length=8)
