"""Buffers of a `.tflite` file: stored once each, aligned, and written without a copy in memory."""

from __future__ import annotations

import hashlib
import io
import mmap
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import flatbuffers
import numpy as np

from tfmot_ternary import model_file

__all__ = ["ALIGNMENT", "FileLayout", "align_packed_buffers", "parse"]

# One cache line, and the width of the widest vector: a row block of packed weights is 64 bytes.
# LiteRT's CompiledModel refuses constant buffers that are aligned to less.
ALIGNMENT = 64
# Below this, sharing buffers saves nothing worth a look-up.
SMALLEST_SHARED = 64
# What offsets inside a flatbuffer reach.
LARGEST_FLATBUFFER = (1 << 31) - 1
# Fields of the schema's table Buffer, and how a table's n-th field is asked for.
DATA_FIELD, OFFSET_FIELD, SIZE_FIELD = 4, 6, 8
CHUNK_BYTES = 1 << 22


def parse(content: bytes) -> Any:
    """Returns the schema's `ModelT` of the bytes of a `.tflite` file.

    Raises:
      ValueError: not a `.tflite` file.
    """
    if len(content) < 8 or content[4:8] != b"TFL3":
        raise ValueError(
            f"expected the bytes of a .tflite file (TFL3 at byte 4), got {bytes(content[:8])!r}"
        )
    schema = model_file.schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def align_packed_buffers(content: bytes) -> bytes:
    """Rewrites a `.tflite` file: equal constants share a buffer, and buffers are 64-byte aligned.

    Args:
      content: the bytes of a file below 2 GiB, such as TFLiteConverter returns.

    Returns:
      The bytes of an equal model, in which the data of every buffer starts at a multiple of 64.

    Raises:
      ValueError: not a `.tflite` file.
    """
    return FileLayout(parse(content), {}).to_bytes()


class FileLayout:
    """Where everything of a model has its place in its file.

    The graph comes first, then the data of all buffers, each at a multiple of 64 bytes; equal
    constants of the graph share a buffer. A file below 2 GiB is one flatbuffer, as every reader
    knows it. In a larger one the data lie behind the flatbuffer, where the schema's `Buffer.offset`
    and `size` point to; both interpreters read that.

    Args:
      model: the schema's `ModelT`; it is changed.
      arrays: buffer number -> what the buffer holds, C-contiguous. They are read when the file is
        written, piece by piece, so that the pages of a `np.memmap` need not stay in memory.

    Attributes:
      size: bytes of the file.

    Raises:
      ValueError: the graph alone takes 2 GiB.
    """

    size: int

    def __init__(self, model: Any, arrays: Mapping[int, np.ndarray]) -> None:
        _share_equal_buffers(model)
        constants = {
            index: np.ascontiguousarray(buffer.data, np.uint8)
            for index, buffer in enumerate(model.buffers)
            if buffer.data is not None
        }
        both = {**constants, **arrays}
        self._arrays = {index: array for index, array in both.items() if array.nbytes}
        self._arrays = _without_empty_buffers(model, self._arrays)

        self._inside = True
        self._content = _pack(model, self._arrays, inside=True)
        places = self._places()
        if self.size > LARGEST_FLATBUFFER:
            self._inside = False
            for entry in model.metadata or []:  # interpreters look for them only inside
                self._arrays.pop(entry.buffer, None)
            self._content = _pack(model, self._arrays, inside=False)
            places = self._places()
        if len(self._content) > LARGEST_FLATBUFFER:
            raise ValueError(
                f"expected a graph of at most {LARGEST_FLATBUFFER} bytes, got {len(self._content)}"
            )
        self._point_to(places)

    def write(self, file: BinaryIO) -> None:
        """Writes all to `file`, which is empty; long runs of zeros become holes in a real file.

        Raises:
          OSError: the file cannot be written.
        """
        holes = not isinstance(file, io.BytesIO)
        file.write(self._content)
        for index, place in self._places().items():
            array = self._arrays[index]
            gap = place - file.tell()
            # In a flatbuffer a vector has its length in the four bytes before it.
            length = struct.pack("<I", array.nbytes) if self._inside else bytes(4)
            file.write(bytes(gap - 4) + length)
            for chunk in _chunks(array):
                if holes and not chunk.any():
                    file.seek(len(chunk), io.SEEK_CUR)
                else:
                    file.write(chunk.data)
        if holes:
            file.truncate()  # a hole at the end counts

    def to_bytes(self) -> bytes:
        """Returns the file's bytes."""
        file = io.BytesIO()
        self.write(file)
        return file.getvalue()

    def _places(self) -> dict[int, int]:
        """Where each array begins; sets `size`."""
        places, end = {}, len(self._content)
        for index, array in self._arrays.items():
            places[index] = -(-(end + 4) // ALIGNMENT) * ALIGNMENT
            end = places[index] + array.nbytes
        self.size = end
        return places

    def _point_to(self, places: dict[int, int]) -> None:
        """Writes the places of the arrays into the flatbuffer's table of buffers."""
        model = model_file.schema().Model.GetRootAs(self._content, 0)
        for index, place in places.items():
            table = model.Buffers(index)._tab
            if self._inside:
                at = table.Pos + table.Offset(DATA_FIELD)
                struct.pack_into("<I", self._content, at, place - 4 - at)
                continue
            for field, value in ((OFFSET_FIELD, place), (SIZE_FIELD, self._arrays[index].nbytes)):
                at = table.Pos + table.Offset(field)
                struct.pack_into("<Q", self._content, at, value)


def _pack(model: Any, arrays: Mapping[int, Any], *, inside: bool) -> bytearray:
    """The flatbuffer of `model`, with room for the places of the data of the buffers `arrays`."""
    schema = model_file.schema()
    kept = model.buffers
    model.buffers = [
        _LinkedBuffer(schema, inside) if index in arrays else buffer
        for index, buffer in enumerate(kept)
    ]
    builder = flatbuffers.Builder(1 << 20)
    try:
        builder.Finish(model.Pack(builder), b"TFL3")
    finally:
        model.buffers = kept
    return bytearray(builder.Output())


class _LinkedBuffer:
    """A buffer that packs itself with room for the place of its data, which is filled in later."""

    def __init__(self, schema: Any, inside: bool) -> None:
        self._schema = schema
        self._inside = inside

    def Pack(self, builder: Any) -> int:  # the name that the generated code calls
        self._schema.BufferStart(builder)
        if self._inside:
            builder.PrependUint32Slot(0, 1, 0)
        else:
            self._schema.BufferAddOffset(builder, 2)  # 0 and 1 mean: inside
            self._schema.BufferAddSize(builder, 2)
        return self._schema.BufferEnd(builder)


def _share_equal_buffers(model: Any) -> None:
    """Points tensors of equal constant data to one buffer; the others are emptied."""
    first: dict[tuple[int, bytes], int] = {}
    replacement: dict[int, int] = {}
    for index, buffer in enumerate(model.buffers):
        if buffer.data is None or len(buffer.data) < SMALLEST_SHARED:
            continue
        data = np.ascontiguousarray(buffer.data, np.uint8)
        key = (len(data), hashlib.sha256(data.data).digest())
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


def _without_empty_buffers(model: Any, arrays: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Points tensors without data to buffer 0, the empty one; returns `arrays` by new numbers.

    The converter gives every tensor a buffer. A variable keeps its own, which is its state.
    """
    kept = {0, *arrays} | {entry.buffer for entry in model.metadata or []}
    tensors = [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors]
    kept |= {tensor.buffer for tensor in tensors if tensor.isVariable}
    numbers = {old: new for new, old in enumerate(sorted(kept))}
    model.buffers = [model.buffers[old] for old in sorted(kept)]
    for tensor in tensors:
        tensor.buffer = numbers.get(tensor.buffer, 0)
    for entry in model.metadata or []:
        entry.buffer = numbers[entry.buffer]
    return {numbers[old]: array for old, array in arrays.items()}


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the bytes of `array` as uint8 pieces; pages of a mapped file are let go behind it."""
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), CHUNK_BYTES):
        chunk = flat[start : start + CHUNK_BYTES]
        yield chunk
        _forget_pages(array, chunk)


def _forget_pages(array: np.ndarray, chunk: np.ndarray) -> None:
    """Takes the pages of `chunk` out of this process, if `array` maps a file that is shared."""
    # In the mode "c" the pages hold changes that are in no file.
    if not isinstance(array, np.memmap) or array.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    mapped = array._mmap  # type: ignore[attr-defined]
    base = np.frombuffer(mapped, np.uint8).ctypes.data
    start = (chunk.ctypes.data - base) // mmap.PAGESIZE * mmap.PAGESIZE
    length = chunk.ctypes.data - base - start + len(chunk)
    mapped.madvise(mmap.MADV_DONTNEED, start, length)
