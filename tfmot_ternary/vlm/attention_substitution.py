"""Attention substitution: KerasHub's cached attention becomes our operators while tracing.

`call_with_cache` gets stand-ins for the cache. Where a layer writes keys or values into one
(`keras.ops.slice_update`), the rows come from `attention_op.cached_rows`; where it then computes
attention over them in a way the operator knows, the whole of it is `attention_op.cached_attention`
and the rows are not computed. Attention without a cache (a vision tower) is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from tfmot_ternary import attention_op
from tfmot_ternary.vlm import attention_mask, attention_probe
from tfmot_ternary.vlm.cache_layout import CacheLayout

KEY, VALUE = 0, 1
_PARTS = ("key", "value")
# What repeating key-value heads for grouped queries leaves in the graph. The tiled tensor has five
# dimensions: each head is followed by its copies.
_REPEAT = {"ExpandDims", "Tile", "Reshape", "Identity", "BroadcastTo"}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Keys or values of one layer: what a call adds to the cache, and the rows it then sees."""

    layer: int
    part: int
    update: Any
    rows: Any


class TracedCaches:
    """The cache of one traced function: what `call_with_cache` takes, and what was written to it.

    Args:
      layout: the model's cache.
      cache_length: its positions.
      position: int32 [1], where the call's first position stands in the cache; or None for 0.
    """

    def __init__(self, layout: CacheLayout, cache_length: int, position: Any = None):
        import tensorflow as tf

        self.cache_length = cache_length
        self.position = tf.constant([0]) if position is None else position
        # The update index of `call_with_cache`.
        self.index = 0 if position is None else position[0]
        self._paired = layout.paired
        self._layers: list[Any] = []
        for heads, size in layout.layers:
            shape = [1, cache_length, heads, size]
            pair = (tf.zeros(shape), tf.zeros(shape))
            self._layers.append(pair if layout.paired else tf.zeros([1, 2, *shape[1:]]))
        self._rows: list[_Rows] = []

    def cache(self) -> Any:
        """Returns the cache argument of `call_with_cache`."""
        return tuple(self._layers) if self._paired else self

    def __getitem__(self, key: Any) -> Any:
        """Returns layer i for `[:, i]` and `[:, i, ...]`, which is all that KerasHub asks for."""
        if (
            isinstance(key, tuple)
            and len(key) in (2, 3)
            and key[0] == slice(None)
            and isinstance(key[1], int)
            and key[2:] in ((), (Ellipsis,))
        ):
            return self._layers[key[1]]
        raise ValueError(
            f"expected cache[:, layer, ...] in call_with_cache, got cache[{key}]: this family is "
            "not supported"
        )

    def write(self, target: Any, start: Any, update: Any) -> Any:
        """Returns the rows after `slice_update(target, start, update)`, None for other targets."""
        import tensorflow as tf

        place = self._place(target)
        if place is None:
            return None
        index = start[1]
        position = self.position if index is self.index else tf.reshape(index, [1])
        rows = attention_op.cached_rows(
            update, position, layer=place[0], part=_PARTS[place[1]], cache_length=self.cache_length
        )
        self._rows.append(_Rows(*place, update, rows))
        return rows

    def source(self, tensor: Any) -> _Rows | None:
        """Returns the rows that `tensor` is, heads repeated or not; None for anything else."""
        while True:
            for rows in self._rows:
                if rows.rows is tensor:
                    return rows
            operation = tensor.op
            if operation.type not in _REPEAT:
                return None
            if operation.type in ("Tile", "BroadcastTo") and tensor.shape.rank != 5:
                return None
            tensor = operation.inputs[0]

    def derived(self, tensor: Any) -> int | None:
        """Returns the layer whose rows `tensor` is computed from in some other way, or None.

        Layers are traced in order: these are the rows that were written last.
        """
        if not self._rows:
            return None
        last = self._rows[-1].layer
        wanted = {id(rows.rows.op) for rows in self._rows if rows.layer == last}
        seen, left = set(), [tensor.op]
        while left:
            operation = left.pop()
            if id(operation) in wanted:
                return last
            if id(operation) not in seen:
                seen.add(id(operation))
                left.extend(source.op for source in operation.inputs)
        return None

    def _place(self, target: Any) -> tuple[int, int] | None:
        """(layer, part) of a stand-in, or of a slice `[:, part, ...]` of one."""
        import tensorflow as tf

        for i, layer in enumerate(self._layers):
            if self._paired:
                for part in (KEY, VALUE):
                    if layer[part] is target:
                        return i, part
            elif target.op.type == "StridedSlice" and target.op.inputs[0] is layer:
                begin = tf.get_static_value(target.op.inputs[1])
                return i, int(begin[1])
        return None


class Substitution:
    """The operators that attention becomes; see `substituted`.

    Attributes:
      whole: layers whose attention is one operator.
      in_rows: layers whose attention is KerasHub's own, on rows of the cache.
      chunked: False once a layer changes keys after they were stored: what it computes then depends
        on where the call began, and a prompt has to go through one call.
    """

    def __init__(self, layout: CacheLayout, cache_length: int, cache_type: str):
        self.layout = layout
        self.cache_length = cache_length
        self.cache_type = cache_type
        self.whole: set[int] = set()
        self.in_rows: set[int] = set()
        self.chunked = True
        self._caches: TracedCaches | None = None
        self._math: dict[int, Any] = {}

    @property
    def cache_bytes(self) -> int:
        """Memory of the caches of the layers that were traced, for one interpreter."""
        total = 0
        for i, (heads, size) in enumerate(self.layout.layers):
            if i in self.whole:
                total += attention_op.cache_bytes(self.cache_length, heads, size, self.cache_type)
            else:  # two caches of float32 rows
                total += 2 * self.cache_length * heads * size * 4
        return total

    def caches(self, position: Any = None) -> TracedCaches:
        """Returns the stand-ins for the function that is traced now; see `TracedCaches`."""
        self._caches = TracedCaches(self.layout, self.cache_length, position)
        return self._caches

    def write(self, target: Any, start: Any, update: Any) -> Any:
        """See `TracedCaches.write`."""
        return None if self._caches is None else self._caches.write(target, start, update)

    def attend(self, layer: Any, compute: Callable, args: tuple, kwargs: dict) -> Any:
        """Returns what `compute(*args, **kwargs)`, the layer's `_compute_attention`, stands for."""
        bound = inspect.signature(compute).bind(*args, **kwargs).arguments
        names = list(inspect.signature(compute).parameters)[:4]
        query, key, value, mask = (bound.get(name) for name in names)
        if query is None or key is None or value is None:
            raise ValueError(
                f"expected {type(layer).__name__}._compute_attention(query, key, value, mask), got "
                f"parameters {names}"
            )
        caches = self._caches
        if caches is None:
            return compute(*args, **kwargs)
        k, v = caches.source(key), caches.source(value)
        if k is None or v is None:
            layer_of_rows = caches.derived(key)
            if layer_of_rows is not None:
                self.chunked = False
                self.in_rows.add(layer_of_rows)
            return compute(*args, **kwargs)
        math = self._math_of(layer, compute, query, key)
        if math is None or bound.get("return_attention_scores"):
            self.in_rows.add(k.layer)
            return compute(*args, **kwargs)
        self.whole.add(k.layer)
        result = attention_op.cached_attention(
            query,
            k.update,
            v.update,
            caches.position,
            self._mask(mask, math.window, int(query.shape[1])),
            layer=k.layer,
            cache_length=self.cache_length,
            scale=math.scale,
            soft_cap=math.soft_cap,
            cache_type=self.cache_type,
        )
        # Keras' own MultiHeadAttention returns its scores too.
        parameters = inspect.signature(compute).parameters
        return (result, None) if "return_attention_scores" in parameters else result

    def _math_of(self, layer: Any, compute: Callable, query: Any, key: Any) -> Any:
        if id(layer) not in self._math:
            heads = int(query.shape[2]), int(key.shape[2]), int(query.shape[3])
            self._math[id(layer)] = attention_probe.probe(layer, compute, *heads)
        return self._math[id(layer)]

    def _mask(self, mask: Any, window: int | None, length: int) -> Any:
        """The operator's mask: bool [1, length, cache_length], or None where it is plainly causal.

        Args:
          mask: what KerasHub gives to `_compute_attention`.
          window: what that adds to it.
          length: positions in the call.
        """
        import tensorflow as tf

        assert self._caches is not None
        position = self._caches.position
        known = attention_mask.recognized(mask, position, self.cache_length)
        if known is not None:
            return known.narrowed(window).tensor(position, length, self.cache_length)
        if mask is None:
            mask = tf.ones([1, length, self.cache_length], tf.bool)
        mask = tf.cast(mask, tf.bool)
        if window is not None and window < self.cache_length:
            distance = attention_mask.distances(position, length, self.cache_length)
            mask = tf.logical_and(mask, (tf.abs(distance) < window)[tf.newaxis])
        return mask


@contextlib.contextmanager
def substituted(
    causal_lm: Any, layout: CacheLayout, cache_length: int, cache_type: str
) -> Iterator[Substitution]:
    """While active, cached attention of `causal_lm` is traced as our operators.

    Args:
      causal_lm: a KerasHub CausalLM.
      layout: its cache, see `cache_layout.layout_of`.
      cache_length: positions of the cache.
      cache_type: "float32", "float16" or "int8", for attention that is one operator.
    """
    import keras

    substitution = Substitution(layout, cache_length, cache_type)
    layers = [
        layer
        for layer in causal_lm.backbone._flatten_layers()
        if callable(getattr(layer, "_compute_attention", None))
    ]
    original = keras.ops.slice_update

    def slice_update(inputs: Any, start_indices: Any, updates: Any) -> Any:
        rows = substitution.write(inputs, start_indices, updates)
        return original(inputs, start_indices, updates) if rows is None else rows

    def attention(layer: Any) -> Callable:
        compute = layer._compute_attention
        return lambda *args, **kwargs: substitution.attend(layer, compute, args, kwargs)

    # KerasHub's layers look both up when they are called.
    keras.ops.slice_update = slice_update
    for layer in layers:
        vars(layer)["_compute_attention"] = attention(layer)
    try:
        yield substitution
    finally:
        keras.ops.slice_update = original
        for layer in layers:
            del vars(layer)["_compute_attention"]
