"""Scale initializers: the hook that turns trained weights into the first scales.

A user subclasses `ScaleInitializer` and passes an instance to a scheme. The library cuts a weight
tensor into rows that share one scale (a tensor, a channel or a group) and calls the initializer.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmot_ternary import kmeans
from tfmot_ternary.packing import GroupSize, scale_shape

__all__ = [
    "AbsMaxInitializer",
    "AbsMeanInitializer",
    "KMeansInitializer",
    "ScaleInitializer",
    "TWNInitializer",
    "deserialize",
    "get",
    "initial_scales",
    "serialize",
]


class ScaleInitializer(abc.ABC):
    """Computes one scale for each row of weights.

    Subclasses implement `__call__` and, if their constructor has arguments, `get_config`. A model
    that was made with a subclass of the user's is loaded inside `tfmot_ternary.quantize_scope` with
    that class.
    """

    @abc.abstractmethod
    def __call__(
        self, weights: np.ndarray, levels: int, importance: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the scales of `weights`.

        Args:
          weights: finite float32 or float64 [rows, k]; each row gets one scale.
          levels: 3 for {-a, 0, +a}, 2 for {-a, +a}.
          importance: None or float [rows, k] >= 0, how much an error on a weight costs.

        Returns:
          float32 [rows], finite and >= 0.
        """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScaleInitializer:
        """The inverse of `get_config`."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ScaleInitializer)
            and type(other) is type(self)
            and self.get_config() == other.get_config()
        )

    def __hash__(self) -> int:
        return hash((type(self), repr(self.get_config())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class KMeansInitializer(ScaleInitializer):
    """One-dimensional k-means: the exact optimum (default), or the paper's Lloyd iteration."""

    def __init__(self, algorithm: str = "exact", iterations: int = 10) -> None:
        """Makes the initializer.

        Args:
          algorithm: "exact" or "lloyd" (arXiv 2504.06298).
          iterations: steps of "lloyd"; "exact" has none.
        """
        if algorithm not in ("exact", "lloyd"):
            raise ValueError(f"expected algorithm 'exact' or 'lloyd', got {algorithm!r}")
        if iterations < 0:
            raise ValueError(f"expected iterations >= 0, got {iterations}")
        self.algorithm = algorithm
        self.iterations = int(iterations)

    def __call__(
        self, weights: np.ndarray, levels: int, importance: np.ndarray | None = None
    ) -> np.ndarray:
        if self.algorithm == "lloyd":
            return kmeans.lloyd_scales(weights, levels, self.iterations, importance)
        return kmeans.kmeans_scales(weights, levels, importance)

    def get_config(self) -> dict[str, Any]:
        return {"algorithm": self.algorithm, "iterations": self.iterations}


class AbsMeanInitializer(ScaleInitializer):
    """mean |w|, as in BitNet b1.58 (arXiv 2402.17764): weights above half of it become +-a."""

    def __call__(
        self, weights: np.ndarray, levels: int, importance: np.ndarray | None = None
    ) -> np.ndarray:
        return kmeans.kmeans_scales(weights, 2, importance)


class AbsMaxInitializer(ScaleInitializer):
    """max |w|: the scale of plain integer quantization; only weights above half of it survive."""

    def __call__(
        self, weights: np.ndarray, levels: int, importance: np.ndarray | None = None
    ) -> np.ndarray:
        return np.maximum(weights.max(axis=1), -weights.min(axis=1)).astype(np.float32)


class TWNInitializer(ScaleInitializer):
    """Ternary weight networks (arXiv 1605.04711): the mean of those |w| above 0.7 mean |w|.

    Binary: mean |w|. The quantizer's own threshold is a / 2, so only the scale is TWN's.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        """Makes the initializer.

        Args:
          threshold: the part of mean |w| above which a weight counts, in [0, 1).
        """
        if not 0 <= threshold < 1:
            raise ValueError(f"expected a threshold in [0, 1), got {threshold}")
        self.threshold = float(threshold)

    def __call__(
        self, weights: np.ndarray, levels: int, importance: np.ndarray | None = None
    ) -> np.ndarray:
        mean = kmeans.kmeans_scales(weights, 2, importance)
        if levels == 2:
            return mean
        magnitude = np.abs(weights)
        kept = magnitude > (mean * np.float32(self.threshold))[:, None]
        cost = kept if importance is None else kept * np.asarray(importance, np.float64)
        total = cost.sum(axis=1, dtype=np.float64)
        summed = (magnitude * cost).sum(axis=1, dtype=np.float64)
        return np.divide(summed, total, out=mean.astype(np.float64), where=total > 0).astype(
            np.float32
        )

    def get_config(self) -> dict[str, Any]:
        return {"threshold": self.threshold}


_BY_NAME: dict[str, type[ScaleInitializer]] = {
    "kmeans": KMeansInitializer,
    "absmean": AbsMeanInitializer,
    "absmax": AbsMaxInitializer,
    "twn": TWNInitializer,
}
_BY_CLASS_NAME = {cls.__name__: cls for cls in _BY_NAME.values()}


def get(identifier: Any = None) -> ScaleInitializer:
    """Returns an initializer for a name, a config, a class, an instance, or None (exact k-means).

    Raises:
      ValueError: for an unknown name; TypeError: for anything else.
    """
    if identifier is None:
        return KMeansInitializer()
    if isinstance(identifier, ScaleInitializer):
        return identifier
    if isinstance(identifier, str):
        if identifier == "lloyd":
            return KMeansInitializer(algorithm="lloyd")
        cls = _BY_NAME.get(identifier.lower()) or _BY_CLASS_NAME.get(identifier)
        if cls is None:
            raise ValueError(
                f"expected an initializer name out of {[*sorted(_BY_NAME), 'lloyd']}, got "
                f"{identifier!r}; pass an instance of a ScaleInitializer subclass for your own"
            )
        return cls()
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if isinstance(identifier, type) and issubclass(identifier, ScaleInitializer):
        return identifier()
    raise TypeError(
        "expected an initializer name, a ScaleInitializer or None, got "
        f"{type(identifier).__name__}: {identifier!r}"
    )


def serialize(initializer: ScaleInitializer) -> dict[str, Any]:
    """Returns {"class_name", "config"} of an initializer, JSON-ready."""
    return {"class_name": type(initializer).__name__, "config": initializer.get_config()}


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> ScaleInitializer:
    """The inverse of `serialize`; `custom_objects` names the users' own classes.

    Raises:
      ValueError: if the class is not known.
    """
    class_name = config["class_name"]
    cls = (custom_objects or {}).get(class_name) or _BY_CLASS_NAME.get(class_name)
    if cls is None:
        raise ValueError(
            f"expected a known ScaleInitializer class, got {class_name!r}; load the model inside "
            f"tfmot_ternary.quantize_scope({{{class_name!r}: {class_name}}})"
        )
    return cls.from_config(dict(config["config"]))


def initial_scales(
    matrix: Any,
    levels: int,
    group_size: GroupSize,
    initializer: ScaleInitializer | str | None = None,
    importance: Any = None,
    name: str = "weights",
) -> np.ndarray:
    """Cuts W[n, k] into rows that share a scale and asks the initializer for the scales.

    Args:
      matrix: float array [n, k].
      levels: 3 or 2.
      group_size: None (one scale per row of W), "tensor", or the inputs per group.
      initializer: see `get`.
      importance: None or weights >= 0, broadcastable to [n, k] (for instance [k]).
      name: the tensor's name for error messages.

    Returns:
      float32 of shape `packing.scale_shape(n, k, group_size)`.

    Raises:
      ValueError: for NaN or Inf in the matrix, or if the initializer's answer is not finite float
        [rows] >= 0.
    """
    initializer = get(initializer)
    matrix = np.asarray(matrix)
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected {name} as a matrix [n, k], got shape {tuple(matrix.shape)}")
    n, k = matrix.shape
    if not (np.isfinite(matrix.max()) and np.isfinite(matrix.min())):
        row, column = (int(i) for i in np.argwhere(~np.isfinite(matrix))[0])
        raise ValueError(
            f"expected finite values in {name}, got {matrix[row, column]} at output {row}, input "
            f"{column}; repair or retrain that tensor before quantizing it"
        )
    if importance is not None:
        try:
            importance = np.broadcast_to(np.asarray(importance), matrix.shape)
        except ValueError as error:
            raise ValueError(
                f"expected the importance of {name} broadcastable to {matrix.shape}, got shape "
                f"{np.shape(importance)}"
            ) from error
    shape = scale_shape(n, k, group_size)

    def scales_of(columns: slice, width: int) -> np.ndarray:
        rows = matrix[:, columns].reshape(-1, width)
        cost = None if importance is None else importance[:, columns].reshape(-1, width)
        scales = np.asarray(initializer(rows, levels, cost))
        if scales.shape != rows.shape[:1]:
            raise ValueError(
                f"expected {initializer!r} to return one scale per row, shape {rows.shape[:1]}, "
                f"for {name}, got shape {scales.shape}"
            )
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise ValueError(
                f"expected {initializer!r} to return finite scales >= 0 for {name}, got "
                f"{scales[~(np.isfinite(scales) & (scales >= 0))][0]}"
            )
        scales = scales.astype(np.float32)
        # TensorFlow flushes denormals to zero, NumPy does not: such a scale would not be one rule.
        scales[scales < np.finfo(np.float32).tiny] = 0
        return scales

    if group_size is None:
        return scales_of(slice(None), k).reshape(shape)
    if group_size == "tensor":
        return scales_of(slice(None), n * k).reshape(shape)
    width = int(group_size)
    whole = k // width
    parts = []
    if whole:
        parts.append(scales_of(slice(0, whole * width), width).reshape(n, whole))
    if k % width:
        parts.append(scales_of(slice(whole * width, k), k % width).reshape(n, 1))
    return np.concatenate(parts, axis=1).reshape(shape)
