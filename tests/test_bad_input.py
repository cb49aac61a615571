"""Bad input: every mistake gets an error that names the layer and the way out, or a result."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import tfmot_ternary as tt
from tfmot_ternary.packing import expand_scales

SEED = 43
# Sums of 100 float32 terms in another order.
FLOAT_TOLERANCE = 1e-5
annotate_layer = tfmot.quantization.keras.quantize_annotate_layer
annotate_model = tfmot.quantization.keras.quantize_annotate_model
tfmot_apply = tfmot.quantization.keras.quantize_apply
APIS = {"tf_keras": tf_keras, "keras": keras}
both_versions = pytest.mark.parametrize("api", APIS.values(), ids=APIS)


def dense_model(api, width=40, name="mine"):
    api.utils.set_random_seed(SEED)
    return api.Sequential(
        [
            api.Input((width,)),
            api.layers.Dense(8, activation="relu", name="first"),
            api.layers.Dense(3, name="head"),
        ],
        name=name,
    )


def quantized(api, **arguments):
    return tt.quantize_apply(dense_model(api), tt.TernaryScheme(**arguments))


def data(rows=4, width=40):
    return np.random.default_rng(SEED).standard_normal((rows, width)).astype(np.float32)


def subclassed(api, built=True, **arguments):
    class Mine(api.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.dense = api.layers.Dense(3, name="inside")

        def call(self, inputs):
            return self.dense(inputs)

    model = Mine(name="mine", **arguments)
    if built:
        model(data())
    return model


# Models that are no graph, or not built.


def test_subclassed_tf_keras_models():
    model = subclassed(tf_keras)
    with pytest.raises(ValueError, match=r"subclassed model 'mine' \(Mine\); build it from"):
        tt.quantize_apply(model, tt.TernaryScheme())
    with pytest.raises(ValueError, match="Sequential or Functional.*'mine'; rebuild it"):
        tt.freeze(model, recognize=True)
    # tfmot refuses it by itself.
    with pytest.raises(ValueError, match="Sequential or Functional"):
        tfmot_apply(model, tt.TernaryScheme())


def test_subclassed_keras_3_models():
    """One that its config rebuilds is quantized like any other; one that it does not is refused."""
    model = subclassed(keras)
    frozen = tt.freeze(tt.quantize_apply(model, tt.TernaryScheme()), activations="float32")
    scale = np.asarray(frozen.dense.scales)
    values = frozen.dense.packed_weights.codes() * expand_scales(scale, 3, 40, None)
    np.testing.assert_allclose(frozen(data()), data() @ values.T, atol=FLOAT_TOLERANCE)

    class Opaque(keras.Model):
        def __init__(self, layer):
            super().__init__(name="opaque")
            self.layer = layer

        def call(self, inputs):
            return self.layer(inputs)

    model = Opaque(keras.layers.Dense(3))
    model(data())
    for change in (
        lambda: tt.quantize_apply(model, tt.TernaryScheme()),
        lambda: tt.freeze(model, recognize=True),
    ):
        with pytest.raises(ValueError, match="own config rebuilds.*Opaque 'opaque'"):
            change()


@both_versions
def test_unbuilt_models(api):
    model = api.Sequential([api.layers.Dense(3, name="head")], name="mine")
    with pytest.raises(ValueError, match="expected a built model.*'mine'.*"):
        tt.quantize_apply(model, tt.TernaryScheme())
    with pytest.raises(ValueError, match="expected a built model, got 'mine'; call"):
        tt.freeze(model, recognize=True)
    with pytest.raises(ValueError, match="built"):
        tt.quantize_apply(subclassed(keras, built=False), tt.TernaryScheme())
    if api is tf_keras:
        annotated = tf_keras.Sequential([annotate_layer(layer) for layer in model.layers])
        with pytest.raises(ValueError, match="expected a built model"):
            tt.quantize_apply(annotated, tt.TernaryScheme())
        with pytest.raises(ValueError, match="built model"):  # tfmot's words
            tfmot_apply(annotated, tt.TernaryScheme())


@both_versions
def test_no_model_and_no_scheme(api):
    for scheme, name in ((tt.TernaryScheme, "TernaryScheme"), ("ternary", "str"), (None, "None")):
        with pytest.raises(TypeError, match=rf"expected a scheme, TernaryScheme\(\).*got {name}"):
            tt.quantize_apply(dense_model(api), scheme)
    for model in (None, "model.keras", api.layers.Dense(3)):
        for use in (lambda m: tt.quantize_apply(m, tt.TernaryScheme()), tt.freeze, tt.convert):
            with pytest.raises(TypeError, match="expected a tf_keras or Keras 3 model"):
                use(model)


# Annotated, quantized or frozen already.


def test_a_layer_annotated_twice():
    dense = tf_keras.layers.Dense(3, name="head")
    model = tf_keras.Sequential(
        [tf_keras.Input((40,)), annotate_layer(annotate_layer(dense))], name="mine"
    )
    with pytest.raises(ValueError, match="'head' of model 'mine' annotated twice; call"):
        tt.quantize_apply(model, tt.TernaryScheme())
    with pytest.raises(ValueError, match="QuantizeAnnotate"):  # tfmot's words
        tfmot_apply(model, tt.TernaryScheme())


def test_a_model_annotated_twice_is_annotated_once():
    model = dense_model(tf_keras)
    once = tfmot_apply(annotate_model(model), tt.TernaryScheme())
    twice = tfmot_apply(annotate_model(annotate_model(model)), tt.TernaryScheme())
    np.testing.assert_array_equal(twice(data()), once(data()))
    assert len(twice.layers) == len(model.layers)


@both_versions
def test_an_annotation_alone_is_not_enough(api):
    model = annotate_model(dense_model(tf_keras)) if api is tf_keras else dense_model(api)
    reason = "annotated only; call" if api is tf_keras else "in float: quantize it first"
    for use in (tt.freeze, tt.convert):
        with pytest.raises(ValueError, match=f"'mine', which is {reason}"):
            use(model)


@both_versions
def test_a_quantized_model_is_not_quantized_again(api):
    model = quantized(api)
    for scheme in (tt.TernaryScheme(), tt.BinaryScheme(group_size=32)):
        with pytest.raises(ValueError, match="'mine' whose layer '.*' is quantized already; quant"):
            tt.quantize_apply(model, scheme)
    inputs = api.Input((40,))
    outer = api.Model(inputs, api.layers.Dense(2)(model(inputs)), name="outer")
    with pytest.raises(ValueError, match="'outer' whose layer '.*' is quantized already"):
        tt.quantize_apply(outer, tt.TernaryScheme())


def test_a_quantized_model_is_not_quantized_again_by_tfmot():
    eight_bit = tfmot.quantization.keras.quantize_model(dense_model(tf_keras))
    with pytest.raises(ValueError, match="'quant_.*' is quantized already"):
        tt.quantize_apply(eight_bit, tt.TernaryScheme())
    for use in (tt.freeze, tt.convert):
        with pytest.raises(ValueError, match="'mine', which tfmot quantized with another scheme"):
            use(eight_bit)
    annotated = tfmot_apply(annotate_model(dense_model(tf_keras)), tt.TernaryScheme())
    with pytest.raises(ValueError, match="'quant_.*' is quantized already"):
        tt.quantize_apply(annotated, tt.TernaryScheme())
    with tt.quantize_scope():
        again = annotate_model(annotated)
    with pytest.raises(ValueError, match="float layer, got 'quant_first', which is quantized"):
        tfmot_apply(again, tt.TernaryScheme())
    with pytest.raises(ValueError, match="no layers to quantize"):  # tfmot's words
        tfmot_apply(annotated, tt.TernaryScheme())


@both_versions
def test_a_frozen_model_stays_frozen(api):
    frozen = tt.freeze(quantized(api))
    with pytest.raises(ValueError, match="'mine' whose layer '.*' is frozen; quantize the model"):
        tt.quantize_apply(frozen, tt.TernaryScheme())
    for recognize in (False, True):
        with pytest.raises(ValueError, match="'mine', which is frozen already; freeze the model"):
            tt.freeze(frozen, recognize=recognize)
    if api is tf_keras:
        with pytest.raises(ValueError, match="float layer, got 'first', which is frozen"):
            tfmot_apply(annotate_model(frozen), tt.TernaryScheme())


# Weights.


@both_versions
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(api, value):
    model = dense_model(api)
    kernel = np.array(model.get_layer("head").kernel)
    kernel[5, 2] = value
    model.get_layer("head").kernel.assign(kernel)
    for scheme in (tt.TernaryScheme(), tt.BinaryScheme(group_size=32)):
        with pytest.raises(ValueError, match=r"finite values in head.*output 2, input 5; repair"):
            tt.quantize_apply(model, scheme)
    with pytest.raises(ValueError, match="finite weights in layer 'head'"):
        tt.freeze(model, recognize=True)
    # A skipped layer is nobody's business.
    tt.quantize_apply(model, tt.TernaryScheme(skip="head"))


@both_versions
def test_training_that_diverged(api):
    model = quantized(api)
    model.compile("sgd", "mse")
    model.fit(data(), np.full((4, 3), np.inf, np.float32), verbose=0)
    with pytest.raises(ValueError, match="finite kernel in layer 'first'.*earlier checkpoint"):
        tt.freeze(model)


# Groups that do not divide k: the last one is short.


@both_versions
@pytest.mark.parametrize("k", [7, 33, 100])
@pytest.mark.parametrize("scheme_class", [tt.TernaryScheme, tt.BinaryScheme])
def test_a_short_last_group(api, k, scheme_class):
    """Train, freeze, convert and run; the oracle takes each group by itself."""
    model = dense_model(api, k)
    model.get_layer("first").bias.assign(np.linspace(-1, 1, 8))
    student = tt.quantize_apply(model, scheme_class(group_size=32, skip="head"))
    student.compile("sgd", "mse")
    x = data(5, k)
    student.fit(x, np.zeros((5, 3)), verbose=0)
    frozen = tt.freeze(student, activations="float32")
    first, head = frozen.layers[-2:]
    weights = first.packed_weights
    assert weights.scales.shape == (8, -(-k // 32))
    codes = weights.codes()
    values = np.concatenate(
        [
            codes[:, 32 * g : 32 * g + 32] * weights.scales[:, g : g + 1]
            for g in range(weights.scales.shape[1])
        ],
        axis=1,
    )
    hidden = np.maximum(x @ values.T + np.asarray(first.bias), 0)
    expected = hidden @ np.asarray(head.kernel) + np.asarray(head.bias)
    np.testing.assert_allclose(np.asarray(student(x)), expected, atol=FLOAT_TOLERANCE)
    np.testing.assert_allclose(np.asarray(frozen(x)), expected, atol=FLOAT_TOLERANCE)
    content = tt.convert(student, activations="float32")
    for backend in tt.runtime.BACKENDS:
        interpreter = tt.runtime.make_interpreter(content, backend=backend)
        runner = interpreter.get_signature_runner("serving_default")
        (got,) = runner(**{next(iter(runner.get_input_details())): x}).values()
        np.testing.assert_allclose(got, expected, atol=FLOAT_TOLERANCE)


# Arguments.


@both_versions
def test_arguments_of_freeze(api):
    model = quantized(api)
    for wrong in ("t3", "T2", 5, ["t2"]):
        with pytest.raises(ValueError, match="expected weight_format None or out of"):
            tt.freeze(model, wrong)
    with pytest.raises(ValueError, match="ternary format .* layer 'first', got b1; leave weight_f"):
        tt.freeze(model, "b1")
    with pytest.raises(ValueError, match="expected activations out of"):
        tt.freeze(model, activations="int4")
    # Binary layers are always b1, whatever the format of the ternary ones.
    binary = tt.quantize_apply(dense_model(api), tt.BinaryScheme())
    for weight_format in (None, "b1", "t5"):
        assert tt.freeze(binary, weight_format).layers[-1].weight_format == "b1"


@pytest.mark.parametrize("scheme_class", [tt.TernaryScheme, tt.BinaryScheme])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 100}, "group_size None .* got 100"),
        ({"group_size": "row"}, "group_size None .* got 'row'"),
        ({"group_size": True}, "group_size None .* got True"),
        ({"group_size": 32.0}, "group_size None .* got 32.0"),
        ({"initializer": "median"}, "initializer.*median"),
        ({"initializer": 3}, "initializer.*int"),
        ({"skip": "("}, "regular expressions in skip"),
        ({"skip": 3}, "regular expressions in skip, got 3"),
        ({"skip": [3]}, "regular expressions in skip"),
        ({"activation_bits": 4}, "activation_bits.*got 4"),
        ({"clip": 0}, "clip None or > 0, got 0"),
        ({"clip": float("nan")}, "clip None or > 0, got nan"),
    ],
)
def test_arguments_of_schemes(scheme_class, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        scheme_class(**arguments)


def test_zeros_cannot_be_kept_in_binary_weights():
    with pytest.raises(ValueError, match="preserve_zeros"):
        tt.BinaryScheme(preserve_zeros=True)


@both_versions
def test_a_scheme_that_skips_all(api):
    with pytest.raises(ValueError, match="'mine'.*(`skip`|does not skip)"):
        tt.quantize_apply(dense_model(api), tt.TernaryScheme(skip="."))
