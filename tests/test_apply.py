"""tt.quantize_apply: the one entry for tf_keras and Keras 3."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
import tf_keras_models as models

import tfmot_ternary as tt
from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper

layers = tf_keras.layers


def names(model):
    """Names of all wrapped layers, nested models included."""
    return sorted(
        layer.layer.name for layer in model.submodules if isinstance(layer, KernelQuantizeWrapper)
    )


@pytest.mark.parametrize("make", [models.cnn, models.transformer, models.cross_attention])
def test_plain_and_annotated_models_give_the_same(make):
    model = make()
    before = model.get_weights()
    inputs = models.inputs_of(model)
    plain = tt.quantize_apply(model, tt.TernaryScheme())
    annotated = tt.quantize_apply(
        tfmot.quantization.keras.quantize_annotate_model(model), tt.TernaryScheme()
    )
    for got, want in zip(plain.predict(inputs), annotated.predict(inputs), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    for layer in model.layers:  # the given model was not called again
        assert len(layer.inbound_nodes) <= 1 or layer.name == "shared"
        assert not isinstance(layer, (KernelQuantizeWrapper, QuantizedMultiHeadAttention))


@pytest.mark.parametrize("suffix", ["m.keras", "m.h5", "m"])
def test_shared_layers_and_nested_models(suffix, tmp_path):
    model = models.shared_and_nested()
    quantized = tt.quantize_apply(model, tt.TernaryScheme())
    inner = [layer.name for layer in model.layers[2].layers]
    assert names(quantized) == sorted(["shared", "head", "lstm", *inner])
    inputs = models.inputs_of(quantized)
    quantized.compile("adam", "mse")
    quantized.fit(inputs, np.zeros((6, 3)), verbose=0)
    quantized.save(tmp_path / suffix)
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / suffix)
    np.testing.assert_array_equal(again.predict(inputs), quantized.predict(inputs))


def test_skip_leaves_a_nested_model_alone():
    quantized = tt.quantize_apply(models.shared_and_nested(), tt.BinaryScheme(skip="^inner$"))
    assert names(quantized) == ["head", "lstm", "shared"]


def test_lambda_and_custom_layers_stay():
    class Double(layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((4,)),
                layers.Dense(3),
                layers.Lambda(lambda x: x + 1),
                Double(),
                layers.Dense(2),
            ]
        )
    )
    with tt.quantize_scope({"Double": Double}):
        quantized = tt.quantize_apply(model, tt.TernaryScheme())
    types = [type(layer).__name__ for layer in quantized.layers]
    assert types == ["KernelQuantizeWrapper", "Lambda", "Double", "KernelQuantizeWrapper"]


def test_keras_3():
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(8)])
    quantized = tt.quantize_apply(model, tt.TernaryScheme(group_size=32))
    assert isinstance(quantized, keras.Model)
    x = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    kernel, bias = model.get_weights()
    scales = np.concatenate(
        [tt.KMeansInitializer()(kernel.T[:, part], 3)[:, None] for part in np.s_[:32, 32:]], axis=1
    )
    full = np.repeat(scales, 32, axis=1)[:, :40]
    values = np.where(np.abs(kernel.T) > full / 2, np.sign(kernel.T) * full, 0)
    # Another order of summation in the matrix product.
    np.testing.assert_allclose(np.asarray(quantized(x)), x @ values.T + bias, rtol=1e-4, atol=1e-5)


class Subclassed(tf_keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Subclassed(name="mine"), ValueError, "subclassed model 'mine'"),
        (lambda: tf_keras.Sequential([layers.Dense(3)], "late"), ValueError, "built.*'late'"),
        (
            lambda: tt.quantize_apply(models.cnn(), tt.TernaryScheme()),
            ValueError,
            "layer 'quant_.*quantized already",
        ),
        (
            lambda: tf_keras.Sequential([layers.Input((3,)), layers.ReLU()], "none"),
            ValueError,
            "at least one layer of model 'none'",
        ),
        (lambda: layers.Dense(3), TypeError, "got tf_keras.*Dense"),
        (lambda: None, TypeError, "got builtins.NoneType"),
    ],
)
def test_bad_models(make, error, message):
    with pytest.raises(error, match=message):
        tt.quantize_apply(make(), tt.TernaryScheme())
