"""Models of attention operators over caches, and what they must give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from model_builder import ModelBuilder

from tfmot_ternary import attention_reference, runtime

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

    def shapes(self, steps: int) -> dict[str, tuple[list[int], type]]:
        """Shapes and types of the inputs, in the operator's order."""
        shapes: dict[str, tuple[list[int], type]] = {
            "query": ([1, steps, self.heads, self.dim], np.float32),
            "key": ([1, steps, self.kv_heads, self.dim], np.float32),
            "value": ([1, steps, self.kv_heads, self.dim], np.float32),
            "position": ([1], np.int32),
        }
        if self.masked:
            shapes["mask"] = ([1, steps, self.length], np.bool_)
        return shapes


def add_attention(builder: ModelBuilder, case: Case, signature: str, steps: int, layers) -> None:
    """A signature with an operator for each of `layers`, all with the same inputs."""
    graph = builder.graph(signature)
    inputs = {
        name: graph.input(shape, dtype, name) for name, (shape, dtype) in case.shapes(steps).items()
    }
    outputs = {}
    for layer in layers:
        outputs[f"layer{layer}"] = graph.output([1, steps, case.heads, case.dim])
        graph.custom(
            "tfmot_ternary.cached_attention",
            inputs.values(),
            [outputs[f"layer{layer}"]],
            {"layer": layer, **case.options()},
        )
    graph.signature(signature, inputs, outputs)


def attention_model(case: Case, tokens=(TOKENS, 1), layers=(0,)) -> bytes:
    """Signatures t<steps>."""
    builder = ModelBuilder()
    for steps in tokens:
        add_attention(builder, case, f"t{steps}", steps, layers)
    return builder.build()


def random_call(rng, case: Case, steps: int, position: int) -> dict[str, np.ndarray]:
    inputs = {}
    for name, (shape, dtype) in case.shapes(steps).items():
        if name == "position":
            inputs[name] = np.array([position], np.int32)
        elif name == "mask":
            mask = rng.random(shape) < 0.6
            mask[0, -1, : position + 1] &= steps == 1  # a prefill's last step sees nothing below
            inputs[name] = mask
        else:
            size = 3 if name == "query" else 1
            inputs[name] = (rng.standard_normal(shape) * size).astype(dtype)
    return inputs


def call_sequence(rng, case: Case) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of a prefill with an overlap, single steps with a gap, and a chunk past the end."""
    positions = [0, TOKENS, TOKENS + 2]
    yield from (random_call(rng, case, TOKENS, p) for p in positions if p < case.length)
    for position in range(min(TOKENS + 9, case.length - 1), min(TOKENS + 14, case.length)):
        yield random_call(rng, case, 1, position)
    yield random_call(rng, case, TOKENS, case.length - 2)
    yield random_call(rng, case, 1, case.length - 1)


class Expected:
    """The reference, with the cache that its calls leave."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.cache = attention_reference.Cache.empty(
            case.length, case.kv_heads, case.dim, case.cache_type
        )

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        inputs = dict(inputs)
        position = int(inputs.pop("position")[0])
        output, self.cache = attention_reference.reference(
            self.cache,
            **inputs,
            position=position,
            scale=self.case.scale,
            soft_cap=self.case.soft_cap,
        )
        return output


def interpreter_of(content: bytes, way=WAYS[0], num_threads: int = 2):
    return runtime.make_interpreter(content, num_threads, backend=way[0], registration=way[1])


def run(interpreter, inputs) -> dict[str, np.ndarray]:
    return interpreter.get_signature_runner(f"t{inputs['query'].shape[1]}")(**inputs)


def check_sequence(interpreter, case: Case, seed: int) -> None:
    """Every output of the interpreter against the reference."""
    expected = Expected(case)
    for inputs in call_sequence(np.random.default_rng(seed), case):
        wanted = expected(inputs)
        for got in run(interpreter, inputs).values():
            assert_close(got, wanted)


def assert_close(got: np.ndarray, wanted: np.ndarray) -> None:
    # Scores below 20 have a float32 error of 20 * 2e-7, which the weights take over; values are
    # below 5, and an error of the weights moves the result by at most twice as much.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=20 * 2e-7 * 5 * 2)
