"""TernaryScheme and BinaryScheme through tfmot's own functions, on tf_keras models."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
import tf_keras_models as models
from sklearn.datasets import load_digits

import tfmot_ternary as tt
from tfmot_ternary import initializers, quantizers
from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.packing import expand_scales
from tfmot_ternary.quantize_config import (
    BinaryQuantizeConfig,
    TernaryQuantizeConfig,
    kernel_attribute,
    kernel_layout,
)
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper

SEED = 23
annotate_layer = tfmot.quantization.keras.quantize_annotate_layer
layers = tf_keras.layers


def apply(model, scheme):
    """The two lines of tfmot's guide."""
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def wrappers_of(model):
    """{name of the wrapped layer: wrapper}, those inside attention as attention/query and so on."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, KernelQuantizeWrapper):
            found[layer.layer.name] = layer
        elif isinstance(layer, QuantizedMultiHeadAttention):
            found |= {f"{layer.name}/{name}": w for name, w in layer.projections.items()}
    return found


def kernels_of(model):
    """{name: (layer, kernel)} of a float model, named as in `wrappers_of`."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, layers.MultiHeadAttention):
            for name in ("query", "key", "value", "output"):
                inner = getattr(layer, f"_{name}_dense")
                found[f"{layer.name}/{name}"] = (inner, inner.kernel)
        elif type(layer) in (layers.Dense, layers.Conv1D, layers.Conv2D, layers.EinsumDense):
            found[layer.name] = (layer, layer.kernel)
        elif type(layer) is layers.Embedding:
            found[layer.name] = (layer, layer.embeddings)
    return found


def outputs_of(model, inputs):
    return tf.nest.flatten(model.predict(inputs, verbose=0))


def assert_same_outputs(model, other, inputs):
    for got, want in zip(outputs_of(model, inputs), outputs_of(other, inputs), strict=True):
        np.testing.assert_array_equal(got, want)


MODELS = [models.cnn, models.transformer, models.cross_attention]
SCHEMES = [tt.TernaryScheme, tt.BinaryScheme]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    ("scheme_class", "group_size"),
    [
        (tt.TernaryScheme, None),
        (tt.TernaryScheme, 32),
        (tt.BinaryScheme, "tensor"),
        (tt.BinaryScheme, 32),
    ],
)
def test_quantized_model_computes_with_codes_times_scales(make, scheme_class, group_size):
    """Oracle: the float model with its kernels replaced by the dequantized values."""
    model = make()
    before = model.get_weights()
    inputs = models.inputs_of(model)
    scheme = scheme_class(group_size=group_size, embeddings=True)
    quantized = apply(model, scheme)
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    wrappers, kernels = wrappers_of(quantized), kernels_of(model)
    assert set(wrappers) == set(kernels)
    for name, (layer, kernel) in kernels.items():
        layout = kernel_layout(layer)
        matrix = layout.to_matrix(kernel.numpy())
        scales = initializers.initial_scales(matrix, scheme.levels, group_size)
        np.testing.assert_array_equal(wrappers[name].scales.numpy(), scales)
        codes = quantizers.weight_codes(matrix, scales, scheme.levels, group_size)
        values = codes * expand_scales(scales, layout.n, layout.k, group_size)
        kernel.assign(layout.from_matrix(values))
        assert getattr(wrappers[name].layer, kernel_attribute(layer)).shape == kernel.shape
    assert_same_outputs(quantized, model, inputs)


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def fitted(request):
    """(quantized model, inputs, targets): one training step away from its initial scales."""
    quantized = apply(request.param(), tt.TernaryScheme(group_size=32, embeddings=True))
    inputs = models.inputs_of(quantized)
    # Only the first output is trained: Keras would apply the mask of the ids to attention scores.
    quantized.compile("sgd", ["mse", *[None] * (len(quantized.outputs) - 1)])
    targets = [y + 1 for y in outputs_of(quantized, inputs)]
    quantized.fit(inputs, targets, verbose=0)
    return quantized, inputs, targets


@pytest.mark.parametrize("how", ["keras", "h5", "saved_model", "clone", "json", "checkpoint"])
def test_round_trip(fitted, how, tmp_path):
    quantized, inputs, targets = fitted
    with tt.quantize_scope():
        if how == "clone":
            again = tf_keras.models.clone_model(quantized)
            again.set_weights(quantized.get_weights())
        elif how == "json":
            again = tf_keras.models.model_from_json(quantized.to_json())
            again.set_weights(quantized.get_weights())
        elif how == "checkpoint":
            quantized.save_weights(str(tmp_path / "weights"))
            again = tf_keras.models.clone_model(quantized)
            again.load_weights(str(tmp_path / "weights")).assert_existing_objects_matched()
        else:
            path = str(tmp_path / {"keras": "m.keras", "h5": "m.h5", "saved_model": "m"}[how])
            quantized.save(path)
            again = tf_keras.models.load_model(path)
    assert_same_outputs(again, quantized, inputs)
    assert [w.shape for w in again.weights] == [w.shape for w in quantized.weights]
    assert len(again.trainable_weights) == len(quantized.trainable_weights)
    if how in ("keras", "h5"):  # these restore the optimizer, and training goes on
        again.fit(inputs, targets, verbose=0)


class Counting(tt.ScaleInitializer):
    """A user's initializer; it counts its calls."""

    calls = 0

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, weights, levels, importance=None):
        Counting.calls += 1
        return np.abs(weights).mean(axis=1) * np.float32(self.factor)

    def get_config(self):
        return {"factor": self.factor}


@pytest.mark.parametrize("suffix", ["m.keras", "m.h5", "m"])
def test_users_initializer_runs_once_and_never_on_load(suffix, tmp_path):
    model = models.cnn()
    Counting.calls = 0
    quantized = apply(model, tt.TernaryScheme(initializer=Counting(0.5)))
    assert Counting.calls == 2  # conv and head
    want = np.abs(model.get_layer("head").kernel.numpy()).mean(axis=0) * np.float32(0.5)
    scales = wrappers_of(quantized)["head"].scales
    # Order of summation in float32.
    np.testing.assert_allclose(scales.numpy(), want, rtol=1e-6)
    scales.assign(scales * 2)
    quantized.save(tmp_path / suffix)
    with tt.quantize_scope({"Counting": Counting}):
        again = tf_keras.models.load_model(tmp_path / suffix)
    assert Counting.calls == 2
    np.testing.assert_array_equal(wrappers_of(again)["head"].scales.numpy(), scales.numpy())
    if suffix != "m":  # a SavedModel also holds the traced computation and needs no class
        with pytest.raises(ValueError, match="quantize_scope"), tt.quantize_scope():
            tf_keras.models.load_model(tmp_path / suffix)


@pytest.mark.parametrize("trainable", [True, False])
def test_training_changes_kernels_and_scales(trainable):
    quantized = apply(models.transformer(), tt.TernaryScheme(trainable_scales=trainable))
    inputs = models.inputs_of(quantized)
    before = {name: w.scales.numpy() for name, w in wrappers_of(quantized).items()}
    kernels = {name: w.layer.kernel.numpy() for name, w in wrappers_of(quantized).items()}
    quantized.compile("adam", ["mse", None])
    quantized.fit(inputs, [np.ones((6, 3)), np.zeros((6, 2, 7, 7))], epochs=2, verbose=0)
    for name, wrapper in wrappers_of(quantized).items():
        assert np.any(wrapper.scales.numpy() != before[name]) == trainable, name
        assert (wrapper.scales.numpy() >= 0).all()
        assert np.any(wrapper.layer.kernel.numpy() != kernels[name]), name


def test_frozen_layer_stays_frozen(tmp_path):
    model = models.cnn()
    model.get_layer("conv").trainable = False
    quantized = apply(model, tt.TernaryScheme())
    conv = wrappers_of(quantized)["conv"]
    assert conv.trainable_weights == []
    assert len(quantized.trainable_weights) == 2 + 3  # gamma, beta; kernel, bias, scales
    before = conv.get_weights()
    quantized.compile("adam", "mse")
    (x,) = models.inputs_of(quantized)
    quantized.fit(x, np.zeros((6, 10)), verbose=0)
    for got, want in zip(conv.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    # Frozen or thawed after it was saved: the order of the weights does not depend on it.
    wrappers_of(quantized)["head"].trainable = False
    conv.trainable = True
    quantized.save(tmp_path / "m.h5")
    with tt.quantize_scope():
        assert_same_outputs(tf_keras.models.load_model(tmp_path / "m.h5"), quantized, [x])


def test_masks_pass_through():
    """Positions of id 0 are masked: their embedding must not reach the output."""
    ids = tf_keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(ids)
    x = layers.Dense(8, name="dense")(x)
    model = models.randomize(tf_keras.Model(ids, layers.GlobalAveragePooling1D()(x)))
    quantized = apply(model, tt.TernaryScheme(embeddings=True))
    inputs = np.array([[1, 2, 3, 0, 0, 0, 0]])
    before = quantized.predict(inputs, verbose=0)
    table = wrappers_of(quantized)["embedding"].layer.embeddings
    changed = table.numpy()
    changed[0] = 100
    table.assign(changed)
    np.testing.assert_array_equal(quantized.predict(inputs, verbose=0), before)


def float_layers_model():
    return models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((8, 8, 4)),
                layers.DepthwiseConv2D(3, name="depthwise"),
                layers.Conv2D(4, 1, name="conv"),
                layers.LayerNormalization(),
                layers.GroupNormalization(2),
                layers.UnitNormalization(),
                layers.Activation("tanh"),
                layers.Softmax(),
                layers.AveragePooling2D(2, 1),
                layers.UpSampling2D(),
                layers.ZeroPadding2D(),
                layers.Reshape((-1, 4)),
                layers.Permute((2, 1)),
                layers.GaussianNoise(0.1),
                layers.SpatialDropout1D(0.1),
                layers.Flatten(),
                layers.Dense(2, name="head"),
            ]
        )
    )


def test_layers_left_in_float():
    model = float_layers_model()
    with pytest.warns(UserWarning, match="float weights by default: 'depthwise'.*few weights"):
        quantized = apply(model, tt.TernaryScheme())
    assert set(wrappers_of(quantized)) == {"conv", "head"}
    for layer, original in zip(quantized.layers, model.layers, strict=True):
        assert isinstance(layer, (KernelQuantizeWrapper, type(original)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        apply(models.cnn(), tt.TernaryScheme())  # nothing to warn of


def test_unsupported_layer_that_the_user_annotated():
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((8, 8, 4)),
                annotate_layer(layers.LocallyConnected2D(3, 3, name="local")),
                layers.Conv2D(4, 1, name="conv"),
            ]
        )
    )
    with pytest.raises(ValueError, match=r"got 'local' \(LocallyConnected2D\).*do not annotate"):
        tfmot.quantization.keras.quantize_apply(model, tt.TernaryScheme())
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((8, 8, 4)),
                annotate_layer(layers.LocallyConnected2D(3, 3), TernaryQuantizeConfig()),
            ]
        )
    )
    with pytest.raises(ValueError, match=r"expected layer 'locally.*to be one of Dense"):
        tfmot.quantization.keras.quantize_apply(model, tt.TernaryScheme())


def test_mixing_by_annotation(tmp_path):
    """Ternary, binary, tfmot's 8-bit quantizer and float in one model; float layers not wrapped."""
    eight_bit = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    dense = layers.Dense(6, activation="relu", name="eight_bit")
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((5,)),
                layers.Dense(8, name="first"),
                annotate_layer(layers.Dense(7, name="ternary")),
                annotate_layer(layers.Dense(6, name="binary"), BinaryQuantizeConfig(32)),
                annotate_layer(dense, eight_bit.get_quantize_config(dense)),
                layers.Dense(2, name="last"),
            ]
        )
    )
    with tt.quantize_scope():  # for tfmot's own config; ours are known to Keras
        quantized = tfmot.quantization.keras.quantize_apply(model, tt.TernaryScheme())
    wrappers = wrappers_of(quantized)
    assert {name: w.quantize_config.levels for name, w in wrappers.items()} == {
        "ternary": 3,
        "binary": 2,
    }
    assert wrappers["binary"].scales.shape == (6, 1)
    types = [type(layer).__name__ for layer in quantized.layers]
    # The 8-bit layer comes with rounded inputs, as TF Lite's integer operators need them.
    eight_bit_layers = ["ActivationQuantizer", "SavableQuantizeWrapper"]
    assert types == ["Dense", *["KernelQuantizeWrapper"] * 2, *eight_bit_layers, "Dense"]
    inputs = models.inputs_of(quantized)
    quantized.compile("adam", "mse")
    quantized.fit(inputs, np.zeros((6, 2)), verbose=0)
    quantized.save(tmp_path / "m.h5")
    with tt.quantize_scope():
        assert_same_outputs(tf_keras.models.load_model(tmp_path / "m.h5"), quantized, inputs)


def test_our_config_inside_tfmots_8bit_scheme(tmp_path):
    """Then tfmot's own QuantizeWrapperV2 holds our quantizer, and its weights keep one order.

    Saved as HDF5: tfmot's QuantizeLayer, which the 8-bit scheme adds, cannot load .keras files.
    """
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((5,)),
                layers.Dense(8, activation="relu"),
                annotate_layer(layers.Dense(2, name="ternary"), TernaryQuantizeConfig()),
            ]
        )
    )
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    with tt.quantize_scope():
        quantized = tfmot.quantization.keras.quantize_apply(annotated)
        inputs = models.inputs_of(quantized)
        quantized.compile("adam", "mse")
        quantized.fit(inputs, np.zeros((6, 2)), verbose=0)
        quantized.save(tmp_path / "m.h5")
        assert_same_outputs(tf_keras.models.load_model(tmp_path / "m.h5"), quantized, inputs)


def test_skip_and_embeddings():
    quantized = apply(models.transformer(), tt.TernaryScheme(skip=("^head$", "att")))
    assert set(wrappers_of(quantized)) == {"mix", "conv"}
    assert type(quantized.get_layer("attention")) is layers.MultiHeadAttention
    assert type(quantized.get_layer("embedding")) is layers.Embedding
    quantized = apply(models.transformer(), tt.TernaryScheme(skip="o", embeddings=True))
    assert set(wrappers_of(quantized)) == {"embedding", "mix", "head"}
    # One that is annotated by itself is meant.
    model = models.randomize(
        tf_keras.Sequential(
            [
                annotate_layer(layers.Embedding(9, 4, input_length=3, name="table")),
                layers.Dense(3, name="dense"),
            ]
        )
    )
    quantized = tfmot.quantization.keras.quantize_apply(model, tt.BinaryScheme())
    assert set(wrappers_of(quantized)) == {"table"}


def test_annotated_model_can_be_used_twice():
    annotated = tfmot.quantization.keras.quantize_annotate_model(models.cnn())
    first, second = (
        tfmot.quantization.keras.quantize_apply(annotated, scheme())
        for scheme in (tt.TernaryScheme, tt.TernaryScheme)
    )
    inputs = models.inputs_of(first)
    assert_same_outputs(first, second, inputs)
    first.compile("sgd", "mse")
    first.fit(inputs, np.zeros((6, 10)), verbose=0)
    assert np.any(first.get_weights()[0] != second.get_weights()[0])


def test_einsum_with_a_batch_axis_is_named():
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((3, 4)),
                layers.EinsumDense("abc,bcd->abd", (3, 5), name="many"),
                layers.Dense(2),
            ]
        )
    )
    with pytest.raises(ValueError, match="layer 'many': expected a kernel without a batch axis"):
        apply(model, tt.TernaryScheme())
    assert set(wrappers_of(apply(model, tt.TernaryScheme(skip="many")))) != {"many"}


def test_not_finite_kernel_is_named():
    model = models.cnn()
    kernel = model.get_layer("conv").kernel.numpy()
    kernel[1, 1, 0, 2] = np.nan
    model.get_layer("conv").kernel.assign(kernel)
    with pytest.raises(ValueError, match="finite values in conv/kernel.*output 2, input 4"):
        apply(model, tt.TernaryScheme())


def test_nothing_to_quantize():
    with pytest.raises(ValueError, match="at least one layer.*`skip`"):
        apply(models.cnn(), tt.TernaryScheme(skip="."))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 100}, "100"),
        ({"initializer": "mean"}, "initializer name"),
        ({"skip": "("}, "regular expressions"),
        ({"activation_bits": 4}, "activation_bits=None"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tt.TernaryScheme(**arguments)


def test_registry():
    registry = tt.TernaryScheme(group_size=64).get_quantize_registry()
    assert registry.supports(layers.Dense(3))
    assert not registry.supports(layers.RNN(layers.LSTMCell(3)))
    config = registry.get_quantize_config(layers.Dense(3))
    assert config == TernaryQuantizeConfig(64)
    assert config != BinaryQuantizeConfig(64)
    assert TernaryQuantizeConfig.from_config(config.get_config()) == config
    with pytest.raises(ValueError, match="RNN"):
        registry.get_quantize_config(layers.RNN(layers.LSTMCell(3)))


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    images = (data.images[order, ..., None] / 16).astype(np.float32)
    return images[:1300], data.target[order][:1300], images[1300:], data.target[order][1300:]


@pytest.fixture(scope="module")
def trained(digits):
    x, y, _, _ = digits
    tf_keras.utils.set_random_seed(SEED)
    model = tf_keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(momentum=0.8),  # few steps: the averages must follow
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3),
            layers.BatchNormalization(momentum=0.8),  # few steps: the averages must follow
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(5e-3), loss, ["accuracy"])
    model.fit(x, y, epochs=8, batch_size=64, verbose=0)
    return model


@pytest.mark.parametrize("scheme_class", SCHEMES)
def test_the_guides_snippet_on_digits(scheme_class, digits, trained):
    x, y, test_x, test_y = digits
    float_accuracy = trained.evaluate(test_x, test_y, verbose=0)[1]
    assert float_accuracy > 0.95
    tf_keras.utils.set_random_seed(SEED)
    annotated = tfmot.quantization.keras.quantize_annotate_model(trained)
    quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme_class())
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    epochs = 10
    rate = tf_keras.optimizers.schedules.CosineDecay(5e-3, epochs * len(x) // 64)
    quantized.compile(tf_keras.optimizers.Adam(rate), loss, ["accuracy"])
    before = [wrapper.scales.numpy() for wrapper in wrappers_of(quantized).values()]
    quantized.fit(x, y, epochs=epochs, batch_size=64, verbose=0)
    for wrapper, scales in zip(wrappers_of(quantized).values(), before, strict=True):
        assert np.any(wrapper.scales.numpy() != scales)
    # 497 test images: 3 points are 15 of them, five times the spread seen between seeds.
    assert quantized.evaluate(test_x, test_y, verbose=0)[1] > float_accuracy - 0.03
    # Freeze, convert, run: the operators quantize activations as the frozen model does; only the
    # order of float32 sums in what stays float may differ: 1e-5 of logits around 10.
    frozen = tt.freeze(quantized)
    content = tt.convert(frozen)
    want = frozen.predict(test_x[:20], verbose=0)
    for backend in ("litert", "tf"):
        interpreter = tt.runtime.make_interpreter(content, num_threads=1, backend=backend)
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, (20, 8, 8, 1))
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, test_x[:20])
        interpreter.invoke()
        got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
