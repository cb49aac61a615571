"""The kernels of tf_keras layers: which weights are matrices, and how each becomes W[n, k].

Everything else (quantizing, packing, recognising) asks this table, so that a new kind of layer is
one line here and one packed form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.kernel_layout import KernelLayout

__all__ = [
    "kernel_attribute",
    "kernel_attributes",
    "kernel_layout",
    "kernel_layouts",
    "kernel_names",
    "kernel_variable",
    "only_if_chosen",
    "quantizes",
    "set_kernel",
    "with_kernels",
]

_RECURRENT = {"cell.kernel": "dense", "cell.recurrent_kernel": "dense"}
# Class -> attribute of each kernel -> the KernelLayout that it has.
_KINDS: dict[type, dict[str, str]] = {
    keras.layers.Dense: {"kernel": "dense"},
    keras.layers.EinsumDense: {"kernel": "einsum"},
    keras.layers.Conv1D: {"kernel": "conv"},
    keras.layers.Conv2D: {"kernel": "conv"},
    keras.layers.Conv1DTranspose: {"kernel": "conv_transpose"},
    keras.layers.Conv2DTranspose: {"kernel": "conv_transpose"},
    # The depthwise part of these has few weights and stays float.
    keras.layers.SeparableConv1D: {"pointwise_kernel": "conv"},
    keras.layers.SeparableConv2D: {"pointwise_kernel": "conv"},
    keras.layers.DepthwiseConv1D: {"depthwise_kernel": "depthwise"},
    keras.layers.DepthwiseConv2D: {"depthwise_kernel": "depthwise"},
    keras.layers.Embedding: {"embeddings": "embedding"},
    keras.layers.SimpleRNN: _RECURRENT,
    keras.layers.GRU: _RECURRENT,
    keras.layers.LSTM: _RECURRENT,
}
_DIRECTIONS = ("forward_layer", "backward_layer")


def _kind(cls: type) -> dict[str, str]:
    """The entry of a class in _KINDS, or of the class from which it has its build and call.

    Other subclasses are not taken for their base: they may use the kernel in another way, as those
    of recurrent layers may, which compute in their cells.
    """
    for base in cls.__mro__:
        if base in _KINDS and (base is cls or _KINDS[base] is not _RECURRENT):
            return _KINDS[base]
        if {"build", "call"} & vars(base).keys():
            break
    return {}


def _attributes(layer: Any) -> dict[str, str]:
    """{attribute: name of its layout}; empty for a layer without kernels."""
    if type(layer) is not keras.layers.Bidirectional:
        return _kind(type(layer))
    parts = {name: _kind(type(getattr(layer, name))) for name in _DIRECTIONS}
    if not all(part is _RECURRENT for part in parts.values()):
        return {}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def quantizes(layer: Any) -> bool:
    """Whether the layer has kernels that a KernelQuantizeConfig can quantize."""
    return bool(_attributes(layer))


def only_if_chosen(layer: Any) -> bool:
    """Whether a scheme quantizes the layer only where the user asks for this very layer.

    Embedding tables (see the schemes' `embeddings`) are sensitive, and a depthwise kernel has few
    weights and only kh * kw inputs per output.
    """
    return set(_attributes(layer).values()) & {"depthwise", "embedding"} != set()


def kernel_attributes(layer: Any) -> tuple[str, ...]:
    """Where the layer keeps its kernels, for instance ("kernel",) or ("cell.kernel", ...).

    Raises:
      ValueError: if the layer is none of those that have kernels.
    """
    attributes = tuple(_attributes(layer))
    if not attributes:
        known = ", ".join(cls.__name__ for cls in _KINDS)
        raise ValueError(
            f"expected layer {layer.name!r} to be one of {known}, got {type(layer).__name__}; "
            "leave it in float, or annotate it with a QuantizeConfig of your own"
        )
    return attributes


def kernel_names(layer: Any) -> tuple[str, ...]:
    """A short name for each of `kernel_attributes`: its last part, distinct within the layer."""
    names = []
    for attribute in kernel_attributes(layer):
        *owners, last = attribute.split(".")
        names.append("_".join([*(o.removesuffix("_layer") for o in owners if o != "cell"), last]))
    return tuple(names)


def kernel_layouts(layer: Any) -> dict[str, KernelLayout]:
    """{attribute: how that kernel becomes W[n, k]} of a built layer, in a fixed order.

    Raises:
      ValueError: for an unbuilt layer, one without kernels, or an einsum with a batch axis in its
        kernel; the layer is named.
    """
    kernel_attributes(layer)
    if not layer.built:
        raise ValueError(f"expected layer {layer.name!r} to be built, got one without weights")
    return {
        attribute: _layout(layer, kind, tuple(kernel_variable(layer, attribute).shape))
        for attribute, kind in _attributes(layer).items()
    }


def kernel_attribute(layer: Any) -> str:
    """The attribute of a layer that has one kernel.

    Raises:
      ValueError: if the layer has none or several (`kernel_layouts` lists them).
    """
    attributes = kernel_attributes(layer)
    if len(attributes) != 1:
        raise ValueError(
            f"expected layer {layer.name!r} to have one kernel, got {', '.join(attributes)}; use "
            "kernel_layouts"
        )
    return attributes[0]


def kernel_layout(layer: Any) -> KernelLayout:
    """How the kernel of a built layer that has one kernel becomes W[n, k].

    Raises:
      ValueError: as `kernel_attribute` and `kernel_layouts`.
    """
    return kernel_layouts(layer)[kernel_attribute(layer)]


def kernel_variable(layer: Any, attribute: str) -> Any:
    """The weight behind one of `kernel_attributes`."""
    owner, name = _owner(layer, attribute)
    return getattr(owner, name)


def set_kernel(layer: Any, attribute: str, value: Any) -> None:
    """Sets one of `kernel_attributes`, as Keras does for any attribute."""
    owner, name = _owner(layer, attribute)
    setattr(owner, name, value)


@contextlib.contextmanager
def with_kernels(layer: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Lets the layer compute with `values` ({attribute: tensor}) in place of its kernels."""
    variables = {attribute: kernel_variable(layer, attribute) for attribute in values}
    # Not setattr: Keras would untrack the variable, and the layer would keep a tensor of this
    # graph as its kernel.
    try:
        for attribute, value in values.items():
            owner, name = _owner(layer, attribute)
            owner.__dict__[name] = value
        yield
    finally:
        for attribute, variable in variables.items():
            owner, name = _owner(layer, attribute)
            owner.__dict__[name] = variable


def _owner(layer: Any, attribute: str) -> tuple[Any, str]:
    *path, name = attribute.split(".")
    for part in path:
        layer = getattr(layer, part)
    return layer, name


def _layout(layer: Any, kind: str, shape: tuple[int, ...]) -> KernelLayout:
    if kind != "einsum":
        return getattr(KernelLayout, kind)(shape)
    inputs, output = layer.equation.split("->")[0].split(",")[0], layer.equation.split("->")[1]
    # An ellipsis stands for as many axes in the input as in the output.
    elided = len(layer.full_output_shape) - len(output.replace("...", ""))
    rank = len(inputs.replace("...", "")) + elided
    try:
        return KernelLayout.einsum(layer.equation, shape, rank)
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: {error}") from error
