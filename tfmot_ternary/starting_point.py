"""Where training begins: the first scales of a kernel, and its weights where data is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ternary.error_compensation import compensate
from tfmot_ternary.initializers import ScaleInitializer, initial_scales
from tfmot_ternary.layer_hessian import LayerHessian
from tfmot_ternary.packing import GroupSize

__all__ = ["starting_point"]


def starting_point(
    matrix: Any,
    levels: int,
    group_size: GroupSize,
    initializer: ScaleInitializer | str | None = None,
    importance: Any = None,
    preserve_zeros: bool = False,
    name: str = "weights",
) -> tuple[np.ndarray | None, np.ndarray]:
    """The weights and scales that a quantized kernel starts from.

    Args:
      matrix: float array [n, k]: the trained weights.
      levels: 3 or 2.
      group_size: None (one scale per row of W), "tensor", or the inputs per group.
      initializer: see `initializers.get`.
      importance: None; weights of errors >= 0, broadcastable to [n, k], for the initializer; or a
        LayerHessian: the initializer gets its diagonal, and the errors are compensated (see
        `error_compensation`).
      preserve_zeros: whether weights that are exactly 0 stay so.
      name: the kernel's name for error messages.

    Returns:
      (float32 [n, k], or None where the weights are those of `matrix`; float32 scales of
      `packing.scale_shape(n, k, group_size)`).

    Raises:
      ValueError: for values that are not finite, shapes that do not fit, or a Hessian with
        eigenvalues well below 0.
    """
    if not isinstance(importance, LayerHessian):
        return None, initial_scales(matrix, levels, group_size, initializer, importance, name)
    matrix = np.asarray(matrix)
    if matrix.ndim == 2 and importance.k != matrix.shape[1]:
        raise ValueError(
            f"expected the Hessian of {name} for its {matrix.shape[1]} inputs, got one for "
            f"{importance.k}; calibrate this very model"
        )
    scales = initial_scales(matrix, levels, group_size, initializer, importance.diagonal, name)
    try:
        return compensate(matrix, importance.matrix, scales, levels, group_size, preserve_zeros)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"expected positive semidefinite second moments for {name}, got a matrix with negative "
            "eigenvalues; compute x.T @ x / rows, or take what tt.calibrate returns"
        ) from error
