"""The QuantizeConfigs that tfmot's guide writes, next to our scheme, all the way into a file.

Each one: annotate, quantize, fit, save, load, freeze, convert, run in both interpreters.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from test_tfmot_guide import ClipQuantizer

import tfmot_ternary as tt
from tfmot_ternary.packed_layer import PackedLayer

SEED = 53
WIDTH = 20
# Sums of 20 float32 terms of size 1 in another order.
FLOAT_TOLERANCE = 1e-5
# One step of 8 bits on tfmot's first range [-6, 6], which a few training steps hardly move.
STEP = 12 / 255
guide = tfmot.quantization.keras
layers = tf_keras.layers


class UsersDense(layers.Dense):
    """A user's layer that is a Dense but in name."""


class UsersConfig(guide.QuantizeConfig):
    """Weights and the activation by tfmot's quantizers."""

    bits = 8

    def get_weights_and_quantizers(self, layer):
        quantizer = guide.quantizers.LastValueQuantizer(
            num_bits=self.bits, symmetric=True, narrow_range=False, per_axis=False
        )
        return [(layer.kernel, quantizer)]

    def get_activations_and_quantizers(self, layer):
        quantizer = guide.quantizers.MovingAverageQuantizer(
            num_bits=8, symmetric=False, narrow_range=False, per_axis=False
        )
        return [(layer.activation, quantizer)]

    def set_quantize_weights(self, layer, quantize_weights):
        (layer.kernel,) = quantize_weights

    def set_quantize_activations(self, layer, quantize_activations):
        (layer.activation,) = quantize_activations

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


class FourBits(UsersConfig):
    """Modified parameters."""

    bits = 4


class SixteenBits(UsersConfig):
    bits = 16


class WeightsOnly(UsersConfig):
    """Modified parts: the activation stays float."""

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        pass


class UsersAlgorithm(WeightsOnly):
    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, ClipQuantizer())]


class OurQuantizer(WeightsOnly):
    """One of our quantizers in a config of the user's own."""

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, tt.TernaryQuantizer(group_size="tensor"))]


class OursWithActivations(tt.TernaryQuantizeConfig):
    """Our config with tfmot's rounding of the activation."""

    get_activations_and_quantizers = UsersConfig.get_activations_and_quantizers
    set_quantize_activations = UsersConfig.set_quantize_activations


CONFIGS = (
    UsersConfig,
    FourBits,
    SixteenBits,
    WeightsOnly,
    UsersAlgorithm,
    OurQuantizer,
    OursWithActivations,
)
SCOPE = {cls.__name__: cls for cls in (UsersDense, *CONFIGS)}


def data():
    rng = np.random.default_rng(SEED)
    return rng.standard_normal((32, WIDTH)).astype(np.float32), rng.integers(0, 4, 32)


def quantized_model(config, activation_bits=None):
    """A user's layer with its own config before a Dense that is the scheme's; trained."""
    tf_keras.utils.set_random_seed(SEED)
    chosen = UsersDense(12, activation="relu", name="chosen")
    annotated = guide.quantize_annotate_model(
        tf_keras.Sequential(
            [
                layers.Input((WIDTH,)),
                guide.quantize_annotate_layer(chosen, config()),
                layers.Dense(4, name="rest"),
                layers.Flatten(),
            ]
        )
    )
    with tt.quantize_scope(SCOPE):
        model = guide.quantize_apply(annotated, tt.TernaryScheme(activation_bits=activation_bits))
    x, y = data()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(1e-2), loss)
    before = [w.numpy() for w in model.trainable_weights]
    model.fit(x, y, epochs=3, verbose=0)
    assert all(np.any(a != b.numpy()) for a, b in zip(before, model.trainable_weights, strict=True))
    return model


def run(content, x, backend):
    runner = tt.runtime.make_interpreter(content, backend=backend).get_signature_runner()
    (y,) = runner(**{next(iter(runner.get_input_details())): x}).values()
    return y


@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("config", [UsersConfig, WeightsOnly, UsersAlgorithm, OurQuantizer])
def test_the_whole_way(config, activation_bits, tmp_path):
    x, _ = data()
    model = quantized_model(config, activation_bits)
    want = model(x).numpy()
    assert want.std(axis=0).max() > 0.1
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        with tt.quantize_scope(SCOPE):
            again = tf_keras.models.load_model(tmp_path / name)
        np.testing.assert_array_equal(again(x), want)
    # No scope from here on: the model has the user's classes in it.
    frozen = tt.freeze(again, activations="float32")
    names = [layer.name for layer in frozen.layers if isinstance(layer, PackedLayer)]
    assert names == ["rest"]
    np.testing.assert_allclose(frozen(x), want, atol=FLOAT_TOLERANCE)
    content = tt.convert(frozen)
    for backend in tt.runtime.BACKENDS:
        got = run(content, x, backend)
        # A sum beside a rounding border may fall on either side of it in the interpreter: a step
        # of the hidden layer times a weight below 1, and a step of the last rounding.
        np.testing.assert_allclose(got, want, atol=2 * STEP)
        assert np.mean(np.abs(got - want) < FLOAT_TOLERANCE) > 0.9


def test_our_config_with_rounded_activations():
    """Freezing leaves their rounding out and says so."""
    x, _ = data()
    model = quantized_model(OursWithActivations)
    with pytest.warns(UserWarning, match="'chosen' is frozen without the rounding.*OursWith"):
        frozen = tt.freeze(model, activations="float32")
    assert [layer.name for layer in frozen.layers[:2]] == ["chosen", "rest"]
    hidden = model.layers[0](x).numpy()
    packed = frozen.layers[0](x).numpy()
    # Rounding to the nearest of 256 values moves each by up to half a step, and most by some.
    assert 0.1 * STEP < np.abs(packed - hidden).max() <= 0.51 * STEP
    content = tt.convert(frozen)
    for backend in tt.runtime.BACKENDS:
        np.testing.assert_allclose(run(content, x, backend), frozen(x), atol=FLOAT_TOLERANCE)


def test_other_widths_than_eight_bits():
    """tfmot's own files of them do not run either; here the converter's call says so."""
    x, _ = data()
    model = quantized_model(FourBits)
    with pytest.warns(UserWarning, match="num_bits=8, got UINT4, which only LiteRT's has.*chosen"):
        content = tt.convert(model, activations="float32")
    want = model(x).numpy()
    got = run(content, x, "litert")
    np.testing.assert_allclose(got, want, atol=2 * STEP)
    assert np.mean(np.abs(got - want) < FLOAT_TOLERANCE) > 0.9
    with pytest.raises(RuntimeError, match="DEQUANTIZE"):
        run(content, x, "tf")
    with pytest.raises(ValueError, match="got UINT16, which no interpreter has.*chosen.*take 8"):
        tt.convert(quantized_model(SixteenBits))
