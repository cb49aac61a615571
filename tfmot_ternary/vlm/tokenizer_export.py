"""Tokenizer export: the tokenizer of a KerasHub preprocessor -> a file, and what to know of it."""

from __future__ import annotations

import hashlib
from typing import Any

from tfmot_ternary.vlm.metadata import TokenizerSpec

# Kind -> what the file's name ends with, behind the stem of the `.tflite`.
SUFFIXES = {"sentencepiece": ".spm", "byte_pair": ".tokenizer.json"}


def export(causal_lm: Any, stem: str, start_id: int | None) -> tuple[TokenizerSpec, bytes]:
    """Returns the specification and the file of the model's tokenizer.

    Args:
      causal_lm: a KerasHub CausalLM with its preprocessor.
      stem: name of the `.tflite` without its ending.
      start_id: id that the family puts in front of every prompt, or None.

    Raises:
      ValueError: no preprocessor or vocabulary, a tokenizer of another kind, or one with more
        pieces than the model's table has rows.
    """
    tokenizer = tokenizer_of(causal_lm)
    kind, content, size, largest = _content(tokenizer)
    rows = int(causal_lm.backbone.vocabulary_size)
    if max(size, largest + 1) > rows:
        raise ValueError(
            f"expected a tokenizer of at most {rows} pieces (the backbone's vocabulary_size), got "
            f"{max(size, largest + 1)}: the preprocessor belongs to another model"
        )
    pad = getattr(tokenizer, "pad_token_id", None)
    spec = TokenizerSpec(
        kind=kind,
        file=stem + SUFFIXES[kind],
        vocabulary_size=size,
        bos_id=start_id,
        eos_ids=stop_ids(causal_lm),
        pad_id=int(pad or 0),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return spec, content


def tokenizer_of(causal_lm: Any) -> Any:
    """Returns the tokenizer of the model's preprocessor.

    Raises:
      ValueError: the model has none.
    """
    tokenizer = getattr(getattr(causal_lm, "preprocessor", None), "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"expected {type(causal_lm).__name__} with a preprocessor and its tokenizer, got none: "
            "load it with keras_hub.models.CausalLM.from_preset"
        )
    return tokenizer


def start_id(preprocessor: Any) -> int | None:
    """Returns the id that the text preprocessor of `generate()` puts in front of a prompt.

    Raises:
      ValueError: it adds something else.
    """
    text = "a"
    packed = preprocessor.generate_preprocess([text])
    count = sum(bool(m) for m in packed["padding_mask"][0])
    ids = [int(i) for i in packed["token_ids"][0][:count]]
    own = [int(i) for i in preprocessor.tokenizer(text)]
    if ids == own:
        return None
    if ids[1:] == own:
        return ids[0]
    raise ValueError(
        f"expected a preprocessor that puts at most one token in front of a prompt, got "
        f"{type(preprocessor).__name__}, which makes {ids} of {own}: this family is not supported"
    )


def stop_ids(causal_lm: Any) -> list[int]:
    """Returns the ids at which the model's own `generate()` ends, the end token first.

    Families add theirs (Gemma3 its `<end_of_turn>`) and pass the list on to the base class: asked
    there, none has to be known here.
    """
    import keras_hub

    tokenizer = tokenizer_of(causal_lm)
    passed: Any = "auto"
    base = keras_hub.models.CausalLM
    original = base.generate

    def take(
        self: Any,
        inputs: Any,
        max_length: Any = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
    ) -> None:
        nonlocal passed
        del self, inputs, max_length, strip_prompt
        passed = stop_token_ids

    base.generate = take
    try:
        causal_lm.generate(None)
    finally:
        base.generate = original
    if passed == "auto":
        passed = [tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", None)]
    # Each once, in order.
    return list(dict.fromkeys(int(i) for i in passed if i is not None))


def _content(tokenizer: Any) -> tuple[str, bytes, int, int]:
    """(kind, file, pieces, largest id)."""
    import keras_hub

    if isinstance(tokenizer, keras_hub.tokenizers.SentencePieceTokenizer):
        if not isinstance(tokenizer.proto, bytes):
            raise _empty(tokenizer)
        size = int(tokenizer.vocabulary_size())
        return "sentencepiece", tokenizer.proto, size, size - 1
    if isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
        if tokenizer.vocabulary is None:
            raise _empty(tokenizer)
        # KerasHub itself encodes with this object: vocabulary, merges, the pattern that splits
        # words, tokens that are never split.
        tokenizer._maybe_initialized_tokenizers()
        inner = tokenizer._tokenizer
        return (
            "byte_pair",
            inner.to_str().encode(),
            int(inner.get_vocab_size()),
            max(inner.get_vocab().values()),
        )
    raise ValueError(
        f"expected a SentencePiece or byte-pair tokenizer, got {type(tokenizer).__name__}: this "
        "family is not supported"
    )


def _empty(tokenizer: Any) -> ValueError:
    return ValueError(
        f"expected {type(tokenizer).__name__} with its vocabulary, got an empty one: load the "
        "model's preset"
    )
