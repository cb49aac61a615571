"""Our files: a KerasHub decoder without weights, frozen, with random packed weights."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import keras_hub

from benchmarks import small_tokenizers
from benchmarks.lm.shapes import POSITIONS, LMShape
from tfmot_ternary import packing
from tfmot_ternary.freezing_keras3 import FrozenModel
from tfmot_ternary.keras3 import chosen_layers
from tfmot_ternary.keras3_storage import FloatStorage, layer_config, storage_configs
from tfmot_ternary.keras3_structure import Structure, float_config, nested_layers
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.scheme import TernaryScheme
from tfmot_ternary.skeleton import WithoutWeights
from tfmot_ternary.vlm import convert_causal_lm
from tfmot_ternary.weight_storage import WeightStorage

_TABLE_FORMAT = "i8"
_SCALE = 0.02
# Room behind the prompt and the context for the steps that are measured.
_ROOM = 128
_PREFILL_LENGTHS = (16, 128, 512)


def write(shape: LMShape, weight_format: str, cache_type: str, path: pathlib.Path) -> None:
    """Writes the decoder with random weights as a `.tflite`, its table and head in 8 bits.

    Args:
      shape: the decoder.
      weight_format: "t2" or "t5", of the matrices of the blocks.
      cache_type: "float32", "float16" or "int8".
      path: the file; it appears when it is whole.
    """
    model = _CAUSAL_LMS[shape.family](shape)
    config = float_config(model)
    layers = _packed_layers(model, weight_format)
    with WithoutWeights():
        FrozenModel.restructure(model, layers)
    FrozenModel.adopt(model, Structure(config, layers))
    cache_length = max(shape.prompt, shape.context) + _ROOM
    convert_causal_lm(
        model,
        path,
        prefill_lengths=[length for length in _PREFILL_LENGTHS if length <= cache_length],
        cache_length=cache_length,
        cache_type=cache_type,
        weights=_random_weights(model, weight_format),
    )


def _packed_layers(model: keras.Model, weight_format: str) -> list[dict[str, Any]]:
    """What `FrozenModel.restructure` takes: the blocks' matrices and the table."""
    scheme = TernaryScheme()
    storage = FloatStorage(model, _TABLE_FORMAT, None)
    nested = list(nested_layers(model))
    chosen = chosen_layers(model, scheme)
    blocks = WeightStorage(weight_format, scheme.group_size)
    configs = [layer_config(i, blocks, "int8", storage.head(nested[i][1])) for i in chosen]
    configs += storage_configs(model, storage, chosen, "int8")
    return sorted(configs, key=lambda config: config["index"])


def _random_weights(
    model: keras.Model, weight_format: str
) -> list[tuple[keras.Variable, np.ndarray]]:
    """A value for each variable; every byte of packed weights is a valid one."""
    rng = np.random.default_rng(0)
    digits = packing.FORMATS[weight_format]
    # All bytes that hold `fields` digits below `levels`.
    counts = np.arange(digits.levels**digits.fields)
    powers = range(digits.fields)
    valid = sum((counts // digits.levels**f % digits.levels) * digits.base**f for f in powers)
    valid_bytes = np.asarray(valid, np.uint8)
    values: dict[int, np.ndarray] = {}
    for _, layer in nested_layers(model):
        if not isinstance(layer, PackedLayer):
            continue
        packed: Any = layer.packed
        size = tuple(packed.shape)
        if layer.weight_format == _TABLE_FORMAT:
            array = np.frombuffer(rng.bytes(size[0] * size[1]), np.uint8).reshape(size)
        else:
            array = valid_bytes[rng.integers(0, len(valid_bytes), size, np.uint8)]
        values[id(packed)] = array
        scales: Any = layer.scales
        values[id(scales)] = np.full(scales.shape, _scale_of(layer.weight_format), np.float32)
    pairs = []
    for variable in model.weights:
        value = values.get(id(variable))
        if value is None:
            near = 1.0 if variable.path.endswith(("gamma", "scale")) else 0.0
            value = rng.normal(near, _SCALE, variable.shape).astype(variable.dtype)
        pairs.append((variable, value))
    return pairs


def _scale_of(weight_format: str) -> float:
    """The same standard deviation of a weight in 8 bits as in one or two."""
    return _SCALE / 64 if weight_format == _TABLE_FORMAT else _SCALE


def _gpt2(shape: LMShape) -> Any:
    vocabulary, merges = small_tokenizers.byte_pair()
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges)
    with WithoutWeights():
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=shape.vocabulary,
            num_layers=shape.blocks,
            num_heads=shape.heads,
            hidden_dim=shape.width,
            intermediate_dim=shape.ffn,
            max_sequence_length=POSITIONS,
        )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=64)
    return keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)


def _gemma(shape: LMShape) -> Any:
    tokenizer = keras_hub.models.GemmaTokenizer(proto=small_tokenizers.sentence_piece())
    with WithoutWeights():
        backbone = keras_hub.models.GemmaBackbone(
            vocabulary_size=shape.vocabulary,
            num_layers=shape.blocks,
            num_query_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            hidden_dim=shape.width,
            # KerasHub counts gate and up together.
            intermediate_dim=2 * shape.ffn,
            head_dim=shape.head_size,
        )
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=64)
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=preprocessor)


_CAUSAL_LMS = {"gpt2": _gpt2, "gemma": _gemma}
