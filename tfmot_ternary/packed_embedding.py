"""Packed embeddings: a table as `embedding_lookup`, a reversible one as `fully_connected` too."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ternary import ops
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.packing import GroupSize, PackedWeights

__all__ = ["PackedEmbedding"]


class PackedEmbedding(PackedLayer):
    """Embedding as `embedding_lookup`; ReversibleEmbedding's projection as `fully_connected`.

    A tied ReversibleEmbedding reads one table for both. An untied one has a second table for the
    projection, which is packed where `packing` has a "head" (its weight_format and group_size).

    Attributes:
      head_format, head_group_size: of the second table; None where it is not packed.
      head_packed, head_scales: variables of the second table W[vocabulary, width], as `packed` and
        `scales`.
    """

    head_format: str | None = None
    head_group_size: GroupSize = None
    head_packed: Any
    head_scales: Any
    mask_zero: bool
    tie_weights: bool

    def _set_packing(self, *args: Any, head: dict[str, Any] | None = None, **packing: Any) -> None:
        super()._set_packing(*args, **packing)
        if head is not None:
            self.head_format, self.head_group_size = head["weight_format"], head["group_size"]

    def _add_packed_weights(self) -> None:
        super()._add_packed_weights()
        if self.head_format is not None:
            layout = self.kernel_layout
            self.head_packed, self.head_scales = self._add_matrix(
                "head_", layout.n, layout.k, self.head_format, self.head_group_size
            )

    @property
    def head_weights(self) -> PackedWeights:
        """The second table as NumPy arrays."""
        if self.head_format is None:
            raise ValueError(f"expected a packed second table in {self.name!r}, got none")  # type: ignore[attr-defined]
        return PackedWeights(
            tf.convert_to_tensor(self.head_packed).numpy(),
            tf.convert_to_tensor(self.head_scales).numpy(),
            self.kernel_layout.k,
            self.head_format,
            self.head_group_size,
        )

    def set_head_weights(self, weights: PackedWeights) -> None:
        """Assigns the second table; format and shape must be those of the layer."""
        given = (weights.weight_format, weights.group_size)
        if given != (self.head_format, self.head_group_size):
            raise ValueError(
                f"expected a second table of format {self.head_format}, group_size "
                f"{self.head_group_size!r}, got {given[0]}, {given[1]!r}"
            )
        self.head_packed.assign(weights.packed)
        self.head_scales.assign(weights.scales)

    @property
    def embeddings(self) -> tf.Tensor:
        return self.unpacked()

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, reverse: bool = False, **kwargs: Any) -> Any:
        del kwargs  # `training`, of tf_keras
        if reverse:
            return self._project(inputs)
        y = ops.embedding_lookup(
            inputs, self.packed, self.scales, k=self.kernel_layout.k, **self._matrix_options
        )
        y = tf.cast(y, self.compute_dtype)
        if self.mask_zero and hasattr(self, "tie_weights"):
            # ReversibleEmbedding sets its mask here, for its compute_mask also serves `reverse`.
            y._keras_mask = tf.not_equal(inputs, 0)
        return y

    def _project(self, inputs: Any) -> Any:
        if self.tie_weights:
            table, options = (self.packed, self.scales), self._product_options("none")
        elif self.head_format is not None:
            table = (self.head_packed, self.head_scales)
            group_size = self.head_group_size
            options = {
                **self._product_options("none"),
                "weight_format": self.head_format,
                "group_size": group_size if isinstance(group_size, int) else 0,
            }
        else:
            return super().call(inputs, reverse=True)  # type: ignore[misc]
        logits = ops.fully_connected(tf.cast(inputs, tf.float32), *table, **options)
        cap = self.logit_soft_cap  # type: ignore[attr-defined]
        if cap is not None:
            logits = tf.tanh(logits / cap) * cap
        return tf.cast(logits, self.reverse_dtype or self.compute_dtype)  # type: ignore[attr-defined]

    def get_config(self) -> dict[str, Any]:
        """The base layer's config and `packing`."""
        config = super().get_config()
        if self.head_format is not None:
            config["packing"]["head"] = {
                "weight_format": self.head_format,
                "group_size": self.head_group_size,
            }
        return config
