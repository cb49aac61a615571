"""Generator: text from a converted causal LM, on the `.tflite` alone.

Needs NumPy, an interpreter, the tokenizer file and the ops library: neither TensorFlow nor Keras.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfmot_ternary import runtime
from tfmot_ternary.vlm import metadata as metadata_lib
from tfmot_ternary.vlm.image import preprocess
from tfmot_ternary.vlm.tokenizer import Tokenizer

Cache = list[np.ndarray]  # One array per layer, of the metadata's `cache_shape`.
Image = Any  # A path (str or os.PathLike) or an array [height, width, 3]; see image.read_image.


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
    """Generates text, token by token, with the `prefill` and `decode` signatures of a `.tflite`.

    One Generator serves one thread at a time; several Generators may run in several threads.

    Args:
      path: a file written by `convert_causal_lm`; its tokenizer lies beside it.
      num_threads: threads of the interpreter, or None for its default.
      backend: "litert" or "tf", or None: see `runtime.make_interpreter`.

    Attributes:
      metadata: what the file says about itself (`CausalLMMetadata`).
      tokenizer: the `Tokenizer` beside the file.

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
        self._interpreter = runtime.make_interpreter(
            self.path, num_threads=num_threads, backend=backend
        )
        try:
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.path!r}: expected a model that the interpreter can prepare, got: {error}"
            ) from error
        found = self._interpreter.get_signature_list()
        missing = {"prefill", "decode"} - set(found)
        if missing:
            raise ValueError(
                f"{self.path!r}: expected the signatures 'prefill' and 'decode', got "
                f"{sorted(found)}: convert the model again"
            )
        self._prefill_runner = self._interpreter.get_signature_runner("prefill")
        self._decode_runner = self._interpreter.get_signature_runner("decode")
        self._check_signatures()
        self._empty_cache = np.zeros(self.metadata.cache_shape, np.float32)

    def generate(
        self,
        prompt: str,
        image: Image = None,
        max_new_tokens: int | None = None,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Greedily generates the text that follows `prompt`.

        Args:
          prompt: the question or instruction; at most `metadata.prefill_length` tokens.
          image: path or array [height, width, 3] with values 0..255 (resized as the model's own
            preprocessor does); required by a vision-language model, refused by a text model.
          max_new_tokens: stop after so many tokens. None: until the end token or until the
            context (`metadata.cache_length`) is full.
          stream: return an iterator over pieces of text instead of the whole text.

        Returns:
          The generated text without the prompt, or an iterator whose pieces join to it.

        Raises:
          ValueError: empty or too long prompt; an image missing, unwanted or of a wrong shape;
            more new tokens than fit in the context.
          FileNotFoundError: no image at the path.
        """
        ids = self.generate_ids(self.tokenizer.encode_prompt(prompt), image, max_new_tokens)
        if stream:
            return self.tokenizer.decode_stream(ids)
        return self.tokenizer.decode(list(ids))

    def generate_ids(
        self, prompt_ids: Sequence[int], image: Image = None, max_new_tokens: int | None = None
    ) -> Iterator[int]:
        """As `generate`, on token ids. Input is checked now; tokens come when iterated.

        The end token is not yielded.
        """
        room = self._room(prompt_ids)
        if max_new_tokens is None:
            max_new_tokens = room
        if not 1 <= max_new_tokens <= room:
            raise ValueError(
                f"expected max_new_tokens from 1 to {room} for a prompt of {len(prompt_ids)} "
                f"tokens (context {self.metadata.cache_length}, image "
                f"{self.metadata.image_sequence_length}), got {max_new_tokens}: ask for fewer, or "
                "convert with a larger cache_length"
            )
        inputs = self._prefill_inputs(prompt_ids, image)
        return self._greedy(inputs, len(prompt_ids), max_new_tokens)

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
        logits, cache = self.prefill(prompt_ids, image)
        log_probs, greedy = [], []
        position = self.metadata.image_sequence_length + len(prompt_ids)
        for i, token in enumerate(answer_ids):
            shifted = logits.astype(np.float64) - logits.max()
            log_probs.append(float(shifted[token] - np.log(np.exp(shifted).sum())))
            greedy.append(int(logits.argmax()) == token)
            if i + 1 < len(answer_ids):
                logits, cache = self.decode(token, position + i, cache)
        return AnswerScore(
            np.asarray(answer_ids, np.int32), np.asarray(log_probs), np.asarray(greedy)
        )

    def prefill(self, prompt_ids: Sequence[int], image: Image = None) -> tuple[np.ndarray, Cache]:
        """Runs the prompt. Returns (logits of the token after it [vocabulary], KV cache)."""
        self._room(prompt_ids)
        return self._run(self._prefill_runner, self._prefill_inputs(prompt_ids, image))

    def decode(self, token: int, position: int, cache: Cache) -> tuple[np.ndarray, Cache]:
        """Runs one token. Returns (logits of the token after it [vocabulary], new KV cache).

        Args:
          token: its id.
          position: its place in the context, image positions included.
          cache: the KV cache that `prefill` or `decode` returned last.

        Raises:
          ValueError: the context is full.
        """
        if not 0 <= position < self.metadata.cache_length:
            raise ValueError(
                f"expected a position below cache_length {self.metadata.cache_length}, got "
                f"{position}: the context is full; convert with a larger cache_length"
            )
        return self._run(
            self._decode_runner,
            {
                "token": np.array([[token]], np.int32),
                "position": np.array([position], np.int32),
                **self._named(cache),
            },
        )

    def _greedy(self, inputs: dict[str, np.ndarray], length: int, count: int) -> Iterator[int]:
        logits, cache = self._run(self._prefill_runner, inputs)
        position = self.metadata.image_sequence_length + length
        for i in range(count):
            token = int(logits.argmax())
            if token in self.metadata.tokenizer.eos_ids:
                return
            yield token
            if i + 1 < count:
                logits, cache = self.decode(token, position + i, cache)

    def _room(self, prompt_ids: Sequence[int]) -> int:
        """Returns how many tokens fit behind the prompt, which it checks.

        The last token needs no place in the cache: nothing follows it.
        """
        length = len(prompt_ids)
        if not 1 <= length <= self.metadata.prefill_length:
            raise ValueError(
                f"expected a prompt of 1 to {self.metadata.prefill_length} tokens, got {length}: "
                "shorten it, or convert with a larger prefill_length"
            )
        vocabulary = self.metadata.vocabulary_size
        if min(prompt_ids) < 0 or max(prompt_ids) >= vocabulary:
            raise ValueError(
                f"expected token ids from 0 to {vocabulary - 1}, got {min(prompt_ids)} to "
                f"{max(prompt_ids)}"
            )
        return self.metadata.cache_length - self.metadata.image_sequence_length - length + 1

    def _prefill_inputs(self, prompt_ids: Sequence[int], image: Image) -> dict[str, np.ndarray]:
        pad_id = self.metadata.tokenizer.pad_id
        tokens = np.full((1, self.metadata.prefill_length), pad_id, np.int32)
        tokens[0, : len(prompt_ids)] = prompt_ids
        inputs = {
            "tokens": tokens,
            "length": np.array([len(prompt_ids)], np.int32),
            **self._named([self._empty_cache] * self.metadata.cache_layers),
        }
        if self.metadata.image is not None:
            if image is None:
                raise ValueError(
                    f"expected an image: {self.path!r} is a vision-language model; pass `image` "
                    "(--image)"
                )
            inputs["image"] = preprocess(image, self.metadata.image)
        elif image is not None:
            raise ValueError(f"expected no image: {self.path!r} is a text model, got one")
        return inputs

    def _run(self, runner: Any, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, Cache]:
        try:
            outputs = runner(**inputs)
        except RuntimeError as error:  # the interpreter prepares a signature when it first runs
            raise ValueError(
                f"{self.path!r}: expected a model that the interpreter can run, got: {error}"
            ) from error
        cache = [outputs[f"cache_{i}"] for i in range(self.metadata.cache_layers)]
        return outputs["logits"][0], cache

    @staticmethod
    def _named(cache: Cache) -> dict[str, np.ndarray]:
        return {f"cache_{i}": layer for i, layer in enumerate(cache)}

    def _check_signatures(self) -> None:
        """Raises ValueError when metadata and signatures disagree (an edited file)."""
        shape = list(self.metadata.cache_shape)
        cache = {f"cache_{i}": shape for i in range(self.metadata.cache_layers)}
        wanted = {
            "prefill": {"tokens": [1, self.metadata.prefill_length], "length": [1], **cache},
            "decode": {"token": [1, 1], "position": [1], **cache},
        }
        if (image := self.metadata.image) is not None:
            wanted["prefill"]["image"] = [1, image.height, image.width, 3]
        for name, runner in (("prefill", self._prefill_runner), ("decode", self._decode_runner)):
            details = runner.get_input_details()
            got = {key: [int(d) for d in value["shape"]] for key, value in details.items()}
            if got != wanted[name]:
                raise ValueError(
                    f"{self.path!r}: expected signature {name!r} with inputs {wanted[name]}, got "
                    f"{got}: metadata and model do not belong together; convert the model again"
                )
