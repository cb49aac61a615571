"""Small Keras 3 and KerasHub models for the tests of keras3, freeze and convert."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np

VOCABULARY = 40
IMAGE_SIZE = 16


def pali_gemma():
    """A PaliGemmaCausalLM of some thousand weights; every width is another number."""
    keras.utils.set_random_seed(7)
    backbone = keras_hub.models.PaliGemmaBackbone(
        vocabulary_size=VOCABULARY,
        image_size=IMAGE_SIZE,
        num_layers=2,
        num_query_heads=3,
        num_key_value_heads=1,
        hidden_dim=24,
        intermediate_dim=80,
        head_dim=10,
        vit_patch_size=8,
        vit_num_heads=2,
        vit_hidden_dim=20,
        vit_num_layers=1,
        vit_intermediate_dim=36,
    )
    return keras_hub.models.PaliGemmaCausalLM(preprocessor=None, backbone=backbone)


def pali_gemma_inputs(batch=2, length=5):
    rng = np.random.default_rng(3)
    return {
        "images": rng.uniform(-1, 1, (batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32),
        "token_ids": rng.integers(0, VOCABULARY, (batch, length)).astype(np.int32),
        "padding_mask": np.ones((batch, length), np.int32),
        "response_mask": np.zeros((batch, length), np.int32),
    }


def mixed_model():
    """A Functional model with one of each layer that is quantized, attention and a shared Dense."""
    keras.utils.set_random_seed(11)
    image = keras.Input((9, 8, 3), name="image")
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu", name="conv")(image)
    x = keras.layers.Conv2D(4, (2, 3), strides=2, use_bias=False, name="stride")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Reshape((-1, 4))(x)
    x = keras.layers.Conv1D(10, 3, padding="causal", activation="relu6", name="causal")(x)
    shared = keras.layers.Dense(10, activation="gelu", name="shared")
    x = keras.layers.Add()([shared(x), shared(shared(x))])
    x = keras.layers.MultiHeadAttention(2, 5, name="attention")(x, x)
    x = keras.layers.EinsumDense("abc,cde->abed", (12, 3, 4), bias_axes="ed", name="einsum")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(image, keras.layers.Dense(1, name="head")(x), name="mixed")


def mixed_inputs(batch=3):
    return np.random.default_rng(5).standard_normal((batch, 9, 8, 3)).astype(np.float32)
