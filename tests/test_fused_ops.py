"""The fused operators against float64, in TensorFlow and in both interpreters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from model_builder import ModelBuilder

from tfmot_ternary import fused_ops, runtime
from tfmot_ternary.conversion import convert_functions

WAYS = (("litert", "delegate"), ("tf", "delegate"), ("tf", "resolver"))
ERF = np.vectorize(math.erf)


def rms_norm(x, scale, epsilon):
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * scale


def layer_norm(x, gamma, beta, epsilon):
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * (
        gamma
    ) + beta


def activation(x, kind):
    x = x.astype(np.float64)
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1 + ERF(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotary(x, positions, table, amplitude, layouts):
    """x [batch, length, heads, width]; positions [length]."""
    pairs = len(table)
    angles = (positions.astype(np.float32)[:, None] * table).astype(np.float64)[:, None]
    cosines, sines = amplitude * np.cos(angles), amplitude * np.sin(angles)
    split = {
        "halves": lambda v: (v[..., :pairs], v[..., pairs : 2 * pairs]),
        "pairs": lambda v: (v[..., : 2 * pairs : 2], v[..., 1 : 2 * pairs : 2]),
    }
    y = x.astype(np.float64)
    a, b = split[layouts[0]](x.astype(np.float64))
    first, second = split[layouts[1]](y)  # views
    first[...], second[...] = a * cosines - b * sines, b * cosines + a * sines
    return y


def run_everywhere(function, **inputs):
    """Yields what TensorFlow gives, then what the one operator in each interpreter gives."""
    specs = {name: tf.TensorSpec(value.shape, value.dtype, name) for name, value in inputs.items()}
    concrete = tf.function(lambda **kwargs: {"y": function(**kwargs)}).get_concrete_function(
        **specs
    )
    yield concrete(**{name: tf.constant(value) for name, value in inputs.items()})["y"].numpy()
    model = convert_functions({"f": concrete})
    for backend, registration in WAYS:
        interpreter = runtime.make_interpreter(
            model, num_threads=2, backend=backend, registration=registration
        )
        names = {details["op_name"] for details in interpreter._get_ops_details()}
        assert names <= {f"tfmot_ternary.{n}" for n in fused_ops.__all__} | {"DELEGATE"}, names
        yield interpreter.get_signature_runner("f")(**inputs)["y"]


# float32 sums of n values of a norm lose at most about n / 64 units of 6e-8, see normalization.h;
# TensorFlow's body adds in an order of its own.
NORM_TOLERANCE = 3e-6


@pytest.mark.parametrize(
    ("shape", "epsilon"), [((1, 1, 7), 0.5), ((1, 5, 64), 1e-5), ((3, 130), 1e-6)]
)
def test_rms_norm(shape, epsilon):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(np.float32)
    x[0] *= 1e-3  # shows the epsilon
    scale = rng.standard_normal(shape[-1]).astype(np.float32)
    for y in run_everywhere(lambda x: fused_ops.rms_norm(x, scale, epsilon=epsilon), x=x):
        expected = rms_norm(x, scale, epsilon)
        np.testing.assert_allclose(y, expected, rtol=NORM_TOLERANCE, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 5, 64), (3, 130)])
def test_layer_norm(shape):
    rng = np.random.default_rng(2)
    x = rng.normal(3, 1, shape).astype(np.float32)
    x[0] *= 1e-2
    gamma, beta = rng.standard_normal((2, shape[-1])).astype(np.float32)
    for y in run_everywhere(lambda x: fused_ops.layer_norm(x, gamma, beta, epsilon=1e-5), x=x):
        expected = layer_norm(x, gamma, beta, 1e-5)
        # The values lie near 3, the result near 1: three units of the mean's rounding more.
        np.testing.assert_allclose(y, expected, rtol=NORM_TOLERANCE, atol=NORM_TOLERANCE)


@pytest.mark.parametrize("kind", fused_ops.ACTIVATIONS)
def test_activation(kind):
    rng = np.random.default_rng(3)
    x = np.concatenate([np.linspace(-12, 12, 997), rng.normal(0, 1, 27)]).astype(np.float32)
    for y in run_everywhere(lambda x: fused_ops.activation(x, kind), x=x.reshape(2, 512)):
        # 4e-7 |x| (activation_body.h); TensorFlow's tanh is no nearer.
        assert np.all(np.abs(y.ravel() - activation(x, kind)) <= 1e-6 * np.abs(x))


@pytest.mark.parametrize("output_layout", fused_ops.LAYOUTS)
@pytest.mark.parametrize("input_layout", fused_ops.LAYOUTS)
@pytest.mark.parametrize("per_row", [False, True])
def test_rotary(input_layout, output_layout, per_row):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 6, 3, 22)).astype(np.float32)
    table = (10000.0 ** -(np.arange(9) / 9)).astype(np.float32)  # 18 of 22 features
    position = rng.integers(0, 3000, 6 if per_row else 1).astype(np.int32)
    positions = position if per_row else position[0] + np.arange(6)
    options = {"amplitude": 1.5, "input_layout": input_layout, "output_layout": output_layout}
    expected = rotary(x, positions, table, 1.5, (input_layout, output_layout))
    for y in run_everywhere(
        lambda x, position: fused_ops.rotary(x, position, table, **options), x=x, position=position
    ):
        # 2e-7 (|a| + |b|) of the operator, |a|, |b| < 4; TensorFlow's cosine of large angles the
        # same again.
        np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6)


def test_wrong_arguments_say_what_is_expected():
    x = np.zeros((1, 2, 3, 8), np.float32)
    table = np.ones(4, np.float32)
    for function, message in (
        (lambda: fused_ops.rms_norm(x, np.ones(7), epsilon=1e-6), r"scale float32 \[8\]"),
        (lambda: fused_ops.rms_norm(x, np.ones(8), epsilon=-1), "epsilon"),
        (lambda: fused_ops.layer_norm(x, np.ones(8), np.ones(1), epsilon=0), r"beta float32 \[8\]"),
        (lambda: fused_ops.activation(x, "relu"), "kind to be one of gelu"),
        (lambda: fused_ops.rotary(x[0, 0], [0], table), "batch, length"),
        (lambda: fused_ops.rotary(x, [0, 1, 2], table), r"position int32 \[1\] or \[2\]"),
        (lambda: fused_ops.rotary(x, [0], np.ones(5)), "pairs <= 4"),
        (lambda: fused_ops.rotary(x, [0], table, input_layout="half"), "input_layout"),
        (lambda: fused_ops.rotary(x, [0], table, amplitude=np.inf), "amplitude"),
    ):
        with pytest.raises(ValueError, match=message):
            function()


F, INT = np.float32, np.int32


@pytest.mark.parametrize(
    ("name", "inputs", "options", "message"),
    [
        ("rms_norm", [([2, 8], F), ([7], F)], {"epsilon": 1e-6}, r"scale of shape \[8\], got"),
        ("rms_norm", [([2, 8], F), ([8], F)], {}, "expected option epsilon"),
        ("rms_norm", [([2, 8], F), ([8], F)], {"epsilon": -1.0}, "finite real number from 0 on"),
        ("rms_norm", [([2, 8], F), ([8], F)], {"epsilon": math.nan}, "finite real number"),
        ("rms_norm", [([2, 8], F), ([8], F)], {"epsilon": 1}, "got the integer 1"),
        ("layer_norm", [([2, 8], F), ([8], F)], {"epsilon": 1e-6}, "expected 3 inputs, got 2"),
        ("layer_norm", [([], F), ([8], F), ([8], F)], {"epsilon": 1e-6}, "rank 1 or more"),
        ("activation", [([2, 8], INT)], {"kind": "silu"}, "x of type float32"),
        ("activation", [([2, 8], F)], {"kind": "relu"}, '"gelu", "gelu_tanh" or "silu"'),
        ("activation", [([2, 8], F)], {"kind": 1.5}, "got 1.5"),
        ("rotary", [([1, 2, 8], F), ([3], INT), ([4], F)], {}, r"shape \[1\] or \[2\], got"),
        ("rotary", [([1, 2, 8], F), ([1], INT), ([5], F)], {"amplitude": 1.0}, "at most 4 inv"),
        ("rotary", [([2, 8], F), ([1], INT), ([4], F)], {}, "batch, length"),
        ("rotary", [([1, 2, 8], F), ([1], F), ([4], F)], {}, "position of type int32"),
    ],
)
def test_a_damaged_model_gives_an_error(name, inputs, options, message):
    builder = ModelBuilder()
    graph = builder.graph()
    tensors = [graph.input(shape, dtype) for shape, dtype in inputs]
    output = graph.output(inputs[0][0])
    graph.custom(f"tfmot_ternary.{name}", tensors, [output], options)
    with pytest.raises((RuntimeError, ValueError), match=message):
        runtime.make_interpreter(
            builder.build(), backend="tf", registration="resolver"
        ).allocate_tensors()


def test_rotary_of_a_batch_and_of_vectors_without_heads():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 4, 8)).astype(np.float32)
    table = np.array([1, 0.1, 0.01, 0.001], np.float32)
    position = np.array([3], np.int32)
    for y in run_everywhere(
        lambda x, position: fused_ops.rotary(x, position, table), x=x, position=position
    ):
        expected = rotary(x[:, :, None], 3 + np.arange(4), table, 1, ("halves", "halves"))
        np.testing.assert_allclose(y, expected[:, :, 0], rtol=0, atol=4e-6)  # as above
