"""KerasHub's families as `.tflite`: float logits and a ternary model's tokens equal Keras' own."""

from __future__ import annotations

import os
import types
from typing import Any

import causal_lms
import family_models
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import model_file, runtime
from tfmot_ternary.keras3 import quantize
from tfmot_ternary.scheme import TernaryScheme
from tfmot_ternary.vlm import Generator, attention_probe, convert_causal_lm, tokenizer_export
from tfmot_ternary.vlm.attention_mask import CausalMask, recognized
from tfmot_ternary.vlm.attention_probe import AttentionMath
from tfmot_ternary.vlm.family import family_of

CACHE = 32
# Chunks of one length, some of the prompt's tokens in a padded one.
PROMPT, LENGTHS = 18, (4, 20)
# It rotates keys each time they are read, as if the call had begun at 0: KerasHub's own attention
# runs on the cache's rows, and a prompt goes through one call.
IN_ROWS = {"GPTNeoX"}
# Which of the two layers has a window; Gemma alternates.
WINDOWS = {"Gemma": (1, 0), **dict.fromkeys(["Gemma3", "Mistral", "Qwen", "Qwen3"], (1, 1))}
# What generate() stops at, beside the tokenizer's end token.
STOPS = {"Gemma3": ["<end_of_turn>"], "Llama3": ["<|eot_id|>"]}


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


def cache_operators(path):
    """(name, inputs) of the operators with a cache, for each subgraph."""
    record = model_file.schema().ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    codes = [(code.customCode or b"").decode() for code in record.operatorCodes]
    return [
        [
            (codes[op.opcodeIndex].removeprefix("tfmot_ternary."), len(op.inputs))
            for op in graph.operators
            if "cached" in codes[op.opcodeIndex]
        ]
        for graph in record.subgraphs
    ]


def test_float_logits(family, model, tmp_path):
    path = tmp_path / "model.tflite"
    metadata = convert_causal_lm(model, path, prefill_lengths=LENGTHS, cache_length=CACHE)
    assert (metadata.family, metadata.prefill_lengths) == ("text", list(LENGTHS))
    assert metadata.chunked == (family not in IN_ROWS)
    for found in cache_operators(path):
        # A mask is an operator's fifth input: only windows need one.
        layers = [("cached_attention", 4 + count) for count in WINDOWS.get(family, (0, 0))]
        assert found == ([("cached_rows", 2)] * 4 if family in IN_ROWS else layers)
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


def keras_text(model, prompt, length):
    """What KerasHub's generate() says after the prompt."""
    options: dict[str, Any] = {"max_length": length, "strip_prompt": True}
    if isinstance(model, keras_hub.models.Phi3CausalLM):  # its own has no strip_prompt
        options["stop_token_ids"] = tokenizer_export.stop_ids(model)
        return keras_hub.models.CausalLM.generate(model, [prompt], **options)[0]
    return model.generate([prompt], **options)[0]


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
        whole = keras_text(frozen, prompt, length)
        for generator in generators:
            ours = generator.tokenizer.encode_prompt(prompt)
            assert ours == ids[:count].tolist()
            assert generator.generate(prompt, max_new_tokens=length - count) == whole, prompt


def test_stop_and_start_tokens(family, model):
    tokenizer = model.preprocessor.tokenizer
    wanted = [tokenizer.end_token_id, *map(tokenizer.token_to_id, STOPS.get(family, ()))]
    assert tokenizer_export.stop_ids(model) == wanted
    prompt = np.asarray(model.preprocessor.generate_preprocess(["sum"])["token_ids"])[0]
    assert family_of(model).start_id == (
        prompt[0] if tokenizer.start_token_id is not None else None
    )


def traced_mask(make, length, cache):
    """`recognized` of the mask that `make(position)` gives in a graph."""
    found = []

    def call(position):
        found.append(recognized(tf.cast(make(position), tf.int32), position, cache))
        return position

    tf.function(call, autograph=False).get_concrete_function(tf.TensorSpec([1], tf.int32))
    return found[0]


@pytest.mark.parametrize("length", [1, 4, 16])
def test_masks_are_recognized(length):
    cache = 16

    def causal(position, window=None, shift=0):
        distance = position + tf.range(length)[:, None] - tf.range(cache)[None] + shift
        seen = distance >= 0
        return (seen if window is None else seen & (distance < window))[None]

    assert traced_mask(causal, length, cache) == CausalMask()
    assert traced_mask(lambda p: causal(p, 5), length, cache) == CausalMask(5)
    # A window that never cuts anything off is none.
    assert traced_mask(lambda p: causal(p, 16), length, cache) == CausalMask()
    # One position too many, everything, a hole at some position, another input: all of them stay.
    assert traced_mask(lambda p: causal(p, shift=1), length, cache) is None
    assert traced_mask(lambda p: tf.ones([1, length, cache]), length, cache) is None
    hole = tf.range(cache) != 0
    assert traced_mask(lambda p: causal(p) & hole, length, cache) is None
    assert traced_mask(lambda p: causal(p) & (tf.random.uniform([]) < 2), length, 17) is None


def test_mask_that_depends_on_more_stays():
    def call(position, seen):
        assert recognized(tf.range(8)[None, None] <= seen, position, 8) is None
        return position

    spec = tf.TensorSpec([1], tf.int32)
    tf.function(call, autograph=False).get_concrete_function(spec, spec)


@pytest.mark.parametrize(("position", "length"), [(0, 4), (5, 1), (12, 4)])
def test_window_as_a_tensor(position, length):
    mask = CausalMask(3).tensor(tf.constant([position]), length, 16)
    assert np.array_equal(mask[0], CausalMask(3).array(position, length, 16))
    for i in range(length):
        assert np.flatnonzero(mask[0, i]).tolist() == list(
            range(max(0, position + i - 2), position + i + 1)
        )
    assert CausalMask(16).tensor(tf.constant([position]), length, 16) is None
    assert CausalMask(3).narrowed(None) == CausalMask(3)
    assert CausalMask(3).narrowed(2) == CausalMask().narrowed(2) == CausalMask(2)


class Attention(keras.layers.Layer):
    """Attention of its own kind: what a future family may bring."""

    def __init__(self, scale=0.5, soft_cap=None, bias=0.0):
        super().__init__()
        self._inv_norm_factor = scale
        self.logit_soft_cap = soft_cap
        self.bias = bias

    def _compute_attention(self, query, key, value, attention_mask=None):
        scores = tf.einsum("bthd,bshd->bhts", query, key) * self._inv_norm_factor + self.bias
        scores -= self.bias * tf.cast(tf.range(key.shape[1]), tf.float32)
        if self.logit_soft_cap:
            scores = self.logit_soft_cap * tf.tanh(scores / self.logit_soft_cap)
        weights = tf.nn.softmax(tf.where(attention_mask[:, None], scores, -1e9))
        return tf.einsum("bhts,bshd->bthd", weights, value)


def test_probe():
    def probe(layer):
        return attention_probe.probe(layer, layer._compute_attention, 4, 4, 8)

    assert probe(Attention(0.3)) == AttentionMath(0.3, 0.0, None)
    assert probe(Attention(0.3, 2.0)) == AttentionMath(0.3, 2.0, None)
    # A bias that depends on the position (ALiBi) is not the operator's.
    assert probe(Attention(0.3, bias=0.2)) is None
    # An unknown scale, and one that no attribute tells.
    layer = Attention(0.3)
    layer._inv_norm_factor = tf.constant(0.123)
    assert probe(layer) == AttentionMath(pytest.approx(0.123), 0.0, None)
    with_weight = Attention()
    with_weight.sinks = with_weight.add_weight(shape=(4,))
    assert probe(with_weight) is None


def test_families_that_do_not_fit(tmp_path):
    path = tmp_path / "model.tflite"
    bert = types.SimpleNamespace(backbone=object())
    with pytest.raises(ValueError, match="SimpleNamespace, which generates in another way"):
        convert_causal_lm(bert, path)
    rwkv = keras_hub.models.RWKV7CausalLM(
        backbone=keras_hub.models.RWKV7Backbone(
            hidden_size=16,
            head_size=8,
            num_layers=1,
            vocabulary_size=32,
            intermediate_dim=16,
            gate_lora=4,
            mv_lora=4,
            aaa_lora=4,
            decay_lora=4,
        )
    )
    with pytest.raises(ValueError, match=r"RWKV7CausalLM.call_with_cache\(.*this family is not"):
        convert_causal_lm(rwkv, path)
    encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=32,
        patch_size=8,
        num_heads=2,
        hidden_dim=16,
        num_layers=1,
        intermediate_dim=32,
        output_dim=32,
        pool_size=2,
    )
    with pytest.raises(ValueError, match="Gemma3CausalLM with inputs .*text-only preset"):
        convert_causal_lm(family_models.build("Gemma3", vision_encoder=encoder), path)
    with pytest.raises(ValueError, match="cache_length <= 40 .*GPT2CausalLM has embeddings"):
        convert_causal_lm(family_models.build("GPT2"), path, cache_length=41)
    odd = family_models.build("Llama")
    odd._build_cache = lambda token_ids: odd.call_with_cache(token_ids, np.zeros([1, 3, 5]), 0)
    with pytest.raises(ValueError, match=r"LlamaCausalLM to keep keys and values .*\[1, 3, 5\]"):
        convert_causal_lm(odd, path)
    assert not list(tmp_path.iterdir())
