"""Tokenizer: text to token ids and back, with the tokenizer file beside a model.

Needs neither TensorFlow nor KerasHub, only the package that reads the file: `sentencepiece`, or
`tokenizers` for byte-pair vocabularies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from tfmot_ternary.vlm.metadata import TokenizerSpec


class _Pieces(Protocol):
    """What a kind of tokenizer does."""

    size: int

    def __init__(self, content: bytes) -> None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class _SentencePieces:
    """A SentencePiece model. Raises ValueError if `content` is none."""

    def __init__(self, content: bytes):
        try:
            import sentencepiece
        except ImportError as error:
            raise _missing("sentencepiece") from error
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ValueError("a SentencePiece model") from error
        self.size = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        return list(self._processor.Encode(text))

    def decode(self, ids: list[int]) -> str:
        return self._processor.Decode([i for i in ids if i < self.size])


class _BytePairs:
    """Byte pairs, as the `tokenizers` package writes them. Raises ValueError for other content."""

    def __init__(self, content: bytes):
        try:
            import tokenizers
        except ImportError as error:
            raise _missing("tokenizers") from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises nothing narrower
            raise ValueError("a tokenizer.json") from error
        self.size = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


_KINDS: dict[str, type[_Pieces]] = {"sentencepiece": _SentencePieces, "byte_pair": _BytePairs}


class Tokenizer:
    """The tokenizer of a converted model.

    Args:
      path: its file.
      spec: kind, ids and size as the model's metadata says them.
      vocabulary_size: width of the model's logits.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no tokenizer of this kind, or one that does not match the model.
      ImportError: the package that reads it is missing.
    """

    def __init__(self, path: str | os.PathLike[str], spec: TokenizerSpec, vocabulary_size: int):
        self.path = os.fspath(path)
        self.spec = spec
        if not os.path.isfile(self.path):
            raise FileNotFoundError(
                f"expected the tokenizer file {self.path!r} beside the model, found none: copy it "
                "together with the .tflite"
            )
        if spec.kind not in _KINDS:
            raise ValueError(
                f"{self.path!r}: expected a tokenizer of kind {' or '.join(map(repr, _KINDS))}, "
                f"got {spec.kind!r}: convert the model again, or update tfmot_ternary"
            )
        with open(self.path, "rb") as file:
            content = file.read()
        try:
            self._pieces = _KINDS[spec.kind](content)
        except ValueError as error:
            raise ValueError(
                f"{self.path!r}: expected {error} ({spec.kind}), got {len(content)} bytes that are "
                "none: copy the file that was written with the .tflite"
            ) from error
        size = self._pieces.size
        if size != spec.vocabulary_size or size > vocabulary_size:
            raise ValueError(
                f"{self.path!r}: expected a tokenizer of {spec.vocabulary_size} pieces for a model "
                f"with {vocabulary_size} token ids, got {size} pieces: the file belongs to another "
                "model"
            )
        digest = hashlib.sha256(content).hexdigest()
        if spec.sha256 and digest != spec.sha256:
            raise ValueError(
                f"{self.path!r}: expected the tokenizer that the model was converted with (SHA-256 "
                f"{spec.sha256[:12]}...), got another one ({digest[:12]}...): copy the file that "
                "was written with the .tflite"
            )

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
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; ids that only pad the logits have no text."""
        return self._pieces.decode([int(i) for i in ids])

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


def _missing(package: str) -> ImportError:
    return ImportError(f"expected the package {package}, found none: run `pip install {package}`")
