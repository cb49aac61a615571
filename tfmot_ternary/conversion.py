"""Conversion: a quantized or frozen model, or traced functions, into a `.tflite` file."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.lite.python import convert_phase

from tfmot_ternary import model_file, tflite_buffers, tflite_linking
from tfmot_ternary.freezing import freeze
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.tflite_buffers import align_packed_buffers

__all__ = ["align_packed_buffers", "convert", "convert_functions"]

OPERATOR_PREFIX = "tfmot_ternary."
# The converter's messages quote call stacks; the reason is at the start.
MESSAGE_LENGTH = 1000


def convert(
    model: Any,
    optimizations: Iterable[tf.lite.Optimize] | None = None,
    *,
    weight_format: str | None = None,
    activations: str = "int8",
    signature: str = "serving_default",
    batch_size: int | None = None,
    path: str | os.PathLike[str] | None = None,
) -> bytes:
    """Converts a quantized or frozen model to TF Lite.

    Args:
      model: a tf_keras or Keras 3 model, Sequential or Functional, that was quantized (it is frozen
        first) or frozen. A KerasHub task counts as its functional model; for generation see
        `tfmot_ternary.vlm.convert_causal_lm`.
      optimizations: passed to TFLiteConverter; `[tf.lite.Optimize.DEFAULT]` stores the weights of
        the remaining float layers in 8 bits. Packed weights and their scales are never changed.
      weight_format, activations: see `freeze`; for a model that is not frozen yet.
      signature: name of the signature; its inputs and outputs have the names of the model's.
      batch_size: fixes the first dimension of the inputs; None leaves it to the interpreter, which
        some layers (RNNs) cannot.
      path: where to write the file as well; it appears under this name only when it is whole.

    Returns:
      The file's bytes; packed weights start at multiples of 64 bytes.

    Raises:
      ValueError: a model that is not quantized, or not Sequential or Functional; an operation that
        TF Lite lacks.
      TypeError: not a Keras model.
    """
    if not any(isinstance(layer, PackedLayer) for layer in _all_layers(model)):
        model = freeze(model, weight_format, activations)
    content = convert_functions({signature: _serving_function(model, batch_size)}, optimizations)
    if path is not None:
        model_file.write_atomically(path, content)
    return content


def convert_functions(
    functions: Mapping[str, Any],
    optimizations: Iterable[tf.lite.Optimize] | None = None,
    *,
    per_channel_dense: bool = True,
    metadata: Mapping[str, bytes] | None = None,
) -> bytes:
    """Converts traced functions to one TF Lite file with a signature for each.

    Weights that several functions use are stored once, whether they are variables (of TensorFlow,
    tf_keras or Keras 3) or constants. Variables become constants: their values of now.

    Args:
      functions: signature name -> `tf.function` with an input signature, or concrete function.
        Inputs need names (`tf.TensorSpec(..., name=...)` or argument names); the result is a flat
        dict of tensors.
      optimizations: see `convert`.
      per_channel_dense: whether float dense layers that are stored in 8 bits get a scale for each
        output. False gives them one per tensor, as lookups have: then a tied embedding, which is
        looked up and multiplied with, is stored once instead of twice.
      metadata: entries for the file's metadata: name -> content. A file with metadata also gets
        short names of tensors (`tflite_linking.shorten_tensor_names`).

    Returns:
      The file's bytes.

    Raises:
      ValueError: no function, a function without input signature, or an operation TF Lite lacks.
    """
    content = stock_conversion(functions, optimizations, per_channel_dense=per_channel_dense)
    model = tflite_buffers.parse(content)
    if metadata is not None:
        tflite_linking.shorten_tensor_names(model)
        tflite_linking.add_metadata(model, metadata)
    return tflite_buffers.FileLayout(model, {}).to_bytes()


def stock_conversion(
    functions: Mapping[str, Any],
    optimizations: Iterable[tf.lite.Optimize] | None = None,
    *,
    per_channel_dense: bool = True,
) -> bytes:
    """What TFLiteConverter makes of traced functions, as it is: see `convert_functions`."""
    if not functions:
        raise ValueError("expected at least one function to convert, got none")
    concrete = {name: _concrete(name, function) for name, function in functions.items()}
    # The converter finds composites only in a SavedModel, and values only of variables that the
    # saved object tracks; the variables of Keras 3 it would not find by itself.
    holder = tf.Module()
    variables: dict[int, tf.Variable] = {}
    for function in concrete.values():
        variables.update((id(variable), variable) for variable in function.graph.variables)
    holder.variables_of_functions = list(variables.values())
    holder.functions = list(concrete.values())
    with tempfile.TemporaryDirectory(prefix="tfmot_ternary_") as folder:
        tf.saved_model.save(holder, folder, signatures=concrete)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(concrete))
        converter.allow_custom_ops = True
        converter.optimizations = list(optimizations or [])
        converter._experimental_disable_per_channel_quantization_for_dense_layers = (
            not per_channel_dense
        )
        try:
            content = converter.convert()
        except convert_phase.ConverterError as error:
            raise ValueError(
                "expected operations and shapes that TF Lite has, got an error of its converter; "
                "where it is about shapes, fix them (batch_size): "
                f"{str(error)[:MESSAGE_LENGTH]}"
            ) from error
    _check_operators(content)
    _check_widths(content)
    return content


def _concrete(name: str, function: Any) -> Any:
    if hasattr(function, "graph"):
        return function
    if getattr(function, "input_signature", None) is None:
        raise ValueError(
            f"expected a tf.function with an input_signature or a concrete function for signature "
            f"{name!r}, got {type(function).__name__} without one"
        )
    return function.get_concrete_function()


def _check_operators(content: bytes) -> None:
    """Raises ValueError if the file needs an operator that neither TF Lite nor this package has."""
    model = model_file.schema().Model.GetRootAs(content, 0)
    codes = (model.OperatorCodes(i) for i in range(model.OperatorCodesLength()))
    names = {(code.CustomCode() or b"").decode() for code in codes}
    unknown = sorted(name for name in names if name and not name.startswith(OPERATOR_PREFIX))
    if unknown:
        raise ValueError(
            f"expected operations that TF Lite has, got {', '.join(unknown)}; replace the layers "
            "that make them, or leave them out of the model that is converted"
        )


def _check_widths(content: bytes) -> None:
    """Complains about fake quantization in a type that not all interpreters have.

    The converter makes QUANTIZE and DEQUANTIZE of it, from 4 or fewer bits in UINT4, which
    TensorFlow's interpreter lacks, and from 9 to 16 bits in UINT16, which both lack.
    """
    schema = model_file.schema()
    model = schema.Model.GetRootAs(content, 0)
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    tensors = [graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength())]
    rounded = [t for t in tensors if t.Quantization() and t.Quantization().ScaleLength()]
    for name, where in (("UINT16", "no interpreter has"), ("UINT4", "only LiteRT's has")):
        found = [t.Name().decode() for t in rounded if t.Type() == getattr(schema.TensorType, name)]
        if not found:
            continue
        message = (
            f"expected quantizers of tfmot with num_bits=8, got {name}, which {where}, for "
            f"{found[0]!r}; take 8 bits, or annotate the layer with TernaryQuantizeConfig"
        )
        if name == "UINT16":
            raise ValueError(message)
        warnings.warn(message, stacklevel=5)


def _all_layers(model: Any) -> list[Any]:
    """The model's layers, nested ones included."""
    if hasattr(model, "_flatten_layers"):
        return list(model._flatten_layers())
    raise TypeError(
        f"expected a tf_keras or Keras 3 model, got {type(model).__module__}.{type(model).__name__}"
    )


def _serving_function(model: Any, batch_size: int | None) -> Any:
    """The model's forward pass with named inputs and outputs."""
    inputs = getattr(model, "inputs", None)
    if not inputs or not getattr(model, "outputs", None):
        raise ValueError(
            f"expected a built Sequential or Functional model, got {type(model).__name__} "
            f"{model.name!r} without inputs; convert a traced function of it with convert_functions"
        )
    specs = [
        tf.TensorSpec(_shape(tensor, batch_size), tensor.dtype, name=_identifier(tensor.name))
        for tensor in inputs
    ]
    names = _output_names(model)
    # A Sequential of Keras 3 has inputs and outputs, but no structure of them.
    structure = getattr(model, "input", None)
    structure = inputs[0] if structure is None else structure

    def serve(*flat: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = model(tf.nest.pack_sequence_as(structure, flat), training=False)
        return dict(zip(names, tf.nest.flatten(outputs), strict=True))

    return tf.function(serve, input_signature=specs, autograph=False)


def _shape(tensor: Any, batch_size: int | None) -> list[int | None]:
    dims = list(tensor.shape)
    return dims if batch_size is None else [batch_size, *dims[1:]]


def _output_names(model: Any) -> list[str]:
    """Names of the flat outputs: keys of a dict of outputs, else of the layers that make them."""
    keras3 = sys.modules.get("keras")
    if isinstance(getattr(model, "output", None), dict):
        names = sorted(model.output)
    elif keras3 is not None and isinstance(model, keras3.Model):
        names = [tensor._keras_history.operation.name for tensor in model.outputs]
    else:
        names = list(model.output_names)
    names = [_identifier(name) for name in names]
    # One layer may make several outputs.
    return [
        name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)
    ]


def _identifier(name: str) -> str:
    """A name as TensorFlow takes it for an argument."""
    text = "".join(c if c.isalnum() else "_" for c in name.split(":")[0])
    return text if text[:1].isalpha() else f"x{text}"
