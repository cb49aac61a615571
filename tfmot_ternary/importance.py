"""Importances by the path of a layer, as schemes take them: how much an error on a weight costs.

They are read when a model is quantized and never saved. A path is a layer's name; of a layer inside
another, the names joined by "/". So are the kernels of a layer that has several.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["below", "checked", "require_names"]


def checked(importance: Any) -> Mapping[str, Any]:
    """The mapping itself; an empty one for None.

    Raises:
      TypeError: for something that is no mapping from names.
      ValueError: for an empty mapping.
    """
    if importance is None:
        return {}
    if not isinstance(importance, Mapping) or not all(isinstance(key, str) for key in importance):
        raise TypeError(
            "expected importance as a Calibration or a mapping from layer names to arrays, got "
            f"{type(importance).__name__}"
        )
    if not importance:
        raise ValueError("expected importance None or with at least one layer, got an empty one")
    return importance


def below(importance: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What there is for a layer (under "") and for what lies in it, by the paths from there."""
    found = {key[len(name) + 1 :]: importance[key] for key in importance if _within(key, name)}
    if name in importance:
        found[""] = importance[name]
    return found


def require_names(importance: Mapping[str, Any], names: Iterable[str], model: str) -> None:
    """Checks that importances belong to a model.

    Args:
      importance: by path.
      names: of the model's layers, or their paths.
      model: its name, for messages.

    Raises:
      ValueError: if no entry names a layer. If some do not, a warning names those.
    """
    names = list(names)
    known = set(names)
    unknown = [
        key
        for key in importance
        if key not in known and not any(_within(key, name) for name in names)
    ]
    if not unknown:
        return
    if len(unknown) == len(importance):
        raise ValueError(
            f"expected importance for layers of model {model!r} ({_listed(names)}), got it for "
            f"{_listed(unknown)}; calibrate this very model, and name its layers if the "
            "calibration comes from a file"
        )
    warnings.warn(
        f"importance names what is no layer of model {model!r}: {_listed(unknown)}", stacklevel=4
    )


def _within(key: str, name: str) -> bool:
    return key.startswith(name + "/")


def _listed(names: Iterable[str]) -> str:
    names = [repr(name) for name in names]
    more = [f"and {len(names) - 10} more"] if len(names) > 10 else []
    return ", ".join([*names[:10], *more])
