"""The .tflite models that are timed: one operator each, or a chain of one operator's copies.

They are written as FlatBuffers, without a converter: a matrix of 134 MB takes no minute.
"""

from __future__ import annotations

import copy
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers import flexbuffers

from benchmarks.cases import Case, Kind
from benchmarks.weights import Matrix
from tfmot_ternary import model_file, packing

schema: Any = model_file.schema()

_ALIGNMENT = 64
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "uint8": schema.TensorType.UINT8,
}
_Builtin = schema.BuiltinOperator
_Options = schema.BuiltinOptions


class _Buffer:
    """Constant data that is packed at a multiple of 64 bytes, as our converter does."""

    def __init__(self, data: np.ndarray | None) -> None:
        self.data = data

    def Pack(self, builder: flatbuffers.Builder) -> int:  # the name that the generated code calls
        vector = None
        if self.data is not None and len(self.data):
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head = builder.Head() - len(self.data)
            builder.Bytes[builder.Head() : builder.Head() + len(self.data)] = self.data.data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def _serialize(model: Any) -> bytes:
    model.buffers = [_Buffer(buffer.data) for buffer in model.buffers]
    size = sum(_ALIGNMENT + (0 if b.data is None else len(b.data)) for b in model.buffers)
    builder = flatbuffers.Builder(size + (1 << 16))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _one_operator(
    code: int, inputs: list[Any], output: tuple[int, ...], options: tuple[int, Any] | dict | None
) -> bytes:
    """A model of one operator. An input is (shape, type), an array (a constant) or None."""
    model, graph, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.buffers, model.subgraphs = 3, [_Buffer(None)], [graph]
    graph.tensors, graph.inputs, graph.operators = [], [], [operator]
    operator.inputs = []

    def tensor(shape: tuple[int, ...], dtype: str, buffer: int) -> int:
        new = schema.TensorT()
        new.shape, new.type, new.buffer = np.asarray(shape, np.int32), _TYPES[dtype], buffer
        new.name, new.hasRank = f"tensor_{len(graph.tensors)}", True
        graph.tensors.append(new)
        return len(graph.tensors) - 1

    for value in inputs:
        if value is None:
            operator.inputs.append(-1)
        elif isinstance(value, tuple):
            operator.inputs.append(tensor(value[0], value[1], 0))
            graph.inputs.append(operator.inputs[-1])
        else:
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            model.buffers.append(_Buffer(data))
            operator.inputs.append(tensor(value.shape, value.dtype.name, len(model.buffers) - 1))
    graph.outputs = operator.outputs = [tensor(output, "float32", 0)]

    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode, operator_code.version = code, 5 if code == _FULLY_CONNECTED else 1
    operator_code.deprecatedBuiltinCode = min(code, 127)
    if isinstance(options, dict):
        operator_code.customCode = options["name"]
        values = {key: value for key, value in options.items() if key != "name"}
        operator.customOptions = np.frombuffer(bytes(flexbuffers.Dumps(values)), np.uint8)
    elif options is not None:
        operator.builtinOptionsType, operator.builtinOptions = options
    model.operatorCodes = [operator_code]
    return _serialize(model)


_FULLY_CONNECTED = _Builtin.FULLY_CONNECTED


def _input_of(case: Case) -> tuple[tuple[int, ...], str]:
    if case.kind is Kind.CONV2D:
        return (1, case.image, case.image, case.channels_in), "float32"
    if case.kind is Kind.EMBEDDING:
        return (case.m,), "int32"
    return (case.m, case.k), "float32"


def _output_of(case: Case) -> tuple[int, ...]:
    if case.kind is Kind.CONV2D:
        return (1, case.image, case.image, case.n)
    return (case.m, case.k if case.kind is Kind.EMBEDDING else case.n)


def packed_model(case: Case, matrix: Matrix, weight_format: str) -> bytes:
    """Our operator for `case`."""
    packed = packing.pack(matrix.codes, weight_format)
    options = {"weight_format": weight_format, "group_size": matrix.group_size}
    if case.kind is Kind.EMBEDDING:
        options |= {"name": "tfmot_ternary.embedding_lookup", "k": case.k}
    else:
        options |= {"activation": "none", "activations": "int8"}
        if case.kind is Kind.CONV2D:
            ones = ("stride_h", "stride_w", "dilation_h", "dilation_w")
            options |= {"name": "tfmot_ternary.conv2d", "padding": "SAME", **dict.fromkeys(ones, 1)}
            options |= {"kernel_h": case.kernel, "kernel_w": case.kernel}
        else:
            options["name"] = "tfmot_ternary.fully_connected"
    inputs = [_input_of(case), packed, matrix.scales]
    return _one_operator(_Builtin.CUSTOM, inputs, _output_of(case), options)


def float_model(case: Case, dense: np.ndarray) -> bytes:
    """The builtin float operator for `case`, what ai-edge-quantizer starts from."""
    x, y = _input_of(case), _output_of(case)
    if case.kind is Kind.EMBEDDING:
        return _one_operator(_Builtin.EMBEDDING_LOOKUP, [x, dense], y, None)
    if case.kind is Kind.CONV2D:
        conv = schema.Conv2DOptionsT()
        conv.padding, conv.strideW, conv.strideH = schema.Padding.SAME, 1, 1
        kernel = dense.reshape(case.n, case.kernel, case.kernel, case.channels_in)
        bias = np.zeros(case.n, np.float32)
        options = (_Options.Conv2DOptions, conv)
        return _one_operator(_Builtin.CONV_2D, [x, kernel, bias], y, options)
    dense_options = schema.FullyConnectedOptionsT()
    dense_options.keepNumDims = True
    options = (_Options.FullyConnectedOptions, dense_options)
    return _one_operator(_FULLY_CONNECTED, [x, dense, None], y, options)


def empty_model(case: Case) -> bytes:
    """A reshape to the shape that the tensor has: a call with nothing to do."""
    reshape = schema.ReshapeOptionsT()
    reshape.newShape = np.asarray([case.m, case.k], np.int32)
    inputs = [_input_of(case), np.asarray([case.m, case.k], np.int32)]
    options = (_Options.ReshapeOptions, reshape)
    return _one_operator(_Builtin.RESHAPE, inputs, (case.m, case.k), options)


def chain(content: bytes, length: int, own_weights: bool) -> bytes:
    """`length` copies of a model's only operator, each of which takes the output of the one before.

    Args:
      content: a model of one operator whose output has the shape of its input.
      own_weights: whether each copy gets its own bytes of weights. False where the interpreter
        repacks the weights of each operator anyway.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:  # the data lies behind the FlatBuffer
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    graph = model.subgraphs[0]
    (operator,), (x,), (y,) = graph.operators, graph.inputs, graph.outputs
    constants = [index for index in operator.inputs if index not in (x, -1)]
    graph.operators, previous = [], int(x)
    for _ in range(length):
        new = copy.copy(operator)
        replaced = {int(x): previous}
        if own_weights:
            for index in constants:
                tensor = copy.copy(graph.tensors[index])
                model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
                tensor.buffer = len(model.buffers) - 1
                graph.tensors.append(tensor)
                replaced[int(index)] = len(graph.tensors) - 1
        graph.tensors.append(copy.copy(graph.tensors[y]))
        previous = len(graph.tensors) - 1
        new.inputs = [replaced.get(int(index), int(index)) for index in operator.inputs]
        new.outputs = [previous]
        graph.operators.append(new)
    graph.outputs = [previous]
    for definition in model.signatureDefs or []:
        definition.outputs[0].tensorIndex = previous
    return _serialize(model)
