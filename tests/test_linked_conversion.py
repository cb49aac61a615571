"""Linked conversion: the file is the same model as the one that the converter makes by itself."""

from __future__ import annotations

import keras3_models
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import keras3, linked_conversion, runtime
from tfmot_ternary.conversion import convert_functions
from tfmot_ternary.freezing import freeze
from tfmot_ternary.scheme import TernaryScheme


@pytest.fixture(scope="module")
def model():
    return freeze(keras3.quantize(keras3_models.mixed_model(), TernaryScheme(32)))


def functions(model):
    """Two signatures of one model, the second without its first layers' batch dimension."""
    shape = model.inputs[0].shape[1:]

    def one(x):
        return {"y": model(x)}

    def pair(first, second):
        return {"sum": model(first) + model(second), "first": model(first)}

    spec = tf.TensorSpec([1, *shape], tf.float32)
    return {"one": (one, {"x": spec}), "pair": (pair, {"first": spec, "second": spec})}


def arrays_of(model):
    return [(variable, np.array(variable.value)) for variable in model.variables]


def ordinary(functions):
    return convert_functions(
        {
            name: tf.function(function, autograph=False).get_concrete_function(
                **{n: tf.TensorSpec(s.shape, s.dtype, n) for n, s in specs.items()}
            )
            for name, (function, specs) in functions.items()
        }
    )


@pytest.fixture(scope="module")
def linked(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("linked") / "model.tflite"
    linked_conversion.convert(functions(model), arrays_of(model), path, metadata={"note": b"hello"})
    return path


@pytest.mark.parametrize("backend", runtime.BACKENDS)
def test_equals_the_ordinary_conversion(model, linked, backend):
    rng = np.random.default_rng(1)
    shape = (1, *model.inputs[0].shape[1:])
    x, z = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    found = runtime.make_interpreter(linked, backend=backend)
    wanted = runtime.make_interpreter(ordinary(functions(model)), backend=backend)
    for name, inputs in (("one", {"x": x}), ("pair", {"first": x, "second": z})):
        got = found.get_signature_runner(name)(**inputs)
        want = wanted.get_signature_runner(name)(**inputs)
        assert got.keys() == want.keys()
        for key in want:  # the same operators on the same numbers
            np.testing.assert_array_equal(got[key], want[key])
