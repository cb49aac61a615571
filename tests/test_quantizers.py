"""Quantizers: the code rule in NumPy and TensorFlow, the exact forward value, the gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from tfmot_ternary import initializers, quantizers
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packing import PackedWeights, expand_scales, scale_shape

SEED = 3
GROUP_SIZES = [None, "tensor", 32, 64]
LAYOUTS = [
    KernelLayout.dense((1, 1)),
    KernelLayout.dense((64, 7)),
    KernelLayout.dense((65, 3)),
    KernelLayout.embedding((5, 96)),
    KernelLayout.embedding((5, 33)),
    KernelLayout.conv((3, 3, 8, 5)),
    KernelLayout.conv((3, 7, 2)),
    KernelLayout.einsum("abc,cde->abde", (70, 3, 4), 3),
    KernelLayout.einsum("abcd,cde->abe", (3, 24, 5), 4),
    KernelLayout.einsum("btd,ndh->btnh", (3, 70, 4), 3),  # n and k interleaved
    KernelLayout.einsum("ab,bcde->adec", (70, 2, 3, 4), 2),  # n in another order
]


def kernel_of(layout):
    generator = np.random.default_rng(SEED)
    return generator.standard_t(2, layout.kernel_shape).astype(np.float32)


def scales_of(layout, group_size):
    generator = np.random.default_rng(SEED + 1)
    shape = scale_shape(layout.n, layout.k, group_size)
    return generator.uniform(0.3, 2.0, shape).astype(np.float32)


def rule(matrix, scales, levels):
    """The rule, one weight at a time, in Python's floats (exact for float32 values)."""
    codes = np.zeros(matrix.shape, np.int8)
    for index in np.ndindex(*matrix.shape):
        w, a = float(matrix[index]), float(scales[index])
        if levels == 3:
            codes[index] = 1 if w > a / 2 else -1 if w < -a / 2 else 0
        else:
            codes[index] = 1 if w >= 0 else -1
    return codes


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.kernel_shape))
def test_forward_value_is_exactly_codes_times_scales(layout, group_size, levels):
    kernel, scales = kernel_of(layout), scales_of(layout, group_size)
    matrix = layout.to_matrix(kernel)
    full = np.broadcast_to(expand_scales(scales, layout.n, layout.k, group_size), matrix.shape)
    want = rule(matrix, full, levels)
    codes = quantizers.weight_codes(matrix, scales, levels, group_size)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, want)
    as_tensor = quantizers.weight_codes(tf.constant(matrix), scales, levels, group_size)
    assert as_tensor.dtype == tf.int8
    np.testing.assert_array_equal(as_tensor.numpy(), want)
    value = quantizers.quantize_kernel(
        tf.constant(kernel), tf.Variable(scales), layout, levels, group_size
    )
    np.testing.assert_array_equal(value.numpy(), layout.from_matrix(want * full))
    rows = quantizers.ternarize if levels == 3 else quantizers.binarize
    np.testing.assert_array_equal(rows(matrix, scales, group_size).numpy(), want * full)
    # What is frozen is what was trained.
    packed = PackedWeights.from_codes(codes, scales, "t2" if levels == 3 else "b1", group_size)
    np.testing.assert_array_equal(layout.from_matrix(packed.dequantize()), value.numpy())


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.kernel_shape))
def test_gradients(layout, group_size, levels):
    kernel, scales = tf.Variable(kernel_of(layout)), tf.Variable(scales_of(layout, group_size))
    dy = np.random.default_rng(SEED + 2).standard_normal(layout.kernel_shape).astype(np.float32)
    with tf.GradientTape() as tape:
        value = quantizers.quantize_kernel(kernel, scales, layout, levels, group_size)
        loss = tf.reduce_sum(value * dy)
    dw, da = tape.gradient(loss, [kernel, scales])
    np.testing.assert_array_equal(dw.numpy(), dy)  # straight through
    codes = quantizers.weight_codes(
        layout.to_matrix(kernel.numpy()), scales.numpy(), levels, group_size
    )
    product = layout.to_matrix(dy).astype(np.float64) * codes
    want = np.zeros(scales.shape)
    for row in range(layout.n):
        for column in range(layout.k):
            if group_size == "tensor":
                want[0] += product[row, column]
            elif group_size is None:
                want[row] += product[row, column]
            else:
                want[row, column // group_size] += product[row, column]
    # Sums of up to 1680 float32 terms near 1, in another order: 1680 * 6e-8 relative to their sum.
    np.testing.assert_allclose(da.numpy(), want, rtol=1e-4, atol=1e-4)


def test_thresholds_and_special_scales():
    a = np.float32(0.7)
    half = np.float32(0.35)
    up, down = np.nextafter(half, np.float32(1)), np.nextafter(half, np.float32(0))
    w = np.array([[half, up, down, -half, -up, -down, 0.0, -0.0]], np.float32)
    scales = np.array([a])
    for array in (w, tf.constant(w)):
        codes = np.asarray(quantizers.ternary_codes(array, scales))
        np.testing.assert_array_equal(codes, [[0, 1, 0, 0, -1, 0, 0, 0]])
        codes = np.asarray(quantizers.binary_codes(array, scales))
        np.testing.assert_array_equal(codes, [[1, 1, 1, -1, -1, -1, 1, 1]])
    # A group of zeros has scale 0: its value is 0, and training can leave it.
    w, scales = tf.Variable(np.zeros((1, 4), np.float32)), tf.Variable(np.zeros(1, np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantizers.ternarize(w, scales) * [[1.0, 2.0, 3.0, 4.0]])
    assert float(loss) == 0
    np.testing.assert_array_equal(tape.gradient(loss, w).numpy(), [[1, 2, 3, 4]])


def test_clip_stops_the_gradient_of_far_weights():
    w, scales = tf.Variable([[0.5, -1.0, 1.0001, -3.0]]), tf.constant([1.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantizers.binarize(w, scales, clip=1.0))
    np.testing.assert_array_equal(tape.gradient(loss, w).numpy(), [[1, 1, 0, 0]])


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_other_types_are_computed_in_float32(dtype):
    layout = KernelLayout.dense((33, 4))
    kernel, scales = tf.cast(kernel_of(layout), dtype), scales_of(layout, None)
    value = quantizers.quantize_kernel(kernel, scales, layout, 3)
    assert value.dtype == dtype
    exact = quantizers.quantize_kernel(tf.cast(kernel, tf.float32), scales, layout, 3)
    np.testing.assert_array_equal(
        tf.cast(value, tf.float32).numpy(), tf.cast(tf.cast(exact, dtype), tf.float32).numpy()
    )


def test_same_value_inside_a_function_and_compiled():
    """Autograph, XLA and eager execution give the same bits."""
    layout = KernelLayout.dense((100, 9))
    kernel, scales = tf.Variable(kernel_of(layout)), tf.Variable(scales_of(layout, 32))
    eager = quantizers.quantize_kernel(kernel, scales, layout, 3, 32).numpy()
    for jit in (False, True):
        compiled = tf.function(
            lambda: quantizers.quantize_kernel(kernel, scales, layout, 3, 32), jit_compile=jit
        )
        np.testing.assert_array_equal(compiled().numpy(), eager)


def wrap(layer, quantizer, attribute="kernel"):
    """A user's own QuantizeConfig around our quantizer, as in tfmot's comprehensive guide."""

    class Config(tfmot.quantization.keras.QuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(getattr(layer, attribute), quantizer)]

        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_weights(self, layer, quantize_weights):
            setattr(layer, attribute, quantize_weights[0])

        def set_quantize_activations(self, layer, quantize_activations):
            pass

        def get_output_quantizers(self, layer):
            return []

        def get_config(self):
            return {}

    return tfmot.quantization.keras.QuantizeWrapperV2(layer, Config())


@pytest.mark.parametrize("cls", [quantizers.TernaryQuantizer, quantizers.BinaryQuantizer])
@pytest.mark.parametrize("trainable", [True, False])
def test_quantizer_in_a_users_config(cls, trainable):
    layer = tf_keras.layers.Dense(5)
    x = np.random.default_rng(SEED).standard_normal((3, 40)).astype(np.float32)
    layer(x)
    quantizer = cls(group_size=32, initializer="absmean", trainable=trainable)
    wrapper = wrap(layer, quantizer)
    kernel = layer.kernel.numpy()
    y = wrapper(x).numpy()
    scales = initializers.initial_scales(kernel.T, cls.levels, 32, "absmean")
    (variable,) = [w for w in wrapper.weights if "kernel_scale" in w.name]
    np.testing.assert_array_equal(variable.numpy(), scales)
    assert any(w is variable for w in wrapper.trainable_weights) == trainable
    codes = quantizers.weight_codes(kernel.T, scales, cls.levels, 32)
    values = codes * expand_scales(scales, 5, 40, 32)
    # Matrix product in another order of summation.
    np.testing.assert_allclose(y, x @ values.T, rtol=1e-5, atol=1e-5)
    variable.assign(-variable)  # an optimizer may step below zero; the constraint brings it back
    assert (variable.constraint(variable).numpy() >= 0).all()


def test_quantizer_infers_convolutions_and_reports_a_missing_weight():
    layer = tf_keras.layers.Conv2D(4, 3)
    x = np.ones((1, 5, 5, 2), np.float32)
    layer(x)
    wrapper = wrap(layer, quantizers.TernaryQuantizer())
    wrapper(x)
    assert [tuple(w.shape) for w in wrapper.weights if "scale" in w.name] == [(4,)]
    with pytest.raises(ValueError, match="layer 'conv2d.*' to have a weight 'weights' of shape"):
        quantizers.TernaryQuantizer().build((3, 3, 2, 4), "weights", wrapper)


def test_quantizer_config_round_trip():
    quantizer = quantizers.TernaryQuantizer(
        64, initializers.TWNInitializer(0.5), KernelLayout.dense((3, 4)), trainable=False, clip=2.0
    )
    again = quantizers.TernaryQuantizer.from_config(quantizer.get_config())
    assert again == quantizer
    assert again.layout == quantizer.layout
    assert quantizers.BinaryQuantizer() != quantizers.TernaryQuantizer()
    assert quantizers.TernaryQuantizer(64) != quantizers.TernaryQuantizer(128)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantizers.weight_codes(np.ones((2, 3)), np.ones(2), 4), "levels 2.*got 4"),
        (lambda: quantizers.ternary_codes(np.ones(3), np.ones(1)), r"matrix \[n, k\].*\(3,\)"),
        (lambda: quantizers.ternarize(tf.ones(3), tf.ones(1)), r"matrix \[n, k\].*\(3,\)"),
        (lambda: quantizers.ternary_codes(np.ones((2, 3)), np.ones(3)), "scales of shape"),
        (lambda: quantizers.ternarize(tf.ones((2, 3)), tf.ones(3)), "scales of shape"),
        (lambda: quantizers.ternarize(tf.ones((2, 3)), tf.ones((2, 1)), 48), "48"),
        (lambda: quantizers.TernaryQuantizer(group_size=48), "48"),
        (lambda: quantizers.BinaryQuantizer(clip=0), "clip"),
        (lambda: quantizers.BinaryQuantizer(initializer="mean"), "mean"),
        (
            lambda: quantizers.quantize_kernel(
                tf.ones((3, 2)), tf.ones(3), KernelLayout.dense((2, 3)), 3
            ),
            r"kernel of shape \(2, 3\), got \(3, 2\)",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
