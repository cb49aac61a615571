"""Buffers of a `.tflite` file: stored once each, and aligned."""

from __future__ import annotations

import hashlib
from typing import Any

import flatbuffers
import numpy as np

from tfmot_ternary import model_file

__all__ = ["ALIGNMENT", "align_packed_buffers"]

# One cache line, and the width of the widest vector: a row block of packed weights is 64 bytes.
# LiteRT's CompiledModel refuses constant buffers that are aligned to less.
ALIGNMENT = 64
# Below this, sharing buffers saves nothing worth a look-up.
SMALLEST_SHARED = 64


def align_packed_buffers(content: bytes) -> bytes:
    """Rewrites a `.tflite` file: equal constants share a buffer, and buffers are 64-byte aligned.

    Args:
      content: the bytes of a file below 2 GiB, such as TFLiteConverter returns.

    Returns:
      The bytes of an equal model, in which the data of every buffer starts at a multiple of 64.

    Raises:
      ValueError: not a `.tflite` file.
    """
    if len(content) < 8 or content[4:8] != b"TFL3":
        raise ValueError(
            f"expected the bytes of a .tflite file (TFL3 at byte 4), got {bytes(content[:8])!r}"
        )
    schema = model_file.schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    _share_equal_buffers(model)
    model.buffers = [_AlignedBuffer(buffer, schema) for buffer in model.buffers]
    builder = flatbuffers.Builder(len(content) + ALIGNMENT * len(model.buffers) + 1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _share_equal_buffers(model: Any) -> None:
    """Points tensors of equal constant data to one buffer; the others are emptied."""
    first: dict[tuple[int, bytes], int] = {}
    replacement: dict[int, int] = {}
    for index, buffer in enumerate(model.buffers):
        if buffer.data is None or len(buffer.data) < SMALLEST_SHARED:
            continue
        data = np.asarray(buffer.data, np.uint8)
        key = (len(data), hashlib.sha256(data.tobytes()).digest())
        if key in first:
            replacement[index] = first[key]
        else:
            first[key] = index
    kept = {entry.buffer for entry in model.metadata or []}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.isVariable:  # its buffer is its own state
                kept.add(tensor.buffer)
            else:
                tensor.buffer = replacement.get(tensor.buffer, tensor.buffer)
    for index in replacement:
        if index not in kept:
            model.buffers[index].data = None


class _AlignedBuffer:
    """A buffer that packs its data at an aligned place."""

    def __init__(self, buffer: Any, schema: Any) -> None:
        self._buffer = buffer
        self._schema = schema

    def Pack(self, builder: Any) -> int:  # the name that the generated code calls
        data = self._buffer.data
        vector = None
        if data is not None and len(data):
            content = np.ascontiguousarray(data, np.uint8)
            builder.StartVector(1, len(content), ALIGNMENT)
            builder.head = builder.Head() - len(content)
            builder.Bytes[builder.Head() : builder.Head() + len(content)] = content.tobytes()
            vector = builder.EndVector()
        self._schema.BufferStart(builder)
        if vector is not None:
            self._schema.BufferAddData(builder, vector)
        self._schema.BufferAddOffset(builder, self._buffer.offset)
        self._schema.BufferAddSize(builder, self._buffer.size)
        return self._schema.BufferEnd(builder)
