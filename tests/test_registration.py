"""The C++ side: its own tests, and registration from C++ on TensorFlow's resolver."""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import op_oracle as oracle
import pytest
from model_builder import ModelBuilder

from tfmot_ternary import packing, runtime

ROOT = pathlib.Path(runtime.__file__).resolve().parent.parent
TFLITE = ROOT / "custom_ops" / "tflite"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_ops", ROOT / "custom_ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["flexbuffer_test", "register_test"])
def test_cpp(name, build, tmp_path):
    program = build.build_program([TFLITE / f"{name}.cc"], tmp_path / name)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{name}: passed" in result.stdout


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_registration_from_cpp(build, tmp_path):
    """C++ code registers an op of its own and ours on the resolver that TensorFlow hands it."""
    tensorflow = pathlib.Path(importlib.util.find_spec("tensorflow").origin).parent
    library = runtime.ops_library()
    example = build.build_program(
        [TFLITE / "resolver_example.cc"],
        tmp_path / "libresolver_example.so",
        link_flags=[
            "-shared",
            f"-L{tensorflow}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2",
            f"-L{library.parent}", f"-l:{library.name}", f"-Wl,-rpath,{library.parent}",
        ],
        with_library=False,
    )  # fmt: skip
    from tensorflow.lite.python import interpreter as tf_lite

    rng = np.random.default_rng(51)
    codes, scales = oracle.random_codes(rng, 8, 30, "b1"), oracle.random_scales(rng, 8, 30, 0)
    builder = ModelBuilder()
    graph = builder.graph()
    x, h, y = graph.input([-1, 30]), graph.intermediate([1, 30]), graph.output([1, 8])
    graph.custom("example.negate", [x], [h], b"")
    packed = graph.constant(packing.pack(codes, "b1"))
    graph.custom(
        "tfmot_ternary.fully_connected",
        [h, packed, graph.constant(scales)],
        [y],
        {"weight_format": "b1"},
    )
    ctypes.CDLL(str(example), mode=ctypes.RTLD_GLOBAL)
    interpreter = tf_lite.InterpreterWithCustomOps(
        custom_op_registerers=["ExampleRegisterOps"], model_content=builder.build()
    )
    value = rng.standard_normal((4, 30)).astype(np.float32)
    np.testing.assert_array_equal(
        oracle.run(interpreter, value), oracle.fully_connected(-value, codes, scales)
    )


def test_no_resolver_in_the_process():
    """Without TensorFlow's C++ library the symbol says so and does nothing."""
    library = str(runtime.ops_library())
    code = f"import ctypes; ctypes.CDLL({library!r}).TfmotTernaryRegisterOps(None)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "expected tflite::MutableOpResolver::AddCustom in this process" in result.stderr
