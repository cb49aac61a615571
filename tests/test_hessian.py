"""Calibrations of kind "hessian": second moments of the inputs of each kernel."""

from __future__ import annotations

import itertools

import keras
import keras3_models
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tf_keras_models as models

from tfmot_ternary import kernel_moments
from tfmot_ternary.calibration import Calibration, calibrate
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.layer_hessian import LayerHessian

SEED = 47
BOTH = pytest.mark.parametrize("kit", [tf_keras, keras], ids=["tf_keras", "keras"])


def normal(*shape):
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def quiet(model, data, kind="hessian", **kwargs):
    return calibrate(model, data, kind, progress=False, **kwargs)


def moments(x):
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return rows.T @ rows / len(rows)


def assert_moments(got, rows):
    """Float32 products over at most a thousand rows of normal size, against float64."""
    assert isinstance(got, LayerHessian)
    assert got.matrix.dtype == np.float32
    np.testing.assert_array_equal(got.matrix, got.matrix.T)
    want = moments(rows)
    np.testing.assert_allclose(got.matrix, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def one_layer(kit, layer, shape):
    model = kit.Sequential([kit.layers.Input(shape), layer])
    rng = np.random.default_rng(SEED + 1)
    model.set_weights([rng.standard_normal(w.shape) for w in model.get_weights()])
    return model


def assert_rows_of(model, layout, x, rows):
    """The rows are the right ones: W[n, k] times them is what the layer computes."""
    layer = model.layers[-1]
    y = rows @ layout.to_matrix(np.asarray(layer.kernel)).T
    want = np.asarray(model(x)).reshape(-1, layout.n)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)  # float32 sums of k terms near 1


@BOTH
def test_dense(kit):
    model = one_layer(kit, kit.layers.Dense(3, use_bias=False, name="dense"), (4, 7))
    x = normal(40, 4, 7)
    calibration = quiet(model, x)  # two batches, the last one short
    assert calibration.kind == "hessian"
    assert_moments(calibration["dense"], x)


def patches(x, window, strides, padding, dilation):
    """Rows [batch, positions..., window..., c] as [rows, k], one number at a time."""
    batch, *sizes, channels = x.shape
    counts, fronts = [], []
    for size, taps, stride, rate in zip(sizes, window, strides, dilation, strict=True):
        reach = rate * (taps - 1)
        if padding == "valid":
            counts.append(len(range(0, size - reach, stride)))
            fronts.append(0)
        elif padding == "causal":
            counts.append(len(range(0, size, stride)))
            fronts.append(reach)
        else:  # as TensorFlow pads: what is missing, the odd one behind
            counts.append(len(range(0, size, stride)))
            fronts.append(max((counts[-1] - 1) * stride + reach + 1 - size, 0) // 2)
    rows = []
    for image in range(batch):
        for position in itertools.product(*map(range, counts)):
            row = []
            for tap in itertools.product(*map(range, window)):
                at = tuple(
                    p * s + t * d - f
                    for p, s, t, d, f in zip(position, strides, tap, dilation, fronts, strict=True)
                )
                inside = all(0 <= a < size for a, size in zip(at, sizes, strict=True))
                row += list(x[(image, *at)]) if inside else [0] * channels
            rows.append(row)
    return np.array(rows, np.float32)


CONVOLUTIONS = [
    # class, shape of an example, window, strides, padding, dilation
    ("Conv1D", (11, 3), (4,), (3,), "valid", (1,)),
    ("Conv1D", (9, 4), (3,), (1,), "causal", (2,)),
    ("Conv1D", (10, 2), (4,), (2,), "causal", (1,)),
    ("Conv1D", (7, 3), (4,), (2,), "same", (1,)),
    ("Conv2D", (9, 7, 3), (3, 2), (2, 2), "same", (1, 1)),
    ("Conv2D", (9, 8, 2), (2, 5), (2, 3), "valid", (1, 1)),
    ("Conv2D", (7, 9, 3), (3, 2), (1, 1), "same", (2, 3)),
    ("Conv2D", (8, 9, 2), (3, 2), (1, 1), "valid", (2, 3)),
    ("Conv2D", (6, 5, 4), (1, 1), (2, 2), "same", (1, 1)),
    ("Conv3D", (5, 6, 4, 2), (2, 3, 2), (2, 1, 3), "same", (1, 1, 1)),
]


# No scheme quantizes the Conv3D of tf_keras.
CASES = [
    (kit, *case)
    for kit in (tf_keras, keras)
    for case in CONVOLUTIONS
    if (kit, case[0]) != (tf_keras, "Conv3D")
]


@pytest.mark.parametrize(
    ("kit", "name", "shape", "window", "strides", "padding", "dilation"), CASES
)
def test_convolutions(kit, name, shape, window, strides, padding, dilation):
    layer = getattr(kit.layers, name)(
        5, window, strides, padding, dilation_rate=dilation, use_bias=False, name="conv"
    )
    model = one_layer(kit, layer, shape)
    x = normal(3, *shape)
    rows = patches(x, window, strides, padding, dilation)
    assert_rows_of(model, KernelLayout.conv(layer.kernel.shape), x, rows)
    assert_moments(quiet(model, x)["conv"], rows)


def test_channels_first():
    """TensorFlow computes them on a CPU through Keras 3 only."""
    x = normal(2, 7, 6, 3)
    layer = keras.layers.Conv2D(
        4, (3, 2), padding="same", data_format="channels_first", use_bias=False, name="conv"
    )
    model = one_layer(keras, layer, (3, 7, 6))
    rows = patches(x, (3, 2), (1, 1), "same", (1, 1))
    got = quiet(model, np.moveaxis(x, -1, 1))["conv"]
    assert_moments(got, rows)


@pytest.mark.parametrize("piece", [1, 100, 777])
def test_pieces_of_large_activations(piece, monkeypatch):
    """However few rows are taken at a time, none is left out or counted twice."""
    monkeypatch.setattr(kernel_moments, "_PIECE", piece)
    model = one_layer(keras, keras.layers.Conv2D(5, 3, 2, "same", name="conv"), (7, 8, 2))
    x = normal(3, 7, 8, 2)
    assert_moments(quiet(model, x)["conv"], patches(x, (3, 3), (2, 2), "same", (1, 1)))
    dense = one_layer(keras, keras.layers.Dense(2, name="dense"), (5, 6))
    x = normal(4, 5, 6)
    assert_moments(quiet(dense, x)["dense"], x)


@BOTH
@pytest.mark.parametrize(
    ("equation", "inputs", "outputs", "order"),
    [
        # order: axes of the input, those that are summed over last
        ("abcd,cde->abe", (3, 4, 5), (3, 6), (0, 1, 2, 3)),
        ("abcd,dce->abe", (3, 4, 5), (3, 6), (0, 1, 2, 3)),
        ("abcd,bde->ace", (3, 4, 5), (4, 6), (0, 2, 1, 3)),
        ("abc,bd->acd", (6, 5), (5, 4), (0, 2, 1)),
        ("...x,xyz->...yz", (3, 5), (3, 2, 4), (0, 1, 2)),
    ],
)
def test_einsum(kit, equation, inputs, outputs, order):
    layer = kit.layers.EinsumDense(equation, outputs, name="einsum")
    model = one_layer(kit, layer, inputs)
    x = normal(7, *inputs)
    layout = KernelLayout.einsum(equation, tuple(layer.kernel.shape), x.ndim)
    rows = np.transpose(x, order).reshape(-1, layout.k)
    assert_rows_of(model, layout, x, rows)
    assert_moments(quiet(model, x)["einsum"], rows)


def test_shared_nested_and_recurrent_layers():
    """Oracle: the model's own intermediate tensors."""
    model = models.shared_and_nested()
    x = models.inputs_of(model, 70)[0]
    got = quiet(model, x)
    inner, shared, lstm = (model.get_layer(name) for name in ("inner", "shared", "lstm"))
    first = shared(x).numpy()
    second = inner(first).numpy()
    assert_moments(got["shared"], np.concatenate([x, second]))  # two calls
    dense, other = inner.layers
    assert_moments(got[f"inner/{dense.name}"], first)
    assert_moments(got[f"inner/{other.name}"], dense(first).numpy())
    sequence = np.reshape(shared(second).numpy(), (-1, 2, 4))
    assert_moments(got["lstm/kernel"], sequence)
    assert_moments(got["lstm/recurrent_kernel"], lstm(sequence[:, :1]).numpy())


def test_a_recurrent_layer_of_one_step_has_no_recurrent_products():
    model = one_layer(tf_keras, tf_keras.layers.LSTM(3, name="lstm"), (1, 4))
    for kind in ("hessian", "activations"):
        assert list(quiet(model, normal(5, 1, 4), kind)) == ["lstm/kernel"]


@BOTH
def test_projections_of_attention(kit, monkeypatch):
    """Self-attention: three projections of one tensor take one product of it."""
    taken = []

    def counted(kernel, x, product=kernel_moments._sum_of_products):
        taken.append(kernel.path)
        return product(kernel, x)

    monkeypatch.setattr(kernel_moments, "_sum_of_products", counted)
    kit.utils.set_random_seed(SEED)
    inputs = kit.Input((5, 6))
    attention = kit.layers.MultiHeadAttention(2, 3, name="attention")
    model = kit.Model(inputs, attention(inputs, inputs))
    x = normal(4, 5, 6)
    got = quiet(model, [x[:2], x[2:]])
    names = [f"attention/{n}" for n in ("query", "key", "value", "attention_output")]
    assert sorted(got) == sorted(names)
    for name in names[:3]:
        assert_moments(got[name], x)
    assert len(taken) == 2 * 2  # two batches: one for the three, one for the output
    query, key, value = (
        np.asarray(getattr(attention, f"_{name}_dense")(x), np.float64)
        for name in ("query", "key", "value")
    )
    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(3))
    context = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), value)
    assert_moments(got[names[3]], context.reshape(4, 5, 6))


def test_one_tensor_seen_in_two_ways():
    """Same tensor, same k, other rows: nothing may be reused."""
    inputs = keras.Input((6, 6))
    kernels = [
        keras.layers.Dense(3, name="last")(inputs),
        keras.layers.EinsumDense("abc,bd->acd", (6, 3), name="middle")(inputs),
        keras.layers.Conv1D(3, 3, padding="same", name="same")(inputs),
        keras.layers.Conv1D(3, 3, padding="causal", name="causal")(inputs),
    ]
    x = normal(5, 6, 6)
    got = quiet(keras.Model(inputs, kernels), x)
    assert_moments(got["last"], x)
    assert_moments(got["middle"], np.swapaxes(x, 1, 2))
    for padding in ("same", "causal"):
        assert_moments(got[padding], patches(x, (3,), (1,), padding, (1,)))


def test_one_tensor_seen_through_two_pairs_of_axes():
    inputs = keras.Input((4, 4, 3))
    outputs = [
        keras.layers.EinsumDense("abcd,cde->abe", (4, 2), name="bottom")(inputs),
        keras.layers.EinsumDense("abcd,bde->ace", (4, 2), name="top")(inputs),
        keras.layers.EinsumDense("abcd,dce->abe", (4, 2), name="turned")(inputs),
    ]
    x = normal(5, 4, 4, 3)
    got = quiet(keras.Model(inputs, outputs), x)
    assert_moments(got["bottom"], x.reshape(20, 12))
    assert_moments(got["top"], np.swapaxes(x, 1, 2).reshape(20, 12))
    assert_moments(got["turned"], x.reshape(20, 12))


def test_halves_of_a_large_product_are_made_equal():
    """In place and in blocks of 1024; small products happen to be symmetric as they are."""
    x = normal(1500, 1500)
    want = (x + x.T) / 2
    got = kernel_moments._symmetric(x)
    assert got is x
    np.testing.assert_array_equal(got, want)


def test_where_there_is_no_single_matrix():
    """Grouped, depthwise and transposed convolutions keep their mean squared inputs."""
    layers = tf_keras.layers
    depthwise = layers.DepthwiseConv2D(3, padding="same", name="depthwise")
    separable = layers.SeparableConv2D(6, 3, dilation_rate=2, padding="same", name="separable")
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((7, 6, 4)),
                layers.Conv2D(6, 3, groups=2, name="grouped"),
                depthwise,
                separable,
                layers.Conv2DTranspose(4, 2, strides=2, name="up"),
            ]
        )
    )
    x = normal(3, 7, 6, 4)
    got, squares = quiet(model, x), quiet(model, x, "activations")
    assert set(got) == set(squares)
    for name in ("grouped", "depthwise", "up"):
        assert isinstance(got[name], np.ndarray)
        np.testing.assert_array_equal(got[name], squares[name])
    # The pointwise kernel of a separable convolution sees what its depthwise half gives.
    seen = tf_keras.Model(model.inputs, separable.input)(x)
    middle = tf.nn.depthwise_conv2d(
        seen, separable.depthwise_kernel, [1, 1, 1, 1], "SAME", dilations=[2, 2]
    )
    assert_moments(got["separable"], middle.numpy())


def test_the_diagonal_is_the_squared_activations():
    for model, data in (
        (models.cnn(), normal(6, 8, 8, 1)),
        (keras3_models.mixed_model(), keras3_models.mixed_inputs()),
        (keras3_models.pali_gemma(), [keras3_models.pali_gemma_inputs()]),
    ):
        got, squares = quiet(model, data), quiet(model, data, "activations")
        assert set(got) == set(squares)
        for path, value in got.items():
            assert isinstance(value, LayerHessian), path
            # Sums of float32 squares in two orders.
            np.testing.assert_allclose(value.diagonal, squares[path], rtol=1e-5, atol=1e-9)


def test_max_inputs():
    model = keras3_models.mixed_model()
    x = keras3_models.mixed_inputs()
    got, squares = quiet(model, x, max_inputs=27), quiet(model, x, "activations")
    large = {path for path, value in got.items() if isinstance(value, np.ndarray)}
    assert large == {"stride", "head"} == {p for p, v in squares.items() if len(v) > 27}
    for path in large:
        np.testing.assert_array_equal(got[path], squares[path])
    assert got["conv"].k == 27


def test_half_precision_is_summed_in_float32():
    """Squares of 300 do not fit float16."""
    for kit in (tf_keras, keras):
        layer = kit.layers.Dense(2, dtype="mixed_float16", name="dense")
        got = quiet(one_layer(kit, layer, (4,)), np.full((3, 4), 300, np.float32))
        np.testing.assert_array_equal(got["dense"].matrix, np.full((4, 4), 90000))


@pytest.mark.parametrize("kit", [tf_keras, keras], ids=["tf_keras", "keras"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])  # the square of the last is beyond float32
def test_what_is_not_finite_names_the_layer(kit, bad):
    model = kit.Sequential(
        [
            kit.layers.Input((3,)),
            kit.layers.Dense(4, name="first"),
            kit.layers.Dense(2, name="second"),
        ]
    )
    bias = model.get_layer("first").bias
    bias.assign(np.array([0, bad, 0, 0], np.float32))
    with pytest.raises(ValueError, match="finite inputs of layer 'second'.*batch 0"):
        quiet(model, normal(5, 3))


def test_file(tmp_path):
    """A matrix stays one and an array stays one, also where n == k."""
    matrix = moments(normal(20, 3)).astype(np.float32)
    values = {"a/b": LayerHessian(matrix), "square": np.ones((3, 3)), "hessian/c": np.arange(3)}
    path = tmp_path / "c.npz"
    Calibration(values, "hessian").save(path)
    again = Calibration.load(path)
    assert again.kind == "hessian"
    assert set(again) == set(values)
    assert isinstance(again["a/b"], LayerHessian)
    np.testing.assert_array_equal(again["a/b"].matrix, matrix)
    for name in ("square", "hessian/c"):
        assert isinstance(again[name], np.ndarray)
        np.testing.assert_array_equal(again[name], values[name])
    np.savez(path, **{"kind": np.array("hessian"), "hessian/a": np.triu(np.ones((3, 3)))})
    with pytest.raises(ValueError, match=r"Calibration\.save wrote.*symmetric"):
        Calibration.load(path)
    with pytest.raises(ValueError, match="arrays in a calibration of kind 'activations'.*'a/b'"):
        Calibration(values, "activations")


def test_layer_hessian():
    matrix = moments(normal(20, 5))
    hessian = LayerHessian(matrix)
    assert hessian.k == 5
    assert repr(hessian) == "LayerHessian(k=5)"
    np.testing.assert_array_equal(hessian.diagonal, np.diag(matrix).astype(np.float32))
    hessian.diagonal[:] = 0  # a copy
    assert hessian.diagonal.all()
    with pytest.raises(ValueError, match="read-only"):
        hessian.matrix[0, 0] = 0
    # Float32 products are symmetric up to rounding only.
    LayerHessian(matrix + 1e-6 * np.triu(np.ones((5, 5))))
    own = matrix.astype(np.float32)
    assert LayerHessian(own).matrix.base is own
    own[0, 0] = 3  # the caller's array is left writable


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(3), r"square matrix \[k, k\], got shape \(3,\)"),
        (np.ones((3, 4)), r"got shape \(3, 4\)"),
        (np.ones((0, 0)), r"got shape \(0, 0\)"),
        (np.full((2, 2), np.nan), "finite second moments"),
        (np.full((2, 2), np.inf), "finite second moments"),
        (np.full((2, 2), 1e39), "finite second moments"),
        (np.eye(3, dtype=complex), "dtype complex128"),
        (np.triu(np.ones((3, 3))), "symmetric second moments, got entries up to 1"),
        (np.triu(np.ones((1300, 1300)), 1200), "symmetric"),
        (np.diag([1.0, -2.0]), "diagonal >= 0.*got -2"),
    ],
)
def test_layer_hessian_refuses(value, message):
    with pytest.raises(ValueError, match=message):
        LayerHessian(value)
