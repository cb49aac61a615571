"""Nearest codes: the rule of `quantizers` in NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["nearest_codes"]


def nearest_codes(weights: np.ndarray, scales: np.ndarray, levels: int) -> np.ndarray:
    """Codes of the levels that are nearest to weights.

    Args:
      weights: float32 of any shape.
      scales: float32, >= 0, that broadcasts to its shape; of no matter for two levels.
      levels: 3 or 2.

    Returns:
      int8 of the shape of `weights`.
    """
    if levels == 2:
        return np.where(weights >= 0, np.int8(1), np.int8(-1))
    half = scales * np.float32(0.5)
    return (weights > half).astype(np.int8) - (weights < -half).astype(np.int8)
