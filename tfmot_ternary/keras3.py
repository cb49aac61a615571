"""Quantization-aware training on Keras 3 and KerasHub models, which tfmot does not take.

Each nested layer of the clone that the scheme names changes its class to a subclass whose `kernel`
(or `embeddings`) is the quantized value of the trained one: codes times scales, with TFMOT's
straight-through gradient. The layer's own call, and any code that reads `layer.kernel`, sees the
quantized weights; nothing is patched globally.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import keras
from keras import layers

from tfmot_ternary import initializers, packing, quantizers
from tfmot_ternary.keras3_structure import (
    RestructuredModel,
    Structure,
    clone,
    copy_trainable,
    float_config,
    nested_layers,
    require_tensorflow,
)
from tfmot_ternary.kernel_layout import KernelLayout

__all__ = ["QuantizedLayer", "QuantizedModel", "quantize", "quantized_layers"]

# Layers whose weight matrix is one product with the input, or a table; subclasses count, for their
# call sees the quantized kernel whatever it does with it.
SUPPORTED = (
    layers.Dense,
    layers.EinsumDense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Embedding,
)


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
        `trainable_scales` and `clip`.

    Returns:
      The clone, with the weights of `model` and one more trainable weight `kernel_scale` in each
      quantized layer, initialized from the kernel. Compile it before training; a model that was
      compiled by Keras' own `compile` is compiled alike. `save_weights`, `load_weights` and
      `.keras` files work; loading one needs this module imported, and no custom object scope.

    Raises:
      RuntimeError: Keras does not run on TensorFlow.
      TypeError: not a Keras 3 model.
      ValueError: the model is quantized already, is not built, cannot be rebuilt from its config,
        has a NaN or an infinity in a kernel, or has no layer to quantize.
    """
    require_tensorflow()
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"expected a Keras 3 model (keras.Model), got {type(model).__module__}."
            f"{type(model).__name__}; for tf_keras models use tfmot's quantize_apply"
        )
    if scheme.levels not in (2, 3):
        raise ValueError(f"expected scheme.levels 3 (ternary) or 2 (binary), got {scheme.levels}")
    if not model.built or not model.weights:
        raise ValueError(
            f"expected a built model with weights, got {model.name!r}; call it on data, or give "
            "it an Input as its first layer, before quantizing it"
        )
    already = [path for path, layer in nested_layers(model) if is_quantized(layer)]
    if already:
        raise ValueError(
            f"expected a float model, got {model.name!r} whose layer {already[0]!r} is quantized "
            "already; quantize the original model instead"
        )
    chosen, unsupported = _choose(model, scheme)
    if unsupported:
        listed = "; ".join(f"{path} ({reason})" for path, reason in unsupported)
        warnings.warn(f"left in float: {listed}", stacklevel=2)
    if not chosen:
        raise ValueError(
            f"expected a model with a Dense, EinsumDense or convolution layer to quantize, got "
            f"{model.name!r} with none that the scheme does not skip"
        )
    student = clone(model)
    for target, source in zip(student.weights, model.weights, strict=True):
        target.assign(source)
    copy_trainable(model, student)
    choice = {
        "levels": scheme.levels,
        "group_size": scheme.group_size,
        "clip": getattr(scheme, "clip", None),
        "trainable_scales": getattr(scheme, "trainable_scales", True),
    }
    configs = [{"index": index, **choice} for index in chosen]
    _quantize_layers(student, configs, initializers.get(scheme.initializer))
    QuantizedModel.adopt(student, Structure(float_config(model), configs))
    # A compile of its own (KerasHub tasks) has run in the constructor already.
    if model.compiled and type(model).compile is keras.Model.compile:
        student.compile_from_config(model.get_compile_config())
    return student


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


def is_quantized(layer: Any) -> bool:
    """Whether `quantize` changed this layer."""
    return isinstance(layer, QuantizedWeights)


class QuantizedModel(RestructuredModel):
    """The class of a model that `quantize` returns, next to the class of the model itself."""

    @staticmethod
    def restructure(model: keras.Model, layers: list[dict[str, Any]]) -> None:
        """Quantizes the listed layers; their scales are loaded afterwards with all weights."""
        _quantize_layers(model, layers, initializer=None)


keras.saving.register_keras_serializable("tfmot_ternary")(QuantizedModel)


class QuantizedWeights:
    """Mixed into the class of a layer: its weight matrix is read as codes times scales.

    Attributes:
      kernel_layout: how the kernel becomes W[n, k].
      levels: 3 or 2.
      group_size: None, "tensor" or inputs per scale.
      clip: None, or the bound on |w| above which no gradient reaches a weight.
      kernel_scale: trainable float32 variable of shape `packing.scale_shape(n, k, group_size)`.
    """

    kernel_layout: KernelLayout
    levels: int
    group_size: packing.GroupSize
    clip: float | None
    kernel_scale: keras.Variable
    changed_from: type
    _reads_float = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Not possible: the change of a layer is part of its model's config, not of its own."""
        raise ValueError(
            f"expected a whole quantized model, got the layer {config.get('name')!r} alone; clone "
            "the float model and quantize that, or save and load the quantized model"
        )

    @property
    def float_weights(self) -> keras.Variable:
        """The trained variable behind the quantized weights."""
        raise NotImplementedError

    def quantized_weights(self) -> Any:
        """The quantized value of `float_weights`, in the layer's compute dtype."""
        if self._reads_float:
            return self.float_weights
        values = quantizers.quantize_kernel(
            self.float_weights.value,
            self.kernel_scale.value,
            self.kernel_layout,
            self.levels,
            self.group_size,
            self.clip,
        )
        return keras.ops.cast(values, self.compute_dtype)  # type: ignore[attr-defined]

    def save_own_variables(self, store: Any) -> None:
        """Saves the layer's float variables under its own keys, and `kernel_scale`."""
        self._reads_float = True  # the base class may save what it reads as `self.kernel`
        try:
            super().save_own_variables(store)  # type: ignore[misc]
        finally:
            self._reads_float = False
        store["kernel_scale"] = self.kernel_scale

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved."""
        if "kernel_scale" not in store:
            raise ValueError(
                f"expected weights of a quantized layer with a kernel_scale for {self.path!r}, got "  # type: ignore[attr-defined]
                f"{sorted(store.keys())}; load weights of the float model before quantizing it"
            )
        super().load_own_variables(store)  # type: ignore[misc]
        self.kernel_scale.assign(store["kernel_scale"])

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Keras' own integer quantization passes over this layer (it warns and goes on)."""
        raise NotImplementedError(f"{self.path!r} is quantized by tfmot_ternary already")  # type: ignore[attr-defined]


class QuantizedKernel(QuantizedWeights):
    """The `kernel` of Dense, EinsumDense and convolutions, quantized."""

    @property
    def float_weights(self) -> keras.Variable:
        return self._kernel  # type: ignore[attr-defined]

    @property
    def kernel(self) -> Any:
        return self.quantized_weights()


class QuantizedEmbeddings(QuantizedWeights):
    """The `embeddings` of Embedding and ReversibleEmbedding, quantized."""

    @property
    def float_weights(self) -> keras.Variable:
        return self._embeddings  # type: ignore[attr-defined]

    @property
    def embeddings(self) -> Any:
        return self.quantized_weights()


@functools.cache
def _quantized_class(base: type) -> type:
    mixin = QuantizedEmbeddings if issubclass(base, layers.Embedding) else QuantizedKernel
    members = {"__module__": __name__, "changed_from": base}
    return type(f"Quantized{base.__name__}", (mixin, base), members)


def layout_of(layer: keras.Layer) -> KernelLayout:
    """The layout of a supported layer's kernel.

    Raises:
      ValueError: the layer is not built, or its einsum is not one matrix product.
      TypeError: the layer's class is not supported.
    """
    if not isinstance(layer, SUPPORTED):
        raise TypeError(f"no quantized form of {type(layer).__name__}")
    if not layer.built:
        raise ValueError("it is not built")
    if isinstance(layer, layers.Embedding):
        return KernelLayout.embedding(layer._embeddings.shape)
    shape = layer._kernel.shape
    if isinstance(layer, layers.EinsumDense):
        return KernelLayout.einsum(layer.equation, shape, layer.input_spec.ndim)
    if isinstance(layer, layers.Dense):
        return KernelLayout.dense(shape)
    return KernelLayout.conv(shape)


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
) -> None:
    """Changes the layers named by `configs`; scales start at one where `initializer` is None."""
    nested = list(nested_layers(model))
    for config in configs:
        path, layer = nested[config["index"]]
        _quantize_layer(layer, path, initializer, **{k: config[k] for k in config if k != "index"})


def _quantize_layer(
    layer: keras.Layer,
    path: str,
    initializer: initializers.ScaleInitializer | None,
    levels: int,
    group_size: packing.GroupSize,
    clip: float | None,
    trainable_scales: bool,
) -> None:
    layout = layout_of(layer)
    shape = packing.scale_shape(layout.n, layout.k, group_size)
    base: Any = type(layer)
    layer.__class__ = _quantized_class(base)
    # Codes come from the float32 values: rounding them to the compute dtype first would move some
    # across the threshold, and freezing would give other codes than training saw.
    layer.float_weights._autocast = False
    scales: Any = "ones"
    if initializer is not None:
        matrix = layout.to_matrix(keras.ops.convert_to_numpy(layer.float_weights))
        values = initializers.initial_scales(matrix, levels, group_size, initializer, name=path)
        scales = keras.initializers.Constant(values)
    layer.kernel_layout = layout
    layer.levels = levels
    layer.group_size = group_size
    layer.clip = clip
    layer._tracker.unlock()
    layer.kernel_scale = layer.add_weight(
        name="kernel_scale",
        shape=shape,
        dtype="float32",
        initializer=scales,
        constraint=keras.constraints.NonNeg(),
        trainable=trainable_scales and layer.float_weights.trainable,
        autocast=False,
    )
    layer._tracker.lock()
