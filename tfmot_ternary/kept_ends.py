"""Kept ends: the first and the last layer that a scheme would quantize, left in float."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras

__all__ = ["KeptEnds", "all_but_ends", "candidates"]


def all_but_ends(layers: Iterable[Any], model_name: str) -> list[Any]:
    """The layers without the first and the last.

    Raises:
      ValueError: if nothing would be left.
    """
    layers = list(layers)
    if len(layers) <= 2:
        raise ValueError(
            f"expected more than two layers of model {model_name!r} to quantize with "
            f"keep_ends=True, got {len(layers)}; leave keep_ends off, and use the scheme's `skip`"
        )
    return layers[1:-1]


def candidates(model: Any, scheme: Any) -> Iterator[Any]:
    """The layers of a tf_keras model that the scheme quantizes, those of nested models included.

    They come in the order of `model.layers`: from the inputs to the outputs.
    """
    registry = scheme.get_quantize_registry()
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            if not scheme.skips(layer.name):
                yield from candidates(layer, scheme)
        elif registry.supports(layer):
            yield layer


class KeptEnds(tfmot.quantization.keras.QuantizeLayoutTransform):
    """The layout transform of a scheme with `keep_ends`, for a model with tfmot's annotations."""

    def __init__(self, scheme: Any) -> None:
        """Makes the transform of a TernaryScheme or BinaryScheme."""
        self._scheme = scheme

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """As `LayoutTransform.apply`; layers annotated with a config of their own do not count.

        Raises:
          ValueError: as there, and if no layer would be left.
        """
        # The entries of input layers are empty.
        annotated = [
            layer
            for layer in candidates(model, self._scheme)
            if layer.name in layer_quantize_map
            and layer_quantize_map[layer.name].get("quantize_config") is None
        ]
        own = any(entry.get("quantize_config") for entry in layer_quantize_map.values())
        if own and len(annotated) <= 2:
            kept = annotated
        else:
            inner = all_but_ends(annotated, model.name)
            kept = [layer for layer in annotated if layer not in inner]
        scheme = self._scheme.keeping([layer.name for layer in kept])
        return scheme.get_layout_transformer().apply(model, layer_quantize_map)
