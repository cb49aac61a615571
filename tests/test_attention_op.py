"""Attention over the operator's own cache, against the reference with an explicit one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import attention_op, runtime
from tfmot_ternary.conversion import convert_functions

WAYS = [("litert", "delegate"), ("tf", "delegate"), ("tf", "resolver")]
TOKENS = 5  # steps of the prefill signature


@dataclasses.dataclass(frozen=True)
class Case:
    heads: int = 4
    kv_heads: int = 2
    dim: int = 24
    length: int = 40
    scale: float = 0.2
    soft_cap: float = 0.0
    cache_type: str = "float32"
    masked: bool = False

    def options(self) -> dict:
        return {
            "scale": self.scale,
            "soft_cap": self.soft_cap,
            "cache_length": self.length,
            "cache_type": self.cache_type,
        }


def spec(name, *shape, dtype=tf.float32):
    return tf.TensorSpec(shape, dtype, name=name)


def model(case: Case, tokens=(TOKENS, 1)) -> bytes:
    """Signatures t<steps>, each two layers with equal inputs: the second has its own cache."""

    def function(steps):
        query = spec("query", 1, steps, case.heads, case.dim)
        key = spec("key", 1, steps, case.kv_heads, case.dim)
        value = spec("value", 1, steps, case.kv_heads, case.dim)
        position = spec("position", 1, dtype=tf.int32)
        specs = [query, key, value, position]
        if case.masked:
            specs.append(spec("mask", 1, steps, case.length, dtype=tf.bool))

        def call(query, key, value, position, mask=None):
            inputs = (query, key, value, position, mask)
            first = attention_op.cached_attention(*inputs, layer=0, **case.options())
            second = attention_op.cached_attention(*inputs, layer=1, **case.options())
            return {"first": first, "second": second}

        return tf.function(call, input_signature=specs)

    return convert_functions({f"t{steps}": function(steps) for steps in tokens})


def random_call(rng, case: Case, steps: int, position: int) -> dict[str, np.ndarray]:
    def normal(heads):
        return rng.standard_normal((1, steps, heads, case.dim)).astype(np.float32)

    inputs = {
        "query": normal(case.heads) * 3,
        "key": normal(case.kv_heads),
        "value": normal(case.kv_heads),
        "position": np.array([position], np.int32),
    }
    if case.masked:
        mask = rng.random((1, steps, case.length)) < 0.6
        mask[0, -1, : position + 1] &= steps == 1  # the last step of a prefill sees nothing below
        inputs["mask"] = mask
    return inputs


def tolerance(case: Case) -> dict[str, float]:
    # float32 sums of `dim` products, exponentials and weighted sums over `length`: a few units in
    # the last place of scores up to 20 in size (1e-6 * 20), times values below 5.
    return {"rtol": 1e-5, "atol": 2e-5}


CASES = [
    Case(),
    Case(heads=1, kv_heads=1, dim=1, length=6),
    Case(heads=6, kv_heads=1, dim=17, length=33),
    Case(heads=3, kv_heads=3, dim=64, length=300),
    Case(heads=8, kv_heads=1, dim=256, length=70, soft_cap=50.0),
    Case(heads=2, kv_heads=1, dim=300, length=40),
    Case(masked=True),
    Case(masked=True, soft_cap=2.0, length=300),
    Case(cache_type="float16", dim=20),
    Case(cache_type="int8", dim=19),
    Case(cache_type="int8", heads=8, kv_heads=4, dim=64, length=300, masked=True),
]


def call_sequence(rng, case: Case):
    """Chunks of a prefill with gaps and overlaps, single steps, and a chunk past the end."""
    positions = [0, TOKENS, TOKENS + 2]
    yield from (random_call(rng, case, TOKENS, p) for p in positions if p < case.length)
    for position in range(min(TOKENS + 7, case.length - 1), min(TOKENS + 12, case.length)):
        yield random_call(rng, case, 1, position)
    yield random_call(rng, case, TOKENS, case.length - 2)
    yield random_call(rng, case, 1, case.length - 1)


class Expected:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.cache = attention_op.Cache.empty(case.length, case.kv_heads, case.dim, case.cache_type)

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        inputs = dict(inputs)
        position = int(inputs.pop("position")[0])
        output, self.cache = attention_op.reference(
            self.cache,
            **inputs,
            position=position,
            scale=self.case.scale,
            soft_cap=self.case.soft_cap,
        )
        return output


def run(interpreter, inputs):
    return interpreter.get_signature_runner(f"t{inputs['query'].shape[1]}")(**inputs)


def check_sequence(interpreter, case: Case, seed: int) -> None:
    expected = Expected(case)
    for inputs in call_sequence(np.random.default_rng(seed), case):
        got = run(interpreter, inputs)
        wanted = expected(inputs)
        for name in ("first", "second"):
            np.testing.assert_allclose(got[name], wanted, **tolerance(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sequences_of_calls(case):
    content = model(case)
    for backend, registration in WAYS:
        interpreter = runtime.make_interpreter(
            content, backend=backend, registration=registration, num_threads=2
        )
        check_sequence(interpreter, case, 1)
