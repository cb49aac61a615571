"""Cache layout: which keys and values a KerasHub CausalLM keeps, layer by layer."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """The cache that `call_with_cache` takes.

    Attributes:
      layers: (key-value heads, head size) of each layer with a cache.
      paired: whether the cache is a tuple of (keys, values) for each layer, each [batch, positions,
        heads, head size], instead of one tensor [batch, layers, 2, positions, heads, head size].
    """

    layers: tuple[tuple[int, int], ...]
    paired: bool


class _Found(Exception):
    """Carries the cache out of `_build_cache` before the model is run on it."""


def layout_of(causal_lm: Any) -> CacheLayout:
    """Returns the layout of the cache that the model builds for itself.

    Nothing is computed: `_build_cache` is stopped where it calls the model.

    Raises:
      ValueError: the family keeps something else than keys and values of each layer.
    """
    import numpy as np

    build = causal_lm._build_cache
    others = list(inspect.signature(build).parameters)[1:]

    def take(*args: Any, **kwargs: Any) -> None:
        raise _Found(kwargs["cache"] if "cache" in kwargs else args[1])

    # Keras tracks what is set on a model; this is no part of it.
    vars(causal_lm)["call_with_cache"] = take
    try:
        build(np.zeros([1, 1], np.int32), *[None] * len(others))
        cache = None
    except _Found as found:
        cache = found.args[0]
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise _unsupported(causal_lm, f"one that is built in another way ({error})") from error
    finally:
        del vars(causal_lm)["call_with_cache"]
    if isinstance(cache, tuple | list):
        if not all(
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and all(len(part.shape) == 4 for part in pair)
            and pair[0].shape == pair[1].shape
            for pair in cache
        ):
            raise _unsupported(causal_lm, f"a tuple of {len(cache)} entries of another form")
        return CacheLayout(tuple((int(k.shape[2]), int(k.shape[3])) for k, _ in cache), True)
    shape = tuple(getattr(cache, "shape", ()))
    if len(shape) != 6 or shape[2] != 2:
        raise _unsupported(causal_lm, f"{type(cache).__name__} of shape {list(shape)}")
    return CacheLayout(((int(shape[4]), int(shape[5])),) * int(shape[1]), False)


def _unsupported(causal_lm: Any, got: str) -> ValueError:
    return ValueError(
        f"expected {type(causal_lm).__name__} to keep keys and values of each layer, as a cache "
        "[batch, layers, 2, positions, heads, head size] or a tuple of (keys, values), got "
        f"{got}: this family is not supported"
    )
