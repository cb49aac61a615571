"""Conversion: a KerasHub CausalLM or vision-language model -> one `.tflite` to generate from."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from typing import Any

from tfmot_ternary import model_file
from tfmot_ternary.vlm import embedding
from tfmot_ternary.vlm import image as image_lib
from tfmot_ternary.vlm import metadata as metadata_lib
from tfmot_ternary.vlm.family import TextFamily, family_of
from tfmot_ternary.vlm.metadata import CausalLMMetadata, ImageSpec, TokenizerSpec


def convert_causal_lm(
    causal_lm: Any,
    path: str | os.PathLike[str],
    *,
    prefill_length: int | None = None,
    cache_length: int | None = None,
    weight_format: str | None = None,
    optimizations: Sequence[Any] | None = None,
) -> CausalLMMetadata:
    """Writes `causal_lm` as a `.tflite` and its tokenizer beside it as `<stem>.spm`.

    The file has two signatures, batch 1, float32 and int32:

    - `prefill`: `tokens` [1, prefill_length] (padded on the right), `length` [1] (real tokens),
      `cache_0`, `cache_1`, ... (zeros), for a vision-language model `image` [1, height, width, 3]
      -> `logits` [1, vocabulary] behind the last real token, `cache_0`, ...
    - `decode`: `token` [1, 1], `position` [1] (in the context, image positions included),
      `cache_0`, ... -> `logits` [1, vocabulary], `cache_0`, ...

    The cache of a layer is [1, 2, cache_length, key-value heads, head size]. Greedy tokens are
    those of KerasHub's own `generate()`. Metadata in the file say what `Generator` needs to know.

    Args:
      causal_lm: a KerasHub CausalLM in float32, with its preprocessor: as it is, quantized by
        `tfmot_ternary.quantize_apply` (it is frozen first), or frozen by `tfmot_ternary.freeze`.
      path: the file to write; written to a temporary name first, then renamed.
      prefill_length: longest prompt in tokens; default: the preprocessor's `sequence_length`.
      cache_length: positions of the context: image, prompt and generated tokens; default: room
        for the image and the preprocessor's `sequence_length`.
      weight_format: "t2", "t5" or "b1" for a quantized model that is frozen here.
      optimizations: given to the TFLiteConverter: `[tf.lite.Optimize.DEFAULT]` stores the weights
        that are still float (all of a float model; embeddings and head of a ternary one) in 8 bits
        (dynamic range), those of fewer than 1024 elements excepted. A token table that is also the
        head is stored once.

    Returns:
      The metadata written.

    Raises:
      ValueError: not such a model, no preprocessor or another kind of tokenizer, another dtype,
        lengths that do not fit together.
    """
    causal_lm = _frozen(causal_lm, weight_format)
    family = family_of(causal_lm)
    tokenizer, proto = _tokenizer(causal_lm)
    _check_dtype(causal_lm)
    image = family.image_spec()
    _check_image(image)

    sequence_length = int(causal_lm.preprocessor.sequence_length)
    if prefill_length is None:
        prefill_length = sequence_length
    if cache_length is None:
        cache_length = family.image_sequence_length + max(prefill_length, sequence_length)
    needed = family.image_sequence_length + prefill_length
    if prefill_length < 1 or cache_length < needed:
        raise ValueError(
            f"expected prefill_length >= 1 and cache_length >= {needed} (image "
            f"{family.image_sequence_length} + prefill_length), got prefill_length "
            f"{prefill_length} and cache_length {cache_length}"
        )

    batch, layers, *cache_shape = family.cache_shape(cache_length)
    path = os.fspath(path)
    tokenizer_file = os.path.splitext(os.path.basename(path))[0] + ".spm"
    metadata = CausalLMMetadata(
        family=family.name,
        vocabulary_size=int(causal_lm.backbone.vocabulary_size),
        prefill_lengths=[prefill_length],
        chunked=False,
        prefill_length=prefill_length,
        cache_length=cache_length,
        cache_type="float32",
        cache_bytes=4 * layers * math.prod(cache_shape),
        cache_layers=layers,
        cache_shape=[batch, *cache_shape],
        tokenizer=TokenizerSpec(
            kind="sentencepiece",
            file=tokenizer_file,
            vocabulary_size=int(tokenizer.vocabulary_size()),
            bos_id=int(tokenizer.start_token_id) if family.adds_start_token else None,
            eos_ids=_end_ids(tokenizer),
            pad_id=int(tokenizer.pad_token_id),
        ),
        image=image,
    )
    if metadata.tokenizer.vocabulary_size > metadata.vocabulary_size:
        raise ValueError(
            f"expected a tokenizer of at most {metadata.vocabulary_size} pieces (the backbone's "
            f"vocabulary_size), got {metadata.tokenizer.vocabulary_size}"
        )
    model = _convert(family, metadata, optimizations)
    folder = os.path.dirname(os.path.abspath(path))
    # The tokenizer first: a `.tflite` under its final name always has its tokenizer beside it.
    model_file.write_atomically(os.path.join(folder, tokenizer_file), proto)
    model_file.write_atomically(path, model)
    return metadata


def _frozen(causal_lm: Any, weight_format: str | None) -> Any:
    from tfmot_ternary import keras3

    if isinstance(causal_lm, keras3.QuantizedModel):
        from tfmot_ternary.freezing import freeze

        return freeze(causal_lm, weight_format)
    if weight_format is not None:
        raise ValueError(
            f"expected a quantized, not yet frozen model for weight_format {weight_format!r}, got "
            "a float or frozen one: use tfmot_ternary.quantize_apply first"
        )
    return causal_lm


def _convert(
    family: TextFamily, metadata: CausalLMMetadata, optimizations: Sequence[Any] | None
) -> bytes:
    import tensorflow as tf

    from tfmot_ternary.conversion import align_packed_buffers, convert_functions

    def named(logits, caches):
        return {"logits": logits, **{f"cache_{i}": cache for i, cache in enumerate(caches)}}

    def in_order(caches):
        return [caches[f"cache_{i}"] for i in range(metadata.cache_layers)]

    def prefill(tokens, length, image=None, **caches):
        return named(*family.prefill(tokens, length, in_order(caches), image))

    def decode(token, position, **caches):
        return named(*family.decode(token, position, in_order(caches)))

    cache_specs = {
        f"cache_{i}": tf.TensorSpec(metadata.cache_shape, tf.float32, f"cache_{i}")
        for i in range(metadata.cache_layers)
    }
    prefill_specs = {
        "tokens": tf.TensorSpec([1, metadata.prefill_length], tf.int32, "tokens"),
        "length": tf.TensorSpec([1], tf.int32, "length"),
        **cache_specs,
    }
    if metadata.image is not None:
        size = [1, metadata.image.height, metadata.image.width, 3]
        prefill_specs["image"] = tf.TensorSpec(size, tf.float32, "image")
    eight_bits = tf.lite.Optimize.DEFAULT in (optimizations or ())
    with embedding.stored_once(family.causal_lm) if eight_bits else contextlib.nullcontext():
        functions = {
            "prefill": tf.function(prefill).get_concrete_function(**prefill_specs),
            "decode": tf.function(decode).get_concrete_function(
                token=tf.TensorSpec([1, 1], tf.int32, "token"),
                position=tf.TensorSpec([1], tf.int32, "position"),
                **cache_specs,
            ),
        }
    model = convert_functions(functions, optimizations)
    return align_packed_buffers(metadata_lib.attach(model, metadata))


def _tokenizer(causal_lm: Any) -> tuple[Any, bytes]:
    tokenizer = getattr(getattr(causal_lm, "preprocessor", None), "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"expected {type(causal_lm).__name__} with a preprocessor and its tokenizer, got none: "
            "load it with keras_hub.models.CausalLM.from_preset"
        )
    proto = getattr(tokenizer, "proto", None)
    if not isinstance(proto, bytes):
        raise ValueError(
            f"expected a SentencePiece tokenizer (with `proto`), got {type(tokenizer).__name__}: "
            "other tokenizers are not supported"
        )
    return tokenizer, proto


def _end_ids(tokenizer: Any) -> list[int]:
    ids = [int(tokenizer.end_token_id)]
    if hasattr(tokenizer, "end_token2_id"):
        ids.append(int(tokenizer.end_token2_id))
    return ids


def _check_dtype(causal_lm: Any) -> None:
    dtype = causal_lm.backbone.compute_dtype
    if dtype != "float32":
        raise ValueError(
            f"expected a model that computes in float32, got {dtype}: load it with "
            'from_preset(..., dtype="float32")'
        )


def _check_image(image: ImageSpec | None) -> None:
    if image is not None and image.interpolation not in image_lib.INTERPOLATIONS:
        raise ValueError(
            f"expected an image converter with interpolation {image_lib.INTERPOLATIONS}, got "
            f"{image.interpolation!r}"
        )
