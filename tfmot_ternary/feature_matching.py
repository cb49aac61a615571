"""Feature matching: finds named layers of a model and catches what they put out when it is called.

A layer is intercepted where it is called, for the time of one call of the model. A model of the
layer's output would be shorter, but only Functional models have one: the blocks of KerasHub
models, and all layers inside subclassed ones, are no nodes of a graph.
"""

from __future__ import annotations

import difflib
import functools
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfmot_ternary.distillation_loss import feature_loss, position_weights
from tfmot_ternary.model_outputs import fit

__all__ = ["FeatureCapture", "Features", "feature_pairs", "layers_by_path", "matched_loss"]

# Name of a layer -> its outputs, one a call, in the order of the calls.
Features = dict[str, tuple[tf.Tensor, ...]]


def feature_pairs(features: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Returns student layer -> teacher layer; a plain name stands for both.

    Raises:
      TypeError: names that are no strings.
    """
    if features is None:
        return {}
    if isinstance(features, str):
        features = (features,)
    pairs = dict(features) if isinstance(features, Mapping) else {n: n for n in features}
    for name in (*pairs, *pairs.values()):
        if not isinstance(name, str):
            raise TypeError(
                f"expected features to be names of layers, got {name!r}; give layer.name, or the "
                'path "outer/inner" of a layer inside another'
            )
    return pairs


def layers_by_path(model: Any) -> dict[str, Any]:
    """Returns path -> layer for every layer inside a model of either Keras.

    A path is made of the layers' names below the model ("encoder/block_1"). A wrapper, such as
    those of tfmot, is found under the name of the layer that it wraps, too.
    """
    paths: dict[str, Any] = {}
    short: dict[str, Any] = {}
    seen = {id(model)}

    def walk(parent: Any, prefix: str, short_prefix: str) -> None:
        for layer in parent._flatten_layers(recursive=False, include_self=False):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            paths.setdefault(prefix + layer.name, layer)
            plain = short_prefix + layer.name
            wrapped: Any = getattr(layer, "layer", None)
            if hasattr(wrapped, "_flatten_layers") and id(wrapped) not in seen:
                # Wrappers call the layer's `call` directly: the wrapper's output is the layer's.
                seen.add(id(wrapped))
                inner = f"{prefix}{layer.name}/{wrapped.name}"
                paths.setdefault(inner, wrapped)
                plain = short_prefix + wrapped.name
                walk(wrapped, inner + "/", plain + "/")
            short.setdefault(plain, layer)
            walk(layer, f"{prefix}{layer.name}/", plain + "/")

    walk(model, "", "")
    return {**short, **paths}


def _find(layers: Mapping[str, Any], name: str, role: str) -> Any:
    if name in layers:
        return layers[name]
    ends = [path for path in layers if path.endswith("/" + name)]
    close = list(dict.fromkeys(ends[:4] + difflib.get_close_matches(name, layers, n=4, cutoff=0.5)))
    known = f"close to it: {close}" if close else f"its layers: {list(layers)[:20]}"
    raise ValueError(
        f"expected the name or path of a layer of the {role}, got {name!r}; {known}; give "
        "one of them, or a dict {student layer: teacher layer} where the two differ"
    )


_lock = threading.Lock()
_interceptions: dict[int, int] = {}  # id of a layer -> calls of models that want its output now
_running = threading.local()  # replicas of a distributed step run in threads that take turns


@functools.cache
def _intercepted_class(base: Any) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = base.__call__(self, *args, **kwargs)
        for recorder in getattr(_running, "recorders", ()):
            recorder.record(self, outputs)
        return outputs

    members = {"__call__": call, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return types.new_class(base.__name__, (base,), {}, lambda body: body.update(members))


class _Recorder:
    """While entered, keeps the outputs of layers that are called in this thread."""

    def __init__(self, layers: Sequence[Any]):
        self._layers = layers
        self.outputs: dict[int, list[Any]] = {id(layer): [] for layer in layers}
        self.hidden: set[int] = set()

    def __enter__(self) -> _Recorder:
        # Outputs of another graph (the body of a loop, Keras trying out shapes) are of no use here.
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self._outer = getattr(_running, "recorders", ())
        _running.recorders = (*self._outer, self)
        with _lock:
            for layer in self._layers:
                count = _interceptions.get(id(layer), 0)
                _interceptions[id(layer)] = count + 1
                if not count:
                    # Not through Keras' __setattr__, which tracks.
                    cls: Any = type(layer)
                    object.__setattr__(layer, "__class__", _intercepted_class(cls))
        return self

    def __exit__(self, *exception: Any) -> None:
        _running.recorders = self._outer
        with _lock:
            for layer in self._layers:
                _interceptions[id(layer)] -= 1
                if not _interceptions[id(layer)]:
                    del _interceptions[id(layer)]
                    object.__setattr__(layer, "__class__", type(layer).__mro__[1])

    def record(self, layer: Any, outputs: Any) -> None:
        if id(layer) not in self.outputs:
            return
        tensors = [x for x in tf.nest.flatten(outputs) if isinstance(x, tf.Tensor)]
        if any(getattr(tensor, "graph", None) is not self._graph for tensor in tensors):
            self.hidden.add(id(layer))
        else:
            self.outputs[id(layer)].append(outputs)


class FeatureCapture:
    """Calls a model and returns the outputs of named layers beside the model's own.

    The model is as before when the call is over. It works on values and while a graph is traced,
    in several threads at once, and for any class of model and layer.

    Args:
      model: of either Keras.
      names: names or paths of layers, as `layers_by_path` gives them.
      role: what the model is called in errors.

    Raises:
      ValueError: an unknown name.
    """

    def __init__(self, model: Any, names: Sequence[str], role: str):
        layers = layers_by_path(model) if names else {}
        self._model = model
        self._role = role
        self._layers = {name: _find(layers, name, role) for name in names}

    def __call__(self, inputs: Any, **kwargs: Any) -> tuple[Any, Features]:
        """Calls the model.

        Returns:
          (the model's outputs, name -> outputs of the layer).

        Raises:
          ValueError: a layer was not called, or gave anything but one tensor [batch, ...,
            channels].
        """
        if not self._layers:
            return self._model(inputs, **kwargs), {}
        distinct = {id(layer): layer for layer in self._layers.values()}
        with _Recorder(list(distinct.values())) as recorder:
            outputs = self._model(inputs, **kwargs)
        return outputs, dict(self._features(recorder))

    def _features(self, recorder: _Recorder) -> Iterator[tuple[str, tuple[tf.Tensor, ...]]]:
        for name, layer in self._layers.items():
            calls = recorder.outputs[id(layer)]
            where = f"layer {name!r} of the {self._role}"
            if not calls:
                why = (
                    "it runs inside a loop, a branch or a function of its own"
                    if id(layer) in recorder.hidden
                    else "it was not called"
                )
                raise ValueError(
                    f"expected {where} to be called with the model, but {why}; name a layer "
                    "around or behind it"
                )
            for output in calls:
                if not isinstance(output, tf.Tensor) or output.shape.rank in (0, 1):
                    got = getattr(output, "shape", type(output).__name__)
                    raise ValueError(
                        f"expected {where} to give one tensor [batch, ..., channels], got {got}; "
                        "name a layer around or behind it"
                    )
            yield name, tuple(calls)


def matched_loss(
    pairs: dict[str, str], teacher: Features, student: Features, weights: list[Any]
) -> tf.Tensor:
    """Returns the feature loss, averaged over all pairs and calls.

    Args:
      pairs: student layer -> teacher layer.
      teacher, student: outputs of those layers.
      weights: masks and sample weights, or None; those of a fitting shape count, and the student
        feature's own mask.

    Raises:
      ValueError: the shapes or the numbers of calls differ.
    """
    losses = []
    for name, other in pairs.items():
        ours, theirs = student[name], teacher[other]
        if len(ours) != len(theirs):
            raise ValueError(
                f"expected student layer {name!r} and teacher layer {other!r} to be called equally "
                f"often, got {len(ours)} and {len(theirs)} calls; name layers around or behind them"
            )
        for a, b in zip(ours, theirs, strict=True):
            if not fit(a.shape, b.shape):
                raise ValueError(
                    f"expected student layer {name!r} and teacher layer {other!r} to give outputs "
                    f"of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; name layers of "
                    "equal width"
                )
            candidates = [getattr(a, "_keras_mask", None), *weights]
            losses.append(feature_loss(b, a, position_weights(a.shape[:-1].as_list(), candidates)))
    return tf.add_n(losses) / len(losses)
