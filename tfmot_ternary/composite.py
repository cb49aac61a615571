"""Composite: a TensorFlow function that a TF Lite conversion turns into one custom operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Option = str | int | float | bool


def composite(name: str, options: dict[str, Option], body: Callable[..., tf.Tensor]) -> Any:
    """A tf.function that TF Lite's converter fuses into the operator `tfmot_ternary.<name>`.

    The options become attributes of the function, and the FlexBuffer map of the operator.
    """
    fields = [f'name: "tfmot_ternary.{name}"', _attribute("tfl_fusable_op", True)]
    fields += [_attribute(key, value) for key, value in options.items()]
    return tf.function(body, experimental_implements=" ".join(fields), autograph=False)


def _attribute(key: str, value: Option) -> str:
    """One attribute in the text form of a NameAttrList."""
    if isinstance(value, bool):
        text = f"b: {str(value).lower()}"
    elif isinstance(value, int):
        text = f"i: {value}"
    elif isinstance(value, float):
        text = f"f: {value!r}"
    else:
        text = f's: "{value}"'
    return f'attr {{ key: "{key}" value {{ {text} }} }}'
