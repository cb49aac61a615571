"""Model file: a `.tflite` flatbuffer opened for reading in place, and written atomically.

Needs NumPy and the schema classes of the installed interpreter package; TensorFlow is only
imported when `ai-edge-litert` is not installed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

_IDENTIFIER = b"TFL3"
# Package -> its module with the schema's generated classes; the first that is installed serves.
_SCHEMA_MODULES = {
    "ai_edge_litert": "ai_edge_litert.schema_py_generated",
    "tensorflow": "tensorflow.lite.python.schema_py_generated",
}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def schema() -> ModuleType:
    """Returns the generated classes of the TF Lite flatbuffer schema.

    Raises:
      ImportError: neither `ai-edge-litert` nor `tensorflow` is installed.
    """
    for package, module in _SCHEMA_MODULES.items():
        if importlib.util.find_spec(package) is not None:
            return importlib.import_module(module)
    raise ImportError(
        f"expected one of the packages {', '.join(_SCHEMA_MODULES)}, found none: run "
        "`pip install ai-edge-litert`"
    )


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], size: int = 0) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when the block ends, and not at all if it raises.

    It has a temporary name in the same folder, which is made if it is missing.

    Args:
      path: where the file shall be.
      size: bytes that it will take.

    Raises:
      OSError: the disk has no room for `size` bytes, or was full before all was written (errno
        ENOSPC; the message says how many bytes are needed and free); another error of the disk.
    """
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    if shutil.disk_usage(folder).free < size:
        raise _disk_full(folder, path, size)
    handle, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes 0600; a model file is not a secret.
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise _disk_full(folder, path, size) from error
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to a temporary name in the same folder, then renames it to `path`.

    A full disk or an interruption leaves no half file. The folder is made if it is missing.

    Raises:
      OSError: see `atomic_file`.
    """
    with atomic_file(path, len(content)) as file:
        file.write(content)


def _disk_full(folder: str, path: str, size: int) -> OSError:
    message = (
        f"expected room for {size:,} bytes, got {shutil.disk_usage(folder).free:,} free (or a "
        "limit on the size of files); nothing was written: make room, or choose another folder"
    )
    return OSError(errno.ENOSPC, message, path)


class ModelFileError(ValueError):
    """The file is no TF Lite flatbuffer, or a damaged one, or not what was expected in it."""


class ModelFile:
    """A `.tflite` file, memory-mapped: nothing is copied until a buffer is read.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: no file at `path`.
      ModelFileError: (a ValueError) the file is no TF Lite flatbuffer, or it is truncated.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"expected a .tflite file, found none at {self.path!r}")
        self.size = os.path.getsize(self.path)
        if self.size < 8:
            raise ModelFileError(
                f"{self.path!r}: expected a TF Lite flatbuffer, got a file of {self.size} bytes"
            )
        with open(self.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        identifier = self._map[4:8]
        if identifier != _IDENTIFIER:
            raise ModelFileError(
                f"{self.path!r}: expected a TF Lite flatbuffer (identifier {_IDENTIFIER!r} at "
                f"byte 4), got {identifier!r}"
            )
        self.schema = schema()
        self.model = self.guard(lambda: self.schema.Model.GetRootAs(self._map, 0))

    def guard(self, read: Any) -> Any:
        """Calls `read()`; what a damaged flatbuffer makes it raise becomes a ModelFileError."""
        try:
            return read()
        except ModelFileError:
            raise
        except (struct.error, LookupError, TypeError, OverflowError, ValueError) as error:
            raise ModelFileError(
                f"{self.path!r}: expected a complete TF Lite flatbuffer, got a truncated or edited "
                f"one ({error}); convert the model again"
            ) from error

    def buffer(self, index: int) -> np.ndarray:
        """Returns the bytes of buffer `index` as a uint8 view into the mapped file."""
        return self._map_array()[slice(*self.buffer_range(index))]

    def buffer_range(self, index: int) -> tuple[int, int]:
        """Returns where buffer `index` lies in the file: (first byte, byte after the last).

        An absent or empty buffer gives (0, 0).
        """

        def read() -> tuple[int, int]:
            buffer = self.model.Buffers(index)
            if buffer.Size() > 1:  # Stored behind the flatbuffer (files of 2 GiB and more).
                return buffer.Offset(), buffer.Offset() + buffer.Size()
            field = buffer._tab.Offset(4)
            if field == 0 or buffer.DataLength() == 0:
                return 0, 0
            start = buffer._tab.Vector(field)
            return start, start + buffer.DataLength()

        start, end = self.guard(read)
        if not 0 <= start <= end <= self.size:
            raise ModelFileError(
                f"{self.path!r}: expected buffer {index} inside the file of {self.size} bytes, got "
                f"bytes {start} to {end}: the file is truncated; convert the model again"
            )
        return start, end

    def metadata(self, name: str) -> bytes | None:
        """Returns the content of the metadata entry `name`, or None if there is none."""

        def find() -> int | None:
            for i in range(self.model.MetadataLength()):
                entry = self.model.Metadata(i)
                if (entry.Name() or b"").decode("utf-8", "replace") == name:
                    return int(entry.Buffer())
            return None

        index = self.guard(find)
        return None if index is None else self.buffer(index).tobytes()

    def _map_array(self) -> np.ndarray:
        return np.frombuffer(self._map, dtype=np.uint8)
