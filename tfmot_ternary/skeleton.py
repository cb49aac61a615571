"""Skeleton: a Keras 3 model whose variables have shapes but no values, and take no memory.

Inside `WithoutWeights` Keras only notes what a variable would be. Such a model is traced inside a
`keras.StatelessScope(state_mapping=...)`, which gives its variables their values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

__all__ = ["WithoutWeights", "is_skeleton"]

_UNINITIALIZED = "uninitialized_variables"

# Takes a variable and the array that was assigned to it, in the type that it came in.
Consume = Callable[[keras.Variable, np.ndarray], None]


class WithoutWeights(keras.StatelessScope):
    """Scope in which models are made without values; what is assigned to them is handed on.

    Args:
      consume: called with each (variable, array) that code inside assigns, such as KerasHub's
        loaders of presets; the array is kept nowhere else. An exception that it raises leaves the
        scope as it is, also where Keras catches the errors of a layer. None: values are dropped.
    """

    def __init__(self, consume: Consume | None = None) -> None:
        super().__init__(initialize_variables=False)
        self._consume = consume

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Keras calls this in place of an assignment."""
        variable, value = update
        if self._consume is None:
            return
        try:
            self._consume(variable, np.asarray(value))
        except Exception as error:
            raise _Stopped(error) from error

    def __enter__(self) -> WithoutWeights:
        # Keras lists variables without values here and gives all of them values as soon as another
        # scope ends: whatever is made in this scope must not stay on that list.
        self._outer = global_state.get_global_attribute(_UNINITIALIZED)
        self._made = _VariablesWithoutValues()
        global_state.set_global_attribute(_UNINITIALIZED, self._made)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        self._made.release()
        global_state.set_global_attribute(_UNINITIALIZED, self._outer or [])
        if isinstance(error, _Stopped):
            raise error.reason


class _VariablesWithoutValues(list[Any]):
    """Keras' list; a variable on it takes what is assigned as it is, without a float32 copy."""

    def append(self, variable: Any) -> None:
        variable._convert_to_tensor = _unchanged
        super().append(variable)

    def release(self) -> None:
        for variable in self:
            del variable._convert_to_tensor


def _unchanged(value: Any, dtype: Any = None) -> Any:
    del dtype
    return value


class _Stopped(BaseException):
    """Carries an exception past the handlers of Keras' loaders."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


def is_skeleton(model: keras.Model) -> bool:
    """Whether a model's variables have no values."""
    return any(variable._value is None for variable in model.weights)
