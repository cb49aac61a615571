"""Freezing of both Keras versions, against the quantized models they came from."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import keras
import keras3_models
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from tfmot_ternary import keras3, packing
from tfmot_ternary.freezing import freeze
from tfmot_ternary.keras3_structure import nested_layers
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.scheme import BinaryScheme, TernaryScheme

SCHEMES = {
    "channel": TernaryScheme(),
    "tensor": TernaryScheme(group_size="tensor"),
    "groups": TernaryScheme(group_size=32),
    "binary": BinaryScheme(),
}
# Outputs of size about 1 through at most ten layers of float32 sums in another order.
FLOAT_TOLERANCE = 1e-5


def packed_layers(model):
    layers = model.submodules if isinstance(model, tf_keras.Model) else None
    if layers is None:
        layers = [layer for _, layer in nested_layers(model)]
    return [layer for layer in layers if isinstance(layer, PackedLayer)]


def int8_error_bound(outputs):
    """Each layer rounds its inputs to 1/127 of their range; ten layers, and a last one whose sum

    of terms of both signs is smaller than its terms: a fifth of the range.
    """
    return 0.2 * np.abs(outputs).max()


# Keras 3.


@pytest.mark.parametrize(
    ("name", "weight_format"),
    [("channel", None), ("tensor", "t5"), ("groups", "t2"), ("groups", "t5"), ("binary", "b1")],
)
def test_keras3_predictions(name, weight_format):
    model = keras3.quantize(keras3_models.mixed_model(), SCHEMES[name])
    inputs = keras3_models.mixed_inputs()
    expected = np.asarray(model(inputs))
    exact = freeze(model, weight_format, activations="float32")
    np.testing.assert_allclose(exact(inputs), expected, atol=FLOAT_TOLERANCE)
    frozen = freeze(model, weight_format)
    np.testing.assert_allclose(frozen(inputs), expected, atol=int8_error_bound(expected))
    # The same rounding in a compiled function, but float layers may be fused there.
    predicted = frozen.predict(inputs, verbose=0)
    np.testing.assert_allclose(predicted, frozen(inputs), atol=int8_error_bound(expected))
    formats = {layer.weight_format for layer in packed_layers(frozen)}
    assert formats == {weight_format or "t2"}


def test_keras3_codes_and_scales_are_the_trained_ones():
    model = keras3.quantize(keras3_models.pali_gemma(), TernaryScheme(group_size=32))
    frozen = freeze(model)
    sources = [layer for _, layer in nested_layers(model) if keras3.is_quantized(layer)]
    targets = packed_layers(frozen)
    assert len(sources) == len(targets) == 22
    for source, target in zip(sources, targets, strict=True):
        weights = target.packed_weights
        np.testing.assert_array_equal(weights.scales, np.array(source.kernel_scale.value))
        np.testing.assert_array_equal(target.kernel.numpy(), np.array(source.kernel))


def test_keras3_pali_gemma_generates_the_same_from_its_cache():
    model = keras3.quantize(keras3_models.pali_gemma(), TernaryScheme(embeddings=True))
    frozen = freeze(model, activations="float32")
    inputs = keras3_models.pali_gemma_inputs()
    np.testing.assert_allclose(frozen(inputs), model(inputs), atol=FLOAT_TOLERANCE)
    prompt = {key: inputs[key] for key in ("images", "token_ids")}
    prompt["padding_mask"] = np.array([[1, 1, 1, 0, 0]] * 2, np.int32)
    expected = model.generate(prompt, stop_token_ids=None)["token_ids"]
    np.testing.assert_array_equal(
        frozen.generate(prompt, stop_token_ids=None)["token_ids"], expected
    )


def test_no_float_kernel_remains():
    model = keras3.quantize(keras3_models.mixed_model(), TernaryScheme())
    kernels = [
        layer.kernel_layout.kernel_shape
        for _, layer in nested_layers(model)
        if keras3.is_quantized(layer)
    ]
    frozen = freeze(model)
    floats = [tuple(v.shape) for v in frozen.variables if "float" in v.dtype]
    assert not set(kernels) & set(floats)
    packed = sum(v.shape.num_elements() for v in frozen.variables if v.dtype == "uint8")
    assert packed == sum(
        layer.kernel_layout.n * packing.row_bytes(layer.kernel_layout.k, "t2")
        for layer in packed_layers(frozen)
    )


def test_the_float_kernel_is_released():
    from tfmot_ternary import freezing_keras3

    kernels = []
    original = freezing_keras3.clone

    def watched_clone(model):
        cloned = original(model)
        kernels.extend(weakref.ref(d._kernel) for d in cloned.layers if hasattr(d, "_kernel"))
        return cloned

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(4)])
    model = keras3.quantize(model, TernaryScheme())
    freezing_keras3.clone = watched_clone
    try:
        frozen = freeze(model)
    finally:
        freezing_keras3.clone = original
    gc.collect()
    assert len(kernels) == 2
    assert [reference() for reference in kernels] == [None, None]
    assert frozen.count_params() == 5 * 4 + 5 + 5 + 4 * 4 + 4 + 4  # packed, scales, bias


def test_keras3_save_and_load(tmp_path):
    model = keras3.quantize(keras3_models.pali_gemma(), TernaryScheme(group_size=32))
    frozen = freeze(model, "t5")
    inputs = keras3_models.pali_gemma_inputs()
    expected = np.asarray(frozen(inputs))
    frozen.save(tmp_path / "f.keras")
    again = keras.models.load_model(tmp_path / "f.keras")
    np.testing.assert_array_equal(again(inputs), expected)
    frozen.save_weights(tmp_path / "f.weights.h5")
    other = freeze(keras3.quantize(keras3_models.pali_gemma(), TernaryScheme(32)), "t5")
    for layer in packed_layers(other):
        layer.scales.assign(np.zeros(layer.scales.shape, np.float32))
    other.load_weights(tmp_path / "f.weights.h5")
    np.testing.assert_array_equal(other(inputs), expected)


def test_an_activation_is_fused_only_where_the_operator_has_it():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((30,))
    layers = [
        keras.layers.Dense(7, activation=activation, bias_initializer="normal")
        for activation in ("relu", "relu6", "gelu", None, keras.layers.LeakyReLU(0.3))
    ]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    model = keras3.quantize(model, TernaryScheme())
    x = 9 * np.random.default_rng(1).standard_normal((20, 30)).astype(np.float32)
    frozen = freeze(model, activations="float32")
    for got, expected in zip(frozen(x), model(x), strict=True):
        np.testing.assert_allclose(got, expected, atol=FLOAT_TOLERANCE)


def test_a_bias_along_another_axis_is_added_apart():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4, 6))
    dense = keras.layers.EinsumDense(
        "abc,cd->abd", (4, 5), bias_axes="bd", bias_initializer="normal", activation="relu"
    )
    model = keras3.quantize(keras.Model(inputs, dense(inputs)), TernaryScheme())
    x = np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32)
    frozen = freeze(model, activations="float32")
    np.testing.assert_allclose(frozen(x), model(x), atol=FLOAT_TOLERANCE)


def test_convolutions_without_an_operator_use_the_unpacked_kernel():
    keras.utils.set_random_seed(4)
    inputs = keras.Input((5, 6, 7, 4))
    x = keras.layers.Conv3D(4, 2, activation="relu")(inputs)
    x = keras.layers.Reshape((20, 6, 4))(x)
    x = keras.layers.Conv2D(6, 3, groups=2)(x)
    model = keras3.quantize(keras.Model(inputs, x), TernaryScheme())
    data = np.random.default_rng(1).standard_normal((2, 5, 6, 7, 4)).astype(np.float32)
    np.testing.assert_allclose(freeze(model)(data), model(data), atol=FLOAT_TOLERANCE)


def test_mixed_precision():
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((40,)), keras.layers.Dense(8, "relu", dtype="mixed_bfloat16")]
    )
    model = keras3.quantize(model, TernaryScheme())
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    frozen = freeze(model)
    assert frozen(x).dtype == tf.bfloat16
    assert frozen.layers[0].scales.dtype == "float32"
    # bfloat16 has 8 bits: sums of 40 terms of size 1 in the quantized model's own arithmetic.
    np.testing.assert_allclose(
        np.asarray(frozen(x), np.float32), np.asarray(model(x), np.float32), atol=0.1
    )


# tf_keras.


def cnn():
    tf_keras.utils.set_random_seed(12)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((9, 8, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="folded"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(6, 3, strides=2, activation="relu", name="activated"),
            layers.BatchNormalization(name="kept"),
            layers.Reshape((-1, 6)),
            layers.Conv1D(5, 3, padding="causal", name="causal"),
            layers.BatchNormalization(scale=False),
            layers.Flatten(),
            layers.Dense(10, name="dense"),
            layers.BatchNormalization(center=False),
            layers.Activation("relu"),
            layers.Dense(3, activation="softmax", name="head"),
        ]
    )


def attention():
    tf_keras.utils.set_random_seed(13)
    layers = tf_keras.layers
    ids = layers.Input((7,), dtype="int32")
    x = layers.Embedding(20, 16, name="table")(ids)
    y = layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.EinsumDense("abc,cde->abed", (7, 3, 4), bias_axes="ed", name="einsum")(x)
    return tf_keras.Model(ids, layers.Dense(2)(layers.Flatten()(x)))


def trained(model):
    """Statistics and factors as after training, some factors negative and one zero."""
    rng = np.random.default_rng(8)
    for weight in model.weights:
        name = weight.name.split("/")[-1].split(":")[0]
        if name in ("gamma", "beta", "moving_mean", "bias"):
            weight.assign(rng.standard_normal(weight.shape))
        if name == "moving_variance":
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        if name == "gamma":
            weight[0].assign(0.0)
    return model


def quantize_tf_keras(model, scheme):
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def inputs_of(model):
    rng = np.random.default_rng(6)
    shape = (5, *model.input_shape[1:])
    if len(shape) == 2:
        return rng.integers(0, 20, shape).astype(np.int32)
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "name"),
    [*((cnn, name) for name in SCHEMES), (attention, "channel"), (attention, "groups")],
)
def test_tf_keras_predictions(make, name):
    model = quantize_tf_keras(trained(make()), SCHEMES[name])
    inputs = inputs_of(model)
    expected = model.predict(inputs, verbose=0)
    exact = freeze(model, activations="float32").predict(inputs, verbose=0)
    np.testing.assert_allclose(exact, expected, atol=FLOAT_TOLERANCE)
    frozen = freeze(model)
    got = frozen.predict(inputs, verbose=0)
    np.testing.assert_allclose(got, expected, atol=int8_error_bound(expected))
    assert len(packed_layers(frozen)) == (5 if make is cnn else 6)


def test_batch_normalization_is_folded():
    model = quantize_tf_keras(trained(cnn()), SCHEMES["channel"])
    frozen = freeze(model)
    left = [
        layer.name for layer in frozen.layers if type(layer) is tf_keras.layers.BatchNormalization
    ]
    assert left == ["kept"]  # an activation stands between it and its convolution
    folded = frozen.get_layer("folded")
    assert folded.use_bias
    assert folded.activation is tf_keras.activations.relu
    assert (folded.packed_weights.scales >= 0).all()
    assert folded.packed_weights.scales[0] == 0  # gamma is zero there
    before = model.get_layer("quant_folded")
    factor = model.layers[1].gamma / np.sqrt(model.layers[1].moving_variance + 1e-3)
    np.testing.assert_allclose(
        folded.packed_weights.scales, np.abs(before.scales * factor), rtol=1e-6
    )
    assert not any(type(layer) is tf_keras.layers.ReLU for layer in frozen.layers)


def test_a_shared_output_is_not_folded():
    layers = tf_keras.layers
    inputs = layers.Input((20,))
    x = layers.Dense(6, name="dense")(inputs)
    outputs = [layers.BatchNormalization(name="norm")(x), layers.ReLU()(x)]
    model = quantize_tf_keras(trained(tf_keras.Model(inputs, outputs)), TernaryScheme())
    frozen = freeze(model, activations="float32")
    assert type(frozen.get_layer("norm")) is layers.BatchNormalization
    x = inputs_of(model).astype(np.float32) / 10
    for got, expected in zip(frozen(x), model(x), strict=True):
        np.testing.assert_allclose(got, expected, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize(
    ("make", "suffix"),  # "" is a SavedModel
    [(cnn, ".h5"), (cnn, ""), (attention, ".keras"), (attention, ".h5")],
)
def test_tf_keras_save_and_load(make, suffix, tmp_path):
    frozen = freeze(quantize_tf_keras(trained(make()), TernaryScheme(group_size=32)), "t5")
    inputs = inputs_of(frozen)
    path = str(tmp_path / f"model{suffix}")
    frozen.save(path)
    again = tf_keras.models.load_model(path)
    np.testing.assert_array_equal(
        again.predict(inputs, verbose=0), frozen.predict(inputs, verbose=0)
    )
    assert len(packed_layers(again)) == len(packed_layers(frozen))


def test_embedding_of_tf_keras():
    model = quantize_tf_keras(attention(), BinaryScheme(embeddings=True))
    inputs = inputs_of(model)
    frozen = freeze(model, activations="float32")
    assert frozen.get_layer("table").weight_format == "b1"
    np.testing.assert_allclose(
        frozen.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=FLOAT_TOLERANCE
    )


def test_models_load_in_a_process_that_knows_only_the_scope(tmp_path):
    quantized = keras3.quantize(keras3_models.mixed_model(), TernaryScheme())
    frozen = freeze(quantized)
    quantized.save(tmp_path / "quantized.keras")
    frozen.save(tmp_path / "frozen.keras")
    inputs = keras3_models.mixed_inputs()
    np.savez(tmp_path / "data.npz", x=inputs, quantized=quantized(inputs), frozen=frozen(inputs))
    freeze(quantize_tf_keras(cnn(), TernaryScheme())).save(tmp_path / "frozen_cnn.keras")
    program = """
import keras, numpy as np, tf_keras
import tfmot_ternary as tt
data = np.load("data.npz")
with tt.quantize_scope():
    for name in ("quantized", "frozen"):
        model = keras.models.load_model(name + ".keras")
        np.testing.assert_array_equal(model(data["x"]), data[name])
    print(type(tf_keras.models.load_model("frozen_cnn.keras").layers[0]).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "PackedConv2D"


# What is refused.


def test_errors_name_the_way():
    keras3_model = keras3_models.mixed_model()
    for model in (keras3_model, cnn()):
        with pytest.raises(ValueError, match="in float: quantize it first"):
            freeze(model)
    quantized = keras3.quantize(keras3_model, TernaryScheme())
    with pytest.raises(ValueError, match="frozen already"):
        freeze(freeze(quantized))
    with pytest.raises(ValueError, match="frozen already"):
        freeze(freeze(quantize_tf_keras(cnn(), TernaryScheme())))
    with pytest.raises(ValueError, match="expected weight_format None or out of"):
        freeze(quantized, "t3")
    with pytest.raises(ValueError, match="expected a ternary format"):
        freeze(quantized, "b1")
    with pytest.raises(ValueError, match="expected activations out of"):
        freeze(quantized, activations="int4")
    with pytest.raises(TypeError, match="expected a tf_keras or Keras 3 model"):
        freeze("model.keras")


def test_diverged_training_is_refused():
    model = keras3.quantize(keras3_models.mixed_model(), TernaryScheme())
    scale = model.get_layer("shared").kernel_scale
    scale.assign(np.full(scale.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="finite scales in layer 'shared'"):
        freeze(model)
