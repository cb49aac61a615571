"""Every kind of tf_keras layer with kernels: trained, saved, frozen, converted and run."""

from __future__ import annotations

import warnings

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
import tf_keras_models as models

import tfmot_ternary as tt
from tfmot_ternary import initializers, layer_kernels, model_file, quantizers, runtime
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.packed_rnn import MAX_UNROLLED_STEPS
from tfmot_ternary.packing import expand_scales

layers = tf_keras.layers
# Longer than what is unrolled: the loop of the file is one of TF Lite's.
LONG = MAX_UNROLLED_STEPS + 3
# Values of size 1 through a few layers of float32 sums in another order.
FLOAT_TOLERANCE = 2e-6


def functional(shape, build, dtype="float32", batch_size=None):
    inputs = tf_keras.Input(shape, dtype=dtype, batch_size=batch_size)
    return models.randomize(tf_keras.Model(inputs, build(inputs)))


def images():
    """Separable and transposed convolutions, with BatchNormalization and ReLU to fold."""

    def build(x):
        x = layers.SeparableConv2D(6, 3, strides=2, padding="same", depth_multiplier=2)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2DTranspose(7, 3, strides=2, use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        return layers.Conv2D(3, 3)(x)

    return functional((9, 8, 5), build)


def signals():
    def build(x):
        x = layers.SeparableConv1D(7, 3, dilation_rate=2, padding="causal", activation="tanh")(x)
        return layers.Conv1DTranspose(4, 3, strides=2, activation="relu")(x)

    return functional((9, 5), build)


def lstm_after_mask():
    """The mask of an embedding goes through two LSTMs, one in each form of loop."""

    def build(ids):
        x = layers.Embedding(20, 5, mask_zero=True)(ids)
        x = layers.LSTM(7, return_sequences=True)(x)
        return layers.Dense(3)(layers.LSTM(4, recurrent_activation="hard_sigmoid")(x))

    return functional((LONG,), build, "int32")


def gru():
    """Both forms of a GRU, an unknown number of steps, states in and out."""

    def build(x):
        x, state = layers.GRU(6, return_sequences=True, return_state=True)(x)
        x = layers.GRU(6, reset_after=False, return_sequences=True)(x, initial_state=[state])
        return layers.Concatenate()([layers.SimpleRNN(4, go_backwards=True)(x), state])

    return functional((None, 5), build)


def bidirectional():
    """Two kinds of layer in one; masks, and states that a layer hands to another."""

    def build(x):
        back = layers.GRU(3, return_sequences=True, go_backwards=True, use_bias=False)
        forward = layers.LSTM(4, return_sequences=True)
        y = layers.Bidirectional(forward, backward_layer=back)(layers.Masking()(x))
        y, *states = layers.Bidirectional(layers.SimpleRNN(2, return_state=True))(y)
        return layers.Concatenate()([y, layers.Bidirectional(layers.GRU(2))(x, states)])

    return functional((4, 3), build)


def inputs_of(model):
    generator = np.random.default_rng(5)
    (tensor,) = model.inputs
    shape = [4, *(6 if dim is None else dim for dim in tensor.shape[1:])]
    if tensor.dtype.is_integer:
        return generator.integers(0, 4, shape, dtype=np.int32)  # a quarter is masked
    x = generator.standard_normal(shape).astype(np.float32)
    if any(isinstance(layer, layers.Masking) for layer in model.layers):
        x[0, 2:] = 0
        x[1, 0] = x[1, 3] = 0
    return x


def output_of(model, inputs):
    """Eager: tracing each model would take most of the time."""
    return model(inputs, training=False).numpy()


def run(content, *batches):
    """The outputs for each batch, one call after the other, in both interpreters."""
    found = []
    for backend in runtime.BACKENDS:
        interpreter = runtime.make_interpreter(content, backend=backend)
        runner = interpreter.get_signature_runner("serving_default")
        (name,) = runner.get_input_details()
        found.append([next(iter(runner(**{name: batch}).values())) for batch in batches])
    return found


def dequantize(model, scheme):
    """Replaces the kernels of a float model by codes times scales, computed in NumPy."""
    for layer in model.layers:
        if not layer_kernels.quantizes(layer) or layer_kernels.only_if_chosen(layer):
            continue
        for attribute, layout in layer_kernels.kernel_layouts(layer).items():
            variable = layer_kernels.kernel_variable(layer, attribute)
            matrix = layout.to_matrix(variable.numpy())
            scales = initializers.initial_scales(matrix, scheme.levels, scheme.group_size)
            codes = quantizers.weight_codes(matrix, scales, scheme.levels, scheme.group_size)
            values = codes * expand_scales(scales, layout.n, layout.k, scheme.group_size)
            variable.assign(layout.from_matrix(values.astype(np.float32)))


@pytest.mark.parametrize(
    ("make", "scheme", "weight_format"),
    [
        (images, tt.TernaryScheme(32), "t5"),
        (signals, tt.BinaryScheme(), None),
        (lstm_after_mask, tt.TernaryScheme("tensor"), "t2"),
        (gru, tt.TernaryScheme(32), "t5"),
        (bidirectional, tt.BinaryScheme(32), "b1"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_quantized_frozen_and_converted(make, scheme, weight_format):
    """Oracle: the stock layers of the float model with the dequantized kernels."""
    model = make()
    inputs = inputs_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no layer is left in float
        quantized = tt.quantize_apply(model, scheme)
    dequantize(model, scheme)
    expected = output_of(model, inputs)
    size = np.abs(expected).max()
    assert size > 0.1
    np.testing.assert_allclose(output_of(quantized, inputs), expected, atol=FLOAT_TOLERANCE * size)
    exact = tt.freeze(quantized, weight_format, activations="float32")
    np.testing.assert_allclose(output_of(exact, inputs), expected, atol=FLOAT_TOLERANCE * size)
    frozen = tt.freeze(quantized, weight_format)
    result = output_of(frozen, inputs)
    # Each product rounds its input to 1/127 of a row's range; three in a row, or a loop.
    np.testing.assert_allclose(result, expected, atol=0.03 * size)
    for (got,) in run(tt.convert(frozen), inputs):
        # tanh and sigmoid differ in the last bits, which may move an int8 rounding; that step
        # (1/127 of a row) shows in one of the terms of a sum.
        np.testing.assert_allclose(got, result, atol=2e-3 * size)


def every_kind():
    """One model with most kinds of layers."""

    def build(ids):
        x = layers.Embedding(20, 6, mask_zero=True, name="embedding")(ids)
        x = layers.SeparableConv1D(4, 3, padding="same", name="separable")(x)
        x = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(x)
        x = layers.LSTM(4, dropout=0.1, recurrent_dropout=0.1, return_sequences=True, name="lstm")(
            x
        )
        x = layers.Conv1DTranspose(3, 3, name="transposed")(x)
        return layers.SimpleRNN(2, name="simple")(x)

    return functional((5,), build, "int32")


@pytest.fixture(scope="module")
def fitted():
    """(quantized model after one step, its first weights, inputs)."""
    model = every_kind()
    quantized = tt.quantize_apply(model, tt.TernaryScheme(32))
    before = quantized.get_weights()
    inputs = inputs_of(model)
    quantized.compile("adam", "mse")
    quantized.fit(inputs, np.ones((4, 2)), verbose=0)
    return quantized, before, inputs


def test_training_changes_every_kernel_and_scale(fitted):
    quantized, before, _ = fitted
    changed = {
        weight.name: np.any(weight.numpy() != value)
        for weight, value in zip(quantized.weights, before, strict=True)
        if not weight.dtype.is_integer
    }
    assert sum("scale" in name for name in changed) == 1 + 4 + 2 + 1 + 2
    assert all(changed.values()), changed
    assert len(quantized.trainable_weights) == len(changed)


@pytest.mark.parametrize("suffix", ["m.keras", "m.h5", "m"])
@pytest.mark.parametrize("weight_format", [None, "t5"], ids=["quantized", "frozen"])
def test_save_and_load(fitted, suffix, weight_format, tmp_path):
    model, _, inputs = fitted
    if weight_format is not None:
        model = tt.freeze(model, weight_format)
    model.save(tmp_path / suffix)
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / suffix)
    np.testing.assert_array_equal(output_of(again, inputs), output_of(model, inputs))
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]


def test_clone_checkpoint_and_the_names_of_scales_in_a_file(fitted, tmp_path):
    model, _, inputs = fitted
    model.save_weights(str(tmp_path / "checkpoint"))
    with tt.quantize_scope():
        again = tf_keras.models.clone_model(model)
    again.load_weights(str(tmp_path / "checkpoint")).assert_existing_objects_matched()
    np.testing.assert_array_equal(output_of(again, inputs), output_of(model, inputs))
    stored = {}
    for layer in model.layers:
        if hasattr(layer, "kernel_scales"):
            with h5py.File(tmp_path / f"{layer.name}.h5", "w") as file:
                layer.save_own_variables(file)
                stored[layer.layer.name] = set(file) - {"optimizer_step"}
    assert stored["separable"] == stored["transposed"] == {"scale"}
    assert stored["lstm"] == stored["simple"] == {"kernel_scale", "recurrent_kernel_scale"}
    assert stored["both"] == {
        f"{direction}_{name}_scale"
        for direction in ("forward", "backward")
        for name in ("kernel", "recurrent_kernel")
    }


def test_the_table():
    for layer, shape, kernels in [
        (layers.LSTM(4), (2, 6, 5), {"cell.kernel": (16, 5), "cell.recurrent_kernel": (16, 4)}),
        (layers.SeparableConv2D(4, 3), (2, 6, 6, 5), {"pointwise_kernel": (4, 5)}),
        (layers.Conv2DTranspose(4, 3), (2, 6, 6, 5), {"kernel": (4, 45)}),
        (layers.DepthwiseConv2D((3, 2), depth_multiplier=2), (2, 6, 6, 5), {
            "depthwise_kernel": (10, 6)
        }),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="to be built"):
            layer_kernels.kernel_layouts(layer)
        layer.build(shape)
        found = layer_kernels.kernel_layouts(layer)
        assert {name: (x.n, x.k) for name, x in found.items()} == kernels
    assert layer_kernels.kernel_names(layers.Bidirectional(layers.GRU(2)))[1:3] == (
        "forward_recurrent_kernel",
        "backward_kernel",
    )
    for other in (
        layers.RNN(layers.LSTMCell(3)),
        layers.Bidirectional(layers.RNN(layers.LSTMCell(3))),
        type("Mine", (layers.LSTM,), {})(3),
    ):
        assert not layer_kernels.quantizes(other)
    with pytest.raises(ValueError, match=r"cell\.kernel, cell\.recurrent_kernel; use kernel_layou"):
        layer_kernels.kernel_attribute(layers.LSTM(3))


def test_depthwise_layout():
    """Row c * m + j of W times the window of channel c is output c * m + j."""
    generator = np.random.default_rng(3)
    x, kernel = generator.standard_normal((1, 3, 2, 4)), generator.standard_normal((3, 2, 4, 2))
    got = tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "VALID").numpy().ravel()
    matrix = KernelLayout.depthwise(kernel.shape).to_matrix(kernel)
    windows = np.repeat(x[0].reshape(6, 4).T, 2, axis=0)
    np.testing.assert_allclose(got, (matrix * windows).sum(axis=1), rtol=1e-12)  # float64


def test_depthwise_only_where_it_is_chosen(tmp_path):
    def make(annotated):
        depthwise = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")
        return models.randomize(
            tf_keras.Sequential(
                [
                    layers.Input((8, 8, 4)),
                    annotate(depthwise) if annotated else depthwise,
                    layers.BatchNormalization(),
                    layers.ReLU(),
                    layers.Conv2D(3, 1),
                ]
            )
        )

    annotate = tfmot.quantization.keras.quantize_annotate_layer
    with pytest.warns(UserWarning, match="keep their float weights by default: 'depthwise'"):
        quantized = tt.quantize_apply(make(False), tt.TernaryScheme())
    assert type(quantized.layers[0]) is layers.DepthwiseConv2D
    chosen = tt.quantize_apply(make(True), tt.TernaryScheme())
    frozen = tt.freeze(chosen, "t5")
    assert [isinstance(layer, PackedLayer) for layer in frozen.layers] == [True, *[False] * 3]
    assert type(frozen.layers[1]) is type(frozen.layers[2]) is layers.Identity  # folded
    inputs = inputs_of(chosen)
    expected = output_of(chosen, inputs)
    frozen.save(tmp_path / "m.keras")
    frozen = tf_keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(output_of(frozen, inputs), expected, atol=1e-5)  # float32 sums
    for (got,) in run(tt.convert(frozen), inputs):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_stateful_layer_keeps_its_state_in_the_file():
    def build(x):
        return layers.LSTM(3, stateful=True)(x)

    quantized = tt.quantize_apply(functional((4, 5), build, batch_size=4), tt.TernaryScheme())
    frozen = tt.freeze(quantized)
    inputs = inputs_of(quantized)
    content = tt.convert(frozen)
    expected = [output_of(frozen, inputs) for _ in range(2)]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    for outputs in run(content, inputs, inputs):
        for got, want in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-3)  # as in the first test


@pytest.mark.parametrize("steps", [3, LONG])
def test_what_is_in_the_file_of_an_lstm(steps):
    """Each packed kernel once; one product for the inputs, one for the state in each step."""
    units = 40
    quantized = tt.quantize_apply(
        functional((steps, 30), lambda x: layers.LSTM(units, return_sequences=True)(x)),
        tt.TernaryScheme(),
    )
    frozen = tt.freeze(quantized)
    content = tt.convert(frozen)
    schema = model_file.schema()
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    products = [
        operator
        for graph in parsed.subgraphs
        for operator in graph.operators
        if parsed.operatorCodes[operator.opcodeIndex].customCode
    ]
    assert len(products) == 1 + (steps if steps <= MAX_UNROLLED_STEPS else 1)
    buffers = [bytes(buffer.data) for buffer in parsed.buffers if buffer.data is not None]
    packed = [p.packed_weights.packed.tobytes() for p in frozen.layers[-1].products.values()]
    assert [buffers.count(kernel) for kernel in packed] == [1, 1]
    # No dequantized kernel, and no constant of the size of the outputs.
    assert max(map(len, buffers)) == max(map(len, packed))


def test_half_precision():
    """The packed forms compute their float parts in float32, which TF Lite has."""

    def build(x):
        x = layers.SeparableConv1D(4, 3, padding="same", dtype="mixed_bfloat16")(x)
        x = layers.GRU(4, return_sequences=True, dtype="mixed_bfloat16")(x)
        return layers.Conv1DTranspose(3, 2, dtype="mixed_bfloat16")(x)

    quantized = tt.quantize_apply(functional((5, 4), build), tt.TernaryScheme())
    inputs = inputs_of(quantized)
    expected = output_of(quantized, inputs).astype(np.float32)
    frozen = tt.freeze(quantized, activations="float32")
    result = output_of(frozen, inputs)
    # bfloat16 has 8 bits; a few roundings in a row.
    np.testing.assert_allclose(result, expected, atol=8 / 2**8 * np.abs(expected).max())
    for (got,) in run(tt.convert(frozen), inputs):
        np.testing.assert_allclose(got, result, atol=FLOAT_TOLERANCE)


def test_kernels_that_are_ternary_already_are_recognized():
    def build(x):
        return layers.LSTM(20)(layers.SeparableConv1D(30, 2)(x))

    model = functional((3, 40), build)
    inputs = inputs_of(model)
    dequantize(model, tt.TernaryScheme())
    frozen = tt.freeze(model, "t5", "float32", recognize=True)
    assert [type(layer).__name__ for layer in frozen.layers[1:]] == [
        "PackedSeparableConv1D",
        "PackedLSTM",
    ]
    np.testing.assert_allclose(
        output_of(frozen, inputs), output_of(model, inputs), atol=FLOAT_TOLERANCE
    )


def test_errors():
    quantized = tt.quantize_apply(
        functional((3, 4), lambda x: layers.GRU(2)(x)), tt.TernaryScheme()
    )
    packed = tt.freeze(quantized).layers[-1]
    config = packed.get_config()
    del config["packing"]
    with pytest.raises(ValueError, match="the argument `packing` of PackedGRU"):
        type(packed).from_config(config)
    with pytest.raises(ValueError, match="dense inputs of the packed layer 'gru.*ragged"):
        packed.call(tf.ragged.constant([[[1.0] * 4], [[1.0] * 4] * 2], ragged_rank=1))
