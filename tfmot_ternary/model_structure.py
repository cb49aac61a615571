"""Model structure: checks a `.tflite` file from its bytes, and tells its graph from its constants.

Stands alone, as `runtime` does: the standard library is all it needs.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

__all__ = ["check", "graph_of"]

# Every .tflite file has this at byte 4, after the offset of its root table.
FILE_IDENTIFIER = b"TFL3"
SMALLEST_FILE = 16
# Fields of the root table, and of a table Buffer.
SUBGRAPHS, BUFFERS = 2, 4
DATA, OFFSET, SIZE = 0, 1, 2
# Smaller constants may lie among the tables of the graph.
SMALLEST_CUT = 4096


class _Damaged(Exception):
    """A place outside the file."""


@dataclasses.dataclass(frozen=True)
class _Buffer:
    """Where a buffer's bytes lie.

    Attributes:
      start, end: the bytes; equal if there are none.
      inside: whether they are a vector of the flatbuffer, with its length in front of it.
      table: place of the table that says so.
    """

    start: int
    end: int
    inside: bool
    table: int


def check(content: Any, name: str) -> None:
    """Checks what the runtimes do not: the root table, subgraphs, and the places of all constants.

    The runtimes verify the rest of the graph, but crash where the root table is whole and has no
    subgraphs, or where the end of a constant behind the flatbuffer is beyond 64 bits.

    Args:
      content: bytes, or a memory map, of the whole file; only the graph is read.
      name: of the file in errors.

    Raises:
      ValueError: not a whole .tflite file.
    """
    size = len(content)
    if size < SMALLEST_FILE:
        raise ValueError(f"expected a whole .tflite file, got {size} bytes: {name}")
    identifier = bytes(content[4:8])
    if identifier != FILE_IDENTIFIER:
        raise ValueError(
            f"expected a .tflite file ({FILE_IDENTIFIER!r} at byte 4), got {identifier!r}: {name}"
        )
    try:
        if _field(content, _root(content), SUBGRAPHS) is None:
            raise ValueError(f"expected a .tflite file with subgraphs, got none: {name}")
        buffers = _buffers(content)
    except _Damaged as error:
        raise ValueError(
            f"expected a whole .tflite file, got one that is damaged: {name}"
        ) from error
    for index, buffer in enumerate(buffers):
        if buffer.end > size:
            raise ValueError(
                f"expected a whole .tflite file, got {size} bytes where constant {index} ends at "
                f"byte {buffer.end}: it is truncated; copy or convert it again: {name}"
            )


def graph_of(content: Any) -> bytes | None:
    """Returns the graph of a file as a model of its own, without the constants behind it.

    It is what the file begins with, so that a runtime's verdict on it is one on the file. Every
    constant from the first one of `SMALLEST_CUT` bytes on is left out.

    Args:
      content: bytes or memory map of a file that passed `check`.

    Returns:
      None where the constants do not lie behind the graph, as far as can be told, or there are
      none.
    """
    buffers = _buffers(content)
    begins = [b.start - (4 if b.inside else 0) for b in buffers if b.end - b.start >= SMALLEST_CUT]
    if not begins:
        return None
    graph = bytearray(content[: min(begins)])
    graph += bytes(-len(graph) % 4)
    # A table begins with the way back to its list of fields: this one has none.
    no_fields = len(graph)
    graph += struct.pack("<HH", 4, 4)
    for buffer in buffers:
        if buffer.start < min(begins):
            continue
        if buffer.table + 4 > no_fields:
            return None
        struct.pack_into("<i", graph, buffer.table, buffer.table - no_fields)
    return bytes(graph)


def _buffers(content: Any) -> list[_Buffer]:
    place = _field(content, _root(content), BUFFERS)
    if place is None:
        return []
    vector = place + _read(content, place, "<I")
    count = _read(content, vector, "<I")
    if vector + 4 + 4 * count > len(content):
        raise _Damaged
    slots = range(vector + 4, vector + 4 + 4 * count, 4)
    return [_buffer(content, slot + _read(content, slot, "<I")) for slot in slots]


def _buffer(content: Any, table: int) -> _Buffer:
    data = _field(content, table, DATA)
    if data is not None:
        vector = data + _read(content, data, "<I")
        length = _read(content, vector, "<I")
        return _Buffer(vector + 4, vector + 4 + length, True, table)
    offset, size = (_field(content, table, field) for field in (OFFSET, SIZE))
    start = 0 if offset is None else _read(content, offset, "<Q")
    length = 0 if size is None else _read(content, size, "<Q")
    if start <= 1 or length <= 1:  # 0 and 1 stand for none
        return _Buffer(0, 0, False, table)
    return _Buffer(start, start + length, False, table)


def _root(content: Any) -> int:
    return _read(content, 0, "<I")


def _field(content: Any, table: int, field: int) -> int | None:
    """The place of a field of a table: a table begins with the way back to its list of places,
    which begins with its own size."""
    places = table - _read(content, table, "<i")
    entry = 4 + 2 * field
    if _read(content, places, "<H") < entry + 2:
        return None
    distance = _read(content, places + entry, "<H")
    return table + distance if distance else None


def _read(content: Any, place: int, layout: str) -> int:
    if place < 0 or place + struct.calcsize(layout) > len(content):
        raise _Damaged
    return int(struct.unpack_from(layout, content, place)[0])
