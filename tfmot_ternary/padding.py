"""Padding: which positions of a model's sequences hold text, and which only fill the batch up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["TextPositions"]


class TextPositions:
    """Takes padded positions out of what the layers of a KerasHub language model see.

    A batch says by its `padding_mask` [batch, positions] what is text. An image that stands in
    front of the text (PaliGemma) is no padding. Other models and batches keep all positions.
    """

    def __init__(self, model: Any) -> None:
        """Takes a backbone or a task; any other model has no padding."""
        backbone = getattr(model, "backbone", model)
        self._in_front = int(getattr(backbone, "image_sequence_length", None) or 0)
        self._mask: np.ndarray | None = None
        self._last: tuple[Any, Any] = (None, None)

    def read(self, inputs: Any) -> None:
        """Takes the mask of the model's next inputs; forgets the last one's."""
        self._mask, self._last = None, (None, None)
        mask = inputs.get("padding_mask") if isinstance(inputs, Mapping) else None
        if mask is not None and len(mask.shape) == 2:
            mask = np.asarray(mask).astype(bool)
            self._mask = np.pad(mask, [(0, 0), (self._in_front, 0)], constant_values=True)

    def of(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, positions, ...] -> [1, those that are not padding, ...]; another tensor as it is.

        Of one tensor it makes one, however often it is asked in turn.
        """
        mask = self._mask
        if mask is None or mask.all() or tuple(x.shape[:2]) != mask.shape:
            return x
        if self._last[0] is not x:
            self._last = x, tf.boolean_mask(x, mask)[None]
        return self._last[1]
