"""KerasHub's families as `.tflite`: float logits and a ternary model's tokens equal Keras' own."""

from __future__ import annotations

import os

import causal_lms
import family_models
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import model_file, runtime
from tfmot_ternary.keras3 import quantize
from tfmot_ternary.scheme import TernaryScheme
from tfmot_ternary.vlm import Generator, convert_causal_lm
from tfmot_ternary.vlm.family import family_of

CACHE = 32
# Chunks of one length, some of the prompt's tokens in a padded one.
PROMPT, LENGTHS = 18, (4, 20)
# Families whose attention is not the operator's; see `test_neox_is_prefilled_at_once`.
IN_ROWS = {"GPTNeoX"}


@pytest.fixture(scope="module", params=family_models.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return family_models.build(family)


class Calls:
    """The signatures of a text model."""

    def __init__(self, path, backend=None):
        self.interpreter = runtime.make_interpreter(os.fspath(path), backend=backend)
        self.interpreter.allocate_tensors()

    def prefill(self, ids, position, length=None):
        tokens = np.full((1, length or len(ids)), 5, np.int32)
        tokens[0, : len(ids)] = ids
        run = self.interpreter.get_signature_runner(f"prefill_{tokens.shape[1]}")
        numbers = {"position": [position], "length": [len(ids)]}
        inputs = {name: np.array(number, np.int32) for name, number in numbers.items()}
        return run(tokens=tokens, **inputs)["logits"][0]

    def decode(self, token, position):
        run = self.interpreter.get_signature_runner("decode")
        outputs = run(token=np.array([[token]], np.int32), position=np.array([position], np.int32))
        return outputs["logits"][0]


def keras_logits(model, prompt, answer):
    """Of KerasHub's own call_with_cache: [prompt, vocabulary], then [vocabulary] of each answer."""
    layout = family_of(model).cache_layout()
    heads, size = layout.layers[0]
    cache = keras.ops.zeros([1, len(layout.layers), 2, CACHE, heads, size])
    if layout.paired:
        cache = tuple((keras.ops.zeros([1, CACHE, *layer]),) * 2 for layer in layout.layers)
    whole, _, cache = model.call_with_cache(tf.constant([prompt]), cache, tf.constant(0))
    steps = []
    for i, token in enumerate(answer):
        index = tf.constant(len(prompt) + i)
        logits, _, cache = model.call_with_cache(tf.constant([[token]]), cache, index)
        steps.append(np.asarray(logits)[0, 0])
    return np.asarray(whole)[0], steps


def operators(path):
    """Custom operators of each subgraph, sorted."""
    record = model_file.schema().ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    codes = [(code.customCode or b"").decode() for code in record.operatorCodes]
    return [
        sorted({codes[op.opcodeIndex].removeprefix("tfmot_ternary.") for op in graph.operators})
        for graph in record.subgraphs
    ]


def test_float_logits(family, model, tmp_path):
    path = tmp_path / "model.tflite"
    metadata = convert_causal_lm(model, path, prefill_lengths=LENGTHS, cache_length=CACHE)
    assert (metadata.family, metadata.prefill_lengths) == ("text", list(LENGTHS))
    assert metadata.chunked == (family not in IN_ROWS)
    wanted_op = "cached_rows" if family in IN_ROWS else "cached_attention"
    for names in operators(path):
        assert [name for name in names if name.startswith("cached")] == [wanted_op]
    rng = np.random.default_rng(3)
    prompt = rng.integers(0, family_models.VOCABULARY, PROMPT).tolist()
    answer = rng.integers(0, family_models.VOCABULARY, 4).tolist()
    whole, steps = keras_logits(model, prompt, answer)
    calls = Calls(path)

    def close(got, wanted):
        # float32 both, in other orders of summation; 1e-4 is the goal, 1e-6 is usual.
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()

    for backwards in (False, True) if metadata.chunked else (True,):
        if backwards:  # all at once, over what the chunks and the answer left in the cache
            close(calls.prefill(prompt, 0, LENGTHS[1]), whole[-1])
        else:
            for begin in range(0, PROMPT, LENGTHS[0]):
                chunk = prompt[begin : begin + LENGTHS[0]]
                close(calls.prefill(chunk, begin, LENGTHS[0]), whole[begin + len(chunk) - 1])
        for i, token in enumerate(answer):
            close(calls.decode(token, PROMPT + i), steps[i])


def test_ternary_tokens(family, model, tmp_path):
    """Quantized, frozen on the way, converted, generated from: the frozen model's own text."""
    from tfmot_ternary.freezing import freeze

    quantized = quantize(model, TernaryScheme())
    frozen = freeze(quantized, tables="i8")
    frozen.compile(sampler="greedy", run_eagerly=True)
    path = tmp_path / "ternary.tflite"
    convert_causal_lm(quantized, path, tables="i8", prefill_lengths=(4, 24))
    backends = ("litert", "tf") if family in ("Gemma", "GPT2") else ("litert",)
    generators = [Generator(path, backend=backend) for backend in backends]
    for prompt in causal_lms.PROMPTS[:2]:
        length = family_models.SEQUENCE_LENGTH
        packed = frozen.preprocessor.generate_preprocess([prompt], sequence_length=length)
        ids = np.asarray(packed["token_ids"])[0]
        count = int(np.asarray(packed["padding_mask"]).sum())
        whole = frozen.generate([prompt], max_length=length, strip_prompt=True)[0]
        for generator in generators:
            ours = generator.tokenizer.encode_prompt(prompt)
            assert ours == ids[:count].tolist()
            assert generator.metadata.tokenizer.eos_ids[0] == (
                frozen.preprocessor.tokenizer.end_token_id
            )
            assert generator.generate(prompt, max_new_tokens=length - count) == whole, prompt
