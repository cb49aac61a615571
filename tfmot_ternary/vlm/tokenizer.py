"""Tokenizer: text to token ids and back, with the SentencePiece file beside a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from tfmot_ternary.vlm.metadata import TokenizerSpec


class Tokenizer:
    """The SentencePiece tokenizer of a converted model.

    Args:
      path: the SentencePiece file.
      spec: ids and size as the model's metadata says them.
      vocabulary_size: width of the model's logits.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no SentencePiece model, or one that does not match the model.
      ImportError: the `sentencepiece` package is missing.
    """

    def __init__(self, path: str | os.PathLike[str], spec: TokenizerSpec, vocabulary_size: int):
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(
                f"expected the tokenizer file {self.path!r} beside the model, found none: copy it "
                "together with the .tflite"
            )
        try:
            import sentencepiece
        except ImportError as error:
            raise ImportError(
                "expected the package sentencepiece, found none: run `pip install sentencepiece`"
            ) from error
        self._pieces = sentencepiece.SentencePieceProcessor()
        with open(self.path, "rb") as file:
            proto = file.read()
        try:
            self._pieces.LoadFromSerializedProto(proto)
        except RuntimeError as error:
            raise ValueError(
                f"{self.path!r}: expected a SentencePiece model, got {len(proto)} bytes that are "
                "none"
            ) from error
        size = self._pieces.vocab_size()
        if size != spec.vocabulary_size or size > vocabulary_size:
            raise ValueError(
                f"{self.path!r}: expected a tokenizer of {spec.vocabulary_size} pieces for a model "
                f"with {vocabulary_size} token ids, got {size} pieces: the file belongs to another "
                "model"
            )
        self.spec = spec

    def encode_prompt(self, prompt: str) -> list[int]:
        """Returns the ids of `prompt`, the begin id first.

        Raises:
          ValueError: the prompt has no token.
        """
        ids = self.encode(prompt)
        if not ids:
            raise ValueError(f"expected a prompt with at least one token, got {prompt!r}")
        return ids if self.spec.bos_id is None else [self.spec.bos_id, *ids]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without begin and end ids."""
        if not isinstance(text, str):
            raise ValueError(f"expected text as str, got {type(text).__name__}")
        return list(self._pieces.Encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; ids that only pad the logits have no text."""
        return self._pieces.Decode([int(i) for i in ids if i < self._pieces.vocab_size()])

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields the text that each id adds. Joined, the pieces are `decode(all ids)`.

        A piece is held back while it ends in the middle of a UTF-8 character.
        """
        seen: list[int] = []
        shown = ""
        for token in ids:
            seen.append(token)
            text = self.decode(seen)
            if not text.endswith("\ufffd") and text.startswith(shown):
                if text != shown:
                    yield text[len(shown) :]
                shown = text
        text = self.decode(seen)
        if text != shown:
            yield text[len(shown) :]
