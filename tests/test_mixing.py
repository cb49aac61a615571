"""Mixing: ternary and binary kernels with tfmot's 8-bit activations, and with its 8-bit layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
import tf_keras_models as models

import tfmot_ternary as tt
from tfmot_ternary import inspection, model_file
from tfmot_ternary.activation_quantizer import ActivationQuantizer
from tfmot_ternary.layer_chains import with_chains
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper

layers = tf_keras.layers
quantization = tfmot.quantization.keras
DEFAULT = [tf.lite.Optimize.DEFAULT]
# One step of 8 bits on tfmot's first range [-6, 6]; ranges of hardly trained models stay near it.
STEP = 12 / 255


def digits_cnn():
    """Conv + BatchNorm + ReLU, depthwise, Add, MaxPooling, Dense: what tfmot's transform is for."""
    image = tf_keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(image)
    x = shortcut = layers.ReLU(name="relu1")(
        layers.BatchNormalization(momentum=0.9, name="norm1")(x)
    )
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(name="relu2")(layers.BatchNormalization(momentum=0.9, name="norm2")(x))
    x = layers.Add(name="add")([layers.Conv2D(16, 1, name="pointwise")(x), shortcut])
    x = layers.MaxPooling2D(name="pool")(layers.ReLU(name="relu3")(x))
    x = layers.Conv2D(32, 3, activation="relu", name="last")(x)
    x = layers.Dense(32, activation="relu", name="dense")(layers.Flatten()(x))
    return tf_keras.Model(image, layers.Dense(10, activation="softmax", name="head")(x))


@pytest.fixture(scope="module")
def digits():
    """(train images, train labels, test images, test labels)."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def fit(model, digits, epochs):
    model.compile(tf_keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(digits[0], digits[1], epochs=epochs, batch_size=64, verbose=0)
    return model


def accuracy(probabilities, digits):
    return float(np.mean(np.argmax(probabilities, axis=1) == digits[3]))


@pytest.fixture(scope="module")
def trained(digits):
    """(float model, the same quantized with 8-bit activations and trained on)."""
    tf_keras.utils.set_random_seed(0)
    model = fit(digits_cnn(), digits, epochs=8)
    annotated = quantization.quantize_annotate_model(model)
    quantized = quantization.quantize_apply(annotated, tt.TernaryScheme(activation_bits=8))
    return model, fit(quantized, digits, epochs=8)


def quantizers(model):
    return [layer for layer in model.layers if isinstance(layer, ActivationQuantizer)]


def operators(content):
    """[(operator, types of its inputs and outputs that are no constants)]."""
    schema = model_file.schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    found = []
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = code.customCode.decode() if code.customCode else names[number]
        tensors = [model.subgraphs[0].tensors[i] for i in (operator.inputs[0], operator.outputs[0])]
        found.append((name, {types[tensor.type] for tensor in tensors}))
    return found


def run(content, *inputs):
    """The first output, from both interpreters."""
    results = []
    for backend in tt.runtime.BACKENDS:
        runner = tt.runtime.make_interpreter(content, backend=backend).get_signature_runner()
        feed = dict(zip(runner.get_input_details(), inputs, strict=True))
        results.append(next(iter(runner(**feed).values())))
    return results


# 8-bit activations.


def test_accuracy_is_close_to_float(trained, digits):
    exact = accuracy(trained[0].predict(digits[2], verbose=0), digits)
    quantized = accuracy(trained[1].predict(digits[2], verbose=0), digits)
    # Eight epochs each on 1400 images: 0.98 in float; 0.04 are 16 of the 397 test images.
    assert exact > 0.95
    assert quantized > exact - 0.04


def test_activations_are_rounded_where_tfmot_rounds_them(trained):
    theirs = quantization.quantize_apply(quantization.quantize_annotate_model(trained[0]))
    ends = ("activation_max:0", "output_max:0", "layer_max:0")
    expected = [w.name for w in theirs.weights if w.name.endswith(ends)]
    expected += [w.name for w in theirs.weights if "quantize_layer" in w.name and "_max" in w.name]
    ours = quantizers(trained[1])
    assert len(ours) == len(set(expected)) == 8
    assert [layer.ranges for layer in ours] == ["all_values"] + ["moving_average"] * 7
    kernels = [w for w in trained[1].layers if isinstance(w, KernelQuantizeWrapper)]
    assert [w.layer.name for w in kernels] == ["first", "pointwise", "last", "dense", "head"]
    depthwise = trained[1].get_layer("quant_depthwise")
    assert isinstance(depthwise, quantization.QuantizeWrapperV2)  # tfmot's own 8 bits
    assert depthwise.quantize_config.weight_attrs == ["depthwise_kernel"]
    for layer in ours:  # training has moved the ranges away from where they began
        assert float(layer.max) not in (0.0, 6.0)


def test_one_layer_against_numpy():
    generator = np.random.default_rng(3)
    x = generator.standard_normal((32, 12)).astype(np.float32)
    model = tf_keras.Sequential([layers.Input((12,)), layers.Dense(5, "relu", name="dense")])
    scheme = tt.TernaryScheme(activation_bits=8)
    quantized = tt.quantize_apply(models.randomize(model), scheme)
    quantized(x, training=True)  # one batch, no optimizer

    def rounded(values, low, high):
        step = (high - low) / 255
        zero = np.round(-low / step)  # tfmot moves the range so that 0 is one of its values
        codes = np.clip(np.round(values / step) + zero, 0, 255)
        return (codes - zero) * step

    inputs = rounded(x, x.min(), x.max())
    wrapper = quantized.get_layer("dense_kernel")
    scales = wrapper.scales.numpy()
    kernel = model.get_layer("dense").kernel.numpy()
    codes = np.sign(kernel) * (np.abs(kernel) > scales / 2)
    outputs = np.maximum(inputs @ (codes * scales) + model.get_layer("dense").bias.numpy(), 0)
    # Moving average with tfmot's decay 0.999, from [-6, 6].
    low, high = -6 * 0.999, 6 * 0.999 + 0.001 * outputs.max()
    last = quantized.get_layer("quant_dense")
    # float32 arithmetic of tfmot against float64 here.
    np.testing.assert_allclose([last.min, last.max], [low, high], rtol=1e-6)
    got = quantized(x, training=False).numpy()
    assert np.ptp(outputs) > 20 * (high - low) / 255  # many values, not one or two
    difference = np.abs(got - rounded(outputs, low, high))
    # A sum beside a rounding border may fall on either side of it in float32.
    assert np.mean(difference < 1e-5) > 0.95
    assert difference.max() < 1.01 * (high - low) / 255


def test_frozen_model(trained, digits, tmp_path):
    quantized = trained[1]
    expected = quantized.predict(digits[2], verbose=0)
    exact = tt.freeze(quantized, activations="float32")
    difference = np.abs(exact.predict(digits[2], verbose=0) - expected)
    # The same products in another order: rarely, a value beside a rounding border moves one step.
    assert np.mean(difference < 1e-5) > 0.98
    assert difference.max() < 0.1
    frozen = tt.freeze(quantized)
    # BatchNorm and ReLU became part of the packed layers before them; their rounding stays.
    kept = [type(layer) for layer in frozen.layers]
    assert kept.count(layers.BatchNormalization) == 1  # that of the depthwise layer
    assert len([layer for layer in frozen.layers if isinstance(layer, PackedLayer)]) == 5
    assert len(quantizers(frozen)) == 8
    assert frozen.get_layer("first").activation.__name__ == "relu"
    # "int8" rounds each row once more, to 1/127 of its largest value: half of a step of 8 bits
    # on a range that ReLU fills by half, in each of five layers. Classes hardly change.
    got = frozen.predict(digits[2], verbose=0)
    assert abs(accuracy(got, digits) - accuracy(expected, digits)) < 0.02
    frozen.save(tmp_path / "frozen.keras")
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / "frozen.keras")
    np.testing.assert_array_equal(again.predict(digits[2], verbose=0), got)


@pytest.mark.parametrize("optimizations", [None, DEFAULT], ids=["plain", "default"])
def test_interpreters(trained, digits, optimizations):
    frozen = tt.freeze(trained[1])
    expected = frozen.predict(digits[2], verbose=0)
    content = tt.convert(frozen, optimizations)
    # Integer operators round sums half a step differently than fake quantization in float does;
    # on a trained classifier that is a few hundredths of a probability at most.
    for got in run(content, digits[2]):
        np.testing.assert_allclose(got, expected, atol=0.1)
        assert np.abs(got - expected).mean() < 2e-3
        assert abs(accuracy(got, digits) - accuracy(expected, digits)) < 0.015  # 5 images
    found = operators(content)
    packed = [types for name, types in found if name.startswith("tfmot_ternary.")]
    assert packed == [{"FLOAT32"}] * 5
    if optimizations:  # integers between the stock operators
        integer = [name for name, types in found if types == {"INT8"}]
        assert integer == ["DEPTHWISE_CONV_2D", "ADD", "MAX_POOL_2D", "SOFTMAX"]
        rest = {name for name, types in found if types == {"FLOAT32"}}
        assert rest <= {"RESHAPE", "tfmot_ternary.conv2d", "tfmot_ternary.fully_connected"}


@pytest.mark.parametrize("name", ["q.keras", "q.h5"])
def test_save_and_load(trained, digits, tmp_path, name):
    expected = trained[1].predict(digits[2], verbose=0)
    trained[1].save(tmp_path / name)
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(again.predict(digits[2], verbose=0), expected)


def branches():
    """SeparableConv2D, two kinds of convolution into Concatenate, pre- and post-rounded ends."""
    image = tf_keras.Input((6, 6, 4))
    x = layers.SeparableConv2D(8, 3, activation="relu", name="separable")(image)
    parts = [
        layers.Conv2D(4, 1, activation="sigmoid", name="a")(x),
        layers.DepthwiseConv2D(1, activation="relu", name="b")(x),
    ]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate(name="join")(parts))
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(8, activation="gelu", name="gelu")(x)
    x = layers.Dense(8, activation="elu", name="elu")(x)
    return models.randomize(tf_keras.Model(image, layers.Dense(3, "tanh", name="tanh")(x)))


def memory():
    return models.transformer(mask_zero=True)


@pytest.mark.parametrize("make", [branches, models.shared_and_nested, memory])
def test_other_models(make):
    model = make()
    inputs = models.inputs_of(model)
    quantized = tt.quantize_apply(model, tt.BinaryScheme(activation_bits=8))
    quantized(inputs, training=True)
    expected = tf.nest.flatten(quantized(inputs, training=False))
    frozen = tt.freeze(quantized, activations="float32")
    for got, want in zip(tf.nest.flatten(frozen(inputs)), expected, strict=True):
        # One step of the last rounding, where a sum lies beside a border.
        np.testing.assert_allclose(got, want, atol=1.01 * STEP)
        assert np.mean(np.abs(got - want) < 1e-5) > 0.9
    names = {layer.name for layer in quantized.layers}
    if make is branches:  # taken apart by tfmot's transform; the pointwise part is ours
        assert "quant_join" in names
        assert "separable" not in names
        assert sum(isinstance(w, KernelQuantizeWrapper) for w in quantized.layers) == 5
        content = tt.convert(frozen, DEFAULT, batch_size=6)
        for got in run(content, *inputs):
            np.testing.assert_allclose(got, expected[0], atol=2 * STEP)  # two roundings differ


def test_both_ways_of_applying_are_one():
    model = models.randomize(digits_cnn())
    scheme = tt.TernaryScheme(activation_bits=8)
    x = models.inputs_of(model)[0]
    ours = tt.quantize_apply(model, scheme)
    theirs = quantization.quantize_apply(quantization.quantize_annotate_model(model), scheme)
    for quantized in (ours, theirs):
        quantized(x, training=True)
    np.testing.assert_array_equal(ours(x), theirs(x))


def test_depthwise_kernel_before_a_relu_is_rounded():
    """tfmot's own transform leaves it in float where no BatchNormalization stands between."""
    model = tf_keras.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.ReLU(name="relu"),
            layers.Conv2D(3, 1, name="conv"),
        ]
    )
    quantized = tt.quantize_apply(models.randomize(model), tt.TernaryScheme(activation_bits=8))
    names = [weight.name for weight in quantized.get_layer("quant_depthwise").weights]
    assert any("depthwise_kernel_max" in name for name in names)
    assert not any("activation_max" in name for name in names)


def test_skipped_layers_stay_float(digits):
    scheme = tt.TernaryScheme(activation_bits=8, skip=("^first$", "depthwise"))
    quantized = tt.quantize_apply(digits_cnn(), scheme)
    for name in ("first", "depthwise"):
        assert type(quantized.get_layer(name)) in (layers.Conv2D, layers.DepthwiseConv2D)
    kernels = [w.layer.name for w in quantized.layers if isinstance(w, KernelQuantizeWrapper)]
    assert kernels == ["pointwise", "last", "dense", "head"]
    scheme = tt.TernaryScheme(activation_bits=8, keep_ends=True)
    quantized = tt.quantize_apply(digits_cnn(), scheme)
    kernels = [w.layer.name for w in quantized.layers if isinstance(w, KernelQuantizeWrapper)]
    assert kernels == ["pointwise", "last", "dense"]
    assert type(quantized.get_layer("head")) is layers.Dense


def test_layers_that_neither_knows():
    model = tf_keras.Sequential(
        [layers.Input((6, 4)), layers.Dense(4), layers.PReLU(name="slope"), layers.Flatten()]
    )
    scheme = tt.TernaryScheme(activation_bits=8)
    with pytest.warns(UserWarning, match="'slope' .PReLU. is left in float"):
        quantized = tt.quantize_apply(model, scheme)
    assert type(quantized.get_layer("slope")) is layers.PReLU
    annotate = quantization.quantize_annotate_layer
    chosen = tf_keras.Sequential(
        [layers.Input((6, 4)), annotate(layers.Dense(4)), annotate(layers.PReLU(name="slope"))]
        + [layers.Flatten()]
    )
    with pytest.raises(ValueError, match="can be quantized, got 'slope'"):
        tt.quantize_apply(chosen, scheme)


def test_mixed_precision_is_refused():
    model = tf_keras.Sequential([layers.Input((4,)), layers.Dense(3, dtype="mixed_bfloat16")])
    with pytest.raises(ValueError, match="float32 for activation_bits=8.* with bfloat16"):
        tt.quantize_apply(model, tt.TernaryScheme(activation_bits=8))


def test_keras3_models_are_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="activation_bits=None for the Keras 3 model"):
        tt.quantize_apply(model, tt.TernaryScheme(activation_bits=8))
    with pytest.raises(ValueError, match="got 4"):
        tt.BinaryScheme(activation_bits=4)


# One choice for each layer.


def mixed_model(sequential):
    """Ternary in groups, binary, tfmot's 8 bits twice, the scheme's own, float."""
    registry = quantization.default_8bit.Default8BitQuantizeRegistry()
    made = [
        layers.Conv2D(16, 3, padding="same", activation="relu", name="ternary"),
        layers.Conv2D(16, 3, activation="relu", name="binary"),
        layers.Conv2D(16, 3, activation="relu", name="eight"),
        layers.Flatten(name="flat"),
        layers.Dense(16, activation="relu", name="eight_dense"),
        layers.Dense(16, activation="relu", name="scheme"),
        layers.Dense(70, name="float"),
    ]
    configs = {
        "ternary": tt.TernaryQuantizeConfig(group_size=32),
        "binary": tt.BinaryQuantizeConfig(),
        "eight": registry.get_quantize_config(made[2]),
        "eight_dense": registry.get_quantize_config(made[4]),
        "scheme": None,
    }
    annotated = [
        quantization.quantize_annotate_layer(layer, configs[layer.name])
        if layer.name in configs
        else layer
        for layer in made
    ]
    tf_keras.utils.set_random_seed(1)
    if sequential:
        return tf_keras.Sequential([layers.Input((8, 8, 8)), *annotated])
    x = image = tf_keras.Input((8, 8, 8))
    for layer in annotated:
        x = layer(x)
    return tf_keras.Model(image, x)


@pytest.mark.parametrize(("sequential", "bits"), [(True, None), (False, 8)])
def test_mixed_model(sequential, bits, tmp_path):
    x = np.random.default_rng(2).standard_normal((16, 8, 8, 8)).astype(np.float32)
    scheme = tt.TernaryScheme(activation_bits=bits)
    quantized = tt.quantize_apply(mixed_model(sequential), scheme)
    quantized.compile("adam", "mse")
    quantized.fit(x, np.zeros((16, 70), np.float32), epochs=2, verbose=0)
    expected = quantized.predict(x, verbose=0)
    for name in ("q.keras", "q.h5"):
        quantized.save(tmp_path / name)
        with tt.quantize_scope():
            again = tf_keras.models.load_model(tmp_path / name)
        np.testing.assert_array_equal(again.predict(x, verbose=0), expected)
    exact = tt.freeze(quantized, activations="float32").predict(x, verbose=0)
    np.testing.assert_allclose(exact, expected, atol=2 * STEP)  # moved roundings, see above
    assert np.mean(np.abs(exact - expected) < 1e-5) > 0.9
    frozen = tt.freeze(quantized)
    path = tmp_path / "mixed.tflite"
    content = tt.convert(frozen, DEFAULT, path=path)
    for got in run(content, x):
        # A step in the 8-bit layers, times float weights of up to 0.26 over 16 inputs.
        np.testing.assert_allclose(got, frozen.predict(x, verbose=0), atol=2 * STEP)
    weights = inspection.inspect(path, min_elements=200).weights
    assert [(w.format, w.group_size) for w in weights][:5] == [
        ("t2", 32),
        ("b1", "channel"),
        ("int8", "channel"),
        ("int8", "tensor"),
        ("t2", "channel"),
    ]
    # What is not annotated is the converter's: DEFAULT stores large float weights in 8 bits.
    assert [w.elements for w in weights][5:] == [16 * 70]
    assert not inspection.inspect(path).float_copies()


def test_only_eight_bit_layers_get_rounded_inputs():
    quantized = tt.quantize_apply(mixed_model(True), tt.TernaryScheme())
    assert [layer.name for layer in quantizers(quantized)] == ["eight_input"]
    names = [layer.name for layer in quantized.layers]
    assert names.index("eight_input") + 1 == names.index("quant_eight")


def test_chains():
    a, b = tf_keras.Input((4,), name="a"), tf_keras.Input((4,), name="b")
    shared = layers.Dense(4, name="shared")
    x = layers.Add(name="add")([shared(a), shared(b)])
    model = tf_keras.Model({"a": a, "b": b}, {"sum": x, "twice": layers.ReLU(name="relu")(x)})
    double = layers.Lambda(lambda t: 2 * t, name="double")
    made = with_chains(model, {"shared": [shared, double], "relu": []})
    feed = {key: np.full((2, 4), value, np.float32) for key, value in (("a", 1), ("b", -3))}
    before, after = model(feed), made(feed)
    np.testing.assert_allclose(after["sum"], 2 * before["sum"], rtol=1e-6)
    np.testing.assert_array_equal(after["twice"], after["sum"])
    assert made.input_names == model.input_names
