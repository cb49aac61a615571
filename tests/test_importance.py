"""What decides the first scales: importances and users' initializers; and zeros that stay."""

from __future__ import annotations

import copy
import json

import keras
import keras3_models
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
import tf_keras_models as models

import tfmot_ternary as tt
from tfmot_ternary import importance as importances
from tfmot_ternary import initializers
from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.keras3 import QuantizedModel
from tfmot_ternary.keras3_layers import is_quantized
from tfmot_ternary.keras3_structure import nested_layers
from tfmot_ternary.layer_kernels import kernel_layouts
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper

SEED = 37
layers = tf_keras.layers
annotate = tfmot.quantization.keras.quantize_annotate_model


def generator():
    return np.random.default_rng(SEED)


def best_scale(w, h):
    """The scale of the best of all prefixes of the weights sorted by magnitude, one by one."""
    order = np.argsort(-np.abs(w), kind="stable")
    w, h = np.abs(w[order]).astype(np.float64), h[order].astype(np.float64)
    if not h.any():
        h = np.ones_like(h)
    best, scale = np.inf, 0.0
    for size in range(1, len(w) + 1):
        if h[:size].sum() == 0:
            continue
        a = (h[:size] * w[:size]).sum() / h[:size].sum()
        error = (h[:size] * (w[:size] - a) ** 2).sum() + (h[size:] * w[size:] ** 2).sum()
        if error < best:
            best, scale = error, a
    return scale


def want_scales(matrix, importance, group_size):
    """By `best_scale`, for each tensor, channel or group."""
    n, k = matrix.shape
    h = np.broadcast_to(np.ones(1) if importance is None else importance, matrix.shape)
    if group_size == "tensor":
        return np.array([best_scale(matrix.ravel(), h.ravel())])
    width = group_size or k
    cuts = [slice(start, start + width) for start in range(0, k, width)]
    rows = [[best_scale(matrix[i, cut], h[i, cut]) for cut in cuts] for i in range(n)]
    return np.array(rows) if group_size else np.array(rows)[:, 0]


def scales_of(model, prefix=""):
    """{path: scales} of a quantized tf_keras model."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, KernelQuantizeWrapper):
            named = layer.kernel_scales
            path = prefix + layer.layer.name
            found |= {
                path if len(named) == 1 else f"{path}/{name}": scales.numpy()
                for name, scales in named.items()
            }
        elif isinstance(layer, QuantizedMultiHeadAttention):
            for wrapper in layer.projections.values():
                found[f"{prefix}{layer.name}/{wrapper.layer.name}"] = wrapper.scales.numpy()
        elif isinstance(layer, tf_keras.Model):
            found |= scales_of(layer, prefix + layer.name + "/")
    return found


def matrices_of(model, prefix=""):
    """{path: W[n, k]} of a float tf_keras model."""
    found = {}
    for layer in model.layers:
        path = prefix + layer.name
        if isinstance(layer, tf_keras.Model):
            found |= matrices_of(layer, path + "/")
        elif isinstance(layer, layers.MultiHeadAttention):
            for name in ("query", "key", "value", "output"):
                inner = getattr(layer, f"_{name}_dense")
                found[f"{path}/{inner.name}"] = matrix_of(inner, "kernel")
        elif isinstance(layer, layers.LSTM):
            for name in ("kernel", "recurrent_kernel"):
                found[f"{path}/{name}"] = matrix_of(layer, f"cell.{name}")
        elif hasattr(layer, "kernel"):
            found[path] = matrix_of(layer, "kernel")
    return found


def matrix_of(layer, attribute):
    owner = layer.cell if "." in attribute else layer
    kernel = getattr(owner, attribute.split(".")[-1])
    return kernel_layouts(layer)[attribute].to_matrix(kernel.numpy())


def check(got, matrices, importance, group_size):
    assert set(got) == set(matrices)
    changed = 0
    for path, matrix in matrices.items():
        want = want_scales(matrix, importance.get(path), group_size)
        # The library weighs by float32; both add up in float64.
        np.testing.assert_allclose(got[path], want, rtol=1e-5, err_msg=path)
        changed += not np.allclose(want, want_scales(matrix, None, group_size), rtol=1e-3)
    assert changed >= len(importance) / 2  # the importances do matter


def some_importance(matrices, kind):
    """For all but the last kernel: of inputs [k] with a dead one, or of weights [n, k]."""
    rng = generator()
    made = {}
    for path, matrix in list(matrices.items())[:-1]:
        shape = matrix.shape if kind == "gradients" else matrix.shape[1:]
        made[path] = np.exp(3 * rng.standard_normal(shape)).astype(np.float32)
        made[path][..., 0] = 0
    return made


@pytest.mark.parametrize(
    ("group_size", "kind"), [(None, "activations"), ("tensor", "gradients"), (32, "gradients")]
)
def test_tf_keras_through_tfmot(group_size, kind):
    model = models.cross_attention()
    matrices = matrices_of(model)
    importance = tt.Calibration(some_importance(matrices, kind), kind)
    scheme = tt.TernaryScheme(group_size, importance=importance)
    quantized = tfmot.quantization.keras.quantize_apply(annotate(model), scheme)
    check(scales_of(quantized), matrices, importance, group_size)


@pytest.mark.parametrize("group_size", [None, 32])
def test_tf_keras_nested_shared_and_with_several_kernels(group_size):
    """A plain mapping works as well."""
    model = models.shared_and_nested()
    matrices = matrices_of(model)
    importance = some_importance(matrices, "gradients")
    quantized = tt.quantize_apply(model, tt.TernaryScheme(group_size, importance=importance))
    check(scales_of(quantized), matrices, importance, group_size)


@pytest.mark.parametrize("group_size", [None, "tensor", 32])
def test_keras_3_by_path(group_size):
    model = keras3_models.mixed_model()
    plain = dict(nested_layers(tt.quantize_apply(model, tt.TernaryScheme(group_size))))
    matrices = {
        path: layer.kernel_layout.to_matrix(np.asarray(layer.float_weights))
        for path, layer in plain.items()
        if is_quantized(layer)
    }
    importance = some_importance(matrices, "activations")
    scheme = tt.TernaryScheme(group_size, importance=importance)
    quantized = tt.quantize_apply(model, scheme)
    got = {
        path: np.asarray(layer.kernel_scale)
        for path, layer in nested_layers(quantized)
        if is_quantized(layer)
    }
    check(got, matrices, importance, group_size)


@pytest.mark.parametrize("importance", ["activations", "gradients"])
def test_from_data_to_scales(importance):
    """The whole way, for KerasHub (names made by Keras differ in the clone) and tf_keras."""
    lm = keras3_models.pali_gemma()
    batch = [keras3_models.pali_gemma_inputs()]
    cnn = models.cnn()
    for model, data in ((lm, batch), (cnn, models.inputs_of(cnn))):
        calibration = tt.calibrate(model, data, importance, progress=False)
        plain = tt.quantize_apply(model, tt.TernaryScheme())
        weighted = tt.quantize_apply(model, tt.TernaryScheme(importance=calibration))
        differ = [
            not np.array_equal(np.asarray(a), np.asarray(b))
            for a, b in zip(plain.weights, weighted.weights, strict=True)
            if "scale" in a.name
        ]
        assert sum(differ) >= 0.9 * len(calibration) - 1  # a row may have one optimum for both


def test_with_activations_of_8_bits():
    model = models.cnn()
    matrices = matrices_of(model)
    importance = some_importance(matrices, "gradients")
    scheme = tt.TernaryScheme(activation_bits=8, importance=importance)
    quantized = tfmot.quantization.keras.quantize_apply(annotate(model), scheme)
    check(scales_of(quantized), matrices, importance, None)


def test_dead_inputs_follow_the_rule_of_kmeans():
    model = models.randomize(tf_keras.Sequential([layers.Input((40,)), layers.Dense(3, name="d")]))
    dead = tt.quantize_apply(model, tt.TernaryScheme(32, importance={"d": np.zeros(40)}))
    plain = tt.quantize_apply(model, tt.TernaryScheme(32))
    np.testing.assert_array_equal(scales_of(dead)["d"], scales_of(plain)["d"])


def test_binary_scales_are_weighted_means():
    model = models.randomize(tf_keras.Sequential([layers.Input((9,)), layers.Dense(3, name="d")]))
    h = generator().random(9)
    quantized = tt.quantize_apply(model, tt.BinaryScheme(importance={"d": h}))
    want = (h * np.abs(model.get_layer("d").kernel.numpy().T)).sum(axis=1) / h.sum()
    np.testing.assert_allclose(scales_of(quantized)["d"], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        (np.ones(3), TypeError, "mapping from layer names.*ndarray"),
        ({3: np.ones(3)}, TypeError, "mapping from layer names"),
        ({}, ValueError, "at least one layer"),
        ({"dense_7": 1, "x": 1}, ValueError, r"model 'm'.*'d', 'e'\).*got it for 'dense_7', 'x'"),
        ({"d": np.ones(4)}, ValueError, r"importance of d.*broadcastable to \(3, 9\).*\(4,\)"),
        ({"d": -np.ones(9)}, ValueError, "importances >= 0"),
        ({"d": np.full(9, np.nan)}, ValueError, "importances >= 0"),
    ],
)
@pytest.mark.parametrize("kit", [tf_keras, keras], ids=["tf_keras", "keras"])
def test_importance_that_does_not_fit(kit, importance, error, message):
    model = kit.Sequential(
        [
            kit.layers.Input((9,)),
            kit.layers.Dense(3, name="d"),
            kit.layers.Dense(3, name="e"),
        ],
        name="m",
    )
    with pytest.raises(error, match=message):
        tt.quantize_apply(model, tt.TernaryScheme(importance=importance))
    if kit is tf_keras:
        annotated = annotate(model)
        with pytest.raises(error, match=message):
            tfmot.quantization.keras.quantize_apply(
                annotated, tt.TernaryScheme(importance=importance)
            )
    with pytest.warns(UserWarning, match="no layer of model 'm': 'other'") as records:
        tt.quantize_apply(model, tt.TernaryScheme(importance={"d": np.ones(9), "other": 1}))
    assert len([r for r in records if "no layer" in str(r.message)]) == 1


def test_unknown_names_inside_a_nested_model():
    with pytest.raises(ValueError, match="model 'inner'.*'nothing'"):
        tt.quantize_apply(
            models.shared_and_nested(), tt.TernaryScheme(importance={"inner/nothing": 1})
        )


def test_paths():
    given = {"a": 1, "a/b": 2, "a/b/c": 3, "ab": 4}
    assert importances.below(given, "a") == {"": 1, "b": 2, "b/c": 3}
    assert importances.below(given, "c") == {}
    assert importances.checked(None) == {}
    many = {f"n{i}": 1 for i in range(12)}
    with pytest.raises(ValueError, match="'n9', and 2 more; calibrate this very model"):
        importances.require_names(many, ["x"], "m")


# Users' own initializers, and what runs when.


class Quantile(tt.ScaleInitializer):
    """A user's initializer with arguments; once armed it must not be called any more."""

    armed = False

    def __init__(self, q, offset=0.0):
        self.q = q
        self.offset = offset

    def __call__(self, weights, levels, importance=None):
        if Quantile.armed:
            raise AssertionError("the initializer ran again")
        return np.quantile(np.abs(weights), self.q, axis=1).astype(np.float32) + self.offset

    def get_config(self):
        return {"q": self.q, "offset": self.offset}


@pytest.fixture
def armed():
    """Arms the initializer when it is called, and disarms it after the test."""
    Quantile.armed = False

    def arm():
        Quantile.armed = True

    yield arm
    Quantile.armed = False


def want_quantiles(matrix, group_size):
    n, k = matrix.shape
    if group_size == "tensor":
        return np.quantile(np.abs(matrix), [0.75]).astype(np.float32) + 0.5
    width = group_size or k
    cuts = [matrix[:, start : start + width] for start in range(0, k, width)]
    columns = [np.quantile(np.abs(cut), 0.75, axis=1).astype(np.float32) for cut in cuts]
    values = np.stack(columns, axis=1) + np.float32(0.5)
    return values if group_size else values[:, 0]


@pytest.mark.parametrize(
    ("scheme_class", "group_size", "trainable", "files"),
    [
        (tt.TernaryScheme, None, True, ["m.keras", "m"]),
        (tt.TernaryScheme, "tensor", False, ["m.keras"]),
        (tt.BinaryScheme, 32, True, ["m.h5"]),
    ],
)
def test_users_initializer_on_tf_keras(scheme_class, group_size, trainable, files, armed, tmp_path):
    """It sees the trained weights, once; loading, cloning and JSON do not call it."""
    model = models.randomize(
        tf_keras.Sequential(
            [layers.Input((40,)), layers.Dense(6, name="a"), layers.Dense(3, name="b")]
        )
    )
    scheme = scheme_class(group_size, Quantile(0.75, offset=0.5), trainable_scales=trainable)
    quantized = tfmot.quantization.keras.quantize_apply(annotate(model), scheme)
    armed()
    for path, matrix in matrices_of(model).items():
        np.testing.assert_array_equal(
            scales_of(quantized)[path], want_quantiles(matrix, group_size)
        )
    assert sum("scale" in w.name for w in quantized.trainable_weights) == 2 * trainable
    x = models.inputs_of(quantized)[0]
    quantized.compile("sgd", "mse")
    before = scales_of(quantized)
    quantized.fit(x, np.ones((len(x), 3)), verbose=0)
    for path, scales in scales_of(quantized).items():
        assert np.any(scales != before[path]) == trainable
    again = []
    with tt.quantize_scope({"Quantile": Quantile}):
        for name in files:
            quantized.save(tmp_path / name)
            again.append(tf_keras.models.load_model(tmp_path / name))
        again.append(tf_keras.models.clone_model(quantized))
        again.append(tf_keras.models.model_from_json(quantized.to_json()))
    for other in again[-2:]:
        other.set_weights(quantized.get_weights())
    for other in again:
        np.testing.assert_array_equal(other.predict(x, verbose=0), quantized.predict(x, verbose=0))
    config = again[0].layers[0].quantize_config
    assert config.initializer == Quantile(0.75, offset=0.5)


@pytest.mark.parametrize(
    ("group_size", "trainable"), [(None, True), ("tensor", False), (32, True), (32, False)]
)
def test_users_initializer_on_keras_3(group_size, trainable, armed, tmp_path):
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(6, name="a")])
    model.set_weights([generator().standard_normal(w.shape) for w in model.weights])
    scheme = tt.TernaryScheme(group_size, Quantile(0.75, offset=0.5), trainable_scales=trainable)
    quantized = tt.quantize_apply(model, scheme)
    armed()
    scales = np.array(quantized.layers[0].kernel_scale)
    np.testing.assert_array_equal(scales, want_quantiles(model.get_weights()[0].T, group_size))
    x = generator().standard_normal((5, 40)).astype(np.float32)
    quantized.compile("sgd", "mse", jit_compile=False)
    quantized.fit(x, np.ones((5, 6)), verbose=0)
    assert np.any(np.array(quantized.layers[0].kernel_scale) != scales) == trainable
    quantized.save(tmp_path / "m.keras")
    quantized.save_weights(tmp_path / "m.weights.h5")
    with tt.quantize_scope({"Quantile": Quantile}):
        again = keras.models.load_model(tmp_path / "m.keras")
    other = keras.Sequential.from_config(model.get_config())
    other = tt.quantize_apply(other, tt.TernaryScheme(group_size, trainable_scales=trainable))
    other.load_weights(tmp_path / "m.weights.h5")
    for loaded in (again, other):
        np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(quantized(x)))


def test_importance_is_handed_to_users_initializers_and_never_saved(tmp_path):
    seen = []

    class Recording(tt.ScaleInitializer):
        def __call__(self, weights, levels, importance=None):
            seen.append(importance)
            return np.abs(weights).mean(axis=1)

    model = models.cnn()
    importance = {"conv": np.full(9, 0.123456789)}
    quantized = tt.quantize_apply(
        model, tt.TernaryScheme(initializer=Recording(), importance=importance)
    )
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[0], np.full((6, 9), 0.123456789))
    assert seen[1] is None
    assert "importance" not in quantized.to_json()
    assert "0.12345" not in json.dumps(quantized.get_config(), default=str)
    wrapper = next(w for w in quantized.layers if isinstance(w, KernelQuantizeWrapper))
    assert wrapper.quantize_config.importance == {}  # the memory is given back, too
    assert wrapper._weight_vars[0][1].importance is None
    keras3 = tt.quantize_apply(
        keras3_models.mixed_model(), tt.TernaryScheme(importance={"conv": np.full(27, 0.12345)})
    )
    assert "importance" not in keras3.to_json()


# Pruned models.


def pruned(weights, share=0.6):
    return np.where(generator().random(weights.shape) < share, 0, weights).astype(np.float32)


@pytest.mark.parametrize(("group_size", "preserve"), [(32, True), (None, False)])
def test_zeros_stay_zero_on_tf_keras(group_size, preserve, tmp_path):
    """Through training with momentum, saving, and training on."""
    model = models.transformer(mask_zero=False)
    model.get_layer("mix").kernel.assign(pruned(model.get_layer("mix").kernel.numpy()))
    attention = model.get_layer("attention")._query_dense
    attention.kernel.assign(pruned(attention.kernel.numpy()))
    zeros = [attention.kernel.numpy() == 0, model.get_layer("mix").kernel.numpy() == 0]
    scheme = tt.TernaryScheme(group_size, preserve_zeros=preserve)
    quantized = tt.quantize_apply(model, scheme)
    x = models.inputs_of(quantized)
    y = [np.ones((6, 3)), np.zeros((6, 2, 7, 7))]

    def check_zeros(quantized):
        by_name = {getattr(w, "layer", w).name: w for w in quantized.layers}
        kernels = [by_name["attention"]._query_dense.layer.kernel, by_name["mix"].layer.kernel]
        for kernel, zero in zip(kernels, zeros, strict=True):
            assert np.all(kernel.numpy()[zero] == 0) == preserve
            assert np.all(kernel.numpy()[~zero] != 0)

    quantized.compile(tf_keras.optimizers.AdamW(0.01, weight_decay=0.1), ["mse", None])
    quantized.fit(x, y, epochs=3, verbose=0)
    check_zeros(quantized)
    quantized.save(tmp_path / "m.keras")
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / "m.keras")
    again.fit(x, y, epochs=2, verbose=0)
    check_zeros(again)


@pytest.mark.parametrize("preserve", [True, False])
def test_zeros_stay_zero_on_keras_3(preserve, tmp_path):
    names = ("conv", "einsum", "dense")
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.Reshape((16, 4)),
            keras.layers.EinsumDense("abc,cd->abd", (16, 5), name="einsum"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="dense"),
        ]
    )
    kernels = [model.get_layer(name).kernel for name in names]
    for kernel in kernels:
        kernel.assign(pruned(np.array(kernel)))
    zeros = [np.array(kernel) == 0 for kernel in kernels]
    quantized = tt.quantize_apply(model, tt.TernaryScheme(preserve_zeros=preserve))
    x = generator().standard_normal((8, 6, 6, 2)).astype(np.float32)
    y = np.ones((8, 3), np.float32)

    def check_zeros(quantized):
        for name, zero in zip(names, zeros, strict=True):
            kernel = np.array(quantized.get_layer(name).float_weights)
            assert np.all(kernel[zero] == 0) == preserve
            assert np.all(kernel[~zero] != 0)

    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    quantized.compile(optimizer, "mse", jit_compile=False)  # XLA takes seconds to compile
    quantized.fit(x, y, epochs=3, verbose=0)
    check_zeros(quantized)
    quantized.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    again.fit(x, y, epochs=2, verbose=0)
    check_zeros(again)


def test_a_model_from_tfmots_pruning_keeps_its_sparsity():
    prune = tfmot.sparsity.keras
    model = models.cnn()
    schedule = prune.ConstantSparsity(0.5, begin_step=0, frequency=1)
    sparse = prune.prune_low_magnitude(model, pruning_schedule=schedule)
    x = models.inputs_of(model)[0]
    sparse.compile("adam", "mse")
    y = np.zeros((6, 10))
    sparse.fit(x, y, verbose=0, epochs=2, callbacks=[prune.UpdatePruningStep()])
    stripped = prune.strip_pruning(sparse)
    zeros = {name: matrix == 0 for name, matrix in matrices_of(stripped).items()}
    assert all(0.45 <= zero.mean() <= 0.55 for zero in zeros.values())
    quantized = tt.quantize_apply(stripped, tt.TernaryScheme(preserve_zeros=True))
    quantized.compile("adam", "mse")
    quantized.fit(x, y, epochs=2, verbose=0)
    for wrapper in quantized.layers:
        if isinstance(wrapper, KernelQuantizeWrapper):
            after = matrix_of(wrapper.layer, "kernel") == 0
            np.testing.assert_array_equal(after, zeros[wrapper.layer.name])


def test_binary_weights_have_no_zero():
    for make in (tt.BinaryScheme, tt.BinaryQuantizeConfig, tt.BinaryQuantizer):
        with pytest.raises(ValueError, match=r"\{-a, \+a\} has no zero"):
            make(preserve_zeros=True)
    config = tt.TernaryScheme(preserve_zeros=True).quantize_config()
    assert tt.TernaryQuantizeConfig.from_config(config.get_config()).preserve_zeros
    assert "preserve_zeros=True" in repr(tt.TernaryScheme(preserve_zeros=True))


def test_configs_saved_without_the_key_still_load():
    quantizer = tt.TernaryQuantizer(64).get_config()
    config = tt.TernaryQuantizeConfig(64).get_config()
    for saved, cls in ((quantizer, tt.TernaryQuantizer), (config, tt.TernaryQuantizeConfig)):
        old = copy.deepcopy(saved)
        del old["preserve_zeros"]
        assert cls.from_config(old) == cls(64)
    model = tt.quantize_apply(keras3_models.mixed_model(), tt.TernaryScheme())
    old = model.get_config()
    for layer in old["layers"]:
        del layer["preserve_zeros"]
    again = QuantizedModel.from_config(old)
    again.set_weights(model.get_weights())
    x = keras3_models.mixed_inputs()
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))


# Weights that are not finite.


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_weights_are_named_where_they_are(bad):
    """In a projection of attention, in a nested model, in a Keras 3 layer by its path."""
    model = models.cross_attention()
    kernel = model.get_layer("attention")._value_dense.kernel
    values = kernel.numpy()
    values[2, 1, 0] = bad  # [inputs, heads, width of a head]: output 1 * 3 + 0, input 2
    kernel.assign(values)
    with pytest.raises(ValueError, match="finite values in value/kernel.*output 3, input 2"):
        tt.quantize_apply(model, tt.TernaryScheme())
    model = models.shared_and_nested()
    dense = model.get_layer("inner").layers[1]
    values = dense.kernel.numpy()
    values[5, 2] = bad
    dense.kernel.assign(values)
    with pytest.raises(
        ValueError, match=f"finite values in {dense.name}/kernel.*output 2, input 5"
    ):
        tt.quantize_apply(model, tt.TernaryScheme())
    model = keras3_models.mixed_model()
    kernel = model.get_layer("shared").kernel
    values = np.array(kernel)
    values[4, 7] = bad
    kernel.assign(values)
    with pytest.raises(ValueError, match="finite values in shared.*output 7, input 4"):
        tt.quantize_apply(model, tt.TernaryScheme(32))


def test_every_initializer_takes_the_importances():
    """absmax does not weigh; the others move towards the important weights."""
    w = np.array([[1.0, 1.1, 4.0, 4.4]], np.float32)
    few, many = np.array([1, 1, 0.01, 0.01]), np.array([0.01, 0.01, 1, 1])
    for name in ("kmeans", "lloyd", "absmean", "twn"):
        low, high = (initializers.initial_scales(w, 3, None, name, h)[0] for h in (few, many))
        assert low < high, name
    for h in (few, many):
        assert initializers.initial_scales(w, 3, None, "absmax", h)[0] == np.float32(4.4)
