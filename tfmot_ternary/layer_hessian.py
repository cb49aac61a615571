"""Layer Hessian: second moments of the inputs of W[n, k], so that errors on weights can cancel out.

An error E[n, k] on the weights changes the outputs, in the mean over calibration data, by
`sum_n E_n H E_n^T` with H = E[x x^T]. Up to a factor of 2 that H is the Hessian of the layer-wise
problem of GPTQ (Frantar et al. 2022, arXiv 2210.17323, section 3). Its diagonal is what a
calibration of kind "activations" holds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["LayerHessian"]

# Of the largest entry: what float32 sums in two orders differ by, with a wide margin.
_ASYMMETRY = 1e-4
_ROWS = 1024  # compared at a time, so that a check of [k, k] takes a fraction of its memory


@dataclasses.dataclass(frozen=True, eq=False)
class LayerHessian:
    """The matrix H = E[x x^T] of one kernel.

    Attributes:
      matrix: float32 [k, k], symmetric, finite, its diagonal >= 0; read-only.
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        """Checks the matrix, and keeps it as float32 (a view of it where it is that already).

        Raises:
          ValueError: unless it is a square matrix as described above.
        """
        matrix: Any = np.asarray(self.matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(
                "expected the second moments of a layer's inputs as a square matrix [k, k], got "
                f"shape {matrix.shape}; give a vector as an array instead"
            )
        if matrix.dtype.kind not in "fiu":
            raise ValueError(f"expected second moments of real numbers, got dtype {matrix.dtype}")
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float32, copy=False).view()
        difference = largest = np.float32(0)
        for start in range(0, len(matrix), _ROWS):
            part = matrix[start : start + _ROWS]
            if not np.isfinite(part).all():
                raise ValueError(
                    "expected finite second moments, got NaN, Inf or values beyond float32; look "
                    "for them in the calibration data"
                )
            mirrored = matrix[:, start : start + _ROWS].T
            with np.errstate(over="ignore", invalid="ignore"):
                difference = max(difference, np.abs(part - mirrored).max(initial=0))
            largest = max(largest, np.abs(part).max())
        if not difference <= _ASYMMETRY * largest:
            raise ValueError(
                f"expected symmetric second moments, got entries up to {largest:.4g} of which "
                f"mirrored ones differ by {difference:.4g}; compute x.T @ x / rows"
            )
        if matrix.diagonal().min() < 0:
            raise ValueError(
                f"expected a diagonal >= 0 (mean squares), got {matrix.diagonal().min():.4g}"
            )
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)

    @property
    def k(self) -> int:
        """Inputs of one output."""
        return len(self.matrix)

    @property
    def diagonal(self) -> np.ndarray:
        """Mean squared inputs, float32 [k], >= 0; a copy."""
        return self.matrix.diagonal().copy()

    def __repr__(self) -> str:
        return f"LayerHessian(k={self.k})"
