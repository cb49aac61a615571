"""LiteRT's own operators in the place of ours: the same model, other matrix products.

Each `tfmot_ternary.fully_connected` becomes the builtin FULLY_CONNECTED on weights that are stored
as ai-edge-quantizer's dynamic-range recipes store them: INT8, INT4 or INT2 per channel, or float32.
The token table, which is the head, has 8 bits unless all is float, as ours has. Attention and norms
stay ours: what differs is the weights.
"""

from __future__ import annotations

import mmap
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flatbuffers import flexbuffers

from tfmot_ternary import model_file, tflite_buffers

schema: Any = model_file.schema()

_SCALE = np.float32(0.02)
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int4": schema.TensorType.INT4,
    "int2": schema.TensorType.INT2,
}
_BITS = {"float32": 32, "int8": 8, "int4": 4, "int2": 2}
# Which weights are the table: ours have this format.
_TABLE_FORMAT = "i8"
_FULLY_CONNECTED, _LOOKUP = b"tfmot_ternary.fully_connected", b"tfmot_ternary.embedding_lookup"
_Builtin, _Options = schema.BuiltinOperator, schema.BuiltinOptions


def write(source: pathlib.Path, kind: str, path: pathlib.Path) -> None:
    """Writes the model of ours at `source` with LiteRT's weights of `kind` to `path`.

    Args:
      source: a `.tflite` of `ternary_file.write`.
      kind: "int8", "int4", "int2" or "float32".
      path: the file; it appears when it is whole.
    """
    with source.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    model = tflite_buffers.parse(content)
    layout = tflite_buffers.FileLayout(model, _Exchange(model, kind).run())
    with model_file.atomic_file(path, layout.size) as out:
        layout.write(out)


class _Exchange:
    """Exchanges the operators of a model (the schema's `ModelT`)."""

    def __init__(self, model: Any, kind: str) -> None:
        self._model = model
        self._kind = kind
        self._rng = np.random.default_rng(0)
        self._random: dict[int, np.ndarray] = {}
        # Number of a buffer of ours -> the (kind, shape) of what takes its place.
        self._arrays: dict[int, np.ndarray] = {}

    def run(self) -> Mapping[int, np.ndarray]:
        """Changes the model; returns the contents of its new buffers by their numbers."""
        product = self._code(_Builtin.FULLY_CONNECTED, 5)
        lookup = self._code(_Builtin.EMBEDDING_LOOKUP, 1)
        reshape = self._code(_Builtin.RESHAPE, 1)
        for graph in self._model.subgraphs:
            operators = []
            for operator in graph.operators:
                name = self._model.operatorCodes[operator.opcodeIndex].customCode
                if name == _FULLY_CONNECTED:
                    operators.append(self._product(graph, operator, product))
                elif name == _LOOKUP:
                    operators += self._lookup(graph, operator, lookup, reshape)
                else:
                    operators.append(operator)
            graph.operators = operators
        return self._arrays

    def _code(self, builtin: int, version: int) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        code.deprecatedBuiltinCode = min(builtin, 127)
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _product(self, graph: Any, operator: Any, code: int) -> Any:
        options = _options_of(operator)
        if options["activation"] != "none":
            raise ValueError(f"expected products without activation, got {options['activation']}")
        x, packed, _, *bias = (int(i) for i in operator.inputs)
        k = int(graph.tensors[x].shape[-1])
        weights = self._weights(graph, packed, k, options["weight_format"])
        dense = schema.FullyConnectedOptionsT()
        dense.keepNumDims = True
        new = schema.OperatorT()
        new.opcodeIndex, new.outputs = code, operator.outputs
        new.inputs = np.array([x, weights, *(bias or [-1])], np.int32)
        new.builtinOptionsType = _Options.FullyConnectedOptions
        new.builtinOptions = dense
        return new

    def _lookup(self, graph: Any, operator: Any, code: int, reshape: int) -> list[Any]:
        """EMBEDDING_LOOKUP takes ids of one dimension: reshapes stand around it."""
        options = _options_of(operator)
        ids, packed, _ = (int(i) for i in operator.inputs)
        (output,) = (int(i) for i in operator.outputs)
        k = int(options["k"])
        table = self._weights(graph, packed, k, options["weight_format"])
        shape = [int(d) for d in graph.tensors[output].shape]
        count = int(np.prod(shape[:-1]))
        flat = self._tensor(graph, [count], schema.TensorType.INT32)
        rows = self._tensor(graph, [count, k], schema.TensorType.FLOAT32)
        found = schema.OperatorT()
        found.opcodeIndex = code
        found.inputs, found.outputs = np.array([flat, table], np.int32), np.array([rows], np.int32)
        return [
            self._reshape(graph, reshape, ids, flat, [count]),
            found,
            self._reshape(graph, reshape, rows, output, shape),
        ]

    def _reshape(self, graph: Any, code: int, x: int, y: int, shape: list[int]) -> Any:
        sizes = self._tensor(graph, [len(shape)], schema.TensorType.INT32)
        graph.tensors[sizes].buffer = self._buffer()
        self._model.buffers[-1].data = np.array(shape, np.int32).view(np.uint8)
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        new = schema.OperatorT()
        new.opcodeIndex = code
        new.inputs, new.outputs = np.array([x, sizes], np.int32), np.array([y], np.int32)
        new.builtinOptionsType, new.builtinOptions = _Options.ReshapeOptions, options
        return new

    def _tensor(self, graph: Any, shape: list[int], kind: int) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = np.array(shape, np.int32), kind, 0
        tensor.hasRank = True
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def _buffer(self) -> int:
        self._model.buffers.append(schema.BufferT())
        return len(self._model.buffers) - 1

    def _weights(self, graph: Any, packed: int, k: int, weight_format: str) -> int:
        """Gives the tensor of packed weights another type and content; returns its number.

        Subgraphs share buffers: each is filled once.
        """
        tensor = graph.tensors[packed]
        table = weight_format == _TABLE_FORMAT and self._kind != "float32"
        kind = "int8" if table else self._kind
        n = int(tensor.shape[0])
        if tensor.type == _TYPES[kind]:  # another operator of this subgraph was here before
            return packed
        self._model.buffers[tensor.buffer].data = None
        if tensor.buffer not in self._arrays:
            self._arrays[tensor.buffer] = self._content(kind, n * k * _BITS[kind] // 8)
        tensor.shape, tensor.type = np.array([n, k], np.int32), _TYPES[kind]
        if kind != "float32":
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.full(n, _SCALE, np.float32)
            tensor.quantization.zeroPoint = np.zeros(n, np.int64)
            tensor.quantization.quantizedDimension = 0
        return packed

    def _content(self, kind: str, size: int) -> np.ndarray:
        """Random bytes of a matrix; matrices of one size have equal bytes, each its own place."""
        if size not in self._random:
            if kind == "float32":
                values = self._rng.standard_normal(size // 4, np.float32) * _SCALE
                self._random[size] = values.view(np.uint8)
            else:
                self._random[size] = np.frombuffer(self._rng.bytes(size), np.uint8)
        return self._random[size]


def _options_of(operator: Any) -> dict[str, Any]:
    return flexbuffers.Loads(bytearray(bytes(operator.customOptions)))
