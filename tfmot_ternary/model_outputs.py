"""Model outputs: what a model of either Keras puts out (shape; logits or probabilities)."""

from __future__ import annotations

from typing import Any

__all__ = ["check_shapes", "ends_in_softmax", "fit", "flavour", "static_shape"]


def flavour(model: Any, role: str) -> str:
    """Returns "keras" (Keras 3) or "tf_keras".

    Args:
      model: what should be a model.
      role: what it is called in the error.

    Raises:
      TypeError: it is no model of either Keras.
    """
    # Looked up in what is loaded rather than imported: nobody's model is of a Keras that is not
    # imported yet.
    import sys

    for name in ("keras", "tf_keras"):
        module = sys.modules.get(name)
        # Where TF_USE_LEGACY_KERAS is set, Keras 2 is called tf_keras, too: the module's own name
        # decides.
        if module is not None and isinstance(model, module.Model):
            return name
    raise TypeError(
        f"expected the {role} to be a keras.Model (Keras 3) or a tf_keras.Model, "
        f"got {type(model).__name__}"
    )


def ends_in_softmax(model: Any) -> bool:
    """Tells whether a model's last layer gives probabilities."""
    layer = model
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    # tfmot's QuantizeWrapperV2 (and any other wrapper) keeps the real layer in `.layer`.
    layer = getattr(layer, "layer", layer)
    if type(layer).__name__ == "Softmax":
        return True
    activation = getattr(layer, "activation", None)
    # tfmot's QuantizeAwareActivation keeps the real activation in `.activation`.
    activation = getattr(activation, "activation", activation)
    return getattr(activation, "__name__", "") == "softmax"


def static_shape(model: Any) -> Any:
    """Returns the output shape where the model knows it, else None."""
    try:
        return model.output_shape
    except (AttributeError, RuntimeError, NotImplementedError):
        return None  # a subclassed model: shapes are checked when it is called


def check_shapes(student: Any, teacher: Any) -> None:
    """Checks that student and teacher have one output each, of one shape.

    Args:
      student: shape with None for unknown sizes, or None where nothing is known.
      teacher: alike.

    Raises:
      ValueError: they do not.
    """
    for role, shape in (("student", student), ("teacher", teacher)):
        if isinstance(shape, (dict, list)) or (
            isinstance(shape, tuple) and any(isinstance(part, (tuple, list)) for part in shape)
        ):
            raise ValueError(
                f"expected the {role} to have one output, got outputs of shapes {shape}"
            )
    if student is None or teacher is None:
        return
    if not fit(student, teacher):
        raise ValueError(
            f"expected student and teacher to give outputs of one shape, got "
            f"{tuple(student)} from the student and {tuple(teacher)} from the teacher; both need "
            "the same classes (or vocabulary) and positions"
        )


def fit(a: Any, b: Any) -> bool:
    """Tells whether two shapes, with None for unknown sizes, may be the same."""
    sizes = zip(a, b, strict=False)
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in sizes)
