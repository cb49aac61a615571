"""Metadata: what a causal-LM `.tflite` says about itself, as JSON in the flatbuffer's metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from tfmot_ternary import model_file

NAME = "tfmot_ternary.causal_lm"
FORMAT_VERSION = 2

# Names of the signatures in the file.
DECODE = "decode"
ENCODE_IMAGE = "encode_image"


def prefill_name(length: int) -> str:
    """Returns the name of the signature that takes `length` token ids."""
    return f"prefill_{length}"


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How an image becomes the model's input `x * scale + offset`.

    Attributes:
      height, width: size in pixels after resizing.
      sequence_length: positions that one image takes in the context.
      scale, offset: float, or one float per channel.
      interpolation: "bilinear", "nearest" or "bicubic".
      antialias: whether the resize filter widens when it shrinks the image.
      aspect_ratio: "crop" (centre crop first), "pad" (zeros) or "stretch".
      resize: False when the model has no resize step: other sizes are then refused.
    """

    height: int
    width: int
    sequence_length: int
    scale: float | list[float]
    offset: float | list[float]
    interpolation: str
    antialias: bool
    aspect_ratio: str
    resize: bool


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer beside the model.

    Attributes:
      kind: "sentencepiece" or "byte_pair".
      file: name of its file, in the folder of the `.tflite`: `<stem>.spm` (SentencePiece) or
        `<stem>.tokenizer.json` (byte-pair).
      vocabulary_size: pieces in it; at most the model's `vocabulary_size`.
      bos_id: id put in front of every prompt, or None.
      eos_ids: ids that end a generation; the first one also ends an answer in scoring.
      pad_id: id that fills a chunk of the prompt up to its prefill length.
      sha256: hexadecimal digest of the file.
    """

    kind: str
    file: str
    vocabulary_size: int
    bos_id: int | None
    eos_ids: list[int]
    pad_id: int
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class CausalLMMetadata:
    """Everything that generation needs beside the signatures.

    Attributes:
      family: "pali_gemma" or "text" (no image input).
      vocabulary_size: width of the logits.
      prefill_lengths: token ids that the signatures `prefill_<length>` take, ascending.
      chunked: whether a prompt may go through several prefill calls, one chunk after the other;
        otherwise it goes through one, which begins at position 0. The inputs for text are
        `tokens`, `position`, `length`; with an image `features`, `tokens`, `length`.
      cache_length: positions of the KV cache: image, prompt and generated tokens.
      cache_type: how the cache is stored: "float32", "float16" or "int8".
      cache_bytes: memory of the cache of all layers, for one interpreter.
      tokenizer: the tokenizer beside the model.
      image: image preprocessing, or None for a text model.
      format_version: version of this record.
    """

    family: str
    vocabulary_size: int
    prefill_lengths: list[int]
    chunked: bool
    cache_length: int
    cache_type: str
    cache_bytes: int
    tokenizer: TokenizerSpec
    image: ImageSpec | None
    format_version: int = FORMAT_VERSION

    @property
    def image_sequence_length(self) -> int:
        """Positions that the image takes; 0 for a text model."""
        return self.image.sequence_length if self.image else 0

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes, source: str) -> CausalLMMetadata:
        """Reads what `to_json` wrote. `source` names the file in errors.

        Raises:
          ValueError: not JSON, another format version, or a field is missing or unknown.
        """
        try:
            record: dict[str, Any] = json.loads(content)
            version = record["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{source}: expected a JSON record with format_version in the metadata {NAME!r}, "
                f"got {content[:60]!r}: convert the model again"
            ) from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{source}: expected metadata format_version {FORMAT_VERSION}, got {version}: "
                "convert the model again, or update tfmot_ternary"
            )
        try:
            tokenizer = TokenizerSpec(**record.pop("tokenizer"))
            image = record.pop("image")
            return cls(
                tokenizer=tokenizer, image=None if image is None else ImageSpec(**image), **record
            )
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{source}: expected the metadata fields of format_version {FORMAT_VERSION}, got "
                f"other ones ({error}): convert the model again"
            ) from error


def read(path: str | os.PathLike[str]) -> CausalLMMetadata:
    """Reads the record of the `.tflite` file at `path`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no TF Lite file, or one that `convert_causal_lm` did not write.
    """
    file = model_file.ModelFile(path)
    content = file.metadata(NAME)
    if content is None:
        raise ValueError(
            f"{file.path!r}: expected a model written by tfmot_ternary.vlm.convert_causal_lm, got "
            f"one without the metadata {NAME!r}: it is no causal LM, or another tool wrote it"
        )
    return CausalLMMetadata.from_json(content, repr(file.path))
