"""One small model with random weights per KerasHub family, each with its own kind of tokenizer."""

from __future__ import annotations

import functools
import io
import json
from typing import Any

import causal_lms
import keras
import keras_hub
import numpy as np
import sentencepiece
import tokenizers

SEQUENCE_LENGTH = causal_lms.SEQUENCE_LENGTH
VOCABULARY = 300
# Byte-pair vocabularies are trained on this, with some of everything that splits words.
TEXT = [
    " ".join(np.random.default_rng(seed).permutation(causal_lms.WORDS))
    + f" {seed}'s x{seed * 37}!\n"
    for seed in range(20)
]


@functools.cache
def byte_pair(*special_tokens: str) -> tuple[dict[str, int], list[str]]:
    """Returns (vocabulary, merges) of `VOCABULARY` byte-pair tokens, the special ones last."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special_tokens),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in special_tokens:
        vocabulary[token] = len(vocabulary)
    return vocabulary, [
        pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]
    ]


@functools.cache
def sentence_pieces(*user_symbols: str, llama: bool = False) -> bytes:
    """Returns a SentencePiece model with Gemma's special pieces, or with Llama's."""
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    pieces = {"unk_piece": "<unk>", "bos_piece": "<s>", "eos_piece": "</s>"}
    if not llama:
        ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
        pieces = {"pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>"}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        user_defined_symbols=list(user_symbols),
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **ids,
        **pieces,
    )
    return model.getvalue()


def build(name: str, **changes: Any) -> Any:
    """Returns the small model of family `name`, e.g. "Llama3". `changes`: of the backbone."""
    keras.utils.set_random_seed(0)
    models = keras_hub.models
    tokenizer = _tokenizer(name)
    settings = {**_SHAPE, **_BACKBONES[name], **changes}
    settings["vocabulary_size"] = max(tokenizer.vocabulary_size(), VOCABULARY)
    model = getattr(models, f"{name}CausalLM")(
        preprocessor=getattr(models, f"{name}CausalLMPreprocessor")(
            tokenizer=tokenizer, sequence_length=SEQUENCE_LENGTH
        ),
        backbone=getattr(models, f"{name}Backbone")(
            **{key: value for key, value in settings.items() if value is not None}
        ),
    )
    return causal_lms.randomize(model, 0)


_SHAPE = {
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
}
_HEADS = {"num_query_heads": None, "num_key_value_heads": None, "num_heads": 4}
# What differs. Windows are shorter than the context, and head sizes differ from width / heads,
# wherever a family has such a setting.
_BACKBONES: dict[str, dict[str, Any]] = {
    "Gemma": {
        "head_dim": 16,
        "query_head_dim_normalize": False,
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "attention_logit_soft_cap": 2.0,
        "final_logit_soft_cap": 20.0,
        "use_sliding_window_attention": True,
        "sliding_window_size": 6,
    },
    "Gemma3": {
        "head_dim": 16,
        "image_size": 32,
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "use_sliding_window_attention": True,
        "sliding_window_size": 6,
    },
    "Llama": {},
    "Llama3": {
        "num_key_value_heads": 1,
        "rope_frequency_adjustment_factor": 8.0,
        "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0,
        "rope_pretraining_sequence_length": 16,
    },
    "Qwen": {"use_sliding_window_attention": True, "sliding_window_size": 6},
    "Qwen3": {"head_dim": 16, "sliding_window_size": 6},
    "Phi3": {},
    "Mistral": {"sliding_window": 6},
    "GPT2": {**_HEADS, "max_sequence_length": 40},
    "SmolLM3": {
        "num_query_heads": None,
        "num_attention_heads": 4,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_layer_enabled_list": [True, False],
        "layer_types": ["full_attention", "full_attention"],
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    },
    "GPTNeoX": {**_HEADS, "rotary_percentage": 0.5},
}
_BYTE_PAIR = {
    "Llama3": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    "Qwen": ("<|endoftext|>",),
    "Qwen3": ("<|im_end|>", "<|endoftext|>"),
    "GPT2": ("<|endoftext|>",),
    "SmolLM3": ("<|end_of_text|>", "<|begin_of_text|>", "<think>", "</think>"),
    "GPTNeoX": ("<|endoftext|>",),
}
FAMILIES = sorted(_BACKBONES)


def _tokenizer(name: str) -> Any:
    kind = getattr(keras_hub.models, f"{name}Tokenizer")
    if name in _BYTE_PAIR:
        vocabulary, merges = byte_pair(*_BYTE_PAIR[name])
        return kind(vocabulary=vocabulary, merges=merges)
    if name == "Gemma3":
        return kind(sentence_pieces("<end_of_turn>"), has_vision_tokens=False)
    if name == "Gemma":
        return kind(sentence_pieces())
    return kind(sentence_pieces("<|endoftext|>", llama=True))
