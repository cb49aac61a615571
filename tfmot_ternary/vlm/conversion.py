"""Conversion: a KerasHub CausalLM or vision-language model -> one `.tflite` to generate from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmot_ternary import attention_op, fused_layers, model_file
from tfmot_ternary.vlm import attention_substitution, embedding, tokenizer_export
from tfmot_ternary.vlm import image as image_lib
from tfmot_ternary.vlm import metadata as metadata_lib
from tfmot_ternary.vlm.attention_substitution import Substitution
from tfmot_ternary.vlm.family import PaliGemmaFamily, TextFamily, family_of
from tfmot_ternary.vlm.metadata import CausalLMMetadata, ImageSpec
from tfmot_ternary.vlm.signatures import Functions, signatures

# Chunks of a text prompt: the long one reads the weights seldom, the short one pads little.
TEXT_PREFILL_LENGTHS = (16, 128)
# Beside the preprocessor's sequence length: most questions about an image are short.
SHORT_PROMPT = 32


def convert_causal_lm(
    causal_lm: Any,
    path: str | os.PathLike[str],
    *,
    prefill_lengths: Sequence[int] | None = None,
    cache_length: int | None = None,
    cache_type: str = "float32",
    weight_format: str | None = None,
    tables: str | None = None,
    others: str | None = None,
    optimizations: Sequence[Any] | None = None,
    weights: Sequence[tuple[Any, np.ndarray]] | None = None,
) -> CausalLMMetadata:
    """Writes `causal_lm` as a `.tflite`, and its tokenizer beside it.

    The file has these signatures, batch 1, float32 and int32. Keys and values stay in the
    interpreter: each call sees what the calls before it left at the positions below its own.

    - `prefill_<T>`, one for each of `prefill_lengths`, for text: `tokens` [1, T] (padded on the
      right), `position` [1] (where they begin in the context, so that T positions fit in it),
      `length` [1] (real tokens) -> `logits` [1, vocabulary] behind the last real token. A longer
      prompt goes through several calls, where the metadata say `chunked`; otherwise position is 0.
    - `encode_image` and `prefill_<T>` for vision and language: `image` [1, height, width, 3] ->
      `features` [1, positions, width]; `features`, `tokens` [1, T], `length` [1] -> `logits`. The
      whole prompt goes through one call: image and prompt see each other both ways.
    - `decode`: `token` [1, 1], `position` [1] (in the context, image positions included) ->
      `logits` [1, vocabulary].

    Greedy tokens are those of KerasHub's own `generate()`. Metadata in the file say what
    `Generator` needs to know.

    Args:
      causal_lm: a KerasHub CausalLM in float32, with its preprocessor: as it is, quantized by
        `tfmot_ternary.quantize_apply` (it is frozen first), or frozen by `tfmot_ternary.freeze`.
      path: the file to write; written to a temporary name first, then renamed.
      prefill_lengths: lengths T; default: 16 and 128 for text; for vision and language the
        preprocessor's `sequence_length` and 32, if that is shorter.
      cache_length: positions of the context: image, prompt and generated tokens; default: room
        for the image and the preprocessor's `sequence_length`.
      cache_type: how keys and values are kept: "float32", "float16" or "int8".
      weight_format: "t2", "t5" or "b1" for a quantized model that is frozen here.
      tables, others: for a quantized model that is frozen here, see `tfmot_ternary.freeze`.
      optimizations: for a float model, given to the TFLiteConverter: `[tf.lite.Optimize.DEFAULT]`
        stores its weights in 8 bits (dynamic range), those of fewer than 1024 elements excepted. A
        token table that is also the head is stored once. In a frozen model it stores what is still
        float in 8 bits.
      weights: (variable, value) of all weights, for a frozen model whose variables have no values;
        the values may lie on disk (`np.memmap`).

    Returns:
      The metadata written.

    Raises:
      ValueError: not such a model, a family that does not fit, no preprocessor or another kind of
        tokenizer, another dtype, lengths that do not fit together.
    """
    if cache_type not in attention_op.CACHE_TYPES:
        raise ValueError(
            f"expected cache_type out of {attention_op.CACHE_TYPES}, got {cache_type!r}"
        )
    causal_lm = _frozen(causal_lm, weight_format, tables, others)
    family = family_of(causal_lm)
    tokenizer_export.tokenizer_of(causal_lm)
    _check_dtype(causal_lm)
    image = family.image_spec()
    _check_image(image)
    path = os.fspath(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    tokenizer, tokenizer_content = tokenizer_export.export(causal_lm, stem, family.start_id)

    sequence_length = int(causal_lm.preprocessor.sequence_length)
    if cache_length is None:
        cache_length = family.image_sequence_length + max(
            [sequence_length, *(prefill_lengths or ())]
        )
    layout = family.cache_layout()
    with (
        attention_substitution.substituted(
            causal_lm, layout, cache_length, cache_type
        ) as attention,
        fused_layers.fused(causal_lm),
    ):
        _check_context(family, cache_length)
        _trial(family, attention)
        lengths = _prefill_lengths(
            family, prefill_lengths, sequence_length, cache_length, attention.chunked
        )
        metadata = CausalLMMetadata(
            family=family.name,
            vocabulary_size=int(causal_lm.backbone.vocabulary_size),
            prefill_lengths=lengths,
            chunked=image is None and attention.chunked,
            cache_length=cache_length,
            cache_type=cache_type,
            cache_bytes=attention.cache_bytes,
            tokenizer=tokenizer,
            image=image,
        )
        functions = signatures(family, attention, metadata)
        folder = os.path.dirname(os.path.abspath(path))
        tokenizer_path = os.path.join(folder, tokenizer.file)
        # The tokenizer first: a `.tflite` under its final name always has its tokenizer beside it.
        if weights is None and (optimizations or not _is_frozen(causal_lm)):
            content = _convert_float(family, functions, metadata, optimizations)
            model_file.write_atomically(tokenizer_path, tokenizer_content)
            model_file.write_atomically(path, content)
        else:
            from tfmot_ternary import linked_conversion

            if weights is None:
                weights = [(v, np.asarray(v)) for v in causal_lm.backbone.variables]
            model_file.write_atomically(tokenizer_path, tokenizer_content)
            linked_conversion.convert(
                functions, weights, path, metadata={metadata_lib.NAME: metadata.to_json()}
            )
    return metadata


def _frozen(
    causal_lm: Any, weight_format: str | None, tables: str | None, others: str | None
) -> Any:
    from tfmot_ternary import keras3

    if isinstance(causal_lm, keras3.QuantizedModel):
        from tfmot_ternary.freezing import freeze

        return freeze(causal_lm, weight_format, tables=tables, others=others)
    given = {"weight_format": weight_format, "tables": tables, "others": others}
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"expected a quantized, not yet frozen model for {name} {value!r}, got a float or "
                "frozen one: use tfmot_ternary.quantize_apply first, or freeze with it"
            )
    return causal_lm


def _is_frozen(causal_lm: Any) -> bool:
    from tfmot_ternary.packed_layer import PackedLayer

    return any(isinstance(layer, PackedLayer) for layer in causal_lm.backbone._flatten_layers())


def _trial(family: TextFamily, attention: Substitution) -> None:
    """Traces one decode step without any weight: what the file will hold is known then.

    Raises:
      ValueError: the family's call does not fit the protocol.
    """
    import keras
    import tensorflow as tf

    def decode(token: Any, position: Any) -> Any:
        values = [(v, tf.zeros(v.shape, v.dtype)) for v in family.backbone.variables]
        with keras.StatelessScope(state_mapping=values, initialize_variables=False):
            return family.decode(attention, token, position)

    specs = (tf.TensorSpec([1, 1], tf.int32), tf.TensorSpec([1], tf.int32))
    name = type(family.causal_lm).__name__
    try:
        tf.function(decode, autograph=False).get_concrete_function(*specs)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"expected {name}.call_with_cache to run on one token and a cache, got: "
            f"{str(error)[:500]}; this family is not supported"
        ) from error
    missing = set(range(len(attention.layout.layers))) - attention.whole - attention.in_rows
    if missing:
        raise ValueError(
            f"expected {name} to compute attention over the cache in every layer, got none in "
            f"layers {sorted(missing)}: this family is not supported"
        )


def _prefill_lengths(
    family: TextFamily,
    wanted: Sequence[int] | None,
    sequence_length: int,
    cache_length: int,
    chunked: bool,
) -> list[int]:
    """Returns the lengths, ascending, each once."""
    room = cache_length - family.image_sequence_length
    if wanted is not None:
        lengths = sorted({int(length) for length in wanted})
        if not lengths or lengths[0] < 1 or lengths[-1] > room:
            raise ValueError(
                f"expected prefill_lengths >= 1 and cache_length >= image positions + the longest, "
                f"got prefill_lengths {list(wanted)}, {family.image_sequence_length} image "
                f"positions and cache_length {cache_length}"
            )
        return lengths
    if room < 1:
        raise ValueError(
            f"expected cache_length > {family.image_sequence_length} (the image's positions), got "
            f"{cache_length}"
        )
    if isinstance(family, PaliGemmaFamily) or not chunked:
        longest = min(sequence_length, room)
        return sorted({min(SHORT_PROMPT, longest), longest})
    return sorted({min(length, room) for length in TEXT_PREFILL_LENGTHS})


def _convert_float(
    family: TextFamily,
    functions: Functions,
    metadata: CausalLMMetadata,
    optimizations: Sequence[Any] | None,
) -> bytes:
    import tensorflow as tf

    from tfmot_ternary.conversion import convert_functions

    eight_bits = tf.lite.Optimize.DEFAULT in (optimizations or ())
    with embedding.stored_once(family.causal_lm) if eight_bits else contextlib.nullcontext():
        traced = {
            name: tf.function(function, autograph=False).get_concrete_function(**specs)
            for name, (function, specs) in functions.items()
        }
    return convert_functions(
        traced, optimizations, metadata={metadata_lib.NAME: metadata.to_json()}
    )


def _check_context(family: TextFamily, cache_length: int) -> None:
    longest = family.longest_context
    if longest is not None and cache_length > longest:
        raise ValueError(
            f"expected cache_length <= {longest} (the positions that "
            f"{type(family.causal_lm).__name__} has embeddings for), got {cache_length}: give a "
            "smaller one"
        )


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
