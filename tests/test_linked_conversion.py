"""Linked conversion: the file is the same model as the one that the converter makes by itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import big_model
import keras
import keras3_models
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import (
    inspection,
    keras3,
    linked_conversion,
    model_file,
    ops,
    packing,
    runtime,
    tflite_buffers,
)
from tfmot_ternary.conversion import convert_functions
from tfmot_ternary.freezing import freeze
from tfmot_ternary.model_file import ModelFile, ModelFileError
from tfmot_ternary.scheme import TernaryScheme

K, N = 300, 24
METADATA = {"note": b"hello", "record": bytes(range(256))}


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


@pytest.fixture(scope="module")
def ordinary(model):
    return convert_functions(
        {
            name: tf.function(function, autograph=False).get_concrete_function(
                **{n: tf.TensorSpec(s.shape, s.dtype, n) for n, s in specs.items()}
            )
            for name, (function, specs) in functions(model).items()
        }
    )


@pytest.fixture(scope="module")
def linked(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("linked") / "model.tflite"
    linked_conversion.convert(functions(model), arrays_of(model), path, metadata=METADATA)
    return path


@pytest.fixture(scope="module")
def beyond(model, linked, tmp_path_factory):
    """The same file as one beyond 2 GiB is made, with the limit set down."""
    path = tmp_path_factory.mktemp("beyond") / "model.tflite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tflite_buffers, "LARGEST_FLATBUFFER", linked.stat().st_size - 1)
        linked_conversion.convert(functions(model), arrays_of(model), path, metadata=METADATA)
    return path


@pytest.mark.parametrize("backend", runtime.BACKENDS)
@pytest.mark.parametrize("kind", ["linked", "beyond"])
def test_equals_the_ordinary_conversion(model, ordinary, kind, backend, request):
    path = request.getfixturevalue(kind)
    rng = np.random.default_rng(1)
    shape = (1, *model.inputs[0].shape[1:])
    x, z = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    wanted = runtime.make_interpreter(ordinary, backend=backend)
    for given in (path, path.read_bytes()):
        found = runtime.make_interpreter(given, backend=backend)
        for name, inputs in (("one", {"x": x}), ("pair", {"first": x, "second": z})):
            runner = found.get_signature_runner(name)
            assert sorted(runner.get_input_details()) == sorted(inputs)
            got = runner(**inputs)
            want = wanted.get_signature_runner(name)(**inputs)
            assert got.keys() == want.keys()
            for key in want:  # the same operators on the same numbers
                np.testing.assert_array_equal(got[key], want[key])


@pytest.mark.parametrize("kind", ["linked", "beyond"])
def test_what_is_in_the_file(model, kind, request):
    path = request.getfixturevalue(kind)
    file = ModelFile(path)
    for name, content in METADATA.items():
        assert file.metadata(name) == content
    found = inspection.inspect(path)
    assert found.signatures == ["one", "pair"]
    layers = [variable for variable in model.variables if variable.path.endswith("/packed")]
    assert sorted(w.tensor for w in found.weights) == sorted(v.path for v in layers)
    by_path = {variable.path: np.array(variable.value) for variable in layers}
    for weight in found.weights:
        assert weight.offset % 64 == 0
        assert weight.uses >= 3  # one buffer for both signatures, the second calls the model twice
        stored = path.read_bytes()[weight.offset : weight.offset + weight.bytes]
        assert stored == by_path[weight.tensor].tobytes()
    inside = [file.model.Buffers(i).Size() == 0 for i in range(file.model.BuffersLength())]
    assert all(inside) == (kind == "linked")
    # Buffers that are empty, other than the first one, would only make loading slower.
    empty = [i for i in range(1, len(inside)) if file.buffer_range(i) == (0, 0)]
    assert not empty


def variable(array, name="weight"):
    """An uninitialized Keras variable of the array's shape and type."""
    with keras.StatelessScope(initialize_variables=False):
        return keras.Variable(
            "zeros", array.shape, str(array.dtype), trainable=False, autocast=False, name=name
        )


def packed(seed=2):
    return packing.pack(np.random.default_rng(seed).integers(-1, 2, (N, K)), "t2")


def product(packed_variable, scales):
    def function(x):
        y = ops.fully_connected(x, packed_variable, scales, weight_format="t2")
        return {"y": y}

    return {"f": (function, {"x": tf.TensorSpec([1, K], tf.float32)})}


def run_product(path, x):
    return runtime.make_interpreter(path).get_signature_runner("f")(x=x)["y"]


def test_uninitialized_variables_and_a_weight_that_others_read_too(tmp_path):
    """Scales that a builtin operator changes first cannot be linked: they become a constant."""
    codes = packed()
    scales = np.linspace(1, 2, N, dtype=np.float32)
    bias = np.linspace(-1, 1, N, dtype=np.float32)
    variables = [variable(array) for array in (codes, scales, bias)]

    def function(x):
        y = ops.fully_connected(
            x, variables[0], variables[1] + 1.0, variables[2], weight_format="t2"
        )
        return {"y": y + variables[2]}

    spec = {"x": tf.TensorSpec([1, K], tf.float32)}
    path = tmp_path / "model.tflite"
    weights = list(zip(variables, (codes, scales, bias), strict=True))
    linked_conversion.convert({"f": (function, spec)}, weights, path)
    x = np.random.default_rng(3).standard_normal((1, K)).astype(np.float32)
    want = ops.fully_connected(x, codes, scales + 1, bias, weight_format="t2") + bias
    np.testing.assert_array_equal(run_product(path, x), want)


def test_one_array_for_two_variables_is_stored_once(tmp_path):
    codes, one = packed(), np.ones(1, np.float32)
    first, second = variable(codes), variable(codes)

    def function(x):
        return {
            name: ops.fully_connected(x * factor, weight, one, weight_format="t2")
            for name, weight, factor in (("a", first, 1.0), ("b", second, 2.0))
        }

    spec = {"x": tf.TensorSpec([1, K], tf.float32)}
    path = tmp_path / "model.tflite"
    linked_conversion.convert({"f": (function, spec)}, [(first, codes), (second, codes)], path)
    (weight,) = inspection.inspect(path).weights
    assert weight.uses == 2


def test_arrays_that_are_not_contiguous_or_mapped_for_changes(tmp_path):
    codes, one = packed(), np.ones(1, np.float32)
    place = np.memmap(tmp_path / "codes", np.uint8, "w+", shape=codes.shape)
    place[:] = codes
    place.flush()
    changed = np.memmap(tmp_path / "codes", np.uint8, "c", shape=codes.shape)
    other = packed(seed=9)
    changed[:] = other  # in no file
    for array, want in ((np.asfortranarray(codes), codes), (place, codes), (changed, other)):
        weight = variable(codes)
        linked_conversion.convert(product(weight, one), [(weight, array)], tmp_path / "m.tflite")
        (found,) = inspection.inspect(tmp_path / "m.tflite").weights
        content = (tmp_path / "m.tflite").read_bytes()
        assert content[found.offset : found.offset + found.bytes] == want.tobytes()
        np.testing.assert_array_equal(array, want)


def test_a_table_beyond_2_gib(tmp_path):
    """In b1, whose codes need no check, so that only the rows that are looked up are read."""
    row_bytes = packing.row_bytes(2048, "b1")
    rows = (1 << 31) // row_bytes + 1000
    table = big_model.sparse_array(tmp_path / "table", (rows, row_bytes))
    codes = np.random.default_rng(4).choice([-1, 1], (3, 2048))
    table[-3:] = packing.pack(codes, "b1")
    weight, scale = variable(table, "table"), np.full(1, 0.5, np.float32)

    def function(ids):
        return {
            "y": ops.embedding_lookup(ids, weight, scale, weight_format="b1", k=2048),
        }

    path = tmp_path / "model.tflite"
    spec = {"ids": tf.TensorSpec([2], tf.int32)}
    linked_conversion.convert({"f": (function, spec)}, [(weight, table)], path, metadata=METADATA)
    assert path.stat().st_size > 1 << 31
    assert os.stat(path).st_blocks * 512 < 100e6  # zeros became a hole
    (found,) = inspection.inspect(path).weights
    assert (found.tensor, found.shape, found.bytes) == ("table", [rows, 2048], table.nbytes)
    assert ModelFile(path).metadata("note") == b"hello"
    for backend in runtime.BACKENDS:
        runner = runtime.make_interpreter(path, backend=backend).get_signature_runner("f")
        y = runner(ids=np.array([0, rows - 1], np.int32))["y"]
        np.testing.assert_array_equal(y, 0.5 * np.stack([-np.ones(2048), codes[2]]))
    # Cut inside the table.
    os.truncate(path, (1 << 31) + 5)
    for backend in runtime.BACKENDS:
        with pytest.raises(ValueError, match=r"constant \d+ ends at byte .* it is truncated"):
            runtime.make_interpreter(path, backend=backend)
    with pytest.raises(ModelFileError, match="the file is truncated"):
        inspection.inspect(path)


@pytest.mark.parametrize("backend", runtime.BACKENDS)
@pytest.mark.parametrize("kind", ["linked", "beyond"])
def test_cut_or_edited_places_of_constants(kind, backend, tmp_path, request):
    content = request.getfixturevalue(kind).read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="it is truncated.*cut.tflite"):
        runtime.make_interpreter(path, backend=backend)
    with pytest.raises(ValueError, match="it is truncated.*bytes in memory"):
        runtime.make_interpreter(content[:-1], backend=backend)
    if kind == "beyond":  # an end beyond 64 bits
        buffer = ModelFile(request.getfixturevalue(kind)).model.Buffers(1)
        table = buffer._tab
        edited = bytearray(content)
        for field in (6, 8):
            at = table.Pos + table.Offset(field)
            edited[at : at + 8] = b"\xff" * 8
        path.write_bytes(edited)
        with pytest.raises(ValueError, match="it is truncated"):
            runtime.make_interpreter(path, backend=backend)
        with pytest.raises(ModelFileError, match="truncated"):
            ModelFile(path).buffer(1)


def test_weights_that_do_not_fit(tmp_path):
    codes, one = packed(), np.ones(1, np.float32)
    weight = variable(codes, "kernel")
    for array in (codes[:-1], codes.astype(np.int8)):
        with pytest.raises(
            ValueError, match="expected an array of uint8 .* variable 'kernel', got"
        ):
            linked_conversion.convert(product(weight, one), [(weight, array)], tmp_path / "m")
    with pytest.raises(ValueError, match="expected a value for the variable 'kernel'"):
        linked_conversion.convert(product(weight, one), [], tmp_path / "m")
    with pytest.raises(ValueError, match="at least one function"):
        linked_conversion.convert({}, [], tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    codes, one = packed(), np.ones(1, np.float32)
    weight = variable(codes)
    usage = shutil.disk_usage(tmp_path)._replace(free=1234)
    monkeypatch.setattr(model_file.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"room for [\d,]+ bytes, got 1,234 free") as raised:
        linked_conversion.convert(product(weight, one), [(weight, codes)], tmp_path / "m.tflite")
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_disk_that_gets_full(tmp_path):
    """A real limit, in a process of its own: the system refuses to write beyond 50,000 bytes."""
    (tmp_path / "old.tflite").write_bytes(b"old")
    code = """
import resource, signal, sys
import numpy as np
from tfmot_ternary import model_file, tflite_buffers
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
model = model_file.schema().ModelT()
model.buffers = [model_file.schema().BufferT() for _ in range(2)]
model.subgraphs = []
layout = tflite_buffers.FileLayout(model, {1: np.ones(100_000, np.uint8)})
try:
    with model_file.atomic_file(sys.argv[1], layout.size) as file:
        layout.write(file)
except OSError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "old.tflite")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "expected room for 100," in result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["old.tflite"]
    assert (tmp_path / "old.tflite").read_bytes() == b"old"
