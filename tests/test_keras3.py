"""Quantization-aware training on Keras 3 models."""

from __future__ import annotations

import causal_lms
import keras
import keras3_models
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import keras3, packing
from tfmot_ternary.freezing import freeze
from tfmot_ternary.keras3_structure import nested_layers
from tfmot_ternary.scheme import BinaryScheme, TernaryScheme

SCHEMES = {
    "channel": TernaryScheme(),
    "tensor": TernaryScheme(group_size="tensor"),
    "groups": TernaryScheme(group_size=32),
    "binary": BinaryScheme(),
}


@pytest.fixture(scope="module")
def pali_gemma():
    return keras3_models.pali_gemma()


def quantized(model):
    return [layer for _, layer in nested_layers(model) if keras3.is_quantized(layer)]


@pytest.mark.parametrize("name", SCHEMES)
def test_values_are_codes_times_scales(name):
    scheme = SCHEMES[name]
    model = keras3.quantize(keras3_models.mixed_model(), scheme)
    layers = quantized(model)
    assert len(layers) == 10  # two Conv2D, Conv1D, Dense, four of attention, EinsumDense, head
    for layer in layers:
        layout = layer.kernel_layout
        weights = layout.to_matrix(np.asarray(layer.float_weights))
        scales = packing.expand_scales(
            np.asarray(layer.kernel_scale), layout.n, layout.k, scheme.group_size
        )
        if scheme.levels == 3:
            codes = np.sign(weights) * (np.abs(weights) > scales / 2)
        else:
            codes = np.where(weights >= 0, 1, -1)
        # Exact: a code times a float32 does not round.
        np.testing.assert_array_equal(layout.to_matrix(np.asarray(layer.kernel)), codes * scales)


def test_every_dense_and_convolution_of_pali_gemma_is_quantized(pali_gemma):
    model = keras3.quantize(pali_gemma, TernaryScheme())
    kinds = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv2D)
    expected = [path for path, layer in nested_layers(model) if isinstance(layer, kinds)]
    listed = keras3.quantized_layers(model)
    assert [layer.path for layer in listed] == expected
    # Patch embedding, 4 + 2 of a vision block, its head; 4 + 3 of each of two decoder blocks.
    assert len(listed) == 1 + 6 + 1 + 2 * 7
    by_name = {layer.path.split("/", 1)[1]: layer for layer in listed}
    query = by_name["decoder_block_0/attention/query"]
    assert (query.kernel_shape, query.n, query.k) == ((3, 24, 10), 30, 24)
    output = by_name["decoder_block_1/attention/attention_output"]
    assert (output.kernel_shape, output.n, output.k) == ((3, 10, 24), 24, 30)


def test_the_given_model_stays_as_it_was(pali_gemma):
    before = pali_gemma.get_weights()
    inputs = keras3_models.pali_gemma_inputs()
    expected = np.asarray(pali_gemma(inputs))
    model = keras3.quantize(pali_gemma, TernaryScheme())
    assert type(model) is not type(pali_gemma)
    assert isinstance(model, type(pali_gemma))
    assert not any(keras3.is_quantized(layer) for _, layer in nested_layers(pali_gemma))
    for old, new in zip(before, pali_gemma.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(np.asarray(pali_gemma(inputs)), expected)
    latent = [w for w in model.weights if w.name != "kernel_scale"]
    for old, new in zip(before, latent, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))


def test_skip_goes_by_path_or_name(pali_gemma):
    scheme = TernaryScheme(skip=["decoder_block_0/", "^ffw_linear$", "vit"])
    listed = keras3.quantized_layers(keras3.quantize(pali_gemma, scheme))
    names = [layer.path.split("/", 1)[1] for layer in listed]
    attention = [f"attention/{name}" for name in ("query", "key", "value", "attention_output")]
    expected = [*attention, "ffw_gating", "ffw_gating_2"]
    assert names == [f"decoder_block_1/{name}" for name in expected]


def test_embeddings_are_opt_in(pali_gemma):
    model = keras3.quantize(pali_gemma, TernaryScheme(embeddings=True))
    table = model.backbone.token_embedding
    assert keras3.is_quantized(table)
    assert table.kernel_scale.shape == (keras3_models.VOCABULARY,)
    values = np.asarray(table(np.array([3])))[0]
    scale = float(table.kernel_scale[3])
    assert set(np.unique(values)) <= {np.float32(-scale), 0.0, np.float32(scale)}


def test_gradients_are_straight_through():
    inputs = keras.Input((40,))
    model = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(inputs))
    model = keras3.quantize(model, TernaryScheme(group_size=32))
    (layer,) = quantized(model)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 40)).astype(np.float32)
    dy = rng.standard_normal((5, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x) * dy)
    dw, da = tape.gradient(loss, [layer.float_weights.value, layer.kernel_scale.value])
    # Sums of 5 float32 products of size 10: rounding stays below 1e-5.
    np.testing.assert_allclose(dw, x.T @ dy, atol=1e-5)
    w = np.asarray(layer.float_weights).T
    a = packing.expand_scales(np.asarray(layer.kernel_scale), 3, 40, 32)
    per_weight = (dy.T @ x) * np.sign(w) * (np.abs(w) > a / 2)
    expected = np.stack([per_weight[:, :32].sum(1), per_weight[:, 32:].sum(1)], axis=1)
    np.testing.assert_allclose(da, expected, atol=1e-4)


def test_training_lowers_the_loss_and_moves_the_scales():
    model = keras3_models.mixed_model()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model = keras3.quantize(model, TernaryScheme())
    scales = [np.array(layer.kernel_scale) for layer in quantized(model)]
    x = keras3_models.mixed_inputs(16)
    y = x.mean(axis=(1, 2, 3), keepdims=False)[:, None]
    losses = model.fit(x, y, epochs=8, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    for old, layer in zip(scales, quantized(model), strict=True):
        assert not np.array_equal(old, layer.kernel_scale)
        assert (np.asarray(layer.kernel_scale) >= 0).all()


def test_untrained_scales_where_the_scheme_says_so():
    model = keras3.quantize(keras3_models.mixed_model(), TernaryScheme(trainable_scales=False))
    assert not any(layer.kernel_scale.trainable for layer in quantized(model))
    assert all(layer.float_weights.trainable for layer in quantized(model))


def test_frozen_layers_stay_frozen():
    model = keras3_models.mixed_model()
    model.get_layer("attention").trainable = False
    model = keras3.quantize(model, TernaryScheme())
    trained = {id(v) for v in model.trainable_variables}
    assert not trained & {id(v) for v in model.get_layer("attention").variables}
    assert id(model.get_layer("shared").kernel_scale) in trained


def test_weights_round_trip(pali_gemma, tmp_path):
    scheme = TernaryScheme(group_size=32)
    model = keras3.quantize(pali_gemma, scheme)
    for layer in quantized(model):
        layer.kernel_scale.assign(layer.kernel_scale * 0.75)
    model.save_weights(tmp_path / "q.weights.h5")
    again = keras3.quantize(pali_gemma, scheme)
    inputs = keras3_models.pali_gemma_inputs()
    assert not np.array_equal(again(inputs), model(inputs))
    again.load_weights(tmp_path / "q.weights.h5")
    np.testing.assert_array_equal(again(inputs), model(inputs))


@pytest.mark.parametrize("make", ["mixed", "pali_gemma"])
def test_keras_files_round_trip(make, tmp_path):
    if make == "mixed":
        model, inputs = keras3_models.mixed_model(), keras3_models.mixed_inputs()
        model.compile("adam", "mse")
    else:
        model, inputs = keras3_models.pali_gemma(), keras3_models.pali_gemma_inputs()
    model = keras3.quantize(model, BinaryScheme(group_size="tensor"))
    if make == "mixed":
        model.fit(inputs, np.zeros((len(inputs), 1)), verbose=0)
    model.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    assert isinstance(again, keras3.QuantizedModel)
    np.testing.assert_array_equal(again(inputs), model(inputs))
    old, new = keras3.quantized_layers(model), keras3.quantized_layers(again)
    assert [(a.kernel_shape, a.levels, a.group_size) for a in old] == [
        (b.kernel_shape, b.levels, b.group_size) for b in new
    ]
    if make == "mixed":  # the optimizer came along, with its moments of the scales
        assert len(again.optimizer.variables) == len(model.optimizer.variables)
        again.fit(inputs, np.zeros((len(inputs), 1)), verbose=0)


def test_presets_load_as_their_own_class_after_a_model_was_frozen():
    # KerasHub's from_preset takes one of all registered classes that have a preset's backbone, in
    # the order of a set: with a second such class the outcome would differ from run to run.
    frozen = freeze(keras3.quantize(causal_lms.pali_gemma(), TernaryScheme()))
    assert isinstance(frozen, keras_hub.models.PaliGemmaCausalLM)
    fitting = {
        cls
        for cls in keras.saving.get_custom_objects().values()
        if isinstance(cls, type)
        and issubclass(cls, keras_hub.models.CausalLM)
        and cls.backbone_cls is keras_hub.models.PaliGemmaBackbone
    }
    assert fitting == {keras_hub.models.PaliGemmaCausalLM}


def test_mixed_precision_quantizes_the_float32_values():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((50,)), keras.layers.Dense(8, dtype="mixed_bfloat16", use_bias=False)]
    )
    model = keras3.quantize(model, TernaryScheme())
    (layer,) = quantized(model)
    # Weights just above the threshold: in bfloat16 they would round to it, and become 0.
    layer.kernel_scale.assign(np.ones(8, np.float32))
    layer.float_weights.assign(np.full((50, 8), 0.5005, np.float32))
    assert layer.kernel.dtype == "bfloat16"
    assert np.asarray(model(np.ones((1, 50), np.float32)))[0, 0] == 50


class Doubled(keras.layers.Layer):
    """A layer with a weight matrix that nobody knows."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=(input_shape[-1], input_shape[-1]), name="table")

    def call(self, x):
        return x @ self.table


def test_unknown_layers_stay_in_float_with_one_warning():
    inputs = keras.Input((6,))
    x = Doubled(name="mine")(inputs)
    x = keras.layers.Reshape((2, 3))(x)
    x = keras.layers.LSTM(4, name="memory")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    with pytest.warns(UserWarning, match="left in float: mine .*Doubled.*memory") as records:
        quantized_model = keras3.quantize(model, TernaryScheme())
    assert len([r for r in records if "left in float" in str(r.message)]) == 1
    assert len(keras3.quantized_layers(quantized_model)) == 1


def test_a_kernel_with_a_batch_axis_stays_in_float():
    inputs = keras.Input((3, 6))
    x = keras.layers.EinsumDense("abc,bcd->abd", (3, 5), name="per_position")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    with pytest.warns(UserWarning, match="per_position .*batch axis"):
        quantized_model = keras3.quantize(model, TernaryScheme())
    assert len(keras3.quantized_layers(quantized_model)) == 1


def test_bad_models_are_refused(pali_gemma):
    scheme = TernaryScheme()
    with pytest.raises(ValueError, match="quantized already"):
        keras3.quantize(keras3.quantize(pali_gemma, scheme), scheme)
    with pytest.raises(TypeError, match="expected a Keras 3 model"):
        keras3.quantize(object(), scheme)
    with pytest.raises(ValueError, match="none that the scheme does not skip"):
        keras3.quantize(pali_gemma, TernaryScheme(skip="."))
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="built"):
        keras3.quantize(unbuilt, scheme)

    class Subclassed(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = keras.layers.Dense(units)

        def call(self, x):
            return self.dense(x)

    subclassed = Subclassed(3)
    subclassed(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="own config rebuilds"):
        keras3.quantize(subclassed, scheme)


def test_nan_in_a_kernel_names_the_layer():
    model = keras3_models.mixed_model()
    kernel = model.get_layer("shared").kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="shared"):
        keras3.quantize(model, TernaryScheme())


def test_weights_of_a_float_model_do_not_load_into_a_quantized_one(pali_gemma, tmp_path):
    pali_gemma.save_weights(tmp_path / "f.weights.h5")
    model = keras3.quantize(pali_gemma, TernaryScheme())
    with pytest.raises(ValueError, match="kernel_scale"):
        model.load_weights(tmp_path / "f.weights.h5")


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match='expected the "tensorflow" backend'):
        keras3.quantize(keras3_models.mixed_model(), TernaryScheme())


def test_a_quantized_layer_alone_cannot_be_cloned():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = keras3.quantize(model, TernaryScheme())
    with pytest.raises(ValueError, match="whole quantized model"):
        keras.models.clone_model(model)
