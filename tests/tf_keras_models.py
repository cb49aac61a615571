"""tf_keras models that several tests share, with weights that look trained."""

from __future__ import annotations

import numpy as np
import tf_keras

SEED = 17
layers = tf_keras.layers


def randomize(model: tf_keras.Model) -> tf_keras.Model:
    """Gives every weight a value of its own: zeros and ones would hide mistakes."""
    generator = np.random.default_rng(SEED)
    for weight in model.weights:
        values = generator.standard_normal(weight.shape) * 0.3
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.name else values)
    return model


def cnn() -> tf_keras.Model:
    """Sequential: Conv2D, BatchNormalization, ReLU, MaxPooling2D, Dense."""
    return randomize(
        tf_keras.Sequential(
            [
                layers.Input((8, 8, 1)),
                layers.Conv2D(6, 3, padding="same", name="conv"),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dropout(0.2),
                layers.Dense(10, activation="softmax", name="head"),
            ]
        )
    )


def transformer(mask_zero: bool = True) -> tf_keras.Model:
    """Functional: Embedding, MultiHeadAttention, EinsumDense, Conv1D, two outputs."""
    ids = tf_keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 16, mask_zero=mask_zero, name="embedding")(ids)
    y, scores = layers.MultiHeadAttention(2, 8, name="attention")(
        x, x, return_attention_scores=True, use_causal_mask=True
    )
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.EinsumDense("abc,cd->abd", (7, 12), bias_axes="d", activation="relu", name="mix")(x)
    x = layers.Conv1D(10, 3, padding="same", name="conv")(x)
    x = layers.Concatenate()([x, y])
    x = layers.GlobalAveragePooling1D()(x)
    return randomize(tf_keras.Model(ids, [layers.Dense(3, name="head")(x), scores]))


def cross_attention() -> tf_keras.Model:
    """Functional with two inputs: query, and a key that is not the value."""
    query, memory = tf_keras.Input((5, 8)), tf_keras.Input((6, 8))
    key = layers.Dense(8, name="key")(memory)
    y = layers.MultiHeadAttention(2, 4, value_dim=3, name="attention")(query, memory, key)
    return randomize(tf_keras.Model([query, memory], y))


def shared_and_nested() -> tf_keras.Model:
    """Functional: one Dense used twice, a model inside the model, an LSTM."""
    inner = tf_keras.Sequential(
        [layers.Input((8,)), layers.Dense(8, activation="relu"), layers.Dense(8)], name="inner"
    )
    x = tf_keras.Input((8,))
    shared = layers.Dense(8, name="shared")
    y = shared(inner(shared(x)))
    z = layers.LSTM(4, name="lstm")(layers.Reshape((2, 4))(y))
    return randomize(tf_keras.Model(x, layers.Dense(3, name="head")(layers.Concatenate()([y, z]))))


def inputs_of(model: tf_keras.Model, batch: int = 6) -> list[np.ndarray]:
    """Random inputs; integers below 20 for ids."""
    generator = np.random.default_rng(SEED + 1)
    return [
        generator.integers(0, 20, (batch, *tensor.shape[1:]))
        if tensor.dtype.is_integer
        else generator.standard_normal((batch, *tensor.shape[1:])).astype(np.float32)
        for tensor in model.inputs
    ]
