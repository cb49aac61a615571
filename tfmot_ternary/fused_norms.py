"""Fused norms: RMS and layer norms of Keras and KerasHub as operators of `fused_ops`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfmot_ternary import fused_ops
from tfmot_ternary.layer_replacement import Arguments, Call, Replacement, find_class, is_float32


@dataclasses.dataclass(frozen=True)
class RmsSpec:
    """How an RMS norm names its parts: out = x / rms * (offset + scale)."""

    scale: str | None = "scale"  # None: no scale
    epsilon: str = "epsilon"
    offset: float = 0.0


# Class, by the end of its module's name (several classes are called RMSNormalization) -> its parts.
RMS_NORMS = {
    ("normalization.rms_normalization", "RMSNormalization"): RmsSpec(),
    ("edrec.edrec_layers", "EdRecRMSNormalization"): RmsSpec(offset=1.0),
    ("gemma.rms_normalization", "RMSNormalization"): RmsSpec(offset=1.0),
    ("gemma3.gemma3_layers", "RMSNormalization"): RmsSpec(offset=1.0),
    ("gemma3n.rms_normalization", "Gemma3nRMSNorm"): RmsSpec(epsilon="eps"),
    ("gemma4.gemma4_layers", "Gemma4FrozenNorm"): RmsSpec(),
    ("gemma4.gemma4_layers", "Gemma4VNorm"): RmsSpec(scale=None),
    ("gemma4.gemma4_layers", "RMSNormalization"): RmsSpec(),
    ("gpt_oss.gpt_oss_layer_norm", "GptOssLayerNormalization"): RmsSpec(),
    ("llama.llama_layernorm", "LlamaLayerNorm"): RmsSpec(),
    ("mistral.mistral_layer_norm", "MistralLayerNormalization"): RmsSpec(),
    ("mixtral.mixtral_layer_norm", "MixtralLayerNormalization"): RmsSpec(),
    ("phi3.phi3_layernorm", "Phi3LayerNorm"): RmsSpec(),
    ("qwen.qwen_layernorm", "QwenLayerNorm"): RmsSpec(),
    ("qwen3.qwen3_layernorm", "Qwen3LayerNorm"): RmsSpec(),
    ("qwen3_5.qwen3_5_layers", "Qwen3_5LayerNorm"): RmsSpec(offset=1.0),
    ("qwen3_moe.qwen3_moe_layernorm", "Qwen3MoeLayerNorm"): RmsSpec(),
    ("qwen_moe.qwen_moe_layernorm", "QwenMoeLayerNorm"): RmsSpec(),
    ("roformer_v2.roformer_v2_attention", "RoformerNorm"): RmsSpec(),
    ("t5.t5_layer_norm", "T5LayerNorm"): RmsSpec(scale="weight"),
}
LAYER_NORM = ("normalization.layer_normalization", "LayerNormalization")


def replacement(layer: Any) -> Replacement | None:
    """Returns how `fused_ops` compute a norm over the last axis in float32; None: another layer."""
    kind = type(layer)
    rms = find_class(kind, RMS_NORMS)
    if rms is not None and _rms_is_fusable(layer, RMS_NORMS[rms]):
        call = _rms_norm_call(layer, RMS_NORMS[rms])
        return Replacement("call", call, kind, _probe(layer), layer.weights)
    if find_class(kind, [LAYER_NORM]) is not None and _layer_norm_is_fusable(layer):
        key = (kind, layer.gamma is None, layer.beta is None)
        return Replacement("call", _layer_norm_call(layer), key, _probe(layer), layer.weights)
    return None


def _rms_is_fusable(layer: Any, spec: RmsSpec) -> bool:
    if spec.scale is None:
        return True
    scale: Any = getattr(layer, spec.scale, None)
    one_axis = not hasattr(layer, "axis") or layer.axis in (-1, [-1])
    return one_axis and getattr(scale, "dtype", None) == "float32" and len(scale.shape) == 1


def _layer_norm_is_fusable(layer: Any) -> bool:
    weights = [weight for weight in (layer.gamma, layer.beta) if weight is not None]
    return (
        bool(weights)
        and not layer.rms_scaling
        and layer.axis in (-1, [-1])
        and all(weight.dtype == "float32" and len(weight.shape) == 1 for weight in weights)
    )


def _rms_norm_call(layer: Any, spec: RmsSpec) -> Call:
    import tensorflow as tf

    original = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        if not _is_one_tensor(args, kwargs):
            return original(*args, **kwargs)
        if spec.scale is None:
            scale = tf.ones([args[0].shape[-1]])
        else:
            scale = tf.convert_to_tensor(getattr(layer, spec.scale))
        if spec.offset:
            scale = spec.offset + scale
        return fused_ops.rms_norm(args[0], scale, epsilon=getattr(layer, spec.epsilon))

    return call


def _layer_norm_call(layer: Any) -> Call:
    import tensorflow as tf

    original = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        if not _is_one_tensor(args, kwargs):
            return original(*args, **kwargs)
        width = args[0].shape[-1]
        gamma = tf.ones([width]) if layer.gamma is None else tf.convert_to_tensor(layer.gamma)
        beta = tf.zeros([width]) if layer.beta is None else tf.convert_to_tensor(layer.beta)
        return fused_ops.layer_norm(args[0], gamma, beta, epsilon=layer.epsilon)

    return call


def _is_one_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) == 1 and not kwargs and is_float32(args[0]) and args[0].shape[-1] is not None


def _probe(layer: Any) -> Call:
    widths = [weight.shape[0] for weight in layer.weights] or [24]

    def probe(rng: np.random.Generator) -> list[Arguments]:
        # Small numbers show the epsilon.
        x = rng.normal(0.1, 1, (1, 3, widths[0])) * np.array([[[1e-3], [1], [30]]])
        return [((x.astype(np.float32),), {})]

    return probe
