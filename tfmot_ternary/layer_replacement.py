"""Replacement: another way to compute a method of a layer, taken only where it is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

Call = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
ClassName = tuple[str, str]  # the end of its module's name, its name

# The operators differ from a layer by rounding, about 1e-6 of values near 1.
TOLERANCE = 2e-5


@dataclasses.dataclass(frozen=True)
class Replacement:
    """`call` instead of the layer's `attribute`."""

    attribute: str
    call: Call
    # Layers of one kind (any key of a dictionary) all agree with their replacements, or none does.
    kind: Any
    # A generator of random numbers -> arguments to compare both calls with.
    probe: Callable[[np.random.Generator], Sequence[Arguments]]
    weights: Sequence[Any] = ()  # Keras variables that the call reads


def agrees(original: Call, replacement: Replacement) -> bool:
    """Whether both calls give the same on random inputs and weights.

    Args:
      original: what the replacement stands for.
      replacement: of a layer that need not have weights with values.

    Returns:
      True or False.
    """
    import keras
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with tf.init_scope():
        weights = [(w, rng.normal(0.5, 1, w.shape)) for w in replacement.weights]
        with keras.StatelessScope(state_mapping=weights):
            for args, kwargs in replacement.probe(rng):
                args = tuple(tf.constant(a) if isinstance(a, np.ndarray) else a for a in args)
                kwargs = {name: tf.constant(value) for name, value in kwargs.items()}
                expected = np.asarray(original(*args, **kwargs))
                got = np.asarray(replacement.call(*args, **kwargs))
                if not np.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE):
                    return False
    return True


def find_class(kind: type, names: Collection[ClassName]) -> ClassName | None:
    """Returns the name of this very class among `names`: a subclass may compute something else."""
    for module, name in names:
        if kind.__name__ == name and kind.__module__.endswith("." + module):
            return module, name
    return None


def is_float32(x: Any) -> bool:
    """Whether x is a float32 tensor of known rank, at least 1."""
    import tensorflow as tf

    return isinstance(x, tf.Tensor) and x.dtype == tf.float32 and x.shape.rank not in (None, 0)
