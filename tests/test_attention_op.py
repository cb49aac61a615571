"""Attention over the operator's own cache, against the reference with an explicit one."""

from __future__ import annotations

import pathlib
import resource
import threading

import attention_models as models
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from attention_models import TOKENS, WAYS, Case, interpreter_of
from flatbuffers import flexbuffers
from model_builder import ModelBuilder

from tfmot_ternary import attention_op
from tfmot_ternary.conversion import convert_functions

CASES = [
    Case(),
    Case(heads=1, kv_heads=1, dim=1, length=6),
    Case(heads=6, kv_heads=1, dim=17, length=33),
    Case(heads=3, kv_heads=3, dim=64, length=300),
    Case(heads=8, kv_heads=1, dim=256, length=70, soft_cap=50.0, scale=1 / 16),
    Case(heads=2, kv_heads=1, dim=300, length=40, scale=1 / 16),
    Case(masked=True),
    Case(masked=True, soft_cap=2.0, length=300),
    Case(cache_type="float16", dim=20),
    Case(cache_type="int8", dim=19),
    Case(cache_type="int8", heads=8, kv_heads=4, dim=64, length=300, masked=True),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sequences_of_calls(way, case):
    models.check_sequence(interpreter_of(models.attention_model(case), way), case, 1)


@pytest.mark.parametrize("level", ["portable", "avx2"])
def test_levels_of_the_cpu(monkeypatch, level):
    monkeypatch.setenv("TFMOT_TERNARY_CPU", level)
    for case in (Case(), Case(cache_type="int8", dim=19)):
        models.check_sequence(interpreter_of(models.attention_model(case)), case, 2)


def test_threads_do_not_change_the_numbers():
    case = Case(heads=8, kv_heads=1, dim=32, length=1200)
    rng = np.random.default_rng(3)
    calls = [models.random_call(rng, case, 600, 0), models.random_call(rng, case, 1, 1100)]
    content = models.attention_model(case, tokens=(600, 1))
    results = []
    for num_threads in (1, 4):
        interpreter = interpreter_of(content, num_threads=num_threads)
        results.append([models.run(interpreter, inputs)["layer0"] for inputs in calls])
    for one, four in zip(*results, strict=True):
        np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_interpreters_and_layers_have_their_own_caches(way):
    case = Case()
    builder = ModelBuilder()
    for layer in (0, 1):
        models.add_attention(builder, case, f"layer{layer}", 1, [layer])
    content = builder.build()
    rng = np.random.default_rng(4)
    interpreters = [interpreter_of(content, way) for _ in range(2)]
    expected = {(i, layer): models.Expected(case) for i in range(2) for layer in (0, 1)}
    for position in range(6):
        for (i, layer), reference in expected.items():
            inputs = models.random_call(rng, case, 1, position)
            runner = interpreters[i].get_signature_runner(f"layer{layer}")
            models.assert_close(runner(**inputs)[f"layer{layer}"], reference(inputs))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_interpreters_in_several_threads(way):
    """Made, run and dropped in four threads at once."""
    cases = [CASES[0], CASES[6], CASES[9], CASES[8]]
    contents = [models.attention_model(case) for case in cases]
    interpreter_of(contents[0], way)  # imports, once
    failures = []

    def work(number: int) -> None:
        try:
            for round_number in range(3):
                case = cases[(number + round_number) % len(cases)]
                content = contents[(number + round_number) % len(cases)]
                interpreter = interpreter_of(content, way, num_threads=1 + number % 3)
                models.check_sequence(interpreter, case, number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def specs(case: Case, steps: int):
    return {
        name: tf.TensorSpec(shape, dtype, name)
        for name, (shape, dtype) in case.shapes(steps).items()
    }


@pytest.mark.parametrize("case", [Case(soft_cap=3.0, masked=True), Case(cache_type="int8")])
def test_conversion_keeps_equal_layers_apart(case):
    """Two layers with equal inputs, and rows of equal inputs: four operators, none merged."""

    def function(steps):
        def call(**inputs):
            first = attention_op.cached_attention(**inputs, layer=0, **case.options())
            second = attention_op.cached_attention(**inputs, layer=1, **case.options())
            rows = {
                part: attention_op.cached_rows(
                    inputs["key"], inputs["position"], layer=0, part=part, cache_length=case.length
                )
                for part in ("key", "value")
            }
            return {"first": first, "second": second, **rows}

        return tf.function(call).get_concrete_function(**specs(case, steps))

    content = convert_functions({f"t{steps}": function(steps) for steps in (TOKENS, 1)})
    found = schema.ModelT.InitFromPackedBuf(content, 0)
    names = [code.customCode for code in found.operatorCodes]
    assert set(names) == {b"tfmot_ternary.cached_attention", b"tfmot_ternary.cached_rows"}
    for graph in found.subgraphs:
        assert len(graph.operators) == 4
        options = [
            flexbuffers.Loads(bytes(operator.customOptions))
            for operator in graph.operators
            if names[operator.opcodeIndex] == b"tfmot_ternary.cached_attention"
        ]
        assert sorted(option["layer"] for option in options) == [0, 1]
        assert options[0]["scale"] == pytest.approx(case.scale)
    for way in WAYS:
        interpreter = interpreter_of(content, way)
        expected = models.Expected(case)
        rows = np.zeros((1, case.length, case.kv_heads, case.dim), np.float32)
        for inputs in models.call_sequence(np.random.default_rng(5), case):
            got = models.run(interpreter, inputs)
            wanted = expected(inputs)
            models.assert_close(got["first"], wanted)
            models.assert_close(got["second"], wanted)
            position = int(inputs["position"][0])
            stored = inputs["key"][:, : case.length - position]
            rows[:, position : position + stored.shape[1]] = stored
            np.testing.assert_array_equal(got["key"], rows)
            np.testing.assert_array_equal(got["value"], rows)


@pytest.mark.parametrize("cache_type", attention_op.CACHE_TYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_the_body_is_a_call_on_an_empty_cache(cache_type, masked):
    case = Case(cache_type=cache_type, masked=masked, soft_cap=4.0)
    rng = np.random.default_rng(6)
    for steps, position in ((TOKENS, 0), (3, 7), (TOKENS, case.length - 2)):
        inputs = models.random_call(rng, case, steps, position)
        got = attention_op.cached_attention(**inputs, layer=0, **case.options())
        models.assert_close(got.numpy(), models.Expected(case)(inputs))


def test_kerashub_attention():
    """An oracle that is not ours: Gemma's attention over the keys and values so far."""
    from keras_hub.src.models.gemma.gemma_attention import CachedGemmaAttention

    case = Case(heads=8, kv_heads=2, dim=32, length=64, soft_cap=7.0, scale=32**-0.5)
    layer = CachedGemmaAttention(
        head_dim=32, num_query_heads=8, num_key_value_heads=2, logit_soft_cap=7.0
    )
    layer.build((1, TOKENS, 16))
    rng = np.random.default_rng(7)
    interpreter = interpreter_of(models.attention_model(case))
    keys = np.zeros((1, 0, 2, 32), np.float32)
    values = keys
    for position in range(0, 60, TOKENS):
        inputs = models.random_call(rng, case, TOKENS, position)
        keys = np.concatenate([keys, inputs["key"]], axis=1)
        values = np.concatenate([values, inputs["value"]], axis=1)
        mask = np.tri(TOKENS, position + TOKENS, position, dtype=np.int32)[None]
        wanted = layer._compute_attention(
            tf.constant(inputs["query"]), tf.constant(keys), tf.constant(values), tf.constant(mask)
        )
        got = models.run(interpreter, inputs)["layer0"]
        # Both round in float32: a few units in the last place of the values.
        np.testing.assert_allclose(got, wanted, rtol=0, atol=4e-6)


@pytest.mark.parametrize("cache_type", ["float16", "int8"])
def test_small_caches_stay_near_the_exact_result(cache_type):
    case = Case(heads=8, kv_heads=2, dim=64, length=300, scale=1 / 8, cache_type=cache_type)
    exact = models.Expected(Case(heads=8, kv_heads=2, dim=64, length=300, scale=1 / 8))
    rounded = models.Expected(case)
    inputs = models.random_call(np.random.default_rng(8), case, 250, 0)
    error = np.abs(rounded(inputs) - exact(inputs))
    # float16: 11 bits of values up to 5. int8: keys, queries and values in steps of 1 / 127 of
    # their largest, which scores of size 10 feel with an error of about 0.05.
    assert error.max() < (2e-2 if cache_type == "float16" else 0.3)
    assert error.mean() < (3e-4 if cache_type == "float16" else 1e-2)


def resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_memory_comes_when_it_is_written():
    case = Case(heads=8, kv_heads=8, dim=64, length=1 << 18)  # 1 GiB of cache
    assert attention_op.cache_bytes(case.length, 8, 64, "float32") == 1 << 30
    before = resident_bytes()
    interpreter = interpreter_of(models.attention_model(case, tokens=(1,)))
    models.run(interpreter, models.random_call(np.random.default_rng(9), case, 1, 0))
    assert resident_bytes() - before < 100 << 20  # the interpreter, and a page here and there
