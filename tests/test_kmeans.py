"""The one-dimensional k-means against brute force and scikit-learn."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from sklearn.cluster import KMeans

from tfmot_ternary import kmeans

SEED = 20250408
# Around the vector widths of NumPy's sort (8, 16 lanes) and of the kernels.
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257]


def error(weights, scale, levels, importance=None):
    """Weighted squared error with the quantizers' rule for codes."""
    weights = np.asarray(weights, np.float64)
    if levels == 3:
        codes = np.where(weights > scale / 2, 1, np.where(weights < -scale / 2, -1, 0))
    else:
        codes = np.where(weights >= 0, 1, -1)
    cost = np.ones_like(weights) if importance is None else np.asarray(importance, np.float64)
    return float(np.sum(cost * (weights - scale * codes) ** 2))


def best_error_of_all_assignments(weights, levels, importance=None):
    """Every assignment of codes with its best scale >= 0."""
    weights = np.asarray(weights, np.float64)
    cost = np.ones_like(weights) if importance is None else np.asarray(importance, np.float64)
    best = np.inf
    for codes in itertools.product([-1, 0, 1] if levels == 3 else [-1, 1], repeat=weights.size):
        c = np.array(codes, np.float64)
        norm = np.sum(cost * c * c)
        scale = max(0.0, np.sum(cost * c * weights) / norm) if norm > 0 else 0.0
        best = min(best, float(np.sum(cost * (weights - scale * c) ** 2)))
    return best


def best_error_of_all_prefixes(weights, importance=None):
    """Every prefix of the weights sorted by magnitude, one by one, in float64."""
    weights = np.asarray(weights, np.float64)
    cost = np.ones_like(weights) if importance is None else np.asarray(importance, np.float64)
    order = np.argsort(-np.abs(weights), kind="stable")
    magnitude, cost = np.abs(weights)[order], cost[order]
    best = np.sum(cost * magnitude**2)
    for count in range(1, weights.size + 1):
        norm = np.sum(cost[:count])
        if norm > 0:
            gain = np.sum(cost[:count] * magnitude[:count]) ** 2 / norm
            best = min(best, np.sum(cost * magnitude**2) - gain)
    return float(best)


def rows_of(kind, generator, rows, k):
    if kind == "normal":
        return generator.standard_normal((rows, k))
    if kind == "heavy tails":
        return generator.standard_cauchy((rows, k))
    if kind == "all equal":
        return np.full((rows, k), -0.75)
    if kind == "ramp":
        return np.tile(np.arange(k) - k / 2, (rows, 1))
    if kind == "few values":
        return generator.integers(-2, 3, (rows, k)) * 0.5
    assert kind == "one outlier"
    data = generator.standard_normal((rows, k)) * 1e-3
    data[:, 0] = 100
    return data


KINDS = ["normal", "heavy tails", "all equal", "ramp", "few values", "one outlier"]


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_optimum_among_all_assignments(levels, kind, weighted):
    generator = np.random.default_rng(SEED)
    for k in (1, 2, 5, 7):
        rows = rows_of(kind, generator, 4, k)
        importance = generator.random((4, k)) if weighted else None
        scales = kmeans.kmeans_scales(rows, levels, importance)
        for i, row in enumerate(rows):
            cost = None if importance is None else importance[i]
            got = error(row, np.float64(scales[i]), levels, cost)
            want = best_error_of_all_assignments(row, levels, cost)
            # The scale is rounded to float32: relative 6e-8, squared in the error of the optimum,
            # plus a weight that lies within that of the threshold; 1e-5 of the energy covers both.
            assert got <= want + 1e-5 * np.sum(row**2), (SEED, kind, k, i)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_optimum_among_all_prefixes(k, weighted, dtype):
    generator = np.random.default_rng(SEED + k)
    for kind in KINDS:
        rows = rows_of(kind, generator, 3, k).astype(dtype)
        importance = generator.random((3, k)).astype(dtype) if weighted else None
        scales = kmeans.kmeans_scales(rows, 3, importance)
        assert scales.dtype == np.float32
        assert scales.shape == (3,)
        for i, row in enumerate(rows):
            cost = None if importance is None else importance[i]
            want = best_error_of_all_prefixes(row, cost)
            # As above: rounding of the scale to float32.
            energy = np.sum(row.astype(np.float64) ** 2)
            assert error(row, np.float64(scales[i]), 3, cost) <= want + 1e-6 * energy, (kind, i)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "one outlier", "ramp"])
@pytest.mark.parametrize("levels", [2, 3])
def test_at_least_as_good_as_scikit_learn(kind, levels):
    """Symmetric data [-w, w] with centres started at {-a, 0, a} is our problem twice: scikit-learn
    keeps the symmetry up to rounding, and can only find a local optimum of the same objective.
    (Zeros are left out: both copies of one would go to the same cluster.)"""
    generator = np.random.default_rng(SEED)
    for full_row in rows_of(kind, generator, 3, 200):
        row = full_row[full_row != 0]
        magnitude = np.abs(row)
        both = np.concatenate([-magnitude, magnitude])[:, None]
        ours = kmeans.kmeans_scales(row[None], levels)[0]
        for start in (magnitude.mean(), magnitude.max(), 0.5 * magnitude.mean(), float(ours)):
            centres = [-start, start] if levels == 2 else [-start, 0.0, start]
            theirs = KMeans(
                n_clusters=levels, init=np.array(centres)[:, None], n_init=1, tol=0, max_iter=1000
            ).fit(both)
            # 1e-5: float32 rounding of our scale, relative to the energy.
            bound = theirs.inertia_ / 2 + 1e-5 * np.sum(row**2)
            assert error(row, np.float64(ours), levels) <= bound, (SEED, start)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_longer_than_a_block(weighted):
    generator = np.random.default_rng(SEED)
    k = 3 * kmeans._BLOCK + 17
    row = generator.standard_cauchy((2, k)).astype(np.float32)
    importance = generator.random((2, k), dtype=np.float32) if weighted else None
    scales = kmeans.kmeans_scales(row, 3, importance)
    for i in range(2):
        magnitude = np.abs(row[i]).astype(np.float64)
        cost = np.ones(k) if importance is None else importance[i].astype(np.float64)
        order = np.argsort(-magnitude, kind="stable")
        total, norm = np.cumsum((cost * magnitude)[order]), np.cumsum(cost[order])
        at = np.argmax(total**2 / norm)
        # float32 rounding of the result; the sums themselves are float64 on both sides.
        np.testing.assert_allclose(scales[i], total[at] / norm[at], rtol=2e-7)


def test_scale_is_independent_of_the_number_of_rows():
    """Rows are worked on in chunks: a row's result must not depend on its neighbours."""
    generator = np.random.default_rng(SEED)
    rows = generator.standard_normal((777, 300)).astype(np.float32)
    together = kmeans.kmeans_scales(rows)
    alone = np.concatenate([kmeans.kmeans_scales(row[None]) for row in rows])
    assert (together == alone).all()


@pytest.mark.parametrize("solve", [kmeans.kmeans_scales, kmeans.lloyd_scales])
@pytest.mark.parametrize("levels", [2, 3])
def test_special_rows(solve, levels):
    assert (solve(np.zeros((2, 5), np.float32), levels) == 0).all()
    assert solve(np.array([[-3.5]], np.float32), levels) == np.float32(3.5)
    assert solve(np.array([[0.0]], np.float32), levels) == 0
    assert solve(np.zeros((0, 4), np.float32), levels).shape == (0,)
    # Squares of these overflow or vanish in float32; sums of magnitudes do not.
    for size in (1e30, 1e-30):
        rows = np.array([[1, -1, 0.9, -1.1]], np.float32) * np.float32(size)
        np.testing.assert_allclose(solve(rows, levels), size, rtol=1e-6)  # float32 rounding
    for dtype in (np.float16, np.int8, np.float64):
        assert solve(np.array([[2, -2, 0, 0]], dtype), 3) == 2


@pytest.mark.parametrize("solve", [kmeans.kmeans_scales, kmeans.lloyd_scales])
@pytest.mark.parametrize("levels", [2, 3])
def test_importance(solve, levels):
    generator = np.random.default_rng(SEED)
    rows = generator.standard_normal((4, 50)).astype(np.float32)
    importance = generator.random((4, 50)).astype(np.float32)
    importance[2] = 0  # says nothing: the row is solved unweighted
    weighted = solve(rows, levels, importance=importance)
    plain = solve(rows, levels)
    np.testing.assert_allclose(weighted[2], plain[2], rtol=2e-7)  # other order of summation
    assert (weighted[[0, 1, 3]] != plain[[0, 1, 3]]).all()
    # Importance is a count: weight 3 is the weight three times, 0 is its absence.
    counts = generator.integers(0, 4, 50)
    repeated = np.repeat(rows[:1], counts, axis=1)
    np.testing.assert_allclose(
        solve(rows[:1], levels, importance=counts), solve(repeated, levels), rtol=2e-7
    )
    # Broadcast from one vector for all rows.
    np.testing.assert_array_equal(
        solve(rows, levels, importance=importance[0]),
        solve(rows, levels, importance=np.tile(importance[0], (4, 1))),
    )


def test_lloyd_is_the_papers_iteration():
    generator = np.random.default_rng(SEED)
    rows = generator.standard_cauchy((20, 333))
    for iterations in (0, 1, 10):
        want = []
        for row in rows:
            magnitude = np.abs(row)
            m = magnitude.mean()
            for _ in range(iterations):
                m = magnitude[magnitude > m / 2].mean()
            want.append(m)
        got = kmeans.lloyd_scales(rows, iterations=iterations)
        # iterations run on a start rounded to float32.
        np.testing.assert_allclose(got, want, rtol=1e-6)
    for row, scale in zip(rows, kmeans.kmeans_scales(rows), strict=True):
        lloyd = kmeans.lloyd_scales(row[None])[0]
        assert error(row, scale, 3) <= error(row, lloyd, 3) * (1 + 1e-6)  # float32 rounding


@pytest.mark.parametrize("solve", [kmeans.kmeans_scales, kmeans.lloyd_scales])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("levels", [2, 3])
def test_not_finite(solve, bad, levels):
    rows = np.ones((300, 400), np.float32)
    rows[250, 123] = bad
    with pytest.raises(ValueError, match=r"finite values in conv/kernel.*row 250, column 123"):
        solve(rows, levels, name="conv/kernel")


@pytest.mark.parametrize("solve", [kmeans.kmeans_scales, kmeans.lloyd_scales])
def test_bad_arguments(solve):
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="levels 2 .* got 4"):
        solve(rows, 4)
    with pytest.raises(ValueError, match=r"rows \[r, k\].*\(3,\)"):
        solve(rows[0])
    with pytest.raises(ValueError, match=r"k >= 1"):
        solve(rows[:, :0])
    with pytest.raises(ValueError, match="broadcastable"):
        solve(rows, importance=np.ones((2, 4)))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="importances >= 0 for kernel"):
            solve(rows, importance=np.array([1, bad, 1]), name="kernel")
    with pytest.raises(ValueError, match="iterations"):
        kmeans.lloyd_scales(rows, iterations=-1)


@pytest.mark.parametrize("shape", [(512, 2048), (1, 1 << 20), (1 << 14, 64)])
@pytest.mark.parametrize("weighted", [False, True])
def test_memory_is_at_most_four_tensors(shape, weighted):
    generator = np.random.default_rng(SEED)
    rows = generator.standard_normal(shape, dtype=np.float32)
    importance = np.abs(rows) if weighted else None
    tracemalloc.start()
    try:
        kmeans.kmeans_scales(rows, 3, importance)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 4 * rows.nbytes
