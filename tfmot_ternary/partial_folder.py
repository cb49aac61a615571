"""Partial folder: arrays that are done, beside an output that is not; a stopped run goes on there.

Each array is an .npy file that is written under another name and then renamed; the journal, written
alike, names those that are whole.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmot_ternary.checkpoint import fingerprint

__all__ = ["PartialFolder"]

_JOURNAL = "journal.json"


class PartialFolder:
    """The folder `<output>.partial`, opened for one request.

    Safe for several threads.

    Args:
      output: the file that is being made.
      settings: all that decides the arrays; JSON values. A folder of other settings begins anew.

    Attributes:
      path: the folder.
      begun_anew: whether it held arrays of other settings, or damaged ones.

    Raises:
      ValueError: something else lies there.
      OSError: it cannot be made.
    """

    def __init__(self, output: str, settings: Mapping[str, Any]) -> None:
        self.path = pathlib.Path(output + ".partial")
        self.begun_anew = False
        self._lock = threading.Lock()
        self._fingerprint = fingerprint(settings)
        self._done: dict[str, int] = {}
        if self.path.exists():
            self._resume()
        if not self.path.exists():
            with self._room():
                self.path.mkdir(parents=True)
                self._write_journal()

    def _resume(self) -> None:
        journal = self.path / _JOURNAL
        holds_other_files = not self.path.is_dir() or (
            not journal.is_file() and any(self.path.iterdir())
        )
        if holds_other_files:
            raise ValueError(
                f"expected room for a folder of unfinished work at {self.path}, got something "
                "else: move it away, or choose another output"
            )
        try:
            about = json.loads(journal.read_text())
            if about["fingerprint"] == self._fingerprint:
                self._done = {str(name): int(about["done"][name]) for name in about["done"]}
                return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        self.begun_anew = True
        self.remove()

    def load(self, name: str) -> np.ndarray | None:
        """The stored array, memory-mapped; None if there is none, or it is damaged."""
        if name not in self._done:
            return None
        try:
            array = np.load(self._file(name), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return array if _checksum(array) == self._done[name] else None

    def save(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Stores arrays under their names, all or none; returns them memory-mapped.

        Raises:
          OSError: no room; says what to do.
        """
        checksums = {}
        with self._room():
            for name, array in arrays.items():
                array = np.ascontiguousarray(array)
                checksums[name] = _checksum(array)
                temporary = self._file(name).with_suffix(".tmp")
                with temporary.open("wb") as file:
                    header = np.lib.format.header_data_from_array_1_0(array)
                    np.lib.format.write_array_header_1_0(file, header)
                    file.write(array.reshape(-1).view(np.uint8).data)
                os.replace(temporary, self._file(name))
            with self._lock:
                self._done.update(checksums)
                self._write_journal()
        return {name: np.load(self._file(name), mmap_mode="r") for name in arrays}

    def require_room(self, size: int) -> None:
        """Raises OSError unless the disk has room for `size` more bytes."""
        free = shutil.disk_usage(self.path).free
        if size > free:
            raise OSError(
                f"expected {size / 1e9:.2f} GB of free space for {self.path}, got "
                f"{free / 1e9:.2f}; free some, or write the output to another disk"
            )

    def remove(self) -> None:
        """Deletes the folder and all in it."""
        shutil.rmtree(self.path)

    def _file(self, name: str) -> pathlib.Path:
        return self.path / f"{name}.npy"

    def _write_journal(self) -> None:
        about = {"fingerprint": self._fingerprint, "done": self._done}
        temporary = self.path / (_JOURNAL + ".tmp")
        temporary.write_text(json.dumps(about, indent=1))
        os.replace(temporary, self.path / _JOURNAL)

    def _room(self) -> _Room:
        return _Room(self.path)


class _Room:
    """Turns an error of the disk into one that says what to do."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise OSError(
                f"expected to write to {self._path}, got: {error.strerror or error}; free some "
                "space and run the same command again: it goes on from what lies there"
            ) from error


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
