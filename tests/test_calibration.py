"""tt.calibrate: importances from data, on tf_keras and Keras 3 models."""

from __future__ import annotations

import keras
import keras3_models
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
import tf_keras_models as models

import tfmot_ternary as tt
from tfmot_ternary.calibration import Calibration, calibrate
from tfmot_ternary.convolution_windows import window_sums
from tfmot_ternary.keras3_layers import SUPPORTED, layout_of
from tfmot_ternary.keras3_structure import nested_layers

SEED = 31
layers = tf_keras.layers


def generator():
    return np.random.default_rng(SEED)


def quiet(model, data, *args, **kwargs):
    return calibrate(model, data, *args, progress=False, **kwargs)


def mean_square(x):
    return np.square(np.asarray(x, np.float64)).reshape(-1, x.shape[-1]).mean(axis=0)


# Float32 squares and sums over at most a few hundred rows, against float64: 1e-6 each at the most.
CLOSE = {"rtol": 1e-5, "atol": 1e-9}


def test_dense_attention_and_nested_models_of_tf_keras():
    """Oracle: the model's own intermediate tensors, squared in NumPy."""
    model = models.shared_and_nested()
    x = models.inputs_of(model, 70)[0]
    importance = quiet(model, x)  # three batches, the last one short
    inner = model.get_layer("inner")
    shared, head = model.get_layer("shared"), model.get_layer("head")
    first = shared(x).numpy()
    second = inner(first).numpy()
    # The shared layer sees the inputs and what the nested model makes of it.
    both = np.concatenate([x, second])
    np.testing.assert_allclose(importance["shared"], mean_square(both), **CLOSE)
    dense, other = inner.layers
    np.testing.assert_allclose(importance[f"inner/{dense.name}"], mean_square(first), **CLOSE)
    hidden = dense(first).numpy()
    np.testing.assert_allclose(importance[f"inner/{other.name}"], mean_square(hidden), **CLOSE)
    before_head = tf_keras.Model(model.inputs, head.input).predict(x, verbose=0)
    np.testing.assert_allclose(importance["head"], mean_square(before_head), **CLOSE)
    assert importance.kind == "activations"
    assert all(value.dtype == np.float32 for value in importance.values())
    sequence = np.reshape(shared(second).numpy(), (-1, 2, 4))
    np.testing.assert_allclose(importance["lstm/kernel"], mean_square(sequence), **CLOSE)
    lstm = model.get_layer("lstm")
    step = lstm(sequence[:, :1]).numpy()  # the state after the first of two steps
    np.testing.assert_allclose(importance["lstm/recurrent_kernel"], mean_square(step), **CLOSE)


@pytest.mark.parametrize("annotated", [False, True])
def test_projections_of_attention(annotated):
    model = models.cross_attention()
    query, memory = models.inputs_of(model)
    attention, key = model.get_layer("attention"), model.get_layer("key")
    before = attention._output_dense
    if annotated:
        model = tfmot.quantization.keras.quantize_annotate_model(model)
    importance = quiet(model, [query, memory])
    assert sorted(importance) == sorted(
        ["key", *[f"attention/{n}" for n in ("query", "key", "value", "attention_output")]]
    )
    np.testing.assert_allclose(importance["attention/query"], mean_square(query), **CLOSE)
    np.testing.assert_allclose(importance["attention/value"], mean_square(memory), **CLOSE)
    np.testing.assert_allclose(importance["attention/key"], mean_square(key(memory)), **CLOSE)
    assert importance["attention/attention_output"].shape == (2 * 3,)
    assert attention._output_dense is before


def gradient_of_the_product(x, kernel_shape, **arguments):
    """Sums of x^2 over outputs, by tap: TensorFlow's gradient of sum(conv(x^2, kernel))."""
    kernel = tf.Variable(np.zeros(kernel_shape, np.float64))
    with tf.GradientTape() as tape:
        y = tf.nn.convolution(tf.constant(np.square(x, dtype=np.float64)), kernel, **arguments)
        total = tf.reduce_sum(y)
    return tape.gradient(total, kernel).numpy(), int(np.prod(y.shape[:-1]))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("window", "stride", "dilation"),
    [((3, 3), (1, 1), (1, 1)), ((2, 5), (2, 3), (1, 1)), ((3, 2), (1, 1), (2, 3))],
)
def test_window_sums(window, stride, dilation, padding):
    x = generator().standard_normal((2, 11, 12, 3))
    want, count = gradient_of_the_product(
        x, (*window, 3, 1), strides=stride, dilations=dilation, padding=padding.upper()
    )
    sums, positions = window_sums(np.square(x).sum(axis=0), window, stride, padding, dilation)
    assert 2 * positions == count
    np.testing.assert_allclose(sums, want[..., 0], rtol=1e-12)  # float64, another order


def test_convolutions_of_tf_keras():
    """Strides, groups, dilation, causal padding, depthwise, separable, transposed."""
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((12, 10, 4)),
                layers.Conv2D(6, (3, 2), strides=2, padding="same", name="strided"),
                layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise"),
                layers.SeparableConv2D(8, 3, padding="same", name="separable"),
                layers.Conv2DTranspose(4, 2, strides=2, name="up"),
                layers.Reshape((-1, 4)),
                layers.Conv1D(5, 3, padding="causal", dilation_rate=2, name="causal"),
            ]
        )
    )
    x = generator().standard_normal((3, 12, 10, 4)).astype(np.float32)
    importance = quiet(model, x)
    taps = [
        tf_keras.Model(model.inputs, layer.input).predict(x, verbose=0) for layer in model.layers
    ]
    inputs = dict(zip([layer.name for layer in model.layers], taps, strict=True))
    want, count = gradient_of_the_product(x, (3, 2, 4, 1), strides=2, padding="SAME")
    np.testing.assert_allclose(importance["strided"], want.ravel() / count, **CLOSE)
    seen = inputs["depthwise"]
    want, count = gradient_of_the_product(seen, (3, 3, 6, 1), padding="SAME")
    # W[n, k] of the depthwise kernel: n = (channel, multiplier), k = window.
    per_output = np.repeat(want[..., 0].reshape(9, 6).T, 2, axis=0) / count
    np.testing.assert_allclose(importance["depthwise"], per_output, **CLOSE)
    separable = model.get_layer("separable")
    middle = tf.nn.depthwise_conv2d(
        inputs["separable"], separable.depthwise_kernel, [1, 1, 1, 1], "SAME"
    ).numpy()
    np.testing.assert_allclose(importance["separable"], mean_square(middle), rtol=1e-4)
    np.testing.assert_allclose(importance["up"], np.tile(mean_square(inputs["up"]), 4), **CLOSE)
    seen = np.pad(inputs["causal"], [(0, 0), (4, 0), (0, 0)])
    want = np.stack([mean_square(seen[:, i : seen.shape[1] - 4 + i]) for i in (0, 2, 4)])
    np.testing.assert_allclose(importance["causal"], want.ravel(), **CLOSE)


def test_grouped_convolution():
    """Outputs of a group see its channels only: [n, k]. On Keras 3, and on tf_keras alike."""
    x = generator().standard_normal((2, 6, 7, 4)).astype(np.float32)
    want, count = gradient_of_the_product(x, (3, 3, 4, 1), padding="VALID")
    want = want[..., 0] / count
    rows = [want[..., :2].ravel()] * 3 + [want[..., 2:].ravel()] * 3
    for kit in (keras, tf_keras):
        model = kit.Sequential(
            [kit.layers.Input((6, 7, 4)), kit.layers.Conv2D(6, 3, groups=2, name="grouped")]
        )
        np.testing.assert_allclose(quiet(model, x)["grouped"], rows, **CLOSE)


def test_channels_first():
    """TensorFlow computes them on a CPU through Keras 3 only."""
    x = generator().standard_normal((2, 6, 7, 4)).astype(np.float32)
    got = []
    for data, order in ((x, "channels_last"), (np.moveaxis(x, -1, 1), "channels_first")):
        model = keras.Sequential(
            [
                keras.Input(data.shape[1:]),
                keras.layers.Conv2D(3, (3, 2), data_format=order, padding="same", name="conv"),
            ]
        )
        got.append(quiet(model, data)["conv"])
    np.testing.assert_allclose(got[1], got[0], rtol=1e-6)  # the batch is summed in another order


def test_separable_convolution_of_sequences():
    """Oracle: the layer itself with a pointwise kernel that passes the channels on."""
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((9, 4)),
                layers.SeparableConv1D(
                    4, 3, padding="causal", dilation_rate=2, use_bias=False, name="separable"
                ),
            ]
        )
    )
    x = generator().standard_normal((3, 9, 4)).astype(np.float32)
    got = quiet(model, x)["separable"]
    model.layers[0].pointwise_kernel.assign(np.eye(4, dtype=np.float32)[None])
    np.testing.assert_allclose(got, mean_square(model(x).numpy()), **CLOSE)


def test_both_directions_of_a_recurrent_layer():
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((5, 4)),
                layers.Bidirectional(layers.GRU(3), name="both"),
                layers.Dense(2, name="head"),
            ]
        )
    )
    x = models.inputs_of(model)[0]
    importance = quiet(model, x)
    both = model.get_layer("both")
    for name, part, data in (
        ("forward", both.forward_layer, x),
        ("backward", both.backward_layer, x[:, ::-1]),
    ):
        np.testing.assert_allclose(importance[f"both/{name}_kernel"], mean_square(x), **CLOSE)
        cell, state = part.cell, tf.zeros((len(x), 3))
        states = []
        for step in range(4):  # the state after the last step is multiplied by nothing
            state = cell(data[:, step], [state])[0]
            states.append(state.numpy())
        want = mean_square(np.stack(states))
        np.testing.assert_allclose(importance[f"both/{name}_recurrent_kernel"], want, rtol=1e-4)
        assert not part.return_sequences
    gradients = quiet(model, (x, np.ones((6, 2))), "gradients", loss="mse")
    assert set(gradients) == set(importance)
    assert gradients["both/backward_recurrent_kernel"].shape == (9, 3)


def test_every_layer_of_keras_3():
    model = keras3_models.mixed_model()
    x = keras3_models.mixed_inputs()
    importance = quiet(model, x)
    names = ("query", "key", "value", "attention_output")
    assert sorted(importance) == sorted(
        ["conv", "stride", "causal", "shared", "einsum", "head", *[f"attention/{n}" for n in names]]
    )
    want, count = gradient_of_the_product(x, (3, 3, 3, 1), padding="SAME")
    np.testing.assert_allclose(importance["conv"], want.ravel() / count, **CLOSE)
    head = model.get_layer("head")
    seen = np.asarray(keras.Model(model.inputs, head.input)(x))
    np.testing.assert_allclose(importance["head"], mean_square(seen), **CLOSE)
    # The einsum "abc,cde->abed" sums over c, its last axis.
    seen = np.asarray(keras.Model(model.inputs, model.get_layer("einsum").input)(x))
    np.testing.assert_allclose(importance["einsum"], mean_square(seen), **CLOSE)


def test_kerashub_by_path():
    model = keras3_models.pali_gemma()
    importance = quiet(model, [keras3_models.pali_gemma_inputs()])
    layouts = {
        path: layout_of(layer)
        for path, layer in nested_layers(model)
        if isinstance(layer, SUPPORTED) and not isinstance(layer, keras.layers.Embedding)
    }
    assert set(importance) == set(layouts)
    assert len(layouts) == 1 + 6 + 1 + 2 * 7  # as in test_keras3
    for path, value in importance.items():
        assert value.shape == (layouts[path].k,), path
        assert (value >= 0).all()
        assert value.any(), path


@pytest.mark.parametrize("kit", [tf_keras, keras], ids=["tf_keras", "keras"])
def test_gradients_of_a_linear_model(kit):
    """Oracle: the derivative of the mean squared error, written down."""
    rng = generator()
    kernel = rng.standard_normal((7, 3)).astype(np.float32)
    model = kit.Sequential([kit.layers.Input((7,)), kit.layers.Dense(3, use_bias=False, name="d")])
    model.set_weights([kernel])
    model.compile("sgd", "mse")
    x = rng.standard_normal((24, 7)).astype(np.float32)
    y = rng.standard_normal((24, 3)).astype(np.float32)
    got = quiet(model, (x, y), "gradients", batch_size=8)
    want = np.zeros((3, 7))
    for part in np.split(np.arange(24), 3):
        error = x[part].astype(np.float64) @ kernel - y[part]
        want += np.square(2 / (8 * 3) * error.T @ x[part]) / 3
    np.testing.assert_allclose(got["d"], want, rtol=1e-4)  # float32 sums of 24 signed terms
    assert got.kind == "gradients"
    model.trainable = False  # frozen kernels are measured, too
    again = quiet(model, [(x, y)], "gradients", batch_size=8, loss="mse", steps=1)
    error = x.astype(np.float64) @ kernel - y
    want = np.square(2 / (24 * 3) * error.T @ x)
    np.testing.assert_allclose(again["d"], want, rtol=1e-4)
    # Weights of samples: zero ones count for nothing but in the mean.
    weight = np.repeat([1, 0], 12).astype(np.float32)
    got = quiet(model, [(x, y, weight)], "gradients")
    want = np.square(2 / (24 * 3) * error[:12].T @ x[:12])
    np.testing.assert_allclose(got["d"], want, rtol=1e-4)


@pytest.mark.parametrize("kit", [tf_keras, keras], ids=["tf_keras", "keras"])
def test_without_labels_the_predictions_are_the_labels(kit):
    kit.utils.set_random_seed(SEED)
    inputs = kit.Input((5,))
    hidden = kit.layers.Dense(6, activation="tanh", name="hidden")(inputs)
    model = kit.Model(inputs, kit.layers.Dense(4, activation="softmax", name="head")(hidden))
    x = generator().standard_normal((16, 5)).astype(np.float32)
    classes = np.argmax(np.asarray(model(x)), axis=-1)
    want = quiet(model, (x, classes), "gradients", loss="sparse_categorical_crossentropy")
    hot = np.eye(4, dtype=np.float32)[classes]
    for loss in (None, "sparse_categorical_crossentropy", "categorical_crossentropy"):
        got = quiet(model, x, "gradients", loss=loss)
        for name in ("hidden", "head"):
            np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-12)
    model.compile("sgd", kit.losses.CategoricalCrossentropy())
    for data in (x, (x, hot)):
        got = quiet(model, data, "gradients")
        np.testing.assert_allclose(got["head"], want["head"], rtol=1e-4, atol=1e-12)
    # Mean squared error is zero at the model's own outputs, and its gradient is, too.
    with pytest.raises(ValueError, match="got zero for every kernel.*give labels"):
        quiet(model, x, "gradients", loss="mse")


def test_gradients_of_a_causal_language_model():
    model = keras3_models.pali_gemma()
    importance = quiet(model, [keras3_models.pali_gemma_inputs()], "gradients")
    # The head of the vision tower is not part of the language model's graph.
    for path, layer in nested_layers(model):
        if isinstance(layer, SUPPORTED):
            layout = layout_of(layer)
            assert importance[path].shape == (layout.n, layout.k), path


@pytest.mark.parametrize("importance", ["activations", "gradients", "hessian"])
def test_the_model_is_left_as_it_was(importance):
    for model in (models.cnn(), keras3_models.mixed_model()):
        shape = tuple(model.outputs[0].shape)[1:]
        model.layers[1].trainable = False
        model.compile("adam", "mse", metrics=["mae"])
        x = generator().standard_normal((4, *model.inputs[0].shape[1:])).astype(np.float32)
        y = np.zeros((4, *shape), np.float32)
        model.evaluate(x, y, verbose=0)
        weights = model.get_weights()
        metrics = [np.array(v) for m in model.metrics for v in m.variables]
        flags = [layer.trainable for layer in model.layers]
        optimizer, loss = model.optimizer, model.loss
        quiet(model, (x, y), importance)
        assert not any("call" in layer.__dict__ for layer in model.layers)
        for got, want in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(got, want)
        for got, want in zip([v for m in model.metrics for v in m.variables], metrics, strict=True):
            np.testing.assert_array_equal(np.array(got), want)
        assert [layer.trainable for layer in model.layers] == flags
        assert model.optimizer is optimizer
        assert model.loss is loss
        assert not tf.config.functions_run_eagerly()


def test_layers_are_restored_after_an_error():
    """Also an own `call` that somebody has put there before."""
    model = tf_keras.Sequential([layers.Input((3,)), layers.Dense(2, name="a"), layers.Dense(2)])

    def mine(inputs):
        raise RuntimeError("stop")

    model.layers[1].__dict__["call"] = mine
    with pytest.raises(RuntimeError, match="stop"):
        quiet(model, np.ones((2, 3), np.float32))
    assert "call" not in model.layers[0].__dict__
    assert model.layers[1].__dict__["call"] is mine


def rows_of(kind, x, y):
    """The same two batches in each form that data may have."""
    pairs = [(x[:4], y[:4]), (x[4:], y[4:])]
    return {
        "array": x,
        "tensor": tf.constant(x),
        "tuple": (x, y),
        "named": {"image": x},
        "list": [x[:4], x[4:]],
        "generator": (pair for pair in pairs),
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(4),
        "endless": tf.data.Dataset.from_tensor_slices(x).batch(4).repeat(),
        "sequence": type("S", (), {"__getitem__": lambda s, i: pairs[i], "__len__": lambda s: 2})(),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["array", "tensor", "tuple", "named", "list", "generator", "dataset", "endless", "sequence"],
)
def test_forms_of_data(kind):
    x = generator().standard_normal((8, 5)).astype(np.float32)
    inputs = tf_keras.Input((5,), name="image")
    model = tf_keras.Model(inputs, layers.Dense(2, name="dense")(inputs))
    got = quiet(model, rows_of(kind, x, np.zeros((8, 2))), steps=2, batch_size=4)
    np.testing.assert_allclose(got["dense"], mean_square(x), **CLOSE)


def test_several_inputs_are_a_list():
    model = models.cross_attention()
    query, memory = models.inputs_of(model)
    whole = quiet(model, [query, memory], batch_size=3)
    batches = quiet(model, [[query[:3], memory[:3]], ([query[3:], memory[3:]], None)])
    for name, value in whole.items():
        np.testing.assert_array_equal(value, batches[name])


def test_a_layer_that_is_never_called_has_no_entry():
    class Half(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.used = keras.layers.Dense(3, name="used")
            self.unused = keras.layers.Dense(3, name="unused")

        def build(self, shape):
            self.used.build(shape)
            self.unused.build(shape)

        def call(self, x):
            return self.used(x)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Half(name="half")(inputs))
    x = np.ones((2, 4), np.float32)
    assert list(quiet(model, x)) == ["half/used"]
    assert list(quiet(model, (x, x[:, :3] * 2), "gradients", loss="mse")) == ["half/used"]


def test_half_precision_is_summed_in_float32():
    """Squares of 300 do not fit float16."""
    for kit in (tf_keras, keras):
        model = kit.Sequential(
            [kit.layers.Input((4,)), kit.layers.Dense(2, dtype="mixed_float16", name="dense")]
        )
        x = np.full((3, 4), 300, np.float32)
        np.testing.assert_array_equal(quiet(model, x)["dense"], [90000] * 4)


def test_calibration_file(tmp_path):
    values = {"a/b": np.arange(3), "c": np.ones((2, 3)), "kind": np.ones(1)}
    calibration = Calibration(values, "gradients")
    assert len(calibration) == 3
    assert dict(calibration)["c"].dtype == np.float32
    path = tmp_path / "c.npz"
    calibration.save(path)
    calibration.save(path)  # over the old one
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    again = Calibration.load(path)
    assert again.kind == "gradients"
    assert list(again) == list(calibration)
    for name in values:
        np.testing.assert_array_equal(again[name], calibration[name])
    assert repr(again) == "Calibration(3 kernels, kind='gradients')"
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text").write_text("nothing")
    for name in ("other.npz", "array.npy", "text"):
        with pytest.raises(ValueError, match=r"file that Calibration\.save wrote"):
            Calibration.load(tmp_path / name)
    with pytest.raises(ValueError, match="kind 'activations', 'gradients' or 'hessian'"):
        Calibration({}, "mean")


def test_not_finite_data_weights_and_activations():
    model = models.cnn()
    x = np.ones((6, 8, 8, 1), np.float32)
    x[5, 3, 3, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf in the inputs of batch 1"):
        quiet(model, x, batch_size=3)
    with pytest.raises(ValueError, match="NaN or Inf in the labels of batch 0"):
        quiet(model, [(x[:2], np.full((2, 10), np.inf))])
    x[5] = 0
    norm = model.get_layer("norm")
    norm.gamma.assign(np.full(6, np.inf))
    with pytest.raises(ValueError, match="finite inputs of layer 'head'.*batch 0"):
        quiet(model, x)
    with pytest.raises(ValueError, match="finite loss.*batch 0"):
        quiet(model, (x, np.zeros((6, 10))), "gradients", loss="mse")
    assert "call" not in model.get_layer("head").__dict__
    keras3 = keras3_models.mixed_model()
    kernel = keras3.get_layer("causal").kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="finite inputs of layer 'shared'"):
        quiet(keras3, keras3_models.mixed_inputs())


def test_gradients_that_are_not_finite_name_the_layer():
    """The loss is finite, the derivative of the square root at zero is not."""
    model = tf_keras.Sequential([layers.Input((3,)), layers.Dense(2, use_bias=False, name="dense")])
    with pytest.raises(ValueError, match="finite gradients.*layer 'dense' in calibration batch 0"):
        quiet(
            model,
            (np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32)),
            "gradients",
            loss=lambda y, outputs: tf.sqrt(outputs),
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: quiet(m, [], "mean"), ValueError, "'activations', 'gradients' or 'hessian'"),
        (lambda m: quiet(m, []), ValueError, "at least one batch"),
        (lambda m: quiet(m, 3), TypeError, "got int"),
        (lambda m: quiet(m, [], steps=0), ValueError, "steps None or >= 1"),
        (lambda m: quiet(m, [], "hessian", max_inputs=0), ValueError, "max_inputs >= 1"),
        (lambda m: quiet(m, [], batch_size=0), ValueError, "batch_size >= 1"),
        (lambda m: quiet(m, (np.ones((2, 3)), np.ones(1))), ValueError, r"lengths \[1, 2\]"),
        (lambda m: quiet(m, [(1, 2, 3, 4)]), ValueError, "tuple of 4 in batch 0"),
        (
            lambda m: quiet(m, (np.ones((2, 3)), np.ones((2, 2))), "gradients"),
            ValueError,
            r"not compiled.*calibrate\(loss=",
        ),
        (
            lambda m: quiet(tt.quantize_apply(m, tt.TernaryScheme()), []),
            ValueError,
            "before it is quantized",
        ),
        (lambda m: quiet(m.layers[0], []), TypeError, "got Dense"),
    ],
)
def test_bad_arguments(call, error, message):
    model = tf_keras.Sequential([layers.Input((3,)), layers.Dense(2)])
    with pytest.raises(error, match=message):
        call(model)
