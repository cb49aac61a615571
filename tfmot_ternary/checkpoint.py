"""Checkpoints: the state of a training that may be interrupted at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Returns a short digest of settings (JSON values): equal settings, equal digest."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(variables: Sequence[Any]) -> str:
    """Returns a short digest of the values of Keras variables, for a fingerprint's settings."""
    state = hashlib.sha256()
    for variable in variables:
        state.update(np.ascontiguousarray(variable).tobytes())
    return state.hexdigest()[:16]


class Checkpoint:
    """One file with the step, all variables and the history of a training.

    The file is written under a temporary name and then renamed, so that what lies under its real
    name is whole. It carries the fingerprint of the settings: with other settings it is not read,
    and training begins anew.

    Args:
      path: of the file (.npz).
      settings: all that decides the result of the training; JSON values.
    """

    def __init__(self, path: str | pathlib.Path, settings: Mapping[str, Any]):
        self.path = pathlib.Path(path)
        self.fingerprint = fingerprint(settings)

    def save(
        self, step: int, variables: Sequence[Any], history: Sequence[Mapping[str, float]]
    ) -> None:
        """Writes the state after `step` steps; `variables`: Keras variables, in an order that does
        not change."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {
            f"variable_{i}": np.asarray(variable) for i, variable in enumerate(variables)
        }
        about = {"fingerprint": self.fingerprint, "step": step, "history": list(history)}
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)
        os.replace(temporary, self.path)

    def load(self, variables: Sequence[Any]) -> tuple[int, list[dict[str, float]]]:
        """Assigns the saved state to the variables.

        Returns:
          (step, history); (0, []) with the variables untouched where there is no checkpoint with
          these settings.
        """
        try:
            with np.load(self.path) as stored:
                about = json.loads(str(stored["about"]))
                if about["fingerprint"] != self.fingerprint:
                    return 0, []
                arrays = [stored[f"variable_{i}"] for i in range(len(stored.files) - 1)]
        except (FileNotFoundError, zipfile.BadZipFile):
            return 0, []
        if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
            return 0, []
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return int(about["step"]), about["history"]

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
