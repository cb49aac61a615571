"""Model source: where a pre-trained model comes from, and which Keras reads it."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
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
    if os.path.isdir(source):
        if os.path.isfile(os.path.join(source, "saved_model.pb")):
            return _load_keras2(source)
        if os.path.isfile(os.path.join(source, "config.json")):
            return _load_preset(source)
        raise ValueError(
            f"expected a KerasHub preset (config.json) or a SavedModel (saved_model.pb) in folder "
            f"{source!r}, found {sorted(os.listdir(source))[:8]}"
        )
    if source.endswith((".keras", ".h5", ".hdf5")):
        if not os.path.isfile(source):
            raise FileNotFoundError(f"expected a saved Keras model, found no file at {source!r}")
        return _load_file(source)
    if os.path.isfile(source):
        raise ValueError(
            f"expected a KerasHub preset folder, a .keras or .h5 file, or a SavedModel folder, got "
            f"the file {source!r}"
        )
    if os.sep in source and "://" not in source:
        raise FileNotFoundError(f"expected a model, found nothing at {source!r}")
    return _load_preset(source)


def _load_preset(source: str) -> Any:
    import keras_hub

    try:
        with warnings.catch_warnings():
            # Keras only warns when some layers find no weights and stay random.
            warnings.filterwarnings("error", message=".*freshly-initialized weights")
            return keras_hub.models.CausalLM.from_preset(source, dtype="float32")
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
