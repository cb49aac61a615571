"""Batches: scenes and texts as the arrays that PaliGemma trains on."""

from __future__ import annotations

import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfmot_ternary.demo import questions, scenes

if TYPE_CHECKING:
    import keras_hub

# The longest text of `questions` has 12 tokens, both markers counted (a test holds that against
# what `questions` makes). Training on 12 positions rather than the preset's 16 saves an eighth of
# the work.
TEXT_LENGTH = 12


@dataclasses.dataclass(frozen=True)
class Batch:
    """Model inputs and targets of n samples, T text tokens each.

    Attributes:
      inputs: the model's four inputs: images float32 [n, 32, 32, 3] in [-1, 1], token_ids int32
        [n, T], padding_mask and response_mask int32 [n, T].
      labels: int32 [n, T], the next token.
      weights: float32 [n, T], 1 where the next token belongs to the answer (its end marker
        counts), else 0.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    weights: np.ndarray


class TextEncoder:
    """Packs prompts and answers as `PaliGemmaCausalLMPreprocessor` does, from a cache of known
    strings (a test holds the two against each other): a batch costs microseconds rather than
    milliseconds of TensorFlow."""

    def __init__(self, tokenizer: keras_hub.models.PaliGemmaTokenizer, length: int = TEXT_LENGTH):
        import sentencepiece

        pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.proto)
        self._encode = functools.lru_cache(maxsize=None)(lambda text: tuple(pieces.encode(text)))
        self._start, self._end = tokenizer.start_token_id, tokenizer.end_token_id
        self._pad = tokenizer.pad_token_id
        self.length = length

    def __call__(self, images: np.ndarray, texts: Sequence[tuple[str, str]]) -> Batch:
        """Makes a batch.

        Args:
          images: uint8 [n, 32, 32, 3].
          texts: n pairs of prompt and answer.

        Raises:
          ValueError: a text has more tokens than `length` + 1.
        """
        count = len(texts)
        tokens = np.full((count, self.length + 1), self._pad, np.int32)
        response = np.zeros((count, self.length + 1), np.int32)
        for row, (prompt, answer) in enumerate(texts):
            before = (self._start, *self._encode(prompt))
            after = (*self._encode(answer), self._end)
            size = len(before) + len(after)
            if size > self.length + 1:
                raise ValueError(
                    f"expected at most {self.length + 1} tokens, got {size}: {prompt!r} "
                    f"{answer!r}; shorten the text or make the encoder's length larger"
                )
            tokens[row, :size] = before + after
            response[row, len(before) : size] = 1
        return Batch(
            {
                "images": images.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1),
                "token_ids": tokens[:, :-1],
                "padding_mask": (tokens[:, :-1] != self._pad).astype(np.int32),
                "response_mask": response[:, :-1],
            },
            tokens[:, 1:],
            response[:, 1:].astype(np.float32),
        )


def held_out(encoder: TextEncoder, samples: Sequence[questions.Sample]) -> Batch:
    """Makes one batch of all samples."""
    return encoder(
        np.stack([sample.image for sample in samples]),
        [(sample.prompt, sample.answer) for sample in samples],
    )


def training_batch(
    encoder: TextEncoder,
    size: int,
    seed: int,
    step: int,
    caption_share: float,
    caption_weight: float = 1.0,
    shares: Mapping[str, float] = questions.KINDS,
) -> Batch:
    """Makes the training batch of one step: a pure function of its arguments, so that an
    interrupted training goes on with the data that it would have seen.

    Args:
      encoder: packs the texts.
      size: samples.
      seed: of the whole training.
      step: of this batch.
      caption_share: share of captions among the samples.
      caption_weight: weight of each of a caption's eight tokens, where an answer's tokens (mostly
        two) have 1.
      shares: the share of each kind among the questions.
    """
    rng = np.random.default_rng([seed, step])
    made = scenes.render(scenes.digits("train"), size, rng, scenes.AUGMENTED)
    texts = questions.texts(made.cells, caption_share, rng, shares)
    batch = encoder(made.images, [text[:2] for text in texts])
    is_caption = np.array([kind == "caption" for _, _, kind in texts])
    batch.weights[is_caption] *= np.float32(caption_weight)
    return batch


def ahead(make: Callable[[int], Batch], first: int, last: int) -> Iterator[Batch]:
    """Yields `make(step)` for `first` to `last` - 1, computed ahead in a thread of its own."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=2)
    stop = threading.Event()

    def produce() -> None:
        for step in range(first, last):
            try:
                item: Batch | BaseException = make(step)
            except Exception as error:  # handed over: the consumer raises it
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or isinstance(item, BaseException):
                return

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        for _ in range(first, last):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
