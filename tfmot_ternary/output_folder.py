"""Output folder: where the outputs of a teacher lie, and what `outputs.json` says about them.

One .npy array for the predictions and one for each feature, a row an example. The arrays grow in a
folder of that name plus ".part", which takes its real name when all is there.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["OutputFolder"]

_ABOUT = "outputs.json"
_VERSION = 1
# What must agree for stored outputs to serve, and how it is called in an error.
_SETTINGS = {
    "teacher": "the same teacher (digest of its weights)",
    "examples": "the same number of examples",
    "data": "the same examples (digest of some of them)",
    "dtype": "the same dtype",
    "from_logits": "the same from_logits",
    "names": "the same features",
}


class OutputFolder:
    """A folder that was begun, finished or not.

    Args:
      path: the folder, with an `outputs.json`.

    Attributes:
      settings: {"teacher", "examples", "data", "dtype", "from_logits", "names"}.
      shapes: file name -> shape of its array, [examples, ...].
      files: feature -> names of its files, one a call of the layer.

    Raises:
      ValueError: `outputs.json` is damaged or of another kind.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        about = self._read()
        self.settings = {key: about[key] for key in _SETTINGS}
        self.files: dict[str, list[str]] = {}
        rows = [about["predictions"]]
        for name, calls in zip(about["names"], about["features"], strict=True):
            self.files[name] = [f"feature_{len(rows) - 1 + i}.npy" for i in range(len(calls))]
            rows += calls
        files = ["predictions.npy", *(f for names in self.files.values() for f in names)]
        self.shapes = {
            file: (about["examples"], *row) for file, row in zip(files, rows, strict=True)
        }

    def _read(self) -> dict[str, Any]:
        try:
            about = json.loads((self.path / _ABOUT).read_text())
            if about["version"] != _VERSION:
                raise ValueError(f"version {about['version']}, expected {_VERSION}")
            if not {*_SETTINGS, "predictions", "features"} <= set(about):
                raise ValueError(f"only {sorted(about)}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected a folder of teacher outputs at {self.path}, got a damaged or other "
                f"{_ABOUT}: {error}; delete the folder and compute them anew"
            ) from error
        return about

    @classmethod
    def finished(cls, path: pathlib.Path) -> OutputFolder:
        """Opens a finished folder.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is damaged, or something else.
        """
        if holds_files(path):
            return cls(path)
        part = part_of(path)
        if part.exists():
            raise FileNotFoundError(
                f"expected finished teacher outputs at {path}, got an interrupted run in {part}; "
                "call TeacherOutputs.compute again with the same arguments to go on"
            )
        raise FileNotFoundError(
            f"expected teacher outputs at {path}, got nothing; make them with "
            "TeacherOutputs.compute"
        )

    @classmethod
    def begin(
        cls,
        path: pathlib.Path,
        settings: Mapping[str, Any],
        predictions: Sequence[int],
        features: Sequence[Sequence[Sequence[int]]],
    ) -> OutputFolder:
        """Makes the folder of a run.

        Args:
          path: of the unfinished folder.
          settings: as the attribute.
          predictions: shape of one example's predictions.
          features: shape of one example's output, for each feature and call.

        Raises:
          OSError: less free space than the arrays need.
        """
        path.mkdir(parents=True, exist_ok=True)
        rows = [predictions, *(row for calls in features for row in calls)]
        size = sum(math.prod(row) for row in rows) * np.dtype(settings["dtype"]).itemsize
        needed, free = size * settings["examples"], shutil.disk_usage(path).free
        if needed > free:
            raise OSError(
                f"expected {needed / 1e9:.1f} GB of free space for {path}, got {free / 1e9:.1f}; "
                'use dtype="float16", fewer examples or another disk'
            )
        about = {
            "version": _VERSION,
            **settings,
            "predictions": list(predictions),
            "features": [[list(row) for row in calls] for calls in features],
        }
        temporary = path / (_ABOUT + ".tmp")
        temporary.write_text(json.dumps(about, indent=1))
        os.replace(temporary, path / _ABOUT)
        return cls(path)

    def require(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError unless the outputs were made with these settings."""
        for key, wanted in settings.items():
            if self.settings[key] != wanted:
                raise ValueError(
                    f"{self.path}: expected outputs of {_SETTINGS[key]}: {wanted!r}, got "
                    f"{self.settings[key]!r}; choose another folder, or delete this one to "
                    "compute them anew"
                )

    def finish(self, path: pathlib.Path) -> OutputFolder:
        """Gives the folder its real name, in one step."""
        if path.exists():
            path.rmdir()  # empty, and some systems do not replace a folder
        self.path.rename(path)
        return OutputFolder(path)


def part_of(path: pathlib.Path) -> pathlib.Path:
    """Where a folder lies until it is finished."""
    return path.with_name(path.name + ".part")


def holds_files(path: pathlib.Path) -> bool:
    """Whether something is at `path`, be it no folder; an empty folder is nothing."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def unfinished(path: pathlib.Path) -> OutputFolder | None:
    """Returns the interrupted run for `path`, or None if none was begun."""
    part = part_of(path)
    return OutputFolder(part) if (part / _ABOUT).exists() else None
