"""Error compensation against exhaustive search, least squares and its own promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tfmot_ternary.error_compensation import _inverse_factor, compensate
from tfmot_ternary.initializers import initial_scales
from tfmot_ternary.layer_hessian import LayerHessian
from tfmot_ternary.packing import expand_scales
from tfmot_ternary.quantizers import weight_codes
from tfmot_ternary.starting_point import starting_point

SEED = 20


def problem(n, k, rows=None, seed=SEED):
    """Random weights, and inputs that go together as those of trained networks do."""
    rng = np.random.default_rng(seed)
    rows = rows or 4 * k
    mixed = rng.standard_normal((rows, max(1, k // 4))) @ rng.standard_normal((max(1, k // 4), k))
    inputs = mixed / np.sqrt(max(1, k // 4)) + 0.3 * rng.standard_normal((rows, k))
    hessian = (inputs.T @ inputs / rows).astype(np.float32)
    return rng.standard_normal((n, k)).astype(np.float32), hessian


def damped(hessian):
    """The Hessian whose error is made small: with 5 % of the mean added to its diagonal."""
    return hessian + 0.05 * np.diag(hessian).mean() * np.eye(len(hessian), dtype=np.float32)


def output_errors(matrix, hessian, weights, scales, levels, group_size):
    """float64 [n]: squared errors of the outputs of the quantized weights."""
    n, k = matrix.shape
    codes = weight_codes(weights, scales, levels, group_size)
    missing = matrix - codes * expand_scales(scales, n, k, group_size).astype(np.float64)
    return np.einsum("nk,kj,nj->n", missing, hessian.astype(np.float64), missing)


@pytest.mark.parametrize("levels", [3, 2])
@pytest.mark.parametrize("group_size", [None, "tensor", 32, 64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (5, 64), (17, 130), (33, 200)])
def test_outputs_come_nearer(levels, group_size, n, k):
    matrix, hessian = problem(n, k)
    scales = initial_scales(matrix, levels, group_size)
    weights, better = compensate(matrix, hessian, scales, levels, group_size)
    assert weights.dtype == better.dtype == np.float32
    assert weights.shape == matrix.shape
    assert better.shape == scales.shape
    assert (better >= 0).all()
    known = damped(hessian)
    before = output_errors(matrix, known, matrix, scales, levels, group_size)
    after = output_errors(matrix, known, weights, better, levels, group_size)
    if group_size == "tensor":
        before, after = before.sum(keepdims=True), after.sum(keepdims=True)
    # Row by row; sums in float32.
    assert (after <= before * (1 + 1e-4) + 1e-6).all()
    if k >= 64:  # among few inputs there may be nothing to gain
        assert after.sum() < 0.7 * before.sum()
    # The weights are the quantized values.
    codes = weight_codes(weights, better, levels, group_size)
    np.testing.assert_array_equal(weights, codes * expand_scales(better, n, k, group_size))


@pytest.mark.parametrize("levels", [3, 2])
def test_near_the_best_of_all_codes(levels):
    # All 3^7 or 2^7 codes of a row, each with its best scale: nothing can be better.
    matrix, undamped = problem(40, 7)
    hessian = damped(undamped)
    values = (-1, 0, 1) if levels == 3 else (-1, 1)
    codes = np.array([c for c in itertools.product(values, repeat=7) if any(c)], np.float64)
    products = codes @ hessian @ matrix.T.astype(np.float64)
    squares = np.einsum("ck,kj,cj->c", codes, hessian, codes)
    gains = np.maximum(products, 0) ** 2 / squares[:, None]
    whole = np.einsum("nk,kj,nj->n", matrix, hessian, matrix)
    best = whole - gains.max(axis=0)
    kmeans = initial_scales(matrix, levels, None)
    weights, scales = compensate(matrix, undamped, kmeans, levels, None)
    found = output_errors(matrix, hessian, weights, scales, levels, None)
    plain = output_errors(matrix, hessian, matrix, kmeans, levels, None)
    # float32 sums of seven products.
    assert (found >= best - 1e-4 * whole).all()
    # It is a heuristic: of what could be gained over k-means it gains most.
    assert (found - best).sum() < 0.4 * (plain - best).sum()


def test_unrelated_inputs_are_rounded_each_for_itself():
    # With a diagonal Hessian of equal entries no error can be made good: k-means is the optimum.
    matrix, _ = problem(12, 48)
    scales = initial_scales(matrix, 3, None)
    weights, better = compensate(matrix, 2 * np.eye(48, dtype=np.float32), scales, 3, None)
    np.testing.assert_array_equal(weight_codes(weights, better, 3), weight_codes(matrix, scales, 3))
    # The optimal scale of these codes, the mean of the kept |w|, summed in another order.
    np.testing.assert_allclose(better, scales, rtol=1e-5)


def test_inputs_that_are_never_there():
    matrix, hessian = problem(6, 20)
    hessian[:, 5] = hessian[5] = 0
    weights, scales = compensate(matrix, hessian, initial_scales(matrix, 3, None), 3, None)
    assert np.isfinite(weights).all()
    weights, scales = compensate(matrix, 0 * hessian, initial_scales(matrix, 3, None), 3, None)
    np.testing.assert_array_equal(
        weight_codes(weights, scales, 3), weight_codes(matrix, initial_scales(matrix, 3, None), 3)
    )


def test_more_inputs_than_data():
    matrix, hessian = problem(8, 96, rows=5)  # rank 5
    weights, scales = compensate(matrix, hessian, initial_scales(matrix, 2, 32), 2, 32)
    assert np.isfinite(weights).all()
    before = output_errors(matrix, hessian, matrix, initial_scales(matrix, 2, 32), 2, 32)
    assert output_errors(matrix, hessian, weights, scales, 2, 32).sum() < 0.3 * before.sum()


@pytest.mark.parametrize("group_size", [None, "tensor", 32])
def test_preserved_zeros(group_size):
    matrix, hessian = problem(9, 80)
    pruned = np.random.default_rng(SEED).random(matrix.shape) < 0.5
    matrix[pruned] = 0
    scales = initial_scales(matrix, 3, group_size)
    weights, better = compensate(matrix, hessian, scales, 3, group_size, preserve_zeros=True)
    np.testing.assert_array_equal(weights == 0, pruned)  # and no other: they are still to learn
    after = output_errors(matrix, hessian, weights, better, 3, group_size)
    assert after.sum() < output_errors(matrix, hessian, matrix, scales, 3, group_size).sum()
    assert (weight_codes(weights, better, 3, group_size)[pruned] == 0).all()


def test_zeros_and_empty_rows_of_weights():
    matrix, hessian = problem(4, 40)
    matrix[1] = 0
    weights, scales = compensate(matrix, hessian, initial_scales(matrix, 3, None), 3, None)
    assert scales[1] == 0
    assert (weights[1] == 0).all()


def test_inverse_factor():
    _, hessian = problem(1, 30)
    factor = _inverse_factor(hessian)
    np.testing.assert_array_equal(factor, np.triu(factor))
    # The condition number is some hundreds, the factor is kept in float32.
    np.testing.assert_allclose(factor.T @ factor @ hessian, np.eye(30), atol=1e-3)


def test_shapes_are_checked():
    matrix, hessian = problem(4, 40)
    scales = initial_scales(matrix, 3, None)
    with pytest.raises(ValueError, match=r"expected a Hessian of shape \(40, 40\), got \(39, 39\)"):
        compensate(matrix, hessian[:-1, :-1], scales, 3, None)
    with pytest.raises(ValueError, match="expected scales of shape"):
        compensate(matrix, hessian, scales, 3, 32)
    with pytest.raises(ValueError, match="Hessian of dense for its 30 inputs, got one for 40"):
        starting_point(matrix[:, :30], 3, None, None, LayerHessian(hessian), name="dense")
    indefinite = hessian - 2 * np.diag(np.diag(hessian)) + 2 * np.diag(np.abs(hessian).sum(1))
    indefinite[0, 1] = indefinite[1, 0] = 9 * indefinite.max()
    with pytest.raises(ValueError, match="positive semidefinite second moments for dense"):
        starting_point(matrix, 3, None, None, LayerHessian(indefinite), name="dense")


def test_starting_point():
    matrix, hessian = problem(6, 64)
    weights, scales = starting_point(matrix, 3, None)
    assert weights is None
    np.testing.assert_array_equal(scales, initial_scales(matrix, 3, None))
    importance = np.diag(hessian)
    weights, scales = starting_point(matrix, 3, None, importance=importance)
    assert weights is None
    np.testing.assert_array_equal(scales, initial_scales(matrix, 3, None, None, importance))
    weights, scales = starting_point(matrix, 3, None, importance=LayerHessian(hessian))
    expected = compensate(
        matrix, hessian, initial_scales(matrix, 3, None, None, importance), 3, None
    )
    np.testing.assert_array_equal(weights, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    matrix[2, 3] = np.nan
    with pytest.raises(ValueError, match="got nan at output 2, input 3"):
        starting_point(matrix, 3, None, importance=LayerHessian(hessian), name="dense")
