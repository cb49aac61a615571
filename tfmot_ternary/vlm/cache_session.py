"""Session of files whose signatures carry the KV cache through their inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmot_ternary.vlm.metadata import CausalLMMetadata
from tfmot_ternary.vlm.session import Session


class CacheSession(Session):
    """As `Session`; one prefill signature, which takes the image itself."""

    def prefill(self, ids: Sequence[int], pixels: np.ndarray | None = None) -> np.ndarray:
        with self._only_one():
            self.filled = 0
            empty = np.zeros(self.metadata.cache_shape, np.float32)
            inputs: dict[str, Any] = {
                "tokens": self._padded(ids, self.metadata.prefill_length),
                "length": np.array([len(ids)], np.int32),
                **{f"cache_{i}": empty for i in range(self.metadata.cache_layers)},
            }
            if pixels is not None:
                inputs["image"] = pixels
            logits = self._run(self._interpreter.get_signature_runner("prefill"), inputs)
            self.filled = self.metadata.image_sequence_length + len(ids)
            return logits

    def decode(self, token: int, position: int) -> np.ndarray:
        with self._only_one():
            inputs = {
                "token": np.array([[token]], np.int32),
                "position": np.array([position], np.int32),
                **self._cache,
            }
            logits = self._run(self._decode, inputs)
            self.filled = position + 1
            return logits

    def _run(self, runner: Any, inputs: dict[str, Any]) -> np.ndarray:
        outputs = dict(self._call(runner, **inputs))
        logits = outputs.pop("logits")[0]
        self._cache = outputs
        return logits

    @staticmethod
    def wanted_inputs(metadata: CausalLMMetadata) -> dict[str, dict[str, list[int]]]:
        cache = {f"cache_{i}": list(metadata.cache_shape) for i in range(metadata.cache_layers)}
        wanted = {
            "prefill": {"tokens": [1, metadata.prefill_length], "length": [1], **cache},
            "decode": {"token": [1, 1], "position": [1], **cache},
        }
        if (image := metadata.image) is not None:
            wanted["prefill"]["image"] = [1, image.height, image.width, 3]
        return wanted
