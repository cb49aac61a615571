"""The layout transform of `activation_bits=8`: ternary or binary kernels in tfmot's 8-bit scheme.

tfmot's default 8-bit layout transform decides where activations are rounded (after Conv, BatchNorm
and ReLU, not between them). Its wrappers round inside a layer; here most rounding is a layer of its
own behind it, so that freezing folds BatchNorm and ReLU as in a model without it.
"""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.keras.compat import keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_layer

from tfmot_ternary import layout_transform
from tfmot_ternary.activation_quantizer import ActivationQuantizer
from tfmot_ternary.eight_bit_chains import NO_OP, eight_bit_chain, kernel_chain
from tfmot_ternary.eight_bit_inputs import rounded_layers
from tfmot_ternary.layer_chains import consumers, with_chains
from tfmot_ternary.layer_kernels import only_if_chosen
from tfmot_ternary.quantize_config import KernelQuantizeConfig
from tfmot_ternary.savable_wrapper import SavableQuantizeWrapper

__all__ = ["EightBitLayoutTransform"]

# Of no meaning by themselves to tfmot's 8-bit registry, but parts of its patterns.
_PARTS_OF_PATTERNS = (
    keras.layers.BatchNormalization,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


class EightBitLayoutTransform(tfmot.quantization.keras.QuantizeLayoutTransform):
    """Makes the kernels of a scheme's registry ternary or binary, and all activations 8 bits."""

    def __init__(self, registry: Any, skips: Any) -> None:
        """Makes the transform.

        Args:
          registry: the scheme's QuantizeRegistry.
          skips: callable, layer name -> whether the user wants it left as it is.
        """
        self._registry = registry
        self._skips = skips
        self._default = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the model with all its layers wrapped, and an empty map: tfmot wraps no more.

        Args:
          model: the tf_keras model without annotations, with its weights.
          layer_quantize_map: {layer name: {"quantize_config": config or None}} of annotated layers.

        Raises:
          ValueError: as `LayoutTransform.apply`, for a layer that neither this scheme nor tfmot's
            8-bit registry knows; and for a model that does not compute in float32.
        """
        _require_float32(model)
        self._registry.require_importance(model)
        kernels, foreign, candidates = self._select(model, layer_quantize_map)
        following = consumers(model)
        for layer in model._input_layers:
            if following.get(layer.name, set()) & candidates.keys() and _has_float_output(layer):
                candidates[layer.name] = {}
        names = {layer.name for layer in model.layers}
        transform = tfmot.quantization.keras.default_8bit.Default8BitQuantizeLayoutTransform()
        model, chosen = transform.apply(model, candidates)
        # A separable convolution was taken apart: its new layers are the scheme's, too.
        for layer in model.layers:
            if layer.name in chosen.keys() - names and self._registry.supports(layer):
                kernels[layer.name] = self._registry.get_quantize_config(layer)
        model = with_chains(model, self._chains(model, kernels, foreign, chosen))
        for layer in model.layers:
            setattr(layer, layout_transform.LEFT_IN_FLOAT, True)
        return model, {}

    def _chains(
        self, model: Any, kernels: dict[str, Any], foreign: dict[str, Any], chosen: dict[str, Any]
    ) -> dict[str, list[Any]]:
        """{layer name: layers in its place}; see `_select`, and `chosen` from tfmot's transform."""
        following = consumers(model)
        joins = {n.name for n in model.layers if _is_join(n) and n.name in chosen}
        chains: dict[str, list[Any]] = {}
        rounded = set()
        for layer in model.layers:
            name = layer.name
            if name not in chosen and not isinstance(layer, quantize_layer.QuantizeLayer):
                continue
            config = chosen.get(name, {}).get("quantize_config")
            joined = bool(following.get(name)) and following[name] <= joins
            if isinstance(layer, quantize_layer.QuantizeLayer):
                chains[name] = [] if joined else [ActivationQuantizer("all_values", name=name)]
            elif name in foreign:
                # tfmot's transform puts "no quantization" in place of some users' configs.
                chains[name] = [SavableQuantizeWrapper(layer, foreign[name])]
                rounded.add(name)
            elif name in kernels:
                rounded_later = joined or isinstance(config, NO_OP)
                chains[name] = kernel_chain(layer, kernels[name], rounded_later)
            else:
                chains[name] = eight_bit_chain(layer, config, joined)
            if chains[name] and isinstance(chains[name][-1], ActivationQuantizer):
                rounded.add(name)
        rounded = rounded_layers(model, rounded)
        for layer in model.layers:
            name = layer.name
            if name in joins:
                # Integers are joined only where all parts have the range of the whole.
                parts = {n for n, taken_by in following.items() if name in taken_by}
                if parts & (rounded | _of_fixed_range(model)):
                    chains[name] = [layer]
            elif name not in chosen and name not in rounded and _has_float_output(layer):
                if following.get(name, set()) & (chosen.keys() - kernels.keys() - joins):
                    # It stays float; what tfmot's scheme does with its output starts from 8 bits.
                    chains[name] = [layer, ActivationQuantizer(name=f"quant_{name}")]
        return chains

    def _select(
        self, model: Any, layer_quantize_map: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What becomes of the annotated layers.

        Returns:
          (kernels: {name: KernelQuantizeConfig}, foreign: {name: another QuantizeConfig},
          candidates: the map for tfmot's transform, with both and with those of 8 bits).
        """
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        opaque = (keras.layers.Lambda, keras.Model)
        chosen = any(
            layer.name not in layer_quantize_map and not isinstance(layer, opaque)
            for layer in layers
        )
        kernels: dict[str, Any] = {}
        foreign: dict[str, Any] = {}
        candidates: dict[str, Any] = {}
        for layer in layers:
            if layer.name not in layer_quantize_map:
                continue
            layout_transform.require_float(layer)
            config = layer_quantize_map[layer.name].get("quantize_config")
            if config is None and self._skips(layer.name):
                continue
            part = isinstance(layer, _PARTS_OF_PATTERNS)
            if isinstance(config, KernelQuantizeConfig):
                kernels[layer.name] = config
            elif config is not None:
                foreign[layer.name] = config
            elif self._registry.supports(layer, chosen) and not part:
                kernels[layer.name] = self._registry.get_quantize_config(layer)
            elif not (part or self._default.supports(layer)):
                if layout_transform.needs_no_warning(layer):
                    continue
                if only_if_chosen(layer):
                    layout_transform.tell_about_depthwise([layer])
                    continue
                if chosen:
                    raise ValueError(
                        f"expected a layer that can be quantized, got {layer.name!r} "
                        f"({type(layer).__name__}); do not annotate it, or annotate it with a "
                        "QuantizeConfig of your own"
                    )
                layout_transform.warn_left_in_float(layer)
                continue
            # A kernel's config must not keep tfmot from its patterns; a separable convolution with
            # one is not to be taken apart.
            keep = layer.name in foreign or (layer.name in kernels and part)
            candidates[layer.name] = {"quantize_config": config if keep else None}
        if not kernels and not foreign:
            raise ValueError(
                f"expected at least one layer of model {model.name!r} to quantize, got none; see "
                "the scheme's `skip` and `embeddings`"
            )
        return kernels, foreign, candidates


def _require_float32(model: Any) -> None:
    policies = {layer.name: layer.compute_dtype for layer in model.layers if layer.weights}
    # tfmot's layers for the inputs are made with the global policy.
    policies["(global policy)"] = keras.mixed_precision.global_policy().compute_dtype
    for name, dtype in policies.items():
        if dtype != "float32":
            raise ValueError(
                f"expected a model that computes in float32 for activation_bits=8, got {name!r} "
                f"of {model.name!r} with {dtype}: tfmot's 8-bit quantizers take float32 only; "
                "leave activation_bits out, or quantize a float32 copy of the model"
            )


def _is_join(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Concatenate)


def _of_fixed_range(model: Any) -> set[str]:
    """Names of layers whose integers TF Lite ranges itself, and of nested models, which may be."""
    kinds = (keras.Model, keras.layers.Activation, keras.layers.Softmax)
    return {layer.name for layer in model.layers if isinstance(layer, kinds)}


def _has_float_output(layer: Any) -> bool:
    dtype = getattr(getattr(layer, "output", None), "dtype", None)  # None for several outputs
    return dtype is not None and dtype.is_floating
