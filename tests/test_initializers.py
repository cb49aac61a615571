"""Scale initializers: values, granularity, the users' hook, serialization."""

from __future__ import annotations

import numpy as np
import pytest

from tfmot_ternary import initializers, kmeans, packing

SEED = 11


class Constant(initializers.ScaleInitializer):
    """A user's initializer that remembers what it was asked."""

    def __init__(self, value=0.5):
        self.value = value
        self.shapes = []

    def __call__(self, weights, levels, importance=None):
        self.shapes.append((weights.shape, None if importance is None else importance.shape))
        return np.full(len(weights), self.value, np.float32)

    def get_config(self):
        return {"value": self.value}


def matrix(n, k):
    return np.random.default_rng(SEED).standard_normal((n, k)).astype(np.float32)


def test_values():
    w = matrix(5, 99)
    magnitude = np.abs(w)
    # 1e-6: order of summation in float32 against float64.
    np.testing.assert_allclose(
        initializers.AbsMeanInitializer()(w, 3), magnitude.mean(axis=1), rtol=1e-6
    )
    np.testing.assert_array_equal(initializers.AbsMaxInitializer()(w, 3), magnitude.max(axis=1))
    want = [row[row > 0.7 * row.mean()].mean() for row in magnitude]
    np.testing.assert_allclose(initializers.TWNInitializer()(w, 3), want, rtol=1e-6)
    np.testing.assert_allclose(
        initializers.TWNInitializer()(w, 2), magnitude.mean(axis=1), rtol=1e-6
    )
    np.testing.assert_array_equal(
        initializers.KMeansInitializer()(w, 3), kmeans.kmeans_scales(w, 3)
    )
    np.testing.assert_array_equal(
        initializers.KMeansInitializer("lloyd", iterations=3)(w, 3),
        kmeans.lloyd_scales(w, 3, iterations=3),
    )


@pytest.mark.parametrize("name", ["kmeans", "lloyd", "absmean", "absmax", "twn"])
@pytest.mark.parametrize("levels", [2, 3])
def test_every_initializer_on_zeros_and_with_importance(name, levels):
    w = matrix(3, 40)
    w[1] = 0
    importance = np.random.default_rng(SEED).random((3, 40))
    for cost in (None, importance, np.zeros_like(importance)):
        scales = initializers.get(name)(w, levels, cost)
        assert scales.dtype == np.float32
        assert scales.shape == (3,)
        assert scales[1] == 0
        assert (scales[[0, 2]] > 0).all()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 31), (3, 32), (3, 33), (2, 300), (4, 256)])
@pytest.mark.parametrize("group_size", [None, "tensor", 32, 64, 128, 256])
@pytest.mark.parametrize("levels", [2, 3])
def test_granularity(n, k, group_size, levels):
    w = matrix(n, k)
    importance = np.abs(matrix(n, k)[:, ::-1])
    scales = initializers.initial_scales(w, levels, group_size, "kmeans", importance)
    assert scales.shape == packing.scale_shape(n, k, group_size)
    assert scales.dtype == np.float32
    # The same, one scale at a time.
    if group_size == "tensor":
        cuts = [(w.reshape(1, -1), importance.reshape(1, -1))]
    elif group_size is None:
        cuts = [(w[i : i + 1], importance[i : i + 1]) for i in range(n)]
    else:
        cuts = [
            (w[i : i + 1, j : j + group_size], importance[i : i + 1, j : j + group_size])
            for i in range(n)
            for j in range(0, k, group_size)
        ]
    want = [kmeans.kmeans_scales(part, levels, cost)[0] for part, cost in cuts]
    np.testing.assert_array_equal(scales.ravel(), np.array(want, np.float32))


def test_users_initializer_sees_rows():
    user = Constant()
    scales = initializers.initial_scales(matrix(3, 70), 3, 32, user, importance=np.ones(70))
    assert scales.shape == (3, 3)
    assert (scales == 0.5).all()
    # Whole groups in one call, the short last groups in another; importance cut alike.
    assert user.shapes == [((6, 32), (6, 32)), ((3, 6), (3, 6))]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_users_initializer_is_checked(value):
    with pytest.raises(ValueError, match=r"Constant.*finite scales >= 0 for dense/kernel"):
        initializers.initial_scales(matrix(2, 8), 3, None, Constant(value), name="dense/kernel")


def test_users_initializer_with_wrong_shape():
    class Wrong(Constant):
        def __call__(self, weights, levels, importance=None):
            return np.ones((len(weights), 1))

    with pytest.raises(ValueError, match=r"one scale per row, shape \(2,\).*\(2, 1\)"):
        initializers.initial_scales(matrix(2, 8), 3, None, Wrong())


@pytest.mark.parametrize("initializer", ["kmeans", "absmax"])
def test_not_finite_weights_are_named(initializer):
    w = matrix(4, 9)
    w[2, 5] = np.inf
    with pytest.raises(ValueError, match="finite values in block/dense.*output 2, input 5"):
        initializers.initial_scales(w, 3, "tensor", initializer, name="block/dense")


def test_denormal_scales_become_zero():
    """TensorFlow flushes denormals, NumPy does not; zero is the same in both."""
    w = np.full((1, 4), 1e-40, np.float32)
    assert initializers.initial_scales(w, 3, None)[0] == 0


def test_get_and_serialization():
    assert initializers.get(None) == initializers.KMeansInitializer()
    assert initializers.get("lloyd") == initializers.KMeansInitializer("lloyd")
    assert initializers.get("TWNInitializer") == initializers.TWNInitializer()
    assert initializers.get(initializers.AbsMaxInitializer) == initializers.AbsMaxInitializer()
    assert initializers.KMeansInitializer() != initializers.KMeansInitializer("lloyd")
    for instance in (
        initializers.KMeansInitializer("lloyd", 4),
        initializers.TWNInitializer(0.6),
        initializers.AbsMeanInitializer(),
    ):
        again = initializers.deserialize(initializers.serialize(instance))
        assert again == instance
        assert hash(again) == hash(instance)
        assert initializers.get(initializers.serialize(instance)) == instance
    config = initializers.serialize(Constant(0.25))
    assert initializers.deserialize(config, {"Constant": Constant}).value == 0.25
    with pytest.raises(ValueError, match="quantize_scope"):
        initializers.deserialize(config)
    with pytest.raises(ValueError, match="expected an initializer name.*'mean'"):
        initializers.get("mean")
    with pytest.raises(TypeError, match="got int"):
        initializers.get(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: initializers.KMeansInitializer("newton"),
        lambda: initializers.KMeansInitializer(iterations=-1),
        lambda: initializers.TWNInitializer(1.0),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ValueError, match="expected"):
        make()
