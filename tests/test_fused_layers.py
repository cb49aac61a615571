"""Layers and whole models through the fused operators, against what they compute themselves."""

from __future__ import annotations

import collections
import contextlib
import importlib

import causal_lms
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import fused_layers, fused_norms, fused_rotary, layer_replacement, runtime
from tfmot_ternary.conversion import convert_functions

# The operators' bounds (custom_ops/kernels) are 1e-6 of values near 1, and so is TensorFlow's own
# rounding; rotations add two values.
TOLERANCE = 5e-6
# Logits near 2 behind two layers of sums of 128 terms.
LOGIT_TOLERANCE = 2e-5
CACHE_LENGTH = 16

SETTINGS = {"vocabulary_size": 64, "num_layers": 2, "hidden_dim": 64, "intermediate_dim": 128}


def llama():
    backbone = keras_hub.models.LlamaBackbone(
        num_query_heads=4, num_key_value_heads=2, layer_norm_epsilon=1e-5, **SETTINGS
    )
    return causal_lms.randomize(keras_hub.models.LlamaCausalLM(backbone=backbone), 0)


def gpt_neo_x():
    backbone = keras_hub.models.GPTNeoXBackbone(num_heads=4, **SETTINGS)
    return causal_lms.randomize(keras_hub.models.GPTNeoXCausalLM(backbone=backbone), 0)


def gpt2():
    backbone = keras_hub.models.GPT2Backbone(
        num_heads=4, max_sequence_length=CACHE_LENGTH, **SETTINGS
    )
    return causal_lms.randomize(keras_hub.models.GPT2CausalLM(backbone=backbone), 0)


def qwen3():
    backbone = keras_hub.models.Qwen3Backbone(
        num_query_heads=4, num_key_value_heads=2, head_dim=16, **SETTINGS
    )
    return causal_lms.randomize(keras_hub.models.Qwen3CausalLM(backbone=backbone), 0)


def norms():
    """A layer with random weights for each line of the tables, by its module."""
    layers = {}
    for module, name in [*fused_norms.RMS_NORMS, fused_norms.LAYER_NORM]:
        package = "keras.src.layers" if module.startswith("normal") else "keras_hub.src.models"
        kind = getattr(importlib.import_module(f"{package}.{module}"), name)
        arguments = {"dim": 40} if name == "Gemma3nRMSNorm" else {}
        layers[f"{module}.{name}".replace(".", "_")] = randomized(kind(**arguments), (1, 3, 40))
    return layers


def randomized(layer, shape):
    layer.build(shape)
    rng = np.random.default_rng(7)
    for weight in layer.weights:
        weight.assign(rng.normal(0.5, 1, weight.shape))
    return layer


def operators(function, *specs):
    """The operators of a function's model by name, and a runner of its signature."""
    concrete = tf.function(lambda **inputs: function(**inputs)).get_concrete_function(
        **{spec.name: spec for spec in specs}
    )
    interpreter = runtime.make_interpreter(convert_functions({"f": concrete}), 1)
    names = [details["op_name"] for details in interpreter._get_ops_details()]
    counts = collections.Counter(name for name in names if name != "DELEGATE")
    return counts, interpreter.get_signature_runner("f")


def test_every_norm_is_one_operator():
    layers = norms()
    x = np.random.default_rng(8).normal(0.3, 2, (1, 3, 40)).astype(np.float32)
    x[0, 0] *= 1e-3  # shows the epsilon
    expected = {name: np.asarray(layer(x)) for name, layer in layers.items()}
    with contextlib.ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(fused_layers.fused(layer))
        counts, run = operators(
            lambda x: {name: layer(x) for name, layer in layers.items()},
            tf.TensorSpec(x.shape, name="x"),
        )
    assert counts["tfmot_ternary.layer_norm"] == 1
    assert counts["tfmot_ternary.rms_norm"] == len(layers) - 1
    assert len(counts) == 2
    got = run(x=x)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


ROTARY_EMBEDDINGS = {
    "plain": keras_hub.layers.RotaryEmbedding(max_wavelength=500, scaling_factor=2.0),
    "dynamic": keras_hub.layers.RotaryEmbedding(scaling_factor=2.0, rope_type="dynamic"),
    "yarn": keras_hub.layers.RotaryEmbedding(scaling_factor=8.0, rope_type="yarn"),
    "llama3": importlib.import_module(
        "keras_hub.src.models.llama.llama_rotary_embedding"
    ).LlamaRotaryEmbedding(
        max_wavelength=500000,
        frequency_adjustment_factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        pretraining_sequence_length=64,
    ),
}


def test_every_rotary_embedding_is_one_operator():
    x = np.random.default_rng(9).standard_normal((1, 5, 3, 32)).astype(np.float32)
    start = np.array([41], np.int32)
    positions = np.array([[3, 9, 4, 4, 70]], np.int32)

    def both(x, start):
        results = {}
        for name, layer in ROTARY_EMBEDDINGS.items():
            results[f"{name} from start"] = layer(x, start_index=start[0])
            results[f"{name} at positions"] = layer(x, positions=positions)
        return results

    expected = {name: value.numpy() for name, value in both(x, tf.constant(start)).items()}
    with contextlib.ExitStack() as stack:
        for layer in ROTARY_EMBEDDINGS.values():
            stack.enter_context(fused_layers.fused(layer))
        counts, run = operators(
            both, tf.TensorSpec(x.shape, name="x"), tf.TensorSpec([1], tf.int32, name="start")
        )
    assert counts.pop("tfmot_ternary.rotary") == len(expected)
    assert set(counts) <= {"RESHAPE", "STRIDED_SLICE"}  # of `start`
    got = run(x=x, start=start)
    for name, value in expected.items():
        # Angles up to 70: TensorFlow rounds their products as the operator does.
        np.testing.assert_allclose(got[name], value, rtol=0, atol=TOLERANCE * 2, err_msg=name)


def test_layers_that_compute_something_else_are_left_alone():
    class Other(keras.layers.RMSNormalization):
        def call(self, x):
            return 2 * super().call(x)

    x = np.ones((1, 2, 8, 8), np.float32)
    layers = [
        Other(),
        keras.layers.LayerNormalization(axis=1),
        keras.layers.LayerNormalization(axis=(-2, -1)),
        keras.layers.RMSNormalization(dtype="mixed_bfloat16"),
        keras_hub.layers.RotaryEmbedding(sequence_axis=2),
    ]
    for layer in layers:
        layer(x)
        with fused_layers.fused(layer):
            assert "call" not in vars(layer), layer


def test_a_layer_that_does_not_agree_is_left_alone(monkeypatch):
    layer = randomized(keras.layers.RMSNormalization(), (1, 8))
    wrong = {("normalization.rms_normalization", "RMSNormalization"): fused_norms.RmsSpec(offset=1)}
    monkeypatch.setattr(fused_norms, "RMS_NORMS", wrong)
    with fused_layers.fused(layer):
        assert "call" not in vars(layer)


def test_everything_is_restored_also_by_an_exception():
    from keras.src.backend.tensorflow import nn

    layer = randomized(keras.layers.RMSNormalization(), (1, 8))
    model = keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(4, activation="gelu")])
    gelu, silu = nn.gelu, nn.silu

    def fail():
        with fused_layers.fused(model):
            with fused_layers.fused(model):
                inner = vars(layer)["call"]
            assert vars(layer)["call"] is not inner
            assert nn.gelu is not gelu
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert nn.gelu is gelu
    assert nn.silu is silu
    assert "call" not in vars(layer)


def test_weights_are_those_of_the_stateless_scope():
    layer = keras.layers.RMSNormalization()
    with keras.StatelessScope(initialize_variables=False):  # a skeleton
        layer.build((1, 8))
    x = np.random.default_rng(10).standard_normal((1, 8)).astype(np.float32)
    scale = np.arange(8, dtype=np.float32)
    with (
        fused_layers.fused(layer),
        keras.StatelessScope(state_mapping=[(layer.scale, scale)]),
    ):
        assert "call" in vars(layer)
        y = layer(x)
    expected = x / np.sqrt(np.mean(x**2) + layer.epsilon) * scale
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu"])
def test_activations_by_every_name(kind):
    x = tf.constant(np.linspace(-6, 6, 50, dtype=np.float32))
    approximate = {"approximate": kind == "gelu_tanh"} if kind != "silu" else {}
    name = kind.split("_")[0]
    calls = [
        lambda x: getattr(keras.activations, name)(x, **approximate),
        lambda x: getattr(keras.ops, name)(x, **approximate),
    ]
    if kind != "gelu_tanh":
        calls += [keras.layers.Activation(name), keras.activations.get(name)]
    expected = {str(i): call(i * x).numpy() for i, call in enumerate(calls, start=1)}
    with fused_layers.fused(keras.layers.Identity()):
        counts, run = operators(
            lambda x: {str(i): call(i * x) for i, call in enumerate(calls, start=1)},
            tf.TensorSpec([50], name="x"),
        )
        half = calls[0](tf.cast(x, tf.float16))
    assert counts["tfmot_ternary.activation"] == len(calls)
    assert set(counts) <= {"tfmot_ternary.activation", "MUL"}
    assert half.dtype == tf.float16
    got = run(x=x)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=TOLERANCE, atol=TOLERANCE)


# Name -> (model, norms, rotary embeddings, activations of a decode step).
MODELS = {
    "gemma": (causal_lms.gemma, 5, 4, 2),
    "llama": (llama, 5, 4, 2),
    "gpt_neo_x": (gpt_neo_x, 5, 4, 2),
    "gpt2": (gpt2, 5, 0, 2),
    "qwen3": (qwen3, 9, 4, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_decode_step_has_fewer_operators_and_the_same_logits(name):
    build, norm_count, rotary_count, activation_count = MODELS[name]
    model = build()
    backbone = model.backbone
    heads = getattr(backbone, "num_key_value_heads", None) or backbone.num_heads
    shape = [1, 2, 2, CACHE_LENGTH, heads, getattr(backbone, "head_dim", None) or 16]

    def decode(token, position, cache):
        logits, _, cache = model.call_with_cache(token, cache, position[0])
        return {"logits": logits, "cache": cache}

    specs = (
        tf.TensorSpec([1, 1], tf.int32, "token"),
        tf.TensorSpec([1], tf.int32, "position"),
        tf.TensorSpec(shape, tf.float32, "cache"),
    )
    rng = np.random.default_rng(11)
    inputs = {
        "token": np.array([[5]], np.int32),
        "position": np.array([7], np.int32),
        "cache": rng.standard_normal(shape).astype(np.float32),
    }
    results = []
    for scope in (contextlib.nullcontext(), fused_layers.fused(model)):
        with scope:
            counts, run = operators(decode, *specs)
        results.append((sum(counts.values()), run(**inputs)))
    norms = counts["tfmot_ternary.rms_norm"] + counts["tfmot_ternary.layer_norm"]
    assert norms == norm_count
    assert counts["tfmot_ternary.rotary"] == rotary_count
    assert counts["tfmot_ternary.activation"] == activation_count
    (before, expected), (after, got) = results
    print(f"{name}: {before} operators, fused {after}")
    assert after <= 0.7 * before
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=LOGIT_TOLERANCE)


def test_every_table_names_classes_that_exist():
    for module, name in [*fused_rotary.ROTARY_EMBEDDINGS, *fused_rotary.PAIRING_ATTENTIONS]:
        package = "layers" if module.startswith("modeling") else "models"
        found = importlib.import_module(f"keras_hub.src.{package}.{module}")
        kind = getattr(found, name)
        assert layer_replacement.find_class(kind, [(module, name)]) == (module, name)
