"""Structure of a Keras 3 model: its nested layers by path, its clone, and layers changed in place.

Keras 3 and KerasHub blocks make their own sublayers, so a quantized or packed layer cannot be
handed to them. The clone of a model is therefore made from its config, and each layer concerned
then changes its class; the model itself becomes a `RestructuredModel`, whose config is that of the
float model plus the list of changed layers, so that `.keras` files load.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import keras

__all__ = ["RestructuredModel", "clone", "float_config", "nested_layers", "require_tensorflow"]


def require_tensorflow() -> None:
    """Raises RuntimeError unless Keras 3 runs on TensorFlow, which the quantizers and ops need."""
    if keras.config.backend() != "tensorflow":
        raise RuntimeError(
            f'expected the "tensorflow" backend of Keras, got "{keras.config.backend()}"; set the '
            'environment variable KERAS_BACKEND="tensorflow" before keras is imported'
        )


def nested_layers(model: keras.Model) -> Iterator[tuple[str, keras.Layer]]:
    """Every layer inside `model`, each once, as (path, layer), parents before their sublayers.

    The path is made of the layers' names below the model ("decoder_block_0/attention/query"). The
    order is that of the structure: it tells a layer in a clone or a loaded model, whereas a name
    that Keras made ("dense_3") may be another there.
    """
    seen = {id(model)}

    def walk(parent: keras.Layer, prefix: str) -> Iterator[tuple[str, keras.Layer]]:
        for layer in parent._layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            path = prefix + layer.name
            yield path, layer
            yield from walk(layer, path + "/")

    yield from walk(model, "")


def float_class(cls: type) -> type:
    """The class that a model or layer had before it was restructured, quantized or packed."""
    while hasattr(cls, "changed_from"):
        cls = cls.changed_from
    return cls


def float_config(model: keras.Model) -> dict[str, Any]:
    """The serialized float model: `model` itself, or what a `RestructuredModel` was made from."""
    if isinstance(model, RestructuredModel):
        return copy.deepcopy(model.structure.model_config)
    config = keras.saving.serialize_keras_object(model)
    # The optimizer belongs to the variables of the model as it was; the clone is compiled anew.
    config.pop("compile_config", None)
    return config


def clone(model: keras.Model) -> keras.Model:
    """A float model of the structure of `model` with fresh weights.

    Layer classes that are not registered with Keras are found through the model's own layers. The
    preprocessor of a KerasHub task has no weights and may hold files: the clone shares it.

    Raises:
      ValueError: the model cannot be built from its config.
    """
    custom_objects = {}
    for _, layer in [("", model), *nested_layers(model)]:
        cls = float_class(type(layer))
        custom_objects[cls.__name__] = cls
        custom_objects[keras.saving.get_registered_name(cls)] = cls
    try:
        cloned = keras.saving.deserialize_keras_object(
            float_config(model), custom_objects=custom_objects, safe_mode=False
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            "expected a model that its own config rebuilds (Sequential, Functional, or a class "
            f"with get_config and from_config), got {type(model).__name__} {model.name!r}: {error}"
        ) from error
    if getattr(model, "preprocessor", None) is not None:
        own = cloned.preprocessor
        cloned.preprocessor = model.preprocessor
        # Keras tracks the new layer behind all others and keeps the old one: put it in its place.
        if own in cloned._layers and cloned._layers[-1] is model.preprocessor:
            cloned._layers[cloned._layers.index(own)] = cloned._layers.pop()
    return cloned


def copy_trainable(source: keras.Model, target: keras.Model) -> None:
    """Copies `trainable` layer by layer; a parent first, for its setter reaches its sublayers."""
    pairs = zip(nested_layers(source), nested_layers(target), strict=True)
    if target.trainable != source.trainable:
        target.trainable = source.trainable
    for (_, a), (_, b) in pairs:
        if a.trainable != b.trainable:
            b.trainable = a.trainable


class Structure:
    """What a `RestructuredModel` remembers: the float model's config, one config a changed layer.

    Not a plain dict: Keras tracks, wraps and locks containers that become attributes of a model.
    """

    def __init__(self, model_config: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        self.model_config = model_config
        self.layers = layers


class RestructuredModel:
    """Mixed into the class of a model of which nested layers were changed; saves and loads it.

    Subclasses say what the change is: `restructure(model, layers)` applies it to a float model.
    """

    structure: Structure

    @staticmethod
    def restructure(model: keras.Model, layers: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """{"model": config of the float model, "layers": one dict with an "index" each}."""
        # Copies: KerasHub's from_config puts objects into the config that it is given.
        return copy.deepcopy(
            {"model": self.structure.model_config, "layers": self.structure.layers}
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.Model:
        """Builds the float model, then changes its layers; weights are loaded afterwards."""
        require_tensorflow()
        model = keras.saving.deserialize_keras_object(copy.deepcopy(config["model"]))
        cls.restructure(model, config["layers"])
        return cls.adopt(model, Structure(config["model"], config["layers"]))

    @classmethod
    def adopt(cls, model: keras.Model, structure: Structure) -> keras.Model:
        """Makes `model` an instance of (cls, its own class)."""
        marker = next(c for c in cls.__mro__ if RestructuredModel in c.__bases__)
        base: Any = type(model)
        model.__class__ = _restructured_class(marker, base)
        model.structure = structure
        return model


@functools.cache
def _restructured_class(marker: type, base: type) -> type:
    # KerasHub's from_preset takes any registered subclass of a task that has the preset's backbone:
    # without a backbone_cls of its own this class is not one of them.
    members = {"__module__": marker.__module__, "changed_from": base, "backbone_cls": None}
    cls = type(marker.__name__, (marker, base), members)
    # Any of these classes loads any file of its kind: the config names the float model's class.
    return keras.saving.register_keras_serializable("tfmot_ternary", marker.__name__)(cls)
