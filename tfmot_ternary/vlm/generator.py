"""Generator: text from a converted causal LM, on the `.tflite` alone.

Needs NumPy, an interpreter, the tokenizer file and the ops library: neither TensorFlow nor Keras.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfmot_ternary.vlm import metadata as metadata_lib
from tfmot_ternary.vlm import stopping
from tfmot_ternary.vlm.image import preprocess
from tfmot_ternary.vlm.sampling import GREEDY, Sampler, Sampling
from tfmot_ternary.vlm.session import Session
from tfmot_ternary.vlm.tokenizer import Tokenizer

Image = Any  # A path, a Pillow image or an array; see image.read_image.


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """How likely the model finds a given answer.

    Attributes:
      token_ids: the answer's ids, the end id last, int32 [tokens].
      log_probs: natural logarithm of each id's probability, float64 [tokens].
      greedy: whether each id is the one that greedy decoding takes there, bool [tokens].
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    greedy: np.ndarray


class Generator:
    """Generates text, token by token, with the signatures of a `.tflite`.

    A Generator holds one conversation: one interpreter with one KV cache. A new prompt takes it
    over; an iterator over an older text raises an error when it is asked for more. For several at
    once make several Generators, one for each thread: the file is mapped, so that they share the
    memory of the weights.

    Args:
      path: a file written by `convert_causal_lm`; its tokenizer lies beside it.
      num_threads: threads of the interpreter, or None for its default.
      backend: "litert" or "tf", or None: see `runtime.make_interpreter`.

    Attributes:
      metadata: what the file says about itself (`CausalLMMetadata`).
      tokenizer: the `Tokenizer` beside the file.
      finish_reason: why the last text ended: "end" (the model's end token), "stop" (a stop
        string), "length" (`max_new_tokens`), "context" (the context is full); None before.

    Raises:
      FileNotFoundError: the model or its tokenizer is missing.
      ValueError: not a causal LM of ours, or a damaged file, or a tokenizer of another model.
      ImportError: a missing package (the message names it).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_threads: int | None = None,
        backend: str | None = None,
    ):
        self.path = os.fspath(path)
        self.metadata = metadata_lib.read(self.path)
        folder = os.path.dirname(os.path.abspath(self.path))
        self.tokenizer = Tokenizer(
            os.path.join(folder, self.metadata.tokenizer.file),
            self.metadata.tokenizer,
            self.metadata.vocabulary_size,
        )
        self._session = Session(self.path, self.metadata, num_threads, backend)
        self.finish_reason: str | None = None
        self._turn = 0  # which prompt the context belongs to

    def generate(
        self,
        prompt: str,
        image: Image = None,
        max_new_tokens: int | None = None,
        stream: bool = False,
        *,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
    ) -> str | Iterator[str]:
        """Generates the text that follows `prompt`.

        Args:
          prompt: the question or instruction; it must fit in the context, for a vision-language
            model also in the longest of `metadata.prefill_lengths`.
          image: path, Pillow image or array [height, width, 3] with values 0..255 (resized as the
            model's own preprocessor does); required by a vision-language model, refused by a text
            model.
          max_new_tokens: stop after so many tokens. None: until the end token or until the
            context (`metadata.cache_length`) is full.
          stream: return an iterator over pieces of text instead of the whole text.
          sampling: how tokens are chosen; default: always the most likely one.
          stop: a string or several; the text ends before the first of them.

        Returns:
          The generated text without the prompt, or an iterator whose pieces join to it.

        Raises:
          ValueError: empty or too long prompt; an image missing, unwanted or of a wrong shape;
            more new tokens than fit in the context; logits that are not finite.
          FileNotFoundError: no image at the path.
          RuntimeError: from an iterator, when another prompt has taken its place.
        """
        strings = stopping.stop_strings(stop)
        ids = self.generate_ids(
            self.tokenizer.encode_prompt(prompt), image, max_new_tokens, sampling=sampling
        )
        pieces = self.tokenizer.decode_stream(ids)
        if strings:
            pieces = stopping.until(pieces, strings, self._stopped)
        elif not stream:
            return self.tokenizer.decode(list(ids))
        return pieces if stream else "".join(pieces)

    def generate_ids(
        self,
        prompt_ids: Sequence[int],
        image: Image = None,
        max_new_tokens: int | None = None,
        *,
        sampling: Sampling = GREEDY,
    ) -> Iterator[int]:
        """As `generate`, on token ids. Input is checked now; tokens come when iterated.

        The end token is not yielded.
        """
        room = self._room(prompt_ids)
        if max_new_tokens is not None and not 1 <= max_new_tokens <= room:
            raise ValueError(
                f"expected max_new_tokens from 1 to {room} for a prompt of {len(prompt_ids)} "
                f"tokens (context {self.metadata.cache_length}, image "
                f"{self.metadata.image_sequence_length}), got {max_new_tokens}: ask for fewer, or "
                "convert with a larger cache_length"
            )
        reason = "context" if max_new_tokens is None else "length"
        pixels = self._pixels(image)
        return self._tokens(prompt_ids, pixels, max_new_tokens or room, Sampler(sampling), reason)

    def room(self, prompt: str) -> int:
        """Returns how many tokens can be generated after `prompt`.

        Raises:
          ValueError: empty or too long prompt.
        """
        return self._room(self.tokenizer.encode_prompt(prompt))

    def score(self, prompt: str, image: Image, answer: str) -> AnswerScore:
        """Scores `answer` and the end token after `prompt`, token by token through `decode`.

        Args:
          prompt, image: as for `generate`.
          answer: the text whose probability is asked.

        Raises:
          ValueError: as `generate`, or an answer that does not fit in the context.
        """
        prompt_ids = self.tokenizer.encode_prompt(prompt)
        answer_ids = [*self.tokenizer.encode(answer), self.metadata.tokenizer.eos_ids[0]]
        room = self._room(prompt_ids)
        if len(answer_ids) > room:
            raise ValueError(
                f"expected an answer of at most {room - 1} tokens after a prompt of "
                f"{len(prompt_ids)}, got {len(answer_ids) - 1}: convert with a larger cache_length"
            )
        logits = self.prefill(prompt_ids, image)
        log_probs, greedy = [], []
        for i, token in enumerate(answer_ids):
            shifted = logits.astype(np.float64) - logits.max()
            log_probs.append(float(shifted[token] - np.log(np.exp(shifted).sum())))
            greedy.append(int(logits.argmax()) == token)
            if i + 1 < len(answer_ids):
                logits = self.decode(token, self._session.filled)
        return AnswerScore(
            np.asarray(answer_ids, np.int32), np.asarray(log_probs), np.asarray(greedy)
        )

    def prefill(self, prompt_ids: Sequence[int], image: Image = None) -> np.ndarray:
        """Starts the context with a prompt. Returns the logits of the token after it [vocabulary].

        The features of the last image are kept: the next prompt about it does not compute them.

        Raises:
          ValueError: as `generate`.
        """
        self._room(prompt_ids)
        pixels = self._pixels(image)
        self._turn += 1
        return self._session.prefill(prompt_ids, pixels)

    def decode(self, token: int, position: int) -> np.ndarray:
        """Puts a token into the context. Returns the logits of the token after it [vocabulary].

        Args:
          token: its id.
          position: its place in the context, image positions included: behind all that is there,
            or over a token that is; what stood behind it is forgotten.

        Raises:
          ValueError: no such token; the context is full, or not filled so far.
        """
        if not 0 <= token < self.metadata.vocabulary_size:
            raise ValueError(
                f"expected a token id from 0 to {self.metadata.vocabulary_size - 1}, got {token}"
            )
        if position >= self.metadata.cache_length:
            raise ValueError(
                f"expected a position below cache_length {self.metadata.cache_length}, got "
                f"{position}: the context is full; convert with a larger cache_length"
            )
        if not 0 <= position <= self._session.filled:
            raise ValueError(
                f"expected a position from 0 to {self._session.filled}, where the context ends, "
                f"got {position}: call prefill first"
            )
        self._turn += 1
        return self._session.decode(token, position)

    def _tokens(
        self,
        prompt_ids: Sequence[int],
        pixels: np.ndarray | None,
        count: int,
        sampler: Sampler,
        reason: str,
    ) -> Iterator[int]:
        """Yields at most `count` tokens; `reason` is why it ends there."""
        self._turn += 1
        turn = self._turn
        self.finish_reason = None
        logits = self._session.prefill(prompt_ids, pixels)
        for i in range(count):
            token = sampler(logits)
            if token in self.metadata.tokenizer.eos_ids:
                reason = "end"
                break
            yield token
            if turn != self._turn:
                raise RuntimeError(
                    "expected no other prompt while this text is generated, but a newer one has "
                    "taken its place: read a text to its end first, or use a Generator for each"
                )
            if i + 1 < count:
                logits = self._session.decode(token, self._session.filled)
        self.finish_reason = reason

    def _stopped(self) -> None:
        self.finish_reason = "stop"

    def _room(self, prompt_ids: Sequence[int]) -> int:
        """Returns how many tokens fit behind the prompt, which it checks.

        The last token needs no place in the cache: nothing follows it.
        """
        length, longest = len(prompt_ids), self._session.longest_prompt
        if not 1 <= length <= longest:
            raise ValueError(
                f"expected a prompt of 1 to {longest} tokens, got {length}: shorten it, or convert "
                f"with a larger {'cache_length' if self.metadata.chunked else 'prefill length'}"
            )
        vocabulary = self.metadata.vocabulary_size
        if min(prompt_ids) < 0 or max(prompt_ids) >= vocabulary:
            raise ValueError(
                f"expected token ids from 0 to {vocabulary - 1}, got {min(prompt_ids)} to "
                f"{max(prompt_ids)}"
            )
        return self.metadata.cache_length - self.metadata.image_sequence_length - length + 1

    def _pixels(self, image: Image) -> np.ndarray | None:
        """Returns the image as the model takes it; None for a text model."""
        if self.metadata.image is not None:
            if image is None:
                raise ValueError(
                    f"expected an image: {self.path!r} is a vision-language model; pass `image` "
                    "(--image)"
                )
            return preprocess(image, self.metadata.image)
        if image is not None:
            raise ValueError(f"expected no image: {self.path!r} is a text model, got one")
        return None
