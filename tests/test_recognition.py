"""Recognition of float weights that are ternary or binary already: matrices and whole models."""

from __future__ import annotations

import itertools
import tracemalloc

import keras
import keras3_models
import numpy as np
import pytest
import tf_keras
import tf_keras_models as models

import tfmot_ternary as tt
from tfmot_ternary import keras3, recognition
from tfmot_ternary.keras3_structure import nested_layers
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.packing import PackedWeights, expand_scales, row_bytes, scale_shape
from tfmot_ternary.recognition import recognize

SEED = 41
# Outputs of size about 1 through at most ten layers of float32 sums in another order.
FLOAT_TOLERANCE = 1e-5
# As in test_conversion: float layers between the operators may move one int8 rounding.
CONVERTED_TOLERANCE = 2e-3
GRANULARITIES = ("tensor", None, 256, 128, 64, 32)
layers = tf_keras.layers


def planted(rng, n, k, levels, group_size):
    """A matrix that is ternary or binary with the given groups and random float32 scales."""
    scales = rng.uniform(1e-3, 9, scale_shape(n, k, group_size)).astype(np.float32)
    codes = rng.choice([-1, 1] if levels == 2 else [-1, 0, 1], (n, k)).astype(np.int8)
    return codes * expand_scales(scales, n, k, group_size)


def stored(found, shape):
    """Bytes of codes (ternary as t2) and scales."""
    return shape[0] * row_bytes(shape[1], "b1" if found.levels == 2 else "t2") + found.scales.nbytes


def groups_of(matrix, group_size):
    """All groups that share a scale, as lists of Python floats."""
    if group_size == "tensor":
        return [matrix.ravel().tolist()]
    size = group_size or matrix.shape[1]
    return [
        row[start : start + size].tolist()
        for row in matrix
        for start in range(0, matrix.shape[1], size)
    ]


def search(matrix):
    """The rule by brute force: (levels, group_size) of the fewest bytes below float32, or None."""
    best = None
    if not np.abs(matrix).max() > 0:
        return None
    for group_size, levels in itertools.product(GRANULARITIES, (2, 3)):
        magnitudes = [{abs(w) for w in group} for group in groups_of(matrix, group_size)]
        if levels == 3:
            magnitudes = [values - {0.0} for values in magnitudes]
        if any(len(values) > 1 for values in magnitudes):
            continue
        n, k = matrix.shape
        size = n * row_bytes(k, "b1" if levels == 2 else "t2") + 4 * len(magnitudes)
        if size < (best[0] if best else 4 * matrix.size):
            best = size, (levels, group_size)
    return best and best[1]


def assert_exact(found, matrix):
    weight_format = "b1" if found.levels == 2 else "t5"
    packed = PackedWeights.from_codes(found.codes, found.scales, weight_format, found.group_size)
    np.testing.assert_array_equal(packed.dequantize(), matrix)
    assert found.scales.dtype == np.float32


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("group_size", GRANULARITIES)
@pytest.mark.parametrize("k", [257, 300, 1024])
def test_planted_forms_are_found(levels, group_size, k):
    matrix = planted(np.random.default_rng(SEED), 9, k, levels, group_size)
    found = recognize(matrix)
    assert (found.levels, found.group_size) == (levels, group_size)
    assert found.scales.shape == scale_shape(9, k, group_size)
    assert_exact(found, matrix)


def test_the_rule_against_brute_force():
    """Few values in matrices around the group sizes: every form occurs, and no form at all."""
    rng = np.random.default_rng(SEED)
    seen = set()
    for _ in range(600):
        n, k = rng.integers(1, 4), rng.choice([1, 2, 3, 5, 31, 32, 33, 64, 70, 129, 300])
        values = rng.choice([0.0, 0.1, -0.1, 0.7, 3e-42], rng.integers(1, 4))
        run = rng.choice([1, 32, 64, 256, k])  # equal values in runs make groups
        codes = rng.choice([-1, 1] if rng.integers(2) else [-1, 0, 1], (n, k))
        drawn = np.repeat(rng.choice(values, (n, -(-k // run))), run, axis=1)[:, :k]
        matrix = (drawn * codes).astype(np.float32)
        found = recognize(matrix)
        form = None if found is None else (found.levels, found.group_size)
        assert form == search(matrix), (n, k, run, values)
        if found is not None:
            assert_exact(found, matrix)
        seen.add(form)
    assert {None, *itertools.product((2, 3), ("tensor", None, 32, 64))} <= seen


def test_rows_of_zeros():
    """They fit any form with the scale 0; one bit a weight is the cheaper form from k = 33 on."""
    rng = np.random.default_rng(SEED)
    matrix = planted(rng, 6, 64, 2, "tensor")
    matrix[2] = -0.0
    found = recognize(matrix)
    assert (found.levels, found.group_size) == (2, None)
    assert found.scales[2] == 0
    assert_exact(found, matrix)
    matrix[0, 5] = 0  # now a row has zeros and others
    assert recognize(matrix).levels == 3
    assert_exact(recognize(matrix), matrix)


def test_one_ulp_or_one_bad_value_is_enough_to_refuse():
    rng = np.random.default_rng(SEED)
    good = planted(rng, 70, 5000, 3, None)  # several blocks of rows
    assert recognize(good) is not None
    row, column = 69, int(np.flatnonzero(good[69])[-1])
    for value in (np.nextafter(good[row, column], np.float32(9)), np.nan, np.inf):
        matrix = good.copy()
        matrix[row, column] = value
        assert recognize(matrix) is None
    assert recognize(np.full((3, 40), np.inf, np.float32)) is None


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 40), np.float32),
        np.random.default_rng(SEED).standard_normal((40, 1)).astype(np.float32),  # k = 1
        np.random.default_rng(SEED).standard_normal((40, 40)).astype(np.float32),
        np.full((2, 40), 0.1),  # float64: not a float32 value
        np.full((2, 40), 1e300),
    ],
)
def test_what_is_not_recognized(matrix):
    assert recognize(matrix) is None


def test_types_that_float32_holds():
    for dtype in (np.float16, np.float64, np.int8):
        matrix = np.array([[1, -1, 0, 1] * 10, [-1, 0, 0, 1] * 10], dtype)
        found = recognize(matrix)
        assert (found.levels, found.group_size) == (3, "tensor")
        np.testing.assert_array_equal(found.codes * found.scales, matrix)
    with pytest.raises(ValueError, match=r"matrix \[n, k\].*got shape \(3,\)"):
        recognize(np.ones(3, np.float32))


def test_memory_is_that_of_the_codes(monkeypatch):
    monkeypatch.setattr(recognition, "BLOCK_WEIGHTS", 1 << 14)
    matrix = planted(np.random.default_rng(SEED), 1000, 2000, 3, 128)
    tracemalloc.start()
    found = recognize(matrix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_exact(found, matrix)
    # Codes are a quarter of the matrix, the finest magnitudes and their merged ones 3/32.
    assert peak < 0.4 * matrix.nbytes


# Whole models.


def packed_layers(model):
    if isinstance(model, tf_keras.Model):
        return [layer for layer in model.submodules if isinstance(layer, PackedLayer)]
    return [layer for _, layer in nested_layers(model) if isinstance(layer, PackedLayer)]


def forms(model):
    return {layer.name: (layer.weight_format, layer.group_size) for layer in packed_layers(model)}


def signs(kernel, axis):
    """Larq's way: a * sign(w), one a per output."""
    kernel = np.asarray(kernel)
    a = np.abs(kernel).mean(axis=axis, keepdims=True, dtype=np.float32)
    return np.where(kernel < 0, -a, a)


def trits(kernel, axis):
    """One a per output, and zeros."""
    kernel = np.asarray(kernel)
    a = np.abs(kernel).mean(axis=axis, keepdims=True, dtype=np.float32)
    return np.where(np.abs(kernel) > a / 2, np.sign(kernel) * a, np.float32(0))


def digits_model():
    """tf_keras: binary conv, BatchNormalization, ReLU; ternary conv; float, then ternary head."""
    tf_keras.utils.set_random_seed(SEED)
    model = models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((8, 8, 4)),
                layers.Conv2D(6, 3, padding="same", use_bias=False, name="binary"),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(name="relu"),
                layers.Conv2D(5, 3, strides=2, name="ternary", activation="relu"),
                layers.Flatten(),
                layers.Dense(12, activation="tanh", name="float"),
                layers.Dense(3, name="head"),
            ]
        )
    )
    binary, ternary, head = (model.get_layer(name) for name in ("binary", "ternary", "head"))
    binary.kernel.assign(signs(binary.kernel, (0, 1, 2)))
    ternary.kernel.assign(trits(ternary.kernel, (0, 1, 2)))
    head.kernel.assign(trits(head.kernel, None))
    return model


@pytest.fixture(scope="module")
def recognized():
    """(float model, inputs, its outputs)."""
    model = digits_model()
    (x,) = models.inputs_of(model)
    return model, x, model(x).numpy()


@pytest.mark.parametrize("weight_format", [None, "t5"])
def test_tf_keras_float_model(recognized, weight_format):
    model, x, expected = recognized
    before = model.get_weights()
    frozen = tt.freeze(model, weight_format, activations="float32", recognize=True)
    ternary = weight_format or "t2"
    assert forms(frozen) == {
        "binary": ("b1", None),
        "ternary": (ternary, None),
        "head": (ternary, "tensor"),
    }
    assert type(frozen.get_layer("float")) is layers.Dense
    # Normalization and ReLU went into the convolution, as after a quantized one.
    assert not any(type(layer) is layers.BatchNormalization for layer in frozen.layers)
    assert frozen.get_layer("binary").activation is tf_keras.activations.relu
    np.testing.assert_allclose(frozen(x).numpy(), expected, atol=FLOAT_TOLERANCE)
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_tf_keras_converts_and_runs(recognized, tmp_path):
    model, x, _ = recognized
    frozen = tt.freeze(model, recognize=True)
    frozen.save(tmp_path / "m.keras")
    expected = frozen(x).numpy()
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(x).numpy(), expected)
    content = tt.convert(frozen)
    for backend in tt.runtime.BACKENDS:
        interpreter = tt.runtime.make_interpreter(content, backend=backend)
        runner = interpreter.get_signature_runner("serving_default")
        (got,) = runner(**{next(iter(runner.get_input_details())): x}).values()
        bound = CONVERTED_TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, atol=bound)


def test_tf_keras_partly_quantized():
    """Quantized layers are frozen as without `recognize`; the recognized head joins them."""
    model = digits_model()
    quantized = tt.quantize_apply(model, tt.TernaryScheme(group_size=32, skip="head"))
    (x,) = models.inputs_of(model)
    plain = tt.freeze(quantized, activations="float32")
    frozen = tt.freeze(quantized, activations="float32", recognize=True)
    assert forms(frozen) == {**forms(plain), "head": ("t2", "tensor")}
    assert forms(plain)["float"] == ("t2", 32)
    np.testing.assert_allclose(frozen(x).numpy(), quantized(x).numpy(), atol=FLOAT_TOLERANCE)


def test_tf_keras_nested_shared_and_embedding():
    ids = tf_keras.Input((7,), dtype="int32")
    inner = tf_keras.Sequential([layers.Input((7, 8)), layers.Dense(8, name="inside")], name="sub")
    shared = layers.Dense(8, name="shared")
    x = layers.Embedding(20, 8, name="table")(ids)
    x = inner(shared(shared(x)))
    # A kernel with a batch axis is many products: it stays float, whatever its values are.
    x = layers.EinsumDense("abc,bcd->abd", (7, 3), name="many")(x)
    model = models.randomize(tf_keras.Model(ids, layers.Flatten()(x)))
    for layer in (model.get_layer("table"), shared, inner.layers[0], model.get_layer("many")):
        layer.weights[0].assign(signs(layer.weights[0], None))
    frozen = tt.freeze(model, activations="float32", recognize=True)
    assert set(forms(frozen).values()) == {("b1", "tensor")}
    assert set(forms(frozen)) == {"table", "shared", "inside"}
    inputs = models.inputs_of(model)
    np.testing.assert_allclose(
        frozen.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=FLOAT_TOLERANCE
    )


def test_tf_keras_attention_and_recurrent_layers():
    """Packed only where all of their kernels are recognized."""
    x = tf_keras.Input((5, 8))
    y = layers.MultiHeadAttention(2, 4, name="ready")(x, x)
    y = layers.MultiHeadAttention(2, 4, name="partly")(y, y)
    y = layers.LSTM(6, name="memory", return_sequences=True)(y)
    model = models.randomize(tf_keras.Model(x, layers.GRU(3, name="float")(y)))
    for name, count in (("ready", 4), ("partly", 3), ("memory", 2), ("float", 1)):
        kernels = [w for w in model.get_layer(name).weights if "kernel" in w.name]
        for kernel in kernels[:count]:
            kernel.assign(signs(kernel, None))
    frozen = tt.freeze(model, activations="float32", recognize=True)
    assert [layer.weight_format for layer in packed_layers(frozen)] == ["b1"] * 6
    assert type(frozen.get_layer("partly")) is layers.MultiHeadAttention
    assert type(frozen.get_layer("float")) is layers.GRU
    (inputs,) = models.inputs_of(model)
    np.testing.assert_allclose(frozen(inputs), model(inputs), atol=FLOAT_TOLERANCE)


def keras3_model():
    """Every kernel of `mixed_model` but one is made ternary or binary by its layer's own axes."""
    model = keras3_models.mixed_model()
    paths = []
    for path, layer in nested_layers(model):
        if not isinstance(layer, keras3.SUPPORTED) or layer.name == "shared":
            continue
        layout = keras3.layout_of(layer)
        make = signs if len(paths) % 2 else trits
        layer._kernel.assign(layout.from_matrix(make(layout.to_matrix(layer._kernel.numpy()), 1)))
        paths.append(path)
    return model, paths


def test_keras3_float_model(tmp_path):
    model, paths = keras3_model()
    inputs = keras3_models.mixed_inputs()
    expected = np.asarray(model(inputs))
    frozen = tt.freeze(model, activations="float32", recognize=True)
    assert [p for p, layer in nested_layers(frozen) if isinstance(layer, PackedLayer)] == paths
    assert {layer.weight_format for layer in packed_layers(frozen)} == {"t2", "b1"}
    for (_, source), (_, target) in zip(nested_layers(model), nested_layers(frozen), strict=True):
        if isinstance(target, PackedLayer):
            np.testing.assert_array_equal(target.kernel.numpy(), source.kernel.numpy())
    np.testing.assert_allclose(frozen(inputs), expected, atol=FLOAT_TOLERANCE)
    np.testing.assert_array_equal(model(inputs), expected)
    frozen.save(tmp_path / "m.keras")
    with tt.quantize_scope():
        again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(inputs), frozen(inputs))


def test_keras3_partly_quantized_and_layers_that_keras_changed():
    model = keras.Sequential(
        [
            keras.Input((40,)),
            *(keras.layers.Dense(16, name=name) for name in ("trained", "lora", "ready")),
        ]
    )
    for layer in model.layers[1:]:
        layer.kernel.assign(signs(layer.kernel, 0))
    model.get_layer("lora").enable_lora(2)  # its kernel is not all of its weights
    quantized = tt.quantize_apply(model, tt.TernaryScheme(32, skip=("ready", "lora")))
    frozen = tt.freeze(quantized, activations="float32", recognize=True)
    assert forms(frozen) == {"trained": ("t2", 32), "ready": ("b1", None)}
    x = np.random.default_rng(SEED).standard_normal((3, 40)).astype(np.float32)
    np.testing.assert_allclose(frozen(x), quantized(x), atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("version", ["tf_keras", "keras"])
def test_errors_name_the_way(version):
    api = {"tf_keras": tf_keras, "keras": keras}[version]
    model = api.Sequential([api.Input((40,)), api.layers.Dense(8, name="dense")], name="mine")
    with pytest.raises(ValueError, match="got 'mine' with neither; quantize it first"):
        tt.freeze(model, recognize=True)
    kernel = np.random.default_rng(SEED).integers(-1, 2, (40, 8)).astype(np.float32)
    model.layers[-1].kernel.assign(kernel)
    with pytest.raises(ValueError, match="in float.*recognize=True"):
        tt.freeze(model)
    with pytest.raises(ValueError, match="ternary format .*'dense', got b1"):
        tt.freeze(model, "b1", recognize=True)
    with pytest.raises(ValueError, match="frozen already"):
        tt.freeze(tt.freeze(model, recognize=True), recognize=True)
    kernel[3, 2] = np.nan
    model.layers[-1].kernel.assign(kernel)
    with pytest.raises(ValueError, match="finite weights in layer 'dense'"):
        tt.freeze(model, recognize=True)
