"""Session: the calls of a causal LM's `.tflite`, and the context that its operators hold."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tfmot_ternary import runtime
from tfmot_ternary.vlm import chunks
from tfmot_ternary.vlm import metadata as metadata_lib
from tfmot_ternary.vlm.metadata import CausalLMMetadata


class Session:
    """One interpreter with one context: the KV cache is memory of the operators, not seen here.

    Args:
      path: the file.
      metadata: what it says about itself.
      num_threads, backend: see `runtime.make_interpreter`.

    Attributes:
      filled: positions of the context that hold something: the next token goes there.

    Raises:
      ValueError: the interpreter refuses the file, or signatures and metadata disagree.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: CausalLMMetadata,
        num_threads: int | None = None,
        backend: str | None = None,
    ):
        self.path = os.fspath(path)
        self.metadata = metadata
        self.filled = 0
        self._interpreter = runtime.make_interpreter(
            self.path, num_threads=num_threads, backend=backend
        )
        try:
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.path!r}: expected a model that the interpreter can prepare, got: {error}"
            ) from error
        self._check_lengths()
        self._check_signatures()
        # Prepared once: a step of decoding pays for nothing but its call.
        self._decode = self._interpreter.get_signature_runner(metadata_lib.DECODE)
        self._prefills: dict[int, Any] = {}
        self._token = np.zeros((1, 1), np.int32)
        self._position = np.zeros(1, np.int32)
        self._busy = threading.Lock()
        self._encoded: tuple[np.ndarray, np.ndarray] | None = None  # the last image, its features

    def prefill(self, ids: Sequence[int], pixels: np.ndarray | None = None) -> np.ndarray:
        """Starts the context anew with a prompt.

        Args:
          ids: the prompt's tokens, as many as `longest_prompt` at most.
          pixels: the image as the model takes it, float32 [1, height, width, 3], or None for a
            model without images. The features of the last image are kept: another prompt about
            the same image does not compute them again.

        Returns:
          The logits of the token after the prompt, float32 [vocabulary].
        """
        with self._only_one():
            self.filled = 0
            if self.metadata.chunked:
                logits = self._chunked(ids)
            else:
                logits = self._at_once(ids, pixels)
            self.filled = self.metadata.image_sequence_length + len(ids)
            return logits

    def decode(self, token: int, position: int) -> np.ndarray:
        """Puts a token at a position of the context, behind what is there or over it.

        What stood behind that position is no longer seen.

        Args:
          token: its id.
          position: 0 to `filled`, below the metadata's `cache_length`.

        Returns:
          The logits of the token after it, float32 [vocabulary].
        """
        with self._only_one():
            self._token[0, 0] = token
            self._position[0] = position
            self.filled = position
            logits = self._call(self._decode, token=self._token, position=self._position)["logits"]
            self.filled = position + 1
            return logits[0]

    @property
    def longest_prompt(self) -> int:
        """How many tokens a prompt may have."""
        text = self.metadata.cache_length - self.metadata.image_sequence_length
        return text if self.metadata.chunked else min(text, self.metadata.prefill_lengths[-1])

    def _chunked(self, ids: Sequence[int]) -> np.ndarray:
        for chunk in chunks.plan(
            len(ids), self.metadata.prefill_lengths, self.metadata.cache_length
        ):
            outputs = self._call(
                self._prefill_runner(chunk.length),
                tokens=self._padded(ids[chunk.begin : chunk.begin + chunk.count], chunk.length),
                position=np.array([chunk.begin], np.int32),
                length=np.array([chunk.count], np.int32),
            )
        return outputs["logits"][0]

    def _at_once(self, ids: Sequence[int], pixels: np.ndarray | None) -> np.ndarray:
        length = next(n for n in self.metadata.prefill_lengths if n >= len(ids))
        inputs = {
            "tokens": self._padded(ids, length),
            "length": np.array([len(ids)], np.int32),
        }
        if pixels is not None:
            inputs["features"] = self._features(pixels)
        else:
            inputs["position"] = np.zeros(1, np.int32)
        return self._call(self._prefill_runner(length), **inputs)["logits"][0]

    def _features(self, pixels: np.ndarray) -> np.ndarray:
        if self._encoded is None or not np.array_equal(self._encoded[0], pixels):
            runner = self._interpreter.get_signature_runner(metadata_lib.ENCODE_IMAGE)
            self._encoded = pixels, self._call(runner, image=pixels)["features"]
        return self._encoded[1]

    def _padded(self, ids: Sequence[int], length: int) -> np.ndarray:
        tokens = np.full((1, length), self.metadata.tokenizer.pad_id, np.int32)
        tokens[0, : len(ids)] = ids
        return tokens

    def _prefill_runner(self, length: int) -> Any:
        if length not in self._prefills:
            self._prefills[length] = self._interpreter.get_signature_runner(
                metadata_lib.prefill_name(length)
            )
        return self._prefills[length]

    def _call(self, runner: Any, **inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        try:
            return runner(**inputs)
        except RuntimeError as error:  # the interpreter prepares a signature when it first runs
            raise ValueError(
                f"{self.path!r}: expected a model that the interpreter can run, got: {error}"
            ) from error

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Two threads in one interpreter would end the process."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                f"{self.path!r}: expected one thread at a time, got a second one while the model "
                "runs: use one Generator per thread (they share the file's memory)"
            )
        try:
            yield
        finally:
            self._busy.release()

    def _check_lengths(self) -> None:
        """Raises ValueError for lengths that no conversion writes (an edited file)."""
        lengths = self.metadata.prefill_lengths
        room = self.metadata.cache_length - self.metadata.image_sequence_length
        if not lengths or lengths != sorted(lengths) or not 1 <= lengths[0] <= room:
            raise ValueError(
                f"{self.path!r}: expected ascending prefill_lengths, the first of which fits in "
                f"the context beside the image's {self.metadata.image_sequence_length} positions, "
                f"got {lengths} and cache_length {self.metadata.cache_length}: convert the model "
                "again"
            )

    def _check_signatures(self) -> None:
        """Raises ValueError when metadata and signatures disagree (another tool's file)."""
        found = self._interpreter.get_signature_list()
        wanted = self.wanted_inputs(self.metadata)
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise ValueError(
                f"{self.path!r}: expected the signatures {sorted(wanted)}, got {sorted(found)}: "
                "metadata and model do not belong together; convert the model again"
            )
        for name, inputs in wanted.items():
            details = self._interpreter.get_signature_runner(name).get_input_details()
            got = {key: [int(d) for d in value["shape"]] for key, value in details.items()}
            # The width of the features is the model's own affair.
            if "features" in got and "features" in inputs:
                inputs["features"] = [*inputs["features"][:2], got["features"][-1]]
            if got != inputs:
                raise ValueError(
                    f"{self.path!r}: expected signature {name!r} with inputs {inputs}, got {got}: "
                    "metadata and model do not belong together; convert the model again"
                )

    @staticmethod
    def wanted_inputs(metadata: CausalLMMetadata) -> dict[str, dict[str, list[int]]]:
        """Returns signature -> input -> shape, as the metadata say them.

        The last number of the features' shape is 0: it stands nowhere in the metadata.
        """
        wanted: dict[str, dict[str, list[int]]] = {
            metadata_lib.DECODE: {"token": [1, 1], "position": [1]}
        }
        for length in metadata.prefill_lengths:
            inputs = {"tokens": [1, length], "length": [1]}
            if metadata.image is None:
                inputs["position"] = [1]
            if metadata.image is not None:
                inputs["features"] = [1, metadata.image.sequence_length, 0]
            wanted[metadata_lib.prefill_name(length)] = inputs
        if (image := metadata.image) is not None:
            wanted[metadata_lib.ENCODE_IMAGE] = {"image": [1, image.height, image.width, 3]}
        return wanted
