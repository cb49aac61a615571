"""Stripping: models that tfmot wrapped for pruning or clustering are to be stripped first."""

from __future__ import annotations

from typing import Any

from tensorflow_model_optimization.python.core.clustering.keras import cluster_wrapper
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

__all__ = ["WRAPPERS", "require_stripped"]

# By the names under which Keras clones them.
WRAPPERS = {
    cls.__name__: cls for cls in (cluster_wrapper.ClusterWeights, pruning_wrapper.PruneLowMagnitude)
}


def require_stripped(layer: Any) -> None:
    """Raises ValueError for a layer that tfmot wrapped for pruning or clustering."""
    for wrapper, purpose, strip in (
        (pruning_wrapper.PruneLowMagnitude, "pruning", "sparsity.keras.strip_pruning"),
        (cluster_wrapper.ClusterWeights, "clustering", "clustering.keras.strip_clustering"),
    ):
        if isinstance(layer, wrapper):
            raise ValueError(
                f"expected a plain layer, got {layer.name!r}, which is wrapped for {purpose}; call "
                f"tfmot.{strip}(model) and quantize what it returns"
            )
