"""An interpreter that only remembers: it shows what a session asks of the signatures of a file."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ternary.vlm.metadata import CausalLMMetadata, ImageSpec, TokenizerSpec

VOCABULARY = 64
IMAGE = ImageSpec(8, 8, 4, 1.0, 0.0, "bilinear", False, "stretch", True)


def metadata(image: ImageSpec | None = None, **changes: Any) -> CausalLMMetadata:
    """Returns the metadata of a text model, or of a vision-language model with an image."""
    fields: dict[str, Any] = {
        "family": "pali_gemma" if image else "text",
        "vocabulary_size": VOCABULARY,
        "prefill_lengths": [4, 16],
        "chunked": image is None,
        "cache_length": 40,
        "cache_type": "float32",
        "cache_bytes": 0,
        "tokenizer": TokenizerSpec("sentencepiece", "model.spm", VOCABULARY, 2, [1], 0),
        "image": image,
    }
    return CausalLMMetadata(**{**fields, **changes})


def next_logits(context: Any) -> np.ndarray:
    """The logits behind a context: a function of every token and of every place."""
    rng = np.random.default_rng([int(token) + 1 for token in context])
    logits = rng.normal(0, 3, VOCABULARY).astype(np.float32)
    logits[1] = -50  # no end token by chance
    return logits


class FakeInterpreter:
    """The signatures of a model whose cache holds the tokens themselves.

    Attributes:
      calls: (signature, first position, positions, real tokens) of each call.
      cache: the token at each position; -1 where none was written.
    """

    def __init__(self, metadata: CausalLMMetadata):
        self.metadata = metadata
        self.calls: list[tuple[str, int, int, int]] = []
        self.cache = np.full(metadata.cache_length, -1)
        self.change = lambda logits: logits

    def allocate_tensors(self) -> None:
        pass

    def get_signature_list(self) -> dict[str, Any]:
        names = ["decode", *(f"prefill_{n}" for n in self.metadata.prefill_lengths)]
        return dict.fromkeys([*names, *(["encode_image"] if self.metadata.image else [])])

    def get_signature_runner(self, name: str) -> FakeRunner:
        return FakeRunner(self, name)


class FakeRunner:
    """One signature; strict about names, shapes and types, as the real one is."""

    def __init__(self, interpreter: FakeInterpreter, name: str):
        self.interpreter, self.name = interpreter, name
        self.shapes: dict[str, list[int]] = {"token": [1, 1], "position": [1]}
        image = interpreter.metadata.image
        if name == "encode_image":
            self.shapes = {"image": [1, image.height, image.width, 3]}
        elif name != "decode":
            self.shapes = {"tokens": [1, int(name.removeprefix("prefill_"))], "length": [1]}
            if not image:
                self.shapes["position"] = [1]
            else:
                self.shapes["features"] = [1, image.sequence_length, 6]

    def get_input_details(self) -> dict[str, Any]:
        return {name: {"shape": np.array(shape)} for name, shape in self.shapes.items()}

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        assert {name: list(value.shape) for name, value in inputs.items()} == self.shapes
        wanted = {"image": np.float32, "features": np.float32}
        assert all(v.dtype == wanted.get(n, np.int32) for n, v in inputs.items())
        fake = self.interpreter
        if self.name == "encode_image":
            fake.calls.append((self.name, 0, 0, 0))
            mean = np.float32(inputs["image"].mean())
            return {"features": np.full([1, fake.metadata.image_sequence_length, 6], mean)}
        tokens = inputs["token" if self.name == "decode" else "tokens"][0]
        first = int(inputs.get("position", [0])[0])
        count = int(inputs.get("length", [1])[0])
        fake.calls.append((self.name, first, len(tokens), count))
        rows, end = list(tokens), first + count
        if "features" in inputs:
            features = inputs["features"][0, :, 0].astype(int).tolist()
            rows, end = [*features, *rows], end + len(features)
        rows = rows[: fake.metadata.cache_length - first]  # the operators drop the rest
        fake.cache[first : first + len(rows)] = rows
        seen = fake.cache[:end]
        assert (seen >= 0).all(), "a position is read that was never written"
        return {"logits": fake.change(next_logits(seen))[np.newaxis]}
