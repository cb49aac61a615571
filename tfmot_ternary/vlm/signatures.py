"""Signatures: the functions of a causal LM's `.tflite`, ready to be traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tfmot_ternary.vlm import metadata as metadata_lib
from tfmot_ternary.vlm.attention_substitution import Substitution
from tfmot_ternary.vlm.family import PaliGemmaFamily, TextFamily
from tfmot_ternary.vlm.metadata import CausalLMMetadata

# Signature name -> (function of keyword arguments, its inputs).
Functions = dict[str, tuple[Callable[..., Mapping[str, Any]], Mapping[str, Any]]]


def signatures(
    family: TextFamily, attention: Substitution, metadata: CausalLMMetadata
) -> Functions:
    """Returns the functions of the file's signatures, with their inputs."""
    import tensorflow as tf

    def spec(name: str, shape: list[int], dtype: Any = tf.int32) -> Any:
        return tf.TensorSpec(shape, dtype, name)

    def decode(token: Any, position: Any) -> dict[str, Any]:
        return {"logits": family.decode(attention, token, position)}

    def prefill(tokens: Any, length: Any, position: Any = None) -> dict[str, Any]:
        return {"logits": family.prefill(attention, tokens, position, length)}

    functions: Functions = {}
    for count in metadata.prefill_lengths:
        inputs: dict[str, Any] = {
            "tokens": spec("tokens", [1, count]),
            "length": spec("length", [1]),
        }
        if metadata.image is None:
            inputs["position"] = spec("position", [1])
        functions[metadata_lib.prefill_name(count)] = (prefill, inputs)
    if isinstance(family, PaliGemmaFamily) and metadata.image is not None:
        vision = family

        def encode_image(image: Any) -> dict[str, Any]:
            return {"features": vision.encode_image(image)}

        def prefill_image(features: Any, tokens: Any, length: Any) -> dict[str, Any]:
            return {"logits": vision.prefill_image(attention, features, tokens, length)}

        size = [1, metadata.image.height, metadata.image.width, 3]
        for name, (_, text_inputs) in functions.items():
            features = spec("features", family.feature_shape(), tf.float32)
            functions[name] = (prefill_image, {"features": features, **text_inputs})
        functions[metadata_lib.ENCODE_IMAGE] = (
            encode_image,
            {"image": spec("image", size, tf.float32)},
        )
    functions[metadata_lib.DECODE] = (
        decode,
        {"token": spec("token", [1, 1]), "position": spec("position", [1])},
    )
    return functions
