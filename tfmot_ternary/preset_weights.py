"""Preset weights: the weights of a KerasHub preset, one variable at a time."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from typing import Any

import keras
import numpy as np

from tfmot_ternary import model_source
from tfmot_ternary.skeleton import Consume, WithoutWeights

__all__ = ["PresetWeights"]


class PresetWeights:
    """A preset of a CausalLM: its skeleton, and its weights as a stream.

    The constructor reads all weights once, keeps none, and so finds what is missing or damaged
    before any work is done; KerasHub's own loaders read, so every format that they know serves.

    Args:
      source: a KerasHub preset, see `model_source.load`.

    Attributes:
      causal_lm: the task in float32, without weights, with its preprocessor.
      digest: of all weights; equal weights, equal digest.

    Raises:
      ValueError: no such preset, or a preset without usable weights.
    """

    def __init__(self, source: str) -> None:
        _require_agreement(source)
        self._source = source
        self._variables: list[keras.Variable] = []
        checksums: list[int] = []

        def note(variable: keras.Variable, array: np.ndarray) -> None:
            self._variables.append(variable)
            checksums.append(
                zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            )

        backbone = self._read(note)
        with model_source.preset_errors(source):
            import keras_hub

            # Not in the scope: a task makes an optimizer, which has variables with values.
            self.causal_lm = keras_hub.models.CausalLM.from_preset(
                source, backbone=backbone, load_weights=False
            )
        self.digest = hashlib.sha256(repr(checksums).encode()).hexdigest()[:16]
        # The last one counts where a loader assigns twice.
        self._last = {id(variable): i for i, variable in enumerate(self._variables)}
        for variable in self.causal_lm.weights:
            if id(variable) not in self._last:
                raise ValueError(
                    f"expected a KerasHub preset of a CausalLM at {source!r} with all weights, got "
                    f"none for {variable.path!r}"
                )

    def stream(self, consume: Consume) -> None:
        """Calls `consume(variable, array)` once for each variable of `causal_lm` that has weights.

        The array has the type that it has on the disk. An exception of `consume` ends the stream.
        """
        position = 0

        def hand_on(same: keras.Variable, array: np.ndarray) -> None:
            nonlocal position
            variable = self._variables[position]
            if same.path != variable.path or same.shape != variable.shape:
                raise RuntimeError(
                    f"expected the weights of {self._source!r} in the same order again, got "
                    f"{same.path!r} after {variable.path!r}: the preset changes meanwhile"
                )
            if self._last[id(variable)] == position:
                consume(variable, array)
            position += 1

        self._read(hand_on)

    def _read(self, consume: Consume) -> Any:
        import keras_hub

        # Errors of `consume` pass outside of those that are put down to the preset.
        with WithoutWeights(consume), model_source.preset_errors(self._source):
            return keras_hub.models.Backbone.from_preset(self._source, dtype="float32")


def _require_agreement(source: str) -> None:
    """Raises ValueError where the two descriptions of the backbone in a local preset contradict.

    A task that is loaded as a whole goes by the one in task.json, a backbone by config.json.
    """
    configs = []
    for name in ("config.json", "task.json"):
        path = os.path.join(source, name)
        if not os.path.isfile(path):
            return
        try:
            with open(path, encoding="utf-8") as file:
                config = json.load(file)["config"]
            configs.append(config if name == "config.json" else config["backbone"]["config"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # KerasHub says what is wrong
    ours, tasks = configs
    for key in sorted(ours.keys() & tasks.keys() - {"dtype", "name", "trainable"}):
        if ours[key] != tasks[key]:
            raise ValueError(
                f"expected a KerasHub preset of a CausalLM at {source!r} whose config.json and "
                f"task.json agree, got {key} {ours[key]!r} and {tasks[key]!r}"
            )
