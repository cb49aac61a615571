"""Row file: an .npy array that is written row by row and may be interrupted at any moment.

The header with the final shape comes first. How many rows are there follows from the file's size:
a file that is not whole has too few bytes for its header, and NumPy refuses to read it.
"""

from __future__ import annotations

import math
import pathlib

import numpy as np

__all__ = ["RowFile", "open_rows"]


class RowFile:
    """The file while it is written.

    Args:
      path: of the file; one of the same shape and dtype is continued, any other is begun anew.
      shape: [rows, ...] of the finished array.
      dtype: of the array.

    Attributes:
      rows: how many whole rows it holds.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype | str):
        self.path = path
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        data = _data_offset(path, self.shape, self.dtype)
        if data is None:
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(
                    file,
                    {
                        "descr": np.lib.format.dtype_to_descr(self.dtype),
                        "fortran_order": False,
                        "shape": self.shape,
                    },
                )
                data = file.tell()
        self._data = data
        written = path.stat().st_size - self._data
        self.rows = min(written // self._row_bytes, self.shape[0]) if self._row_bytes else 0

    def truncate(self, rows: int) -> None:
        """Drops what comes behind the first `rows` rows."""
        with self.path.open("r+b") as file:
            file.truncate(self._data + rows * self._row_bytes)
        self.rows = rows

    def append(self, rows: np.ndarray) -> None:
        """Writes [n, ...] behind the last row.

        Raises:
          ValueError: rows of another shape, or more than there is room for.
        """
        if rows.shape[1:] != self.shape[1:] or self.rows + len(rows) > self.shape[0]:
            raise ValueError(
                f"{self.path}: expected at most {self.shape[0] - self.rows} rows of shape "
                f"{self.shape[1:]}, got {len(rows)} of {rows.shape[1:]}"
            )
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.rows += len(rows)


def _data_offset(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> int | None:
    """Returns where the rows begin, or None if the file has another header or none."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            header = np.lib.format.read_array_header_1_0(file)
            return file.tell() if header == (shape, False, dtype) else None
    except (FileNotFoundError, ValueError):
        return None


def open_rows(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
    """Maps a finished file for reading.

    Raises:
      ValueError: it is missing, not whole, or holds something else.
    """
    expected = f"expected an array {np.dtype(dtype).name}{list(shape)} in {path}"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{expected}, got a damaged or missing file: {error}") from error
    if array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
        raise ValueError(f"{expected}, got {array.dtype.name}{list(array.shape)}")
    return array
