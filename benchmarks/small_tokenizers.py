"""Tokenizers of a few pieces, for models of random weights that need one to be whole."""

from __future__ import annotations

import io

WORDS = "what digit is top left right bottom how many threes sum of the row zero one two".split()


def sentence_piece() -> bytes:
    """A SentencePiece model of 64 pieces with the ids that Gemma's tokenizers demand."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))),
        model_writer=model,
        vocab_size=64,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<eos>",
        unk_piece="<unk>",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def byte_pair() -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a byte-pair tokenizer: single letters and two merges."""
    letters = sorted({letter for word in WORDS for letter in word} | {"Ġ"})
    merges = ["t h", "th e"]  # KerasHub needs some
    tokens = ["<|endoftext|>", *letters, *(merge.replace(" ", "") for merge in merges)]
    return {token: i for i, token in enumerate(tokens)}, merges
