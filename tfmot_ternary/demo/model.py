"""The demo's model: a small PaliGemma with a tokenizer and preprocessor of its own, and where its
preset lies."""

from __future__ import annotations

import io
import pathlib
from typing import TYPE_CHECKING

from tfmot_ternary.demo import questions, scenes

if TYPE_CHECKING:
    import keras_hub

PRESET = pathlib.Path(__file__).parent / "preset"

VOCABULARY_SIZE = 256
# Tokens of prompt, answer and both markers that a user may type; what `questions` makes has at
# most 12.
SEQUENCE_LENGTH = 16
# Widths are multiples of 64: rows of packed weights then fill whole vectors.
BACKBONE = {
    "vocabulary_size": VOCABULARY_SIZE,
    "image_size": scenes.IMAGE_PIXELS,
    "vit_patch_size": 8,
    "vit_hidden_dim": 128,
    "vit_num_heads": 4,
    "vit_num_layers": 3,
    "vit_intermediate_dim": 256,
    "hidden_dim": 128,
    "num_layers": 4,
    "num_query_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    # PaliGemma halves this: each of the two gates has 256 outputs.
    "intermediate_dim": 512,
}


def train_tokenizer() -> bytes:
    """Trains the SentencePiece model on everything `questions` can say; the same bytes each time.

    Returns:
      The serialized SentencePiece model, 256 pieces, with Gemma's special ids (pad 0, eos 1, bos
      2, unk 3).
    """
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(questions.corpus()),
        model_writer=written,
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        normalization_rule_name="identity",
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789?.,!",
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def build(seed: int, **backbone: int) -> keras_hub.models.PaliGemmaCausalLM:
    """Builds the untrained model.

    Args:
      seed: of the initial weights (set for Keras, NumPy and Python as a whole).
      **backbone: changes to `BACKBONE`.
    """
    import keras
    import keras_hub

    keras.utils.set_random_seed(seed)
    preprocessor = keras_hub.models.PaliGemmaCausalLMPreprocessor(
        tokenizer=keras_hub.models.PaliGemmaTokenizer(proto=train_tokenizer()),
        # As PaliGemma's own presets do: bytes 0 to 255 become -1 to 1.
        image_converter=keras_hub.layers.PaliGemmaImageConverter(
            image_size=(scenes.IMAGE_PIXELS, scenes.IMAGE_PIXELS), scale=1 / 127.5, offset=-1
        ),
        sequence_length=SEQUENCE_LENGTH,
    )
    causal_lm = keras_hub.models.PaliGemmaCausalLM(
        preprocessor=preprocessor,
        backbone=keras_hub.models.PaliGemmaBackbone(**{**BACKBONE, **backbone}),
    )
    # Keras starts position embeddings within 0.05 of zero: next to the patches' values of about 1,
    # the model then needs many hundred steps to find out that places differ.
    for variable in causal_lm.weights:
        if "position_embedding" in variable.path:
            variable.assign(keras.random.normal(variable.shape, stddev=0.5, seed=seed))
    return causal_lm


def load_preset(path: str | pathlib.Path = PRESET) -> keras_hub.models.PaliGemmaCausalLM:
    """Loads a trained model.

    Args:
      path: folder written by `save_to_preset`; by default the one in the package.

    Raises:
      FileNotFoundError: no preset there.
    """
    import keras_hub

    path = pathlib.Path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"expected a KerasHub preset (config.json and others) in {path}, found none; "
            "`tfmot-ternary demo --pretrain` makes one"
        )
    return keras_hub.models.PaliGemmaCausalLM.from_preset(str(path))
