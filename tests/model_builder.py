"""Small .tflite models made directly as FlatBuffers: no converter, no TensorFlow."""

from __future__ import annotations

import dataclasses

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

TENSOR_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}


def flexbuffer(options: dict) -> bytes:
    """A FlexBuffer map, as the converter writes for a custom op's attributes."""
    return bytes(flexbuffers.Dumps(options))


@dataclasses.dataclass
class Graph:
    """One subgraph under construction; tensors are named by their index."""

    model: schema.ModelT
    subgraph: schema.SubGraphT

    def _tensor(self, shape, dtype, buffer: int, name: str, signature=None) -> int:
        tensor = schema.TensorT()
        tensor.shape = np.asarray(shape, np.int32)
        if signature is not None:
            tensor.shapeSignature = np.asarray(signature, np.int32)
        tensor.type = TENSOR_TYPES[np.dtype(dtype)]
        tensor.buffer = buffer
        tensor.name = name or f"tensor_{len(self.subgraph.tensors)}"
        tensor.hasRank = True
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def input(self, shape, dtype=np.float32, name: str = "") -> int:
        """An input; axes of -1 are dynamic and start at 1."""
        fixed = [1 if size == -1 else size for size in shape]
        index = self._tensor(fixed, dtype, 0, name, shape if -1 in shape else None)
        self.subgraph.inputs.append(index)
        return index

    def constant(self, value: np.ndarray, name: str = "") -> int:
        value = np.asarray(value)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return self._tensor(value.shape, value.dtype, len(self.model.buffers) - 1, name)

    def intermediate(self, shape, dtype=np.float32, name: str = "") -> int:
        return self._tensor(shape, dtype, 0, name)

    def output(self, shape, dtype=np.float32, name: str = "") -> int:
        index = self._tensor(shape, dtype, 0, name)
        self.subgraph.outputs.append(index)
        return index

    def _op_code(self, builtin: int, custom: str | None = None, version: int = 1) -> int:
        for i, code in enumerate(self.model.operatorCodes):
            if (code.builtinCode, code.customCode, code.version) == (builtin, custom, version):
                return i
        code = schema.OperatorCodeT()
        code.builtinCode = builtin
        code.deprecatedBuiltinCode = min(builtin, 127)
        code.customCode = custom
        code.version = version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def custom(self, name: str, inputs, outputs, options: dict | bytes) -> None:
        operator = schema.OperatorT()
        operator.opcodeIndex = self._op_code(schema.BuiltinOperator.CUSTOM, name)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        data = options if isinstance(options, bytes) else flexbuffer(options)
        operator.customOptions = np.frombuffer(data, np.uint8)
        self.subgraph.operators.append(operator)

    def builtin(self, code: int, inputs, outputs, options_type=0, options=None, version=1) -> None:
        operator = schema.OperatorT()
        operator.opcodeIndex = self._op_code(code, None, version)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        operator.builtinOptionsType, operator.builtinOptions = options_type, options
        self.subgraph.operators.append(operator)

    def dense(self, x: int, weights: np.ndarray, y: int) -> None:
        """The builtin float FULLY_CONNECTED."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        self.builtin(
            schema.BuiltinOperator.FULLY_CONNECTED,
            [x, self.constant(weights), -1],
            [y],
            schema.BuiltinOptions.FullyConnectedOptions,
            options,
            version=5,
        )

    def signature(self, key: str, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        definition = schema.SignatureDefT()
        definition.signatureKey = key
        definition.subgraphIndex = self.model.subgraphs.index(self.subgraph)
        for target, names in (("inputs", inputs), ("outputs", outputs)):
            maps = []
            for name, index in names.items():
                entry = schema.TensorMapT()
                entry.name, entry.tensorIndex = name, index
                maps.append(entry)
            setattr(definition, target, maps)
        self.model.signatureDefs.append(definition)


class ModelBuilder:
    """Collects subgraphs; `build` gives the bytes of the .tflite file."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "test"
        self.model.operatorCodes = []
        self.model.subgraphs = []
        self.model.buffers = [schema.BufferT()]
        self.model.signatureDefs = []

    def graph(self, name: str = "main") -> Graph:
        subgraph = schema.SubGraphT()
        subgraph.name = name
        subgraph.tensors, subgraph.operators = [], []
        subgraph.inputs, subgraph.outputs = [], []
        self.model.subgraphs.append(subgraph)
        return Graph(self.model, subgraph)

    def build(self) -> bytes:
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
