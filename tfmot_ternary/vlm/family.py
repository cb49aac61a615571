"""Family: how one kind of KerasHub CausalLM is called for prefill and decode.

Follows the `call_with_cache` protocol of KerasHub's CausalLM classes
(https://keras.io/keras_hub/api/base_classes/causal_lm/): the forward pass on some positions, with
a KV cache of shape [batch, layers, 2, positions, key-value heads, head size].
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from tfmot_ternary.vlm.metadata import ImageSpec


class LayerCaches:
    """One cache tensor per layer, in the place of the stacked tensor that `call_with_cache` takes.

    A stacked tensor of rank 6 would be cut apart and copied together in every decode step, and TF
    Lite's own kernels stop at rank 5.

    Args:
      tensors: one per layer, [batch, 2, positions, key-value heads, head size].
    """

    def __init__(self, tensors: Sequence[Any]):
        self._tensors = list(tensors)

    def __getitem__(self, key: Any) -> Any:
        """Returns layer i for `[:, i]` and `[:, i, ...]`, which is all that KerasHub asks for."""
        if (
            isinstance(key, tuple)
            and len(key) in (2, 3)
            and key[0] == slice(None)
            and isinstance(key[1], int)
            and key[2:] in ((), (Ellipsis,))
        ):
            return self._tensors[key[1]]
        raise ValueError(
            f"expected cache[:, layer, ...] in call_with_cache, got cache[{key}]: this family is "
            "not supported"
        )

    @staticmethod
    def unstack(cache: Any) -> list[Any]:
        """Returns the layers of the stacked cache that `call_with_cache` has made.

        In a traced function the stack is an operator whose inputs are the layers: taken from
        there, nothing is copied.
        """
        import tensorflow as tf

        if cache.op.type == "Pack" and cache.op.get_attr("axis") == 1:
            return list(cache.op.inputs)
        return tf.unstack(cache, axis=1)


class TextFamily:
    """A text model: `call_with_cache(token_ids, cache, cache_update_index)`.

    Its mask is causal, so what pads a prompt on the right never reaches the prompt's positions.
    """

    name = "text"

    def __init__(self, causal_lm: Any):
        self.causal_lm = causal_lm
        self.backbone = causal_lm.backbone

    @property
    def adds_start_token(self) -> bool:
        """Whether the family's own `generate` puts the begin token in front of a prompt."""
        return bool(self.causal_lm.preprocessor.add_start_token)

    @property
    def image_sequence_length(self) -> int:
        """Positions that the image takes in front of the prompt."""
        return 0

    def image_spec(self) -> ImageSpec | None:
        return None

    def cache_shape(self, cache_length: int) -> list[int]:
        """Returns the shape of a cache of `cache_length` positions, as the model itself builds it.

        [1, layers, 2, cache_length, key-value heads, head size].
        """
        import tensorflow as tf

        traced = tf.function(self.causal_lm._build_cache).get_concrete_function(
            tf.TensorSpec([1, cache_length], tf.int32)
        )
        return [int(d) for d in traced.structured_outputs[1].shape]

    def prefill(
        self, tokens: Any, length: Any, caches: Sequence[Any], image: Any = None
    ) -> tuple[Any, list[Any]]:
        """Returns (logits [1, vocabulary] behind the last real token, caches of the layers)."""
        logits, hidden, cache = self.causal_lm.call_with_cache(tokens, LayerCaches(caches), 0)
        return self._last_logits(logits, hidden, length - 1), LayerCaches.unstack(cache)

    def decode(self, token: Any, position: Any, caches: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Returns (logits [1, vocabulary] behind the token, caches of the layers)."""
        import tensorflow as tf

        logits, hidden, cache = self.causal_lm.call_with_cache(
            token, LayerCaches(caches), position[0]
        )
        # The only position, by an index that the converter does not know to be zero: it would
        # merge the final normalization into the head's weights, and those into a second table.
        index = tf.minimum(position, 0)
        return self._last_logits(logits, hidden, index), LayerCaches.unstack(cache)

    def _last_logits(self, logits: Any, hidden: Any, index: Any) -> Any:
        """Returns the logits at position `index` ([1] int32).

        Where the head is the token embedding, it is applied to that one position only: the
        converter drops the product over all positions.
        """
        import tensorflow as tf

        embedding = getattr(self.backbone, "token_embedding", None)
        if embedding is None or "reverse" not in inspect.signature(embedding.call).parameters:
            return tf.gather(logits, index, axis=1)[:, 0]
        return embedding(tf.gather(hidden, index, axis=1), reverse=True)[:, 0]


class PaliGemmaFamily(TextFamily):
    """PaliGemma: image positions first, then the prompt; a prefix-LM.

    Image and prompt see each other both ways; generated tokens see what stands before them. The
    mask over the whole cache is given explicitly, so that neither the prompt's padding nor the
    unused rest of the cache is seen.
    """

    name = "pali_gemma"

    @property
    def adds_start_token(self) -> bool:
        return True  # whatever the preprocessor's add_start_token says, which is for training

    @property
    def image_sequence_length(self) -> int:
        return int(self.backbone.image_sequence_length)

    def image_spec(self) -> ImageSpec:
        size = int(self.backbone.image_size)
        converter = getattr(self.causal_lm.preprocessor, "image_converter", None)
        if converter is None:
            return ImageSpec(
                size,
                size,
                self.image_sequence_length,
                1.0,
                0.0,
                "bilinear",
                False,
                "stretch",
                False,
            )
        if converter.image_size not in (None, (size, size)):
            raise ValueError(
                f"expected an image converter for {size} x {size} pixels (the backbone's "
                f"image_size), got one for {converter.image_size}: fix the preset's preprocessor"
            )
        aspect_ratio = "stretch"
        if converter.crop_to_aspect_ratio:
            aspect_ratio = "crop"
        elif converter.pad_to_aspect_ratio:
            aspect_ratio = "pad"

        def factor(value: Any, default: float) -> float | list[float]:
            if value is None:
                return default
            if hasattr(value, "__len__"):
                return [float(v) for v in value]
            return float(value)

        return ImageSpec(
            height=size,
            width=size,
            sequence_length=self.image_sequence_length,
            scale=factor(converter.scale, 1.0),
            offset=factor(converter.offset, 0.0),
            interpolation=converter.interpolation,
            antialias=bool(converter.antialias),
            aspect_ratio=aspect_ratio,
            resize=converter.image_size is not None,
        )

    def cache_shape(self, cache_length: int) -> list[int]:
        backbone = self.backbone
        heads = int(backbone.num_key_value_heads)
        return [1, int(backbone.num_layers), 2, cache_length, heads, int(backbone.head_dim)]

    def prefill(
        self, tokens: Any, length: Any, caches: Sequence[Any], image: Any = None
    ) -> tuple[Any, list[Any]]:
        import tensorflow as tf

        end = self.image_sequence_length + length  # [1]: positions of image and prompt
        seen = tf.cast(tf.range(caches[0].shape[2])[tf.newaxis] < end, tf.int32)
        logits, hidden, cache = self.causal_lm.call_with_cache(
            tokens,
            LayerCaches(caches),
            0,
            img_embeddings=self.backbone.vit_encoder(image),
            padding_mask=seen,
        )
        return self._last_logits(logits, hidden, end - 1), LayerCaches.unstack(cache)


def family_of(causal_lm: Any) -> TextFamily:
    """Returns the family of `causal_lm`.

    Raises:
      ValueError: no KerasHub CausalLM with a cache, or one whose call is not known here.
    """
    call = getattr(causal_lm, "call_with_cache", None)
    if call is None or getattr(causal_lm, "backbone", None) is None:
        raise ValueError(
            "expected a KerasHub CausalLM with `backbone` and `call_with_cache`, got "
            f"{type(causal_lm).__name__}: convert other models with tfmot_ternary.convert"
        )
    parameters = list(inspect.signature(call).parameters)
    if parameters[:3] != ["token_ids", "cache", "cache_update_index"]:
        raise ValueError(
            f"expected {type(causal_lm).__name__}.call_with_cache(token_ids, cache, "
            f"cache_update_index, ...), got parameters {parameters}: this family is not supported"
        )
    if hasattr(causal_lm.backbone, "vit_encoder") and {"img_embeddings", "padding_mask"} <= set(
        parameters
    ):
        return PaliGemmaFamily(causal_lm)
    if any("image" in key for key in getattr(causal_lm.backbone, "input", {})):
        raise ValueError(
            "expected a text model or PaliGemma, got "
            f"{type(causal_lm).__name__}, which takes images in another way: not supported"
        )
    return TextFamily(causal_lm)
