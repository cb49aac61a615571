"""What tfmot's comprehensive guide to quantization-aware training shows, done with our schemes.

One test a use case, in the guide's order: a whole model, some of its layers, checkpoints, a
deployed model, and experiments with configs and quantizers of the user's own.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import tfmot_ternary as tt
from tfmot_ternary import quantizers
from tfmot_ternary.packing import expand_scales

SEED = 47
# Sums of 20 float32 terms of size 1 in another order.
FLOAT_TOLERANCE = 1e-5
guide = tfmot.quantization.keras
layers = tf_keras.layers
schemes = pytest.mark.parametrize(
    "scheme",
    [tt.TernaryScheme(), tt.BinaryScheme(group_size=32)],
    ids=["ternary", "binary"],
)


def examples():
    """20 features, 4 classes that a linear layer tells apart."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((256, 20)).astype(np.float32)
    return x, np.argmax(x @ rng.standard_normal((20, 4)), axis=1)


@pytest.fixture(scope="module")
def base():
    """A small Sequential model after one epoch; no test changes it."""
    tf_keras.utils.set_random_seed(SEED)
    model = tf_keras.Sequential(
        [
            layers.Input((20,)),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(4, name="logits"),
            layers.Flatten(name="flat"),
        ]
    )
    return train(model)


def train(model, epochs=1):
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(5e-3), loss, ["accuracy"])
    model.fit(*examples(), epochs=epochs, batch_size=32, verbose=0)
    return model


def quantized_names(model):
    return [
        layer.layer.name
        for layer in model.layers
        if isinstance(layer, guide.QuantizeWrapper) and hasattr(layer, "scales")
    ]


def dense(x, wrapper):
    """NumPy: what a wrapped Dense without activation must give."""
    layer, config = wrapper.layer, wrapper.quantize_config
    matrix = np.asarray(layer.kernel).T
    scales = wrapper.scales.numpy()
    codes = quantizers.weight_codes(matrix, scales, config.levels, config.group_size)
    values = np.asarray(codes) * expand_scales(scales, *matrix.shape, config.group_size)
    return x @ values.T + np.asarray(layer.bias)


def weight_of(wrapper, name):
    """A weight by its own name; tfmot's wrapper holds those of its layer itself."""
    return next(w.numpy() for w in wrapper.weights if w.name.split("/")[-1] == f"{name}:0")


def assert_same(model, other, x):
    np.testing.assert_array_equal(model(x), other(x))


def run(content, x):
    """Outputs of both interpreters."""
    for backend in tt.runtime.BACKENDS:
        interpreter = tt.runtime.make_interpreter(content, backend=backend)
        runner = interpreter.get_signature_runner("serving_default")
        (y,) = runner(**{next(iter(runner.get_input_details())): x}).values()
        yield y


@schemes
def test_quantize_the_whole_model(scheme, base):
    x, y = examples()
    quantized = guide.quantize_apply(guide.quantize_annotate_model(base), scheme)
    quantized.summary(print_fn=lambda *args, **kwargs: None)
    assert quantized_names(quantized) == ["hidden", "logits"]
    assert_same(quantized, tt.quantize_apply(base, scheme), x)
    hidden = np.maximum(dense(x, quantized.layers[0]), 0)
    normal = base.get_layer("norm")(hidden).numpy()
    expected = dense(normal, quantized.layers[2])
    np.testing.assert_allclose(quantized(x), expected, atol=FLOAT_TOLERANCE)
    # Trained on with quantized weights, it beats the float model that it started from.
    before = base.evaluate(x, y, verbose=0)
    after = train(quantized, epochs=8).evaluate(x, y, verbose=0)
    assert after[0] < before[0]


@schemes
def test_quantize_some_layers_by_type_and_by_name(scheme, base):
    x, _ = examples()

    def by_type(layer):
        if isinstance(layer, layers.Dense):
            return guide.quantize_annotate_layer(layer)
        return layer

    def by_name(layer):
        return guide.quantize_annotate_layer(layer) if layer.name == "logits" else layer

    for clone_function, names in ((by_type, ["hidden", "logits"]), (by_name, ["logits"])):
        annotated = tf_keras.models.clone_model(base, clone_function=clone_function)
        quantized = guide.quantize_apply(annotated, scheme)
        assert quantized_names(quantized) == names
        kept = [layer.name for layer in quantized.layers if not hasattr(layer, "quantize_config")]
        assert kept == [layer.name for layer in base.layers if layer.name not in names]
    # The clone function got the layers of `base` themselves, with their trained weights.
    middle = base.get_layer("norm")(base.get_layer("hidden")(x)).numpy()
    np.testing.assert_allclose(
        quantized(x), dense(middle, quantized.layers[2]), atol=FLOAT_TOLERANCE
    )


@pytest.mark.parametrize("scheme", [tt.TernaryScheme(group_size="tensor")])
@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_annotate_while_the_model_is_written(scheme, kind):
    """The more readable way, without weights from before."""
    tf_keras.utils.set_random_seed(SEED)
    if kind == "functional":
        inputs = tf_keras.Input((20,))
        hidden = guide.quantize_annotate_layer(layers.Dense(10, name="chosen"))(inputs)
        annotated = tf_keras.Model(inputs, layers.Flatten()(layers.Dense(4)(hidden)))
    else:
        annotated = tf_keras.Sequential(
            [
                guide.quantize_annotate_layer(layers.Dense(10, name="chosen", input_shape=(20,))),
                layers.Dense(4),
                layers.Flatten(),
            ]
        )
    quantized = guide.quantize_apply(annotated, scheme)
    assert quantized_names(quantized) == ["chosen"]
    x, _ = examples()
    chosen = quantized.get_layer("quant_chosen")
    np.testing.assert_allclose(chosen(x), dense(x, chosen), atol=FLOAT_TOLERANCE)
    before = chosen.layer.kernel.numpy()
    train(quantized)
    assert np.any(chosen.layer.kernel.numpy() != before)


@schemes
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_checkpoint_and_deserialize(scheme, suffix, base, tmp_path):
    x, y = examples()
    quantized = guide.quantize_apply(guide.quantize_annotate_model(base), scheme)
    train(quantized)
    path = str(tmp_path / f"model{suffix}")
    quantized.save(path)
    with guide.quantize_scope():  # tfmot's own scope will do; tt.quantize_scope is for all models
        again = tf_keras.models.load_model(path)
    assert_same(again, quantized, x)
    # Checkpoints of weights need no scope, and training goes on where it was.
    saved = tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "w"), save_weights_only=True)
    quantized.fit(x, y, batch_size=64, verbose=0, callbacks=[saved])
    again.load_weights(str(tmp_path / "w"))
    assert_same(again, quantized, x)


@schemes
def test_deploy(scheme, base):
    x, _ = examples()
    quantized = guide.quantize_apply(guide.quantize_annotate_model(base), scheme)
    expected = quantized(x).numpy()
    for got in run(tt.convert(quantized, activations="float32"), x):
        np.testing.assert_allclose(got, expected, atol=FLOAT_TOLERANCE * np.abs(expected).max())
    content = tt.convert(quantized, [tf.lite.Optimize.DEFAULT])
    for got in run(content, x):
        # Two layers round their inputs to 1/127 of each row's range.
        np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())


# Experiments.


class CustomDense(layers.Dense):
    """A user's layer that is a Dense but in name."""


class ScaledDense(layers.Dense):
    """A user's layer that computes in its own way."""

    def call(self, inputs):
        return 2 * tf.matmul(inputs, self.kernel) + self.bias


def small_model(first, **kwargs):
    tf_keras.utils.set_random_seed(SEED)
    return guide.quantize_annotate_model(
        tf_keras.Sequential([layers.Input((20,)), first, layers.Dense(4, name="rest")], **kwargs)
    )


def test_a_custom_layer_with_our_config(tmp_path):
    config = tt.BinaryQuantizeConfig(group_size=32)
    model = small_model(guide.quantize_annotate_layer(CustomDense(6, name="mine"), config))
    with tt.quantize_scope({"CustomDense": CustomDense}):
        quantized = train(guide.quantize_apply(model, tt.TernaryScheme()))
        quantized.save(tmp_path / "m.keras")
        again = tf_keras.models.load_model(tmp_path / "m.keras")
        x, _ = examples()
        assert_same(again, quantized, x)
        frozen = tt.freeze(again, activations="float32")
    mine = quantized.layers[0]
    assert type(mine.layer) is CustomDense
    np.testing.assert_allclose(mine(x), dense(x, mine), atol=FLOAT_TOLERANCE)
    assert [layer.weight_format for layer in frozen.layers] == ["b1", "t2"]
    np.testing.assert_allclose(frozen(x), quantized(x), atol=FLOAT_TOLERANCE)


class KernelConfig(guide.QuantizeConfig):
    """A user's QuantizeConfig for a layer with a `kernel`, around one of our quantizers."""

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, tt.TernaryQuantizer(group_size="tensor"))]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


def test_a_custom_layer_with_a_config_around_our_quantizer(tmp_path):
    model = small_model(guide.quantize_annotate_layer(ScaledDense(6, name="mine"), KernelConfig()))
    x, _ = examples()
    with tt.quantize_scope({"ScaledDense": ScaledDense, "KernelConfig": KernelConfig}):
        quantized = train(guide.quantize_apply(model, tt.TernaryScheme()))
        quantized.save(tmp_path / "m.h5")
        assert_same(tf_keras.models.load_model(tmp_path / "m.h5"), quantized, x)
    mine = quantized.layers[0]
    scale = weight_of(mine, "kernel_scale")
    kernel = weight_of(mine, "kernel")
    values = np.where(np.abs(kernel) > scale / 2, np.sign(kernel) * scale, 0)
    expected = 2 * x @ values + mine.layer.bias.numpy()
    np.testing.assert_allclose(mine(x), expected, atol=FLOAT_TOLERANCE)


class Halved(tt.TernaryQuantizeConfig):
    """Modified parameters: groups of 32, scales that are not trained."""

    def __init__(self, **arguments):
        super().__init__(**{"group_size": 32, "trainable_scales": False, **arguments})


def test_modified_parameters(tmp_path):
    model = small_model(guide.quantize_annotate_layer(layers.Dense(6, name="mine"), Halved()))
    x, _ = examples()
    with tt.quantize_scope({"Halved": Halved}):
        quantized = guide.quantize_apply(model, tt.BinaryScheme())
        mine = quantized.layers[0]
        before = mine.scales.numpy()
        train(quantized).save(tmp_path / "m.h5")
        again = tf_keras.models.load_model(tmp_path / "m.h5")
    assert_same(again, quantized, x)
    assert isinstance(again.layers[0].quantize_config, Halved)
    assert before.shape == (6, 1)
    np.testing.assert_array_equal(mine.scales.numpy(), before)
    np.testing.assert_allclose(mine(x), dense(x, mine), atol=FLOAT_TOLERANCE)
    assert [layer.weight_format for layer in tt.freeze(quantized).layers] == ["t2", "b1"]


class WithActivations(tt.TernaryQuantizeConfig):
    """Other parts of the layer: the activation too, by tfmot's 8-bit quantizer."""

    def get_activations_and_quantizers(self, layer):
        quantizer = guide.quantizers.MovingAverageQuantizer(
            num_bits=8, per_axis=False, symmetric=False, narrow_range=False
        )
        return [(layer.activation, quantizer)]

    def set_quantize_activations(self, layer, quantize_activations):
        (layer.activation,) = quantize_activations


def test_modified_parts():
    inner = layers.Dense(6, activation="relu", name="mine")
    model = small_model(guide.quantize_annotate_layer(inner, WithActivations()))
    x, _ = examples()
    with tt.quantize_scope({"WithActivations": WithActivations}):
        quantized = train(guide.quantize_apply(model, tt.TernaryScheme()), epochs=2)
    values = np.unique(quantized.layers[0](x).numpy())
    # 256 levels of 8 bits; without the quantizer nearly all of 256 x 6 values differ.
    assert 50 < len(values) <= 256
    steps = np.diff(values)
    # All of one step's multiples, up to float32 rounding of values up to 10.
    np.testing.assert_allclose(steps / steps.min(), np.round(steps / steps.min()), atol=0.01)


class ClipQuantizer(guide.quantizers.Quantizer):
    """A user's algorithm: weights between -0.1 and 0.1."""

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return tf.clip_by_value(inputs, -0.1, 0.1)

    def get_config(self):
        return {}


class ClipConfig(KernelConfig):
    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, ClipQuantizer())]


@pytest.mark.parametrize("scheme", [tt.TernaryScheme()])
def test_a_custom_algorithm_next_to_ours(scheme, tmp_path):
    model = small_model(guide.quantize_annotate_layer(layers.Dense(6, name="mine"), ClipConfig()))
    x, _ = examples()
    with tt.quantize_scope({"ClipConfig": ClipConfig}):
        quantized = train(guide.quantize_apply(model, scheme))
        quantized.save(tmp_path / "m.h5")
        assert_same(tf_keras.models.load_model(tmp_path / "m.h5"), quantized, x)
    mine, rest = quantized.layers
    kernel = weight_of(mine, "kernel")
    assert np.abs(kernel).max() > 0.1
    middle = x @ np.clip(kernel, -0.1, 0.1) + mine.layer.bias.numpy()
    np.testing.assert_allclose(mine(x), middle, atol=FLOAT_TOLERANCE)
    np.testing.assert_allclose(quantized(x), dense(middle, rest), atol=FLOAT_TOLERANCE)
