"""GradualQuantization: a callback that takes a model from float to quantized while it trains."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfmot_ternary.quantizers import BinaryQuantizer, TernaryQuantizer

__all__ = ["GradualQuantization"]


class GradualQuantization:
    """Keras callback: steps of training see kernels (1 - f) * w + f * q(w), f growing from 0 to 1.

    w is the float kernel of each quantized layer, q(w) its quantized value. f is 0 until the
    optimizer has made `begin` steps, grows linearly, and is 1 from step `begin + steps` on. The
    gradient goes straight through to w; the scales get theirs times f.

        model.fit(x, y, callbacks=[tt.GradualQuantization(steps=1000)])

    Only steps of training see f. `evaluate`, `predict`, the validation inside `fit` and everything
    that is saved or exported use quantized kernels all the time; so does the model once `fit` is
    over, be it early or by an exception. f follows the optimizer's count of steps, so that training
    which is resumed with the optimizer's state goes on where it stopped. With `steps_per_execution`
    above 1, f changes once an execution.

    One class serves tf_keras and Keras 3: it is a `Callback` of each of them that is loaded. The
    model may be a Distiller of a quantized student.

    Attributes:
      fraction: the tf.Variable that holds f.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        if cls is GradualQuantization:
            # Nobody has a model of a Keras that is not loaded yet.
            loaded = tuple(name for name in ("tf_keras", "keras") if name in sys.modules)
            return super().__new__(_callback_class(loaded))
        return super().__new__(cls)

    def __init__(self, steps: int, begin: int = 0) -> None:
        """Makes the callback.

        Args:
          steps: steps of the optimizer over which f grows from 0 to 1; >= 1.
          begin: steps of the optimizer before that; >= 0.

        Raises:
          ValueError: for numbers outside of that.
        """
        if steps < 1 or begin < 0:
            raise ValueError(
                f"expected steps >= 1 and begin >= 0, got steps={steps} and begin={begin}"
            )
        super().__init__()
        self._supports_tf_logs = True  # reads none; spares tf_keras a copy of them each batch
        self.steps = int(steps)
        self.begin = int(begin)
        self.fraction = tf.Variable(0.0, trainable=False, name="quantized_fraction")
        self._announced = False
        self._train_function: Any = None

    # Keras 3's Callback has a property without a setter here, tf_keras' an attribute.
    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._model = model

    def fraction_at(self, step: int) -> float:
        """f of the step that follows `step` finished steps of the optimizer."""
        return min(1.0, max(0.0, (step - self.begin) / self.steps))

    def blended(self, function: Callable[..., Any], model: Any, optimizer: Any) -> Any:
        """For custom loops: `function`, one step of training, with f on the layers while it runs.

        Args:
          function: a function of any arguments, as a rule a tf.function. Do not call it by itself
            before: what it was traced with stays in it.
          model: the model or Distiller that it trains.
          optimizer: the optimizer that counts the steps.

        Returns:
          A function of the same arguments and result.

        Raises:
          ValueError: if the model has no quantized layer.
        """
        holders = _holders(model)

        def step(*args: Any, **kwargs: Any) -> Any:
            self._follow(optimizer)
            with self._on(holders):
                return function(*args, **kwargs)

        return step

    def on_train_begin(self, logs: Any = None) -> None:
        """Has the model train with f.

        Raises:
          ValueError: if the model has no quantized layer.
        """
        del logs
        model, holders = self.model, _holders(self.model)
        traced = _fresh_train_function(model)

        def train_function(iterator: Any) -> Any:
            # An exception ends `fit` without on_train_end: then the next caller, who has not
            # announced a step of this callback, gets the model's own train function.
            if not self._announced:
                return _fresh_train_function(model)(iterator)
            self._announced = False
            with self._on(holders):
                return traced(iterator)

        self._train_function = model.train_function = train_function

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets f for the step."""
        del batch, logs
        self._follow(self.model.optimizer)
        self._announced = True

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the model its own train function back; it is traced anew when it is next used."""
        del logs
        if self.model.train_function is self._train_function:
            self.model.train_function = None
        self._train_function = None

    def _follow(self, optimizer: Any) -> None:
        self.fraction.assign(self.fraction_at(int(optimizer.iterations.numpy())))

    @contextlib.contextmanager
    def _on(self, holders: list[Any]) -> Iterator[None]:
        # Not setattr: Keras would track the variable as one of the layer's own.
        for holder in holders:
            vars(holder)["quantized_fraction"] = self.fraction
        try:
            yield
        finally:
            for holder in holders:
                vars(holder).pop("quantized_fraction", None)


@functools.cache
def _callback_class(loaded: tuple[str, ...]) -> type:
    callbacks = [importlib.import_module(name).callbacks.Callback for name in loaded]
    members = {"__module__": __name__, "__doc__": GradualQuantization.__doc__}
    return type("GradualQuantization", (GradualQuantization, *callbacks), members)


def _fresh_train_function(model: Any) -> Any:
    # Of tf_keras the function is returned as well, of Keras 3 it is not.
    model.make_train_function(force=True)
    return model.train_function


def _holders(model: Any) -> list[Any]:
    """What reads `quantized_fraction` in a model: tf_keras' quantizers, Keras 3's layers."""
    keras3 = sys.modules.get("keras")
    if keras3 is not None and isinstance(model, keras3.Model):
        from tfmot_ternary.keras3_layers import is_quantized
        from tfmot_ternary.keras3_structure import nested_layers

        holders = [layer for _, layer in nested_layers(model) if is_quantized(layer)]
    else:
        holders = [
            quantizer
            for layer in model._flatten_layers()
            for _, quantizer, _ in getattr(layer, "_weight_vars", ())  # tfmot's quantize wrappers
            if isinstance(quantizer, (BinaryQuantizer, TernaryQuantizer))
        ]
    if not holders:
        raise ValueError(
            f"expected a model with ternary or binary layers, got {model.name!r} without any; make "
            "one by tfmot_ternary.quantize_apply(model, scheme) and train that"
        )
    return holders
