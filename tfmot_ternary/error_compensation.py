"""Error compensation: codes and scales that keep what a kernel computes, not what it holds.

K-means rounds every weight for itself. With the second moments H = E[x x^T] of the kernel's inputs
(`layer_hessian`) the mean squared error of its outputs is known,

    E |W x - Q x|^2 = sum over rows r of (w_r - q_r) H (w_r - q_r)^T,

and what one weight's rounding does to an output can be made good by the weights not yet rounded:
GPTQ (arXiv 2210.17323). Few levels leave large errors, so that the scale matters as much as the
codes. Here the two take turns: round with the scales, then solve for the scales that are best for
these codes (linear least squares in the metric H), and round again.
"""

from __future__ import annotations

import numpy as np

from tfmot_ternary.nearest_codes import nearest_codes
from tfmot_ternary.packing import GroupSize, scale_shape

__all__ = ["compensate"]

# Turns of rounding and scales at most, and the gain (relative to the error) below which they end.
_TURNS = 10
_LEAST_GAIN = 5e-3
# Added to the diagonal of H, as a part of its mean: H of a finite sample does not know every input.
# Five times what GPTQ adds; the sums are float32.
_DAMPING = 0.05
# Rows of W^T that are rounded before the rows behind them are brought up to date, in one product.
_BLOCK = 64


def compensate(
    matrix: np.ndarray,
    hessian: np.ndarray,
    scales: np.ndarray,
    levels: int,
    group_size: GroupSize,
    preserve_zeros: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and scales whose quantized values compute almost what `matrix` computes.

    Args:
      matrix: finite float [n, k], W: the trained weights.
      hessian: float32 [k, k], symmetric, positive semidefinite: E[x x^T] of the inputs
        (`LayerHessian.matrix`).
      scales: float32 of `packing.scale_shape(n, k, group_size)`, >= 0: those to begin with.
      levels: 3 or 2.
      group_size: None, "tensor" or the inputs per group.
      preserve_zeros: whether weights that are exactly 0 stay so.

    Returns:
      (float32 [n, k], float32 scales): the quantized values codes * scales themselves, for which
      the output error is the least that was found, row by row ("tensor": in all), and never more
      than that of `matrix` and `scales`. As trained weights they lie as far from the thresholds as
      can be: training changes those codes that it has a reason to change. (The weights of `matrix`,
      moved just across, lose in a few steps what was gained; GPTQ's intermediate values lie
      between.)

    Raises:
      ValueError: for a Hessian or scales whose shapes do not fit.
    """
    matrix = np.asarray(matrix, np.float32)
    n, k = matrix.shape
    if hessian.shape != (k, k):
        raise ValueError(f"expected a Hessian of shape {(k, k)}, got {hessian.shape}")
    shape = scale_shape(n, k, group_size)
    if np.shape(scales) != shape:
        raise ValueError(f"expected scales of shape {shape}, got {np.shape(scales)}")
    problem = _LeastSquares(matrix, hessian, group_size)
    weights, group_of = problem.weights, problem.group_of
    zeros = weights == 0 if preserve_zeros else None
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _inverse_factor(problem.hessian[np.ix_(order, order)])

    current = problem.by_group(scales)
    codes = nearest_codes(weights, current[group_of], levels)
    best_codes, best_scales, best = codes, current, problem.errors(codes, current)
    for _ in range(_TURNS):
        codes = np.empty_like(codes)
        codes[order] = _rounded(
            weights[order],
            factor,
            current,
            group_of[order],
            levels,
            None if zeros is None else zeros[order],
        )
        current, errors = problem.fit(codes, current)
        better = np.broadcast_to(errors < best, n)
        best_codes = np.where(better, codes, best_codes)
        best_scales = np.where(better, current, best_scales)
        before, best = best.sum(), np.minimum(errors, best)
        if best.sum() > (1 - _LEAST_GAIN) * before:
            break
    by_weight = best_scales[group_of]
    values = best_codes * by_weight
    if zeros is not None:
        # Zeros that are to stay are told by their value: the others need one of their own.
        values = np.where((values == 0) & ~zeros, np.copysign(by_weight / 64, weights), values)
    return np.ascontiguousarray(values.T), problem.in_shape(best_scales, shape)


class _LeastSquares:
    """How far the outputs of codes and scales lie from those of the weights.

    All arrays are transposed, one column an output. With one scale for the whole kernel
    ("tensor") the errors are summed over the outputs, for it is better or worse for all of them.

    Attributes:
      weights: float32 [k, n], W^T.
      hessian: float32 [k, k], damped.
      group_of: int [k]: the group of each input.
    """

    def __init__(self, matrix: np.ndarray, hessian: np.ndarray, group_size: GroupSize) -> None:
        k = matrix.shape[1]
        self._whole = group_size == "tensor"
        size = group_size if isinstance(group_size, int) else k
        self._groups = [slice(start, start + size) for start in range(0, k, size)]
        self.group_of = np.arange(k) // size
        self.weights = np.ascontiguousarray(matrix.T)
        # Without any input at all, every error costs alike.
        mean = float(np.diag(hessian).mean(dtype=np.float64)) or 1.0
        self.hessian = hessian.copy()
        self.hessian[np.diag_indices(k)] += np.float32(_DAMPING * mean)
        self._image = self.hessian @ self.weights

    def by_group(self, scales: np.ndarray) -> np.ndarray:
        """Scales in a scheme's shape -> float32 [groups, n]."""
        rows = np.asarray(scales, np.float32).reshape(-1, len(self._groups)).T
        return np.broadcast_to(rows, (len(self._groups), self.weights.shape[1])).copy()

    def in_shape(self, scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `by_group`."""
        rows = scales[:, :1] if self._whole else scales
        return np.ascontiguousarray(rows.T).reshape(shape)

    def errors(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """float64 [n] or [1]: the squared errors of codes int8 [k, n] times scales [groups, n]."""
        missing = self.weights - codes * scales[self.group_of]
        return self._sum(missing * (self.hessian @ missing))

    def fit(self, codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Better scales for codes, and `errors` with them.

        Each group in turn takes the scale that is best beside those of the others (one turn: with
        one group the optimum). Where that is not positive (codes all zero, or no help) it keeps
        its own.
        """
        codes = codes.astype(np.float32)
        scales = scales.copy()
        gradient = self._image - self.hessian @ (codes * scales[self.group_of])
        for group, part in enumerate(self._groups):
            image = self.hessian[:, part] @ codes[part]
            curvature = self._sum(codes[part] * image[part])
            slope = self._sum(codes[part] * gradient[part])
            step = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
            moved = (scales[group] + step).astype(np.float32)
            moved = np.where(moved >= np.finfo(np.float32).tiny, moved, scales[group])
            gradient -= image * (moved - scales[group])
            scales[group] = moved
        missing = self.weights - codes * scales[self.group_of]
        return scales, self._sum(missing * gradient)

    def _sum(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n], over the inputs; [1], over all, where the kernel has one scale."""
        total = rows.sum(axis=0, dtype=np.float64)
        return total.sum(keepdims=True) if self._whole else total


def _inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """float32 upper triangular U [k, k] with U^T U the inverse of H."""
    # H = R R^T with R upper triangular, from the Cholesky factor of H read backwards; U = R^-1.
    upper = np.linalg.cholesky(hessian[::-1, ::-1].astype(np.float64))[::-1, ::-1]
    factor = np.zeros_like(hessian)
    # Rows from the last to the first: R U = 1, a block of rows at a time.
    for last in range(len(upper), 0, -_BLOCK):
        rows = slice(max(0, last - _BLOCK), last)
        own = np.linalg.inv(upper[rows, rows])
        factor[rows, rows] = np.triu(own)
        behind = upper[rows, last:].astype(np.float32) @ factor[last:, last:]
        factor[rows, last:] = -own @ behind
    return factor


def _rounded(
    weights: np.ndarray,
    factor: np.ndarray,
    scales: np.ndarray,
    group_of: np.ndarray,
    levels: int,
    zeros: np.ndarray | None,
) -> np.ndarray:
    """int8 codes [k, n]: GPTQ's rounding in the order of the rows, errors passed on."""
    weights = weights.copy()
    codes = np.empty(weights.shape, np.int8)
    for first in range(0, len(weights), _BLOCK):
        last = min(first + _BLOCK, len(weights))
        errors = np.empty((last - first, weights.shape[1]), np.float32)
        for row in range(first, last):
            scale = scales[group_of[row]]
            codes[row] = nearest_codes(weights[row], scale, levels)
            if zeros is not None:
                codes[row, zeros[row]] = 0
            errors[row - first] = (weights[row] - codes[row] * scale) / factor[row, row]
            behind = slice(row + 1, last)
            weights[behind] -= factor[row, behind, None] * errors[row - first]
        weights[last:] -= factor[first:last, last:].T @ errors
    return codes
