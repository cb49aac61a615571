"""Family: how one kind of KerasHub CausalLM is called for prefill and decode.

Follows the `call_with_cache` protocol of KerasHub's CausalLM classes
(https://keras.io/keras_hub/api/base_classes/causal_lm/): the forward pass on some positions, with a
cache of keys and values.
"""

from __future__ import annotations

import inspect
from typing import Any

from tfmot_ternary.vlm import tokenizer_export
from tfmot_ternary.vlm.attention_substitution import Substitution
from tfmot_ternary.vlm.cache_layout import CacheLayout, layout_of
from tfmot_ternary.vlm.metadata import ImageSpec


class TextFamily:
    """A text model: `call_with_cache(token_ids, cache, cache_update_index)`.

    Its mask is causal, so what pads a prompt on the right never reaches the prompt's positions.
    """

    name = "text"

    def __init__(self, causal_lm: Any):
        self.causal_lm = causal_lm
        self.backbone = causal_lm.backbone

    @property
    def start_id(self) -> int | None:
        """The id that the family's own `generate` puts in front of a prompt."""
        return tokenizer_export.start_id(self.causal_lm.preprocessor)

    @property
    def image_sequence_length(self) -> int:
        """Positions that the image takes in front of the prompt."""
        return 0

    @property
    def longest_context(self) -> int | None:
        """Positions that the model has embeddings for, or None where it computes them."""
        table = getattr(self.backbone, "position_embedding", None)
        length = getattr(table, "sequence_length", None)
        return None if length is None else int(length)

    def image_spec(self) -> ImageSpec | None:
        return None

    def cache_layout(self) -> CacheLayout:
        """Returns what the model keeps of each layer."""
        return layout_of(self.causal_lm)

    def prefill(self, substitution: Substitution, tokens: Any, position: Any, length: Any) -> Any:
        """Returns the logits behind the last real token, float32 [1, vocabulary].

        Args:
          substitution: gives the cache.
          tokens: int32 [1, T].
          position: int32 [1], where the first of them stands in the context; None: at 0.
          length: int32 [1], how many of them are real.
        """
        caches = substitution.caches(position)
        logits, hidden, _ = self.causal_lm.call_with_cache(tokens, caches.cache(), caches.index)
        return self._last_logits(logits, hidden, length - 1)

    def decode(self, substitution: Substitution, token: Any, position: Any) -> Any:
        """Returns the logits behind the token, float32 [1, vocabulary].

        Args:
          substitution: gives the cache.
          token: int32 [1, 1].
          position: int32 [1], its place in the context.
        """
        import tensorflow as tf

        caches = substitution.caches(position)
        logits, hidden, _ = self.causal_lm.call_with_cache(token, caches.cache(), caches.index)
        # The only position, by an index that the converter does not know to be zero: it would
        # merge the final normalization into the head's weights, and those into a second table.
        return self._last_logits(logits, hidden, tf.minimum(position, 0))

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
    unused rest of the cache is seen. The padding's rows are overwritten as generation reaches them,
    in order: a decode step sees no row that is not real.
    """

    name = "pali_gemma"

    @property
    def start_id(self) -> int | None:
        # Whatever the preprocessor's add_start_token says, which is for training.
        return int(tokenizer_export.tokenizer_of(self.causal_lm).start_token_id)

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

    def encode_image(self, image: Any) -> Any:
        """Returns the features [1, positions, width] of an image [1, height, width, 3]."""
        return self.backbone.vit_encoder(image)

    def feature_shape(self) -> list[int]:
        """Returns the shape of what `encode_image` returns."""
        return [1, self.image_sequence_length, int(self.backbone.hidden_dim)]

    def prefill_image(
        self, substitution: Substitution, features: Any, tokens: Any, length: Any
    ) -> Any:
        """Returns the logits behind image and prompt, float32 [1, vocabulary].

        Args:
          substitution: gives the cache.
          features: what `encode_image` returned.
          tokens: int32 [1, T], the whole prompt.
          length: int32 [1], how many of them are real.
        """
        import tensorflow as tf

        end = self.image_sequence_length + length  # [1]: positions of image and prompt
        seen = tf.cast(tf.range(substitution.cache_length)[tf.newaxis] < end, tf.int32)
        caches = substitution.caches()
        logits, hidden, _ = self.causal_lm.call_with_cache(
            tokens, caches.cache(), caches.index, img_embeddings=features, padding_mask=seen
        )
        return self._last_logits(logits, hidden, end - 1)


def family_of(causal_lm: Any) -> TextFamily:
    """Returns the family of `causal_lm`.

    Raises:
      ValueError: no KerasHub CausalLM with a cache, or one whose call is not known here.
    """
    call = getattr(causal_lm, "call_with_cache", None)
    name = type(causal_lm).__name__
    if getattr(causal_lm, "backbone", None) is None:
        raise ValueError(
            f"expected a KerasHub CausalLM with `backbone` and `call_with_cache`, got {name}: "
            "convert other models with tfmot_ternary.convert"
        )
    if call is None:
        raise ValueError(
            f"expected a KerasHub CausalLM with `call_with_cache`, got {name}, which generates in "
            "another way: this family is not supported"
        )
    parameters = list(inspect.signature(call).parameters)
    if parameters[:3] != ["token_ids", "cache", "cache_update_index"]:
        raise ValueError(
            f"expected {name}.call_with_cache(token_ids, cache, cache_update_index, ...), got "
            f"parameters {parameters}: this family is not supported"
        )
    backbone = causal_lm.backbone
    if hasattr(backbone, "vit_encoder") and {"img_embeddings", "padding_mask"} <= set(parameters):
        return PaliGemmaFamily(causal_lm)
    inputs = getattr(backbone, "input", {})
    if any("image" in key or "audio" in key for key in inputs if isinstance(key, str)):
        raise ValueError(
            f"expected a text model or PaliGemma, got {name} with inputs {sorted(inputs)}: its "
            "prefill needs masks over the whole context, which the prefill signatures do not "
            "take; convert the family's text-only preset"
        )
    return TextFamily(causal_lm)
