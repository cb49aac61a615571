"""Quantization-aware training on Keras 3 and KerasHub models, which tfmot does not take.

A scheme chooses nested layers of a clone of the model; these change to quantized layers in place.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers
from tqdm import tqdm

from tfmot_ternary import importance, initializers, packing
from tfmot_ternary.keras3_layers import SUPPORTED, is_quantized, layout_of, quantize_in_place
from tfmot_ternary.keras3_structure import (
    RestructuredModel,
    Structure,
    clone,
    copy_trainable,
    float_config,
    nested_layers,
    require_tensorflow,
)
from tfmot_ternary.layer_hessian import LayerHessian
from tfmot_ternary.packed_layer import PackedLayer

__all__ = ["QuantizedLayer", "QuantizedModel", "chosen_layers", "quantize", "quantized_layers"]


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """One quantized layer of a model, as `quantized_layers` lists it.

    Attributes:
      path: names of the layer and its parents below the model, joined by "/".
      kernel_shape: shape of the float kernel or table.
      n: outputs (vocabulary for an embedding).
      k: inputs per output (width for an embedding).
      levels: 3 for ternary, 2 for binary.
      group_size: None (one scale per output), "tensor", or inputs per scale.
    """

    path: str
    kernel_shape: tuple[int, ...]
    n: int
    k: int
    levels: int
    group_size: packing.GroupSize


def quantize(model: keras.Model, scheme: Any) -> keras.Model:
    """Returns a trainable quantized clone of a Keras 3 model; `model` stays as it was.

    Args:
      model: a built Sequential or Functional model, KerasHub backbone or task, or any model that
        its config rebuilds. Nested Dense, EinsumDense, Conv1D, Conv2D and Conv3D layers are
        quantized; Embedding and ReversibleEmbedding too if `scheme.embeddings` is true. Other
        layers with weight matrices stay in float, named in one warning.
      scheme: a `TernaryScheme` or `BinaryScheme`: an object with `levels` (3 or 2), `group_size`,
        `initializer`, `skips(path_or_name) -> bool` and, if there, `embeddings`,
        `trainable_scales`, `clip`, `importance`, `preserve_zeros` and `keep_ends`.

    Returns:
      The clone, with the weights of `model` and one more trainable weight `kernel_scale` in each
      quantized layer, initialized from the kernel. Compile it before training; a model that was
      compiled by Keras' own `compile` is compiled alike. `save_weights`, `load_weights` and
      `.keras` files work; loading one needs this module imported, and no custom object scope.

    Raises:
      RuntimeError: Keras does not run on TensorFlow.
      TypeError: not a Keras 3 model.
      ValueError: the model is quantized or frozen already, is not built, cannot be rebuilt from its
        config, has a NaN or an infinity in a kernel, or has no layer to quantize.
    """
    require_tensorflow()
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"expected a Keras 3 model (keras.Model), got {type(model).__module__}."
            f"{type(model).__name__}; for tf_keras models use tfmot's quantize_apply"
        )
    if scheme.levels not in (2, 3):
        raise ValueError(f"expected scheme.levels 3 (ternary) or 2 (binary), got {scheme.levels}")
    if getattr(scheme, "activation_bits", None) is not None:
        raise ValueError(
            f"expected a scheme with activation_bits=None for the Keras 3 model {model.name!r}, "
            f"got {scheme.activation_bits}: 8-bit activations in training are tfmot's, which takes "
            "tf_keras models only; leave activation_bits out (the operators quantize activations "
            "to 8 bits when they run)"
        )
    if not model.built or not model.weights:
        raise ValueError(
            f"expected a built model with weights, got {model.name!r}; call it on data, or give "
            "it an Input as its first layer, before quantizing it"
        )
    packed = [path for path, layer in nested_layers(model) if isinstance(layer, PackedLayer)]
    if packed:
        raise ValueError(
            f"expected a float model, got {model.name!r} whose layer {packed[0]!r} is frozen; "
            "quantize the model that it was made from"
        )
    already = [path for path, layer in nested_layers(model) if is_quantized(layer)]
    if already:
        raise ValueError(
            f"expected a float model, got {model.name!r} whose layer {already[0]!r} is quantized "
            "already; quantize the original model instead"
        )
    chosen = chosen_layers(model, scheme)
    paths = [path for path, _ in nested_layers(model)]
    given = getattr(scheme, "importance", None) or {}
    importance.require_names(given, paths, model.name)
    student = clone(model)
    for target, source in zip(student.weights, model.weights, strict=True):
        target.assign(source)
    copy_trainable(model, student)
    choice = {
        "levels": scheme.levels,
        "group_size": scheme.group_size,
        "clip": getattr(scheme, "clip", None),
        "trainable_scales": getattr(scheme, "trainable_scales", True),
        "preserve_zeros": getattr(scheme, "preserve_zeros", False),
    }
    configs = [{"index": index, **choice} for index in chosen]
    # By the paths of `model`: in the clone a name that Keras made may be another.
    costs = {index: given.get(paths[index]) for index in chosen}
    _quantize_layers(student, configs, initializers.get(scheme.initializer), costs)
    QuantizedModel.adopt(student, Structure(float_config(model), configs))
    # A compile of its own (KerasHub tasks) has run in the constructor already.
    if model.compiled and type(model).compile is keras.Model.compile:
        student.compile_from_config(model.get_compile_config())
    return student


def chosen_layers(model: keras.Model, scheme: Any) -> list[int]:
    """The indices, in `nested_layers`, of the layers of a float model that a scheme quantizes.

    Warns of layers with weight matrices that cannot be quantized.

    Raises:
      ValueError: there is none.
    """
    chosen, unsupported = _choose(model, scheme)
    if getattr(scheme, "keep_ends", False):
        chosen = chosen[1:-1]
    if unsupported:
        listed = "; ".join(f"{path} ({reason})" for path, reason in unsupported)
        warnings.warn(f"left in float: {listed}", stacklevel=3)
    if not chosen:
        raise ValueError(
            f"expected a model with a Dense, EinsumDense or convolution layer to quantize, got "
            f"{model.name!r} with none that the scheme does not skip (or keep: keep_ends)"
        )
    return chosen


def quantized_layers(model: keras.Model) -> list[QuantizedLayer]:
    """Lists the quantized layers of a model made by `quantize`, in the model's order."""
    return [
        QuantizedLayer(
            path,
            layer.kernel_layout.kernel_shape,
            layer.kernel_layout.n,
            layer.kernel_layout.k,
            layer.levels,
            layer.group_size,
        )
        for path, layer in nested_layers(model)
        if is_quantized(layer)
    ]


class QuantizedModel(RestructuredModel):
    """The class of a model that `quantize` returns, next to the class of the model itself."""

    @staticmethod
    def restructure(model: keras.Model, layers: list[dict[str, Any]]) -> None:
        """Quantizes the listed layers; their scales are loaded afterwards with all weights."""
        _quantize_layers(model, layers, initializer=None)


keras.saving.register_keras_serializable("tfmot_ternary")(QuantizedModel)


def _choose(model: keras.Model, scheme: Any) -> tuple[list[int], list[tuple[str, str]]]:
    """Indices (in `nested_layers`) to quantize; (path, reason) of matrices that stay in float."""
    chosen: list[int] = []
    unsupported: list[tuple[str, str]] = []
    for index, (path, layer) in enumerate(nested_layers(model)):
        if scheme.skips(path) or scheme.skips(layer.name):
            continue
        if isinstance(layer, layers.Embedding) and not getattr(scheme, "embeddings", False):
            continue
        own = layer._trainable_variables + layer._non_trainable_variables
        if not isinstance(layer, SUPPORTED) and not any(_is_matrix(v) for v in own):
            continue
        reason = ""
        if getattr(layer, "quantization_mode", None):
            reason = f"Keras' own {layer.quantization_mode} quantization is on"
        elif getattr(layer, "lora_enabled", False):
            reason = "LoRA is enabled: merge it first"
        else:
            try:
                layout_of(layer)
            except (TypeError, ValueError) as error:
                reason = str(error)
        if reason:
            unsupported.append((path, reason))
        else:
            chosen.append(index)
    return chosen, unsupported


def _is_matrix(variable: keras.Variable) -> bool:
    """Whether a variable has at least two axes longer than one: not a bias, norm or position."""
    return sum(dim > 1 for dim in variable.shape) >= 2


def _quantize_layers(
    model: keras.Model,
    configs: list[dict[str, Any]],
    initializer: initializers.ScaleInitializer | None,
    costs: Mapping[int, Any] | None = None,
) -> None:
    """Changes the layers named by `configs`; scales start at one where `initializer` is None.

    `costs` are the importances of the layers by index, for the initializer.
    """
    nested = list(nested_layers(model))
    # K-means takes no time; error compensation may take minutes.
    long = any(isinstance(cost, LayerHessian) for cost in (costs or {}).values())
    for config in tqdm(configs, desc="compensate errors", unit="layer", disable=not long):
        path, layer = nested[config["index"]]
        quantize_in_place(
            layer,
            path,
            initializer,
            importance=(costs or {}).get(config["index"]),
            **{k: config[k] for k in config if k != "index"},
        )
