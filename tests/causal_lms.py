"""Small causal language models with random weights and a SentencePiece tokenizer, for tests."""

from __future__ import annotations

import functools
import io
import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import keras_hub
import numpy as np
import sentencepiece

IMAGE_SIZE = 32
SEQUENCE_LENGTH = 24
WORDS = "what digit is top left right bottom how many threes sum of the row zero one two".split()
PROMPTS = ("what digit is top left", "how many threes", "sum", "the sum of the bottom row is two")


@functools.cache
def tokenizer_proto(vocab_size: int = 64) -> bytes:
    """Returns a SentencePiece model (BPE, so that words fall into pieces) with Gemma's ids."""
    rng = np.random.default_rng(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(rng.permutation(WORDS)) for _ in range(40)),
        model_writer=model,
        vocab_size=vocab_size,
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


def pali_gemma(
    seed: int = 0, image_converter: dict[str, Any] | None = None, **backbone: Any
) -> keras_hub.models.PaliGemmaCausalLM:
    """Returns a PaliGemma with 2 layers, width 64, 3 query heads and 1 key-value head."""
    keras.utils.set_random_seed(seed)
    options = {"image_size": (IMAGE_SIZE, IMAGE_SIZE), "scale": 1 / 127.5, "offset": -1}
    preprocessor = keras_hub.models.PaliGemmaCausalLMPreprocessor(
        tokenizer=keras_hub.models.PaliGemmaTokenizer(proto=tokenizer_proto()),
        image_converter=keras_hub.layers.PaliGemmaImageConverter(
            **{**options, **(image_converter or {})}
        ),
        sequence_length=SEQUENCE_LENGTH,
    )
    settings = {
        "vocabulary_size": 64,
        "image_size": IMAGE_SIZE,
        "num_layers": 2,
        "num_query_heads": 3,
        "num_key_value_heads": 1,
        "hidden_dim": 64,
        "intermediate_dim": 160,
        "head_dim": 32,
        "vit_patch_size": 8,
        "vit_num_heads": 2,
        "vit_hidden_dim": 64,
        "vit_num_layers": 1,
        "vit_intermediate_dim": 96,
    }
    model = keras_hub.models.PaliGemmaCausalLM(
        preprocessor=preprocessor,
        backbone=keras_hub.models.PaliGemmaBackbone(**{**settings, **backbone}),
    )
    return randomize(model, seed)


def gemma(seed: int = 0) -> keras_hub.models.GemmaCausalLM:
    """Returns a Gemma (text only) with 2 layers and width 64."""
    keras.utils.set_random_seed(seed)
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(
        tokenizer=keras_hub.models.GemmaTokenizer(proto=tokenizer_proto()),
        sequence_length=SEQUENCE_LENGTH,
    )
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=64,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=64,
        intermediate_dim=128,
        head_dim=16,
    )
    model = keras_hub.models.GemmaCausalLM(preprocessor=preprocessor, backbone=backbone)
    return randomize(model, seed)


def randomize(model: Any, seed: int) -> Any:
    """Adds noise to every weight: fresh biases and norms are zero and would hide mistakes."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        if value.dtype.kind == "f":
            weight.assign(value + rng.normal(0, 0.1, value.shape).astype(np.float32))
    model.compile(sampler="greedy", run_eagerly=True)
    return model


def scene(seed: int = 0, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> np.ndarray:
    """Returns a smooth random image, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3))
    return np.kron(coarse, np.ones((4, 4, 1)))[:height, :width].astype(np.uint8)


def keras_answer(model: Any, prompt: str, image: np.ndarray | None) -> str:
    """Returns what KerasHub's own generate() says after the prompt, one prompt at a time.

    In a batch KerasHub recomputes the longer prompts' last tokens with a causal mask, which a
    prefix-LM does not have: only single prompts are a reference.
    """
    inputs: Any = [prompt]
    if image is not None:
        inputs = {"images": image[np.newaxis], "prompts": [prompt]}
    return model.generate(inputs, strip_prompt=True)[0]
