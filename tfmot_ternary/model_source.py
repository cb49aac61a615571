"""Model source: where a pre-trained model comes from, and which Keras reads it."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any


def load(source: str) -> Any:
    """Loads a pre-trained model in float32.

    Args:
      source: a KerasHub preset of a CausalLM (a local folder, a name, or a handle such as
        "hf://user/model", which needs a network); a `.keras` or `.h5` file of Keras 3 or tf_keras;
        or the folder of a SavedModel that tf_keras has written.

    Returns:
      A `keras_hub.models.CausalLM`, `keras.Model` or `tf_keras.Model`.

    Raises:
      FileNotFoundError: nothing at a local path.
      ValueError: not such a model, or a preset without usable weights.
    """
    return {"preset": _load_preset, "file": _load_file, "saved_model": _load_keras2}[
        kind_of(source)
    ](source)


def kind_of(source: str) -> str:
    """What `load` takes a source for: "preset" (of KerasHub), "file" or "saved_model".

    Raises:
      FileNotFoundError: nothing at a local path.
      ValueError: nothing that `load` reads.
    """
    if os.path.isdir(source):
        if os.path.isfile(os.path.join(source, "saved_model.pb")):
            return "saved_model"
        if os.path.isfile(os.path.join(source, "config.json")):
            return "preset"
        raise ValueError(
            f"expected a KerasHub preset (config.json) or a SavedModel (saved_model.pb) in folder "
            f"{source!r}, found {sorted(os.listdir(source))[:8]}"
        )
    if source.endswith((".keras", ".h5", ".hdf5")):
        if not os.path.isfile(source):
            raise FileNotFoundError(f"expected a saved Keras model, found no file at {source!r}")
        return "file"
    if os.path.isfile(source):
        raise ValueError(
            f"expected a KerasHub preset folder, a .keras or .h5 file, or a SavedModel folder, got "
            f"the file {source!r}"
        )
    if os.sep in source and "://" not in source:
        raise FileNotFoundError(f"expected a model, found nothing at {source!r}")
    return "preset"


def _load_preset(source: str) -> Any:
    import keras_hub

    with preset_errors(source):
        return keras_hub.models.CausalLM.from_preset(source, dtype="float32")


@contextlib.contextmanager
def preset_errors(source: str) -> Iterator[None]:
    """Turns what KerasHub raises, or warns of, while it reads a preset into one ValueError."""
    try:
        with warnings.catch_warnings():
            # Keras only warns when some layers find no weights and stay random.
            warnings.filterwarnings("error", message=".*freshly-initialized weights")
            yield
    except (ValueError, TypeError, KeyError, OSError, UserWarning) as error:
        raise ValueError(
            f"expected a KerasHub preset of a CausalLM at {source!r}, KerasHub says: {error}"
        ) from error


def _load_file(path: str) -> Any:
    version = _keras_version(path)
    if version.startswith("2."):
        return _load_keras2(path)
    import keras

    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ValueError(
            f"expected a model that Keras {keras.__version__} loads at {path!r}, Keras says: "
            f"{error}"
        ) from error


def _load_keras2(path: str) -> Any:
    import tf_keras

    try:
        return tf_keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
        raise ValueError(
            f"expected a model that tf_keras {tf_keras.__version__} loads at {path!r}, it says: "
            f"{error}"
        ) from error


def _keras_version(path: str) -> str:
    """Returns the version of Keras that wrote the file.

    Raises:
      ValueError: the file does not say, so it is no Keras model.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json"))["keras_version"])
        import h5py

        with h5py.File(path, "r") as file:
            version = file.attrs["keras_version"]
            return version.decode() if isinstance(version, bytes) else str(version)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"expected a saved Keras model (with its keras_version) at {path!r}, got another or "
            f"damaged file ({error}); weights alone are not enough"
        ) from error
