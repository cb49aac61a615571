"""Presets of full size with random weights: they show size, memory and speed, never quality.

Weights are bfloat16 on the disk. A preset is written layer by layer: the model is a skeleton, and
Keras asks for each variable's value as it writes it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import keras_hub

from benchmarks import small_tokenizers
from tfmot_ternary.skeleton import WithoutWeights

DTYPE = "bfloat16"
# As trained matrices of this width have it; scales follow the weights, so nothing depends on it.
STANDARD_DEVIATION = 0.02
SEQUENCE_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model of full size.

    Attributes:
      title: for people.
      backbone: makes the backbone, in bfloat16.
      causal_lm: makes the task of a backbone, with its preprocessor.
    """

    title: str
    backbone: Callable[[], Any]
    causal_lm: Callable[[Any], Any]

    def write(self, folder: pathlib.Path) -> None:
        """Writes the preset into `folder`, which appears when all is there."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        keras.utils.set_random_seed(0)
        with WithoutWeights():
            backbone = self.backbone()
        for seed, variable in enumerate(backbone.weights):
            if len(variable.shape) >= 2:
                variable._initializer = keras.initializers.RandomNormal(
                    stddev=STANDARD_DEVIATION, seed=seed
                )
        self.causal_lm(backbone).save_to_preset(str(part))
        part.rename(folder)


def moondream_backbone() -> Any:
    """The text model of moondream2 in KerasHub's closest form: a GPT-NeoX with a tied table."""
    return keras_hub.models.GPTNeoXBackbone(
        vocabulary_size=51200,
        num_layers=24,
        num_heads=32,
        hidden_dim=2048,
        intermediate_dim=8192,
        max_sequence_length=2048,
        dtype=DTYPE,
    )


def moondream_task(backbone: Any) -> Any:
    vocabulary, merges = small_tokenizers.byte_pair()
    return keras_hub.models.GPTNeoXCausalLM(
        backbone=backbone,
        preprocessor=keras_hub.models.GPTNeoXCausalLMPreprocessor(
            keras_hub.models.GPTNeoXTokenizer(vocabulary=vocabulary, merges=merges),
            sequence_length=SEQUENCE_LENGTH,
        ),
    )


def pali_gemma_backbone() -> Any:
    """PaliGemma 3B, 224 x 224."""
    return keras_hub.models.PaliGemmaBackbone(
        vocabulary_size=257216,
        image_size=224,
        num_layers=18,
        num_query_heads=8,
        num_key_value_heads=1,
        hidden_dim=2048,
        intermediate_dim=32768,
        head_dim=256,
        vit_patch_size=14,
        vit_num_heads=16,
        vit_hidden_dim=1152,
        vit_num_layers=27,
        vit_intermediate_dim=4304,
        dtype=DTYPE,
    )


def pali_gemma_task(backbone: Any) -> Any:
    return keras_hub.models.PaliGemmaCausalLM(
        backbone=backbone,
        preprocessor=keras_hub.models.PaliGemmaCausalLMPreprocessor(
            tokenizer=keras_hub.models.PaliGemmaTokenizer(proto=small_tokenizers.sentence_piece()),
            image_converter=keras_hub.layers.PaliGemmaImageConverter(
                image_size=(224, 224), scale=1 / 127.5, offset=-1
            ),
            sequence_length=SEQUENCE_LENGTH,
        ),
    )


PRESETS = {
    "moondream": Preset("moondream2's text model", moondream_backbone, moondream_task),
    "pali_gemma": Preset("PaliGemma 3B 224", pali_gemma_backbone, pali_gemma_task),
}
