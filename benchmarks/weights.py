"""The weights and activations of a case: random, the same in every process, and the true result."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from benchmarks.cases import Case, Kind
from tfmot_ternary import packing


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """Codes int8 [n, k] of -1, 0, +1 and their scales [n] or [n, groups], which float16 holds."""

    codes: np.ndarray
    scales: np.ndarray
    group_size: int  # 0: a scale for each row

    def dense(self) -> np.ndarray:
        """float32 [n, k]: codes times scales."""
        n, k = self.codes.shape
        return self.codes * packing.expand_scales(self.scales, n, k, self.group_size or None)


def _generator(*words: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def matrix(case: Case, levels: int = 3, group_size: int = 0) -> Matrix:
    """Ternary (levels 3) or binary weights for `case`.

    The scales keep products of products near the size of the input, as a walk chains them: the
    largest eigenvalue of independent entries is about the root of the sum of their variances.
    """
    n, k = case.n, case.k
    rng = _generator("weights", n, k, levels, group_size)
    if levels == 3:
        codes = rng.integers(-1, 2, (n, k), dtype=np.int8)
        codes[:, 0] = 1  # every row holds +a and -a, so that each quantizer finds the same grid
        codes[:, 1] = -1
    else:
        codes = rng.integers(0, 2, (n, k), dtype=np.int8) * np.int8(2) - np.int8(1)
    scales = rng.uniform(0.5, 1.5, packing.scale_shape(n, k, group_size or None))
    variance = (2 / 3 if levels == 3 else 1) * k * np.mean(scales**2)
    # Rounded to float16: peers keep their scales so, and hold exactly these weights.
    scales = (scales / np.sqrt(variance)).astype(np.float16).astype(np.float32)
    return Matrix(codes, scales, group_size)


def activations(case: Case) -> np.ndarray:
    """What goes in: rows, an image or ids."""
    rng = _generator("activations", case.name)
    if case.kind is Kind.EMBEDDING:
        return rng.integers(0, case.n, case.m).astype(np.int32)
    if case.kind is Kind.CONV2D:
        shape: tuple[int, ...] = (1, case.image, case.image, case.channels_in)
    else:
        shape = (case.m, case.k)
    return rng.standard_normal(shape).astype(np.float32)


def relative_error(case: Case, dense: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Largest error of `y` against float64 on the weights `dense` [n, k], over the largest output.

    Raises:
      RuntimeError: an error that rounding does not explain.
    """
    expected = _expected(case, dense, x)
    y = y.reshape(expected.shape)
    error = float(np.abs(y - expected).max() / np.abs(expected).max())
    # Rounding activations to 8 bits costs about 1 %; more means a wrong result.
    if not error < 0.05:
        raise RuntimeError(f"{case.name}: expected a relative error < 0.05, got {error:.3g}")
    return error


def _expected(case: Case, dense: np.ndarray, x: np.ndarray) -> np.ndarray:
    if case.kind is Kind.EMBEDDING:
        return dense[x].astype(np.float64)
    if case.kind is Kind.EMPTY:
        return x.astype(np.float64)
    rows = _patches(case, x) if case.kind is Kind.CONV2D else x
    return rows.astype(np.float64) @ dense.astype(np.float64).T


def _patches(case: Case, x: np.ndarray) -> np.ndarray:
    """[image points, kernel height * kernel width * channels]; an odd kernel, SAME, stride 1."""
    edge = case.kernel // 2
    padded = np.pad(x[0], ((edge, edge), (edge, edge), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (case.kernel, case.kernel), (0, 1))
    return windows.transpose(0, 1, 3, 4, 2).reshape(case.m, case.k)
