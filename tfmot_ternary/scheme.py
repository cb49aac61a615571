"""Schemes: the tfmot QuantizeSchemes that make the kernels of a model ternary or binary.

    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    quantized = tfmot.quantization.keras.quantize_apply(annotated, TernaryScheme())

A scheme is also what `tfmot_ternary.quantize_apply` takes for Keras 3 models, which tfmot refuses.
"""

from __future__ import annotations

import copy
import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_model_optimization as tfmot

from tfmot_ternary import importance as importances
from tfmot_ternary import initializers
from tfmot_ternary.attention import QuantizedMultiHeadAttention
from tfmot_ternary.eight_bit_layout import EightBitLayoutTransform
from tfmot_ternary.kept_ends import KeptEnds
from tfmot_ternary.layout_transform import LayoutTransform
from tfmot_ternary.packing import GroupSize, scale_shape
from tfmot_ternary.quantize_config import (
    BinaryQuantizeConfig,
    KernelQuantizeConfig,
    TernaryQuantizeConfig,
)
from tfmot_ternary.quantize_registry import QuantizeRegistry
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper
from tfmot_ternary.quantizers import BinaryQuantizer, TernaryQuantizer, check_preserve_zeros
from tfmot_ternary.stripping import WRAPPERS

__all__ = ["BinaryScheme", "TernaryScheme", "quantize_scope"]


class _KernelScheme(tfmot.quantization.keras.QuantizeScheme):
    """What TernaryScheme and BinaryScheme share."""

    levels: int
    quantize_config_class: type[KernelQuantizeConfig]

    def __init__(
        self,
        group_size: GroupSize = None,
        initializer: Any = None,
        skip: str | Iterable[str] = (),
        activation_bits: int | None = None,
        *,
        embeddings: bool = False,
        trainable_scales: bool = True,
        clip: float | None = None,
        importance: Mapping[str, Any] | None = None,
        preserve_zeros: bool = False,
        keep_ends: bool = False,
    ) -> None:
        """Makes the scheme.

        Args:
          group_size: None: one scale per output channel; "tensor": one per kernel; 32, 64, 128 or
            256: one per that many inputs of a channel.
          initializer: ScaleInitializer, its name ("kmeans", "lloyd", "absmean", "absmax", "twn"),
            or None for exact k-means: the first scales, computed from the trained weights.
          skip: regular expressions; a layer is left as it is if one of them is found in its name
            (`re.search`; anchor with ^ and $ for a whole name).
          activation_bits: None: activations stay float in training, and the operators quantize them
            per row to 8 bits when they run. 8: tf_keras models also go through tfmot's default
            8-bit scheme: its moving averages learn the ranges of activations, Conv + BatchNorm +
            ReLU count as one, and layers that only tfmot quantizes (DepthwiseConv2D, Add, pooling)
            become 8 bits. What neither knows stays float, with a warning if it has weights.
          embeddings: whether Embedding layers are quantized as well. A layer that is annotated by
            itself with `quantize_annotate_layer` always is.
          trainable_scales: whether training changes the scales.
          clip: None, or the bound on |w| above which no gradient reaches a weight.
          importance: None, or how much an error on a weight costs: what `calibrate` returns, or a
            mapping from layer names (paths) to arrays >= 0 broadcastable to W[n, k], for the
            initializer, or to `LayerHessian`s: then each kernel starts from the codes and scales
            whose outputs lie nearest to its own (`error_compensation`). Layers without an entry
            count all weights alike. Never saved.
          preserve_zeros: whether weights that are exactly 0 stay 0 in training: no gradient reaches
            them. For pruned models; not for binary weights.
          keep_ends: whether the first and the last layer that the scheme would quantize stay in
            float: those next to the model's inputs and outputs, which suffer most. Layers with a
            QuantizeConfig of their own do not count.

        Raises:
          ValueError: for an argument outside of that.
        """
        scale_shape(1, 1, group_size)
        if activation_bits not in (None, 8):
            raise ValueError(
                "expected activation_bits=None (training quantizes weights only; the operators "
                "quantize activations per row to 8 bits when they run) or 8 (tfmot's 8-bit scheme "
                f"for activations), got {activation_bits!r}"
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"expected clip None or > 0, got {clip!r}")
        self.group_size = group_size
        self.initializer = initializers.get(initializer)
        if not isinstance(skip, Iterable):
            raise ValueError(f"expected regular expressions in skip, got {skip!r}")
        self.skip = (skip,) if isinstance(skip, str) else tuple(skip)
        self.activation_bits = activation_bits
        self.embeddings = bool(embeddings)
        self.trainable_scales = bool(trainable_scales)
        self.clip = clip
        check_preserve_zeros(preserve_zeros, self.levels)
        self.preserve_zeros = bool(preserve_zeros)
        self.keep_ends = bool(keep_ends)
        self._kept: frozenset[str] = frozenset()
        self.importance = importances.checked(importance)
        try:
            self._patterns = [re.compile(pattern) for pattern in self.skip]
        except (re.error, TypeError) as error:
            raise ValueError(
                f"expected regular expressions in skip, got {self.skip}: {error}"
            ) from error

    def skips(self, layer_name: str) -> bool:
        """Whether a layer of this name (or path) is left as it is."""
        if layer_name in self._kept:
            return True
        return any(pattern.search(layer_name) for pattern in self._patterns)

    def keeping(self, names: Iterable[str]) -> _KernelScheme:
        """This scheme without `keep_ends`, for a model of which just these layers are kept."""
        scheme = copy.copy(self)
        scheme.keep_ends = False
        scheme._kept = frozenset(names)
        return scheme

    def quantize_config(self) -> KernelQuantizeConfig:
        """A QuantizeConfig with this scheme's settings, for `quantize_annotate_layer`."""
        return self.quantize_config_class(
            group_size=self.group_size,
            initializer=self.initializer,
            trainable_scales=self.trainable_scales,
            clip=self.clip,
            preserve_zeros=self.preserve_zeros,
        )

    def within(self, name: str) -> _KernelScheme:
        """This scheme for the model nested as `name`: with the importances of what lies in it."""
        nested = copy.copy(self)
        nested.importance = importances.below(self.importance, name)
        return nested

    def get_layout_transformer(self) -> LayoutTransform | EightBitLayoutTransform | KeptEnds:
        """tfmot's hook: rewrites the model before its layers are wrapped."""
        if self.keep_ends:
            return KeptEnds(self)
        transform = LayoutTransform if self.activation_bits is None else EightBitLayoutTransform
        return transform(self.get_quantize_registry(), self.skips)

    def get_quantize_registry(self) -> QuantizeRegistry:
        """tfmot's hook: which layers are quantized, and how."""
        return QuantizeRegistry(self)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(group_size={self.group_size!r}, "
            f"initializer={self.initializer!r}, skip={self.skip!r}, "
            f"activation_bits={self.activation_bits}, embeddings={self.embeddings}, "
            f"trainable_scales={self.trainable_scales}, clip={self.clip}, "
            f"importance={len(self.importance) or None}, preserve_zeros={self.preserve_zeros}, "
            f"keep_ends={self.keep_ends})"
        )


class TernaryScheme(_KernelScheme):
    """Kernels in {-a, 0, +a}."""

    levels = 3
    quantize_config_class = TernaryQuantizeConfig


class BinaryScheme(_KernelScheme):
    """Kernels in {-a, +a}."""

    levels = 2
    quantize_config_class = BinaryQuantizeConfig


def quantize_scope(*custom_objects: dict[str, Any]) -> Any:
    """The scope in which quantized and frozen models are loaded, cloned and made from JSON.

    It serves tf_keras models and, where Keras 3 is loaded, Keras 3 models as well.

    Args:
      *custom_objects: {name: class} of the users' own layers and ScaleInitializers.

    Returns:
      A context manager; it includes tfmot's own `quantize_scope`.
    """
    # These modules register the classes of frozen models, and of Keras 3's quantized models.
    importlib.import_module("tfmot_ternary.packed_rnn")  # and with it `packed_tf_keras`
    if "keras" in sys.modules:
        importlib.import_module("tfmot_ternary.freezing_keras3")
        importlib.import_module("tfmot_ternary.keras3")
    ours = {
        cls.__name__: cls
        for cls in (
            BinaryQuantizeConfig,
            BinaryQuantizer,
            KernelQuantizeWrapper,
            QuantizedMultiHeadAttention,
            TernaryQuantizeConfig,
            TernaryQuantizer,
        )
    }
    # The wrappers, so that tfmot can clone a model with them and the scheme can say to strip it.
    return tfmot.quantization.keras.quantize_scope(ours, WRAPPERS, *custom_objects)
