"""Interpreters: the ways to make one, and what is refused."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import op_oracle as oracle
import pytest
from model_builder import ModelBuilder

from tfmot_ternary import packing, runtime

WAYS = (("litert", None), ("litert", "delegate"), ("tf", None), ("tf", "delegate"),
        ("tf", "resolver"), (None, None))  # fmt: skip


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(41)
    return oracle.random_codes(rng, 24, 100, "t2"), oracle.random_scales(rng, 24, 100, 0)


@pytest.fixture(scope="module")
def model(layer) -> bytes:
    return oracle.packed_fully_connected([-1, 100], *layer, weight_format="t2")


@pytest.fixture
def model_file(model, tmp_path) -> pathlib.Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(model)
    return path


def test_ops_library_is_a_file():
    library = runtime.ops_library()
    assert library.is_absolute()
    assert library.is_file()


def test_missing_library(monkeypatch, tmp_path, model):
    missing = tmp_path / "nothing.so"
    monkeypatch.setenv("TFMOT_TERNARY_OPS_LIBRARY", str(missing))
    for call in (runtime.ops_library, lambda: runtime.make_interpreter(model)):
        with pytest.raises(FileNotFoundError, match="python custom_ops/build.py") as raised:
            call()
        assert str(missing) in str(raised.value)


def test_a_library_that_is_none(monkeypatch, tmp_path, model):
    other = tmp_path / "other.so"
    other.write_bytes(b"not a library")
    monkeypatch.setenv("TFMOT_TERNARY_OPS_LIBRARY", str(other))
    for backend, registration in (("litert", None), ("tf", "delegate"), ("tf", "resolver")):
        with pytest.raises(OSError, match="expected a library of custom ops .*other.so"):
            runtime.make_interpreter(model, backend=backend, registration=registration)


@pytest.mark.parametrize(("backend", "registration"), WAYS)
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "str", "path"])
def test_every_kind_of_model(kind, backend, registration, layer, model, model_file):
    given = {
        "bytes": model,
        "bytearray": bytearray(model),
        "memoryview": memoryview(model),
        "str": str(model_file),
        "path": model_file,
    }[kind]
    interpreter = runtime.make_interpreter(given, 2, backend=backend, registration=registration)
    x = np.random.default_rng(42).standard_normal((3, 100)).astype(np.float32)
    np.testing.assert_array_equal(oracle.run(interpreter, x), oracle.fully_connected(x, *layer))


def test_relative_path_and_str_name(model_file, monkeypatch):
    monkeypatch.chdir(model_file.parent)
    runtime.make_interpreter(model_file.name).allocate_tensors()


@pytest.mark.parametrize("backend", ["litert", "tf"])
def test_not_a_whole_file(backend, model, tmp_path):
    path = tmp_path / "cut.tflite"
    for size in (0, 1, 8, 15, 16, 40, 100, len(model) // 2, len(model) - 8):
        path.write_bytes(model[:size])
        for given in (path, model[:size]):
            with pytest.raises(ValueError, match=r"expected a") as raised:
                runtime.make_interpreter(given, backend=backend)
            assert "cut.tflite" in str(raised.value) or f"{size} bytes" in str(raised.value)


@pytest.mark.parametrize("backend", ["litert", "tf"])
def test_not_a_tflite_file(backend, model, tmp_path):
    path = tmp_path / "picture.tflite"
    path.write_bytes(b"\x89PNG\r\n" + b"\0" * 100)
    with pytest.raises(ValueError, match="b'TFL3' at byte 4"):
        runtime.make_interpreter(path, backend=backend)
    with pytest.raises(ValueError, match="expected a (model that .* can load|whole)"):
        runtime.make_interpreter(model[:8] + b"\xff" * 200, backend=backend)


@pytest.mark.parametrize("backend", ["litert", "tf"])
def test_a_file_without_subgraphs(backend, tmp_path):
    """Passes the runtimes' verification, and would crash them."""
    builder = ModelBuilder()
    builder.model.subgraphs = None
    path = tmp_path / "empty.tflite"
    path.write_bytes(builder.build())
    for given in (path, path.read_bytes()):
        with pytest.raises(ValueError, match="with subgraphs, got none"):
            runtime.make_interpreter(given, backend=backend)


def test_edited_models_never_crash(model):
    """Random bytes changed, away from the constants: an error with words, or a model that runs.

    In a process of its own, so that a crash would show as its exit status.
    """
    code = """
import sys
import numpy as np
from tfmot_ternary import runtime
model = sys.stdin.buffer.read()
rng = np.random.default_rng(43)
for _ in range(2000):
    edited = bytearray(model)
    for place in rng.integers(0, len(model), rng.integers(1, 4)):
        edited[place] = rng.integers(256)
    try:
        interpreter = runtime.make_interpreter(bytes(edited))
        interpreter.allocate_tensors()
        interpreter.invoke()
    except (ValueError, RuntimeError, MemoryError):
        pass
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], input=model, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == b"done"


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a .tflite file at .*none.tflite"):
        runtime.make_interpreter(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="got the directory"):
        runtime.make_interpreter(tmp_path)


@pytest.mark.parametrize("given", [None, 3, ["model.tflite"]])
def test_not_a_model(given):
    with pytest.raises(TypeError, match="expected the model as a path or as bytes"):
        runtime.make_interpreter(given)


@pytest.mark.parametrize("num_threads", [0, -1])
def test_too_few_threads(num_threads, model):
    with pytest.raises(ValueError, match=f"num_threads of at least 1, got {num_threads}"):
        runtime.make_interpreter(model, num_threads)


@pytest.mark.parametrize("num_threads", [1.0, "2", True])
def test_num_threads_of_another_type(num_threads, model):
    with pytest.raises(TypeError, match="expected num_threads as an int or None"):
        runtime.make_interpreter(model, num_threads)


def test_unknown_backend_and_registration(model):
    with pytest.raises(ValueError, match="expected backend to be one of .*'litert', 'tf'.*'onnx'"):
        runtime.make_interpreter(model, backend="onnx")
    with pytest.raises(ValueError, match="expected registration to be one of .*got 'global'"):
        runtime.make_interpreter(model, backend="tf", registration="global")
    with pytest.raises(ValueError, match="expected registration 'delegate' with backend 'litert'"):
        runtime.make_interpreter(model, backend="litert", registration="resolver")


def test_missing_packages(monkeypatch, model):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="install ai-edge-litert or tensorflow"):
        runtime.make_interpreter(model)
    with pytest.raises(ImportError, match="expected the package ai-edge-litert"):
        runtime.make_interpreter(model, backend="litert")


@pytest.mark.parametrize("first", ["litert", "tf"])
def test_both_backends_in_one_process(first, model_file):
    """The library is loaded once; the TensorFlow way must work after the LiteRT way too."""
    order = ["litert", "tf"] if first == "litert" else ["tf", "litert"]
    code = f"""
import numpy as np
from tfmot_ternary import runtime
outputs = []
for backend in {order!r}:
    interpreter = runtime.make_interpreter({str(model_file)!r}, backend=backend)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, np.linspace(-1, 1, 100, dtype=np.float32)[None])
    interpreter.invoke()
    outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
np.testing.assert_array_equal(*outputs)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@pytest.mark.parametrize(("backend", "registration"), WAYS[:-1])
def test_xnnpack_stays_on(backend, registration):
    """The builtin layers of a model with our ops go to XNNPACK, as they do without ours."""
    builder = ModelBuilder()
    graph = builder.graph()
    x, h = graph.input([4, 64]), graph.intermediate([4, 64])
    y, z = graph.output([4, 64]), graph.output([4, 16])
    weights = np.random.default_rng(44).standard_normal((64, 64)).astype(np.float32)
    graph.dense(x, weights, h)
    graph.dense(h, weights, y)
    packed = packing.pack(np.ones((16, 64), np.int8), "t2")
    graph.custom(
        "tfmot_ternary.fully_connected",
        [h, graph.constant(packed), graph.constant(np.ones(1, np.float32))],
        [z],
        {"weight_format": "t2"},
    )
    interpreter = runtime.make_interpreter(
        builder.build(), backend=backend, registration=registration
    )
    interpreter.allocate_tensors()
    kernels = interpreter._get_ops_details()[3:]  # after the three nodes of the model
    dense = [op for op in kernels if h in op["outputs"] or y in op["outputs"]]
    assert [op["op_name"] for op in dense] == ["DELEGATE"], kernels
    assert set(dense[0]["outputs"]) == {h, y}, "one kernel of XNNPACK for both layers"
