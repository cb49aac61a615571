"""The external delegate: partial claims, signatures, many interpreters at once; the C ABI."""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib
import threading

import numpy as np
import op_oracle as oracle
import pytest
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from model_builder import ModelBuilder

from tfmot_ternary import packing, runtime

ROOT = pathlib.Path(runtime.__file__).resolve().parent.parent
BUILTIN_ADD, BUILTIN_CUSTOM, DELEGATE = 0, 32, 51


def build_module():
    spec = importlib.util.spec_from_file_location("build_ops", ROOT / "custom_ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interpreters():
    from tensorflow.lite.python import interpreter as tf_lite

    return {"litert": litert, "tf": tf_lite}


def add_constant(graph, x: int, value: float, y: int) -> None:
    constant = graph.constant(np.float32(value))
    graph.builtin(
        schema.BuiltinOperator.ADD, [x, constant], [y],
        schema.BuiltinOptions.AddOptions, schema.AddOptionsT(),
    )  # fmt: skip


def ternary_layer(graph, x: int, codes, scales, y: int, weight_format: str = "t2") -> None:
    packed = graph.constant(packing.pack(codes, weight_format))
    graph.custom(
        "tfmot_ternary.fully_connected",
        [x, packed, graph.constant(scales)],
        [y],
        {"weight_format": weight_format},
    )


@pytest.fixture(scope="module")
def layers():
    rng = np.random.default_rng(31)
    return [
        (oracle.random_codes(rng, 48, 48, "t2"), oracle.random_scales(rng, 48, 48, 0) / 16)
        for _ in range(4)
    ]


def chain_model(layers) -> bytes:
    """ours, ADD, ours, ours, ADD, ours: claimed nodes alone, next to each other, at both ends."""
    builder = ModelBuilder()
    graph = builder.graph()
    h = graph.input([-1, 48])
    for i, (codes, scales) in enumerate(layers):
        last = i == len(layers) - 1
        y = graph.output([1, 48]) if last else graph.intermediate([1, 48])
        ternary_layer(graph, h, codes, scales, y)
        h = y
        if i in (0, 2):
            h = graph.intermediate([1, 48])
            add_constant(graph, y, 0.5, h)
    return builder.build()


def chain_expected(layers, x):
    for i, (codes, scales) in enumerate(layers):
        x = oracle.fully_connected(x, codes, scales)
        if i in (0, 2):
            x = x + np.float32(0.5)
    return x


@pytest.mark.parametrize("backend", ["litert", "tf"])
def test_partial_claims(backend, layers):
    """Our nodes are ours, one kernel each; the builtin ones still go to XNNPACK."""
    interpreter = runtime.make_interpreter(
        chain_model(layers), 2, backend=backend, registration="delegate"
    )
    for m in (1, 5, 2):
        x = np.random.default_rng(m).standard_normal((m, 48)).astype(np.float32)
        np.testing.assert_array_equal(oracle.run(interpreter, x), chain_expected(layers, x))
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    # The original nodes stay listed; ours have 4 kernels, XNNPACK has one for each ADD.
    assert names.count("DELEGATE") == 4 + 2, names


@pytest.mark.parametrize("backend", ["litert", "tf"])
def test_other_custom_ops_stay_unclaimed(backend):
    builder = ModelBuilder()
    graph = builder.graph()
    x, y = graph.input([1, 8]), graph.output([1, 8])
    graph.custom("tfmot_ternary.not_an_op", [x], [y], {})
    interpreter = runtime.make_interpreter(
        builder.build(), backend=backend, registration="delegate"
    )
    with pytest.raises(RuntimeError, match="tfmot_ternary.not_an_op"):
        interpreter.allocate_tensors()


@pytest.mark.parametrize("way", [("litert", "delegate"), ("tf", "delegate"), ("tf", "resolver")])
def test_prefill_and_decode_signatures(way, layers):
    """Two subgraphs that share the packed weights, resized and called in turns."""
    codes, scales = layers[0]
    builder = ModelBuilder()
    shared = None
    for name in ("prefill", "decode"):
        graph = builder.graph(name)
        x, y = graph.input([-1, 48], name=f"{name}_x"), graph.output([1, 48], name=f"{name}_y")
        packed = graph.constant(packing.pack(codes, "t2"))
        if shared is None:
            shared = graph.subgraph.tensors[packed].buffer
        graph.subgraph.tensors[packed].buffer = shared
        graph.custom(
            "tfmot_ternary.fully_connected",
            [x, packed, graph.constant(scales)],
            [y],
            {"weight_format": "t2", "activation": "relu" if name == "decode" else "none"},
        )
        graph.signature(name, {"x": x}, {"y": y})
    interpreter = runtime.make_interpreter(builder.build(), 2, backend=way[0], registration=way[1])
    prefill, decode = map(interpreter.get_signature_runner, ("prefill", "decode"))
    rng = np.random.default_rng(32)
    for m in (9, 1, 17):
        x = rng.standard_normal((m, 48)).astype(np.float32)
        np.testing.assert_array_equal(prefill(x=x)["y"], oracle.fully_connected(x, codes, scales))
        for _ in range(2):
            x = rng.standard_normal((1, 48)).astype(np.float32)
            np.testing.assert_array_equal(
                decode(x=x)["y"], oracle.fully_connected(x, codes, scales, activation="relu")
            )


def test_an_input_of_unknown_size(layers):
    """The output of a RESHAPE whose shape is computed: Prepare happens in the middle of a run."""
    codes, scales = layers[0]
    builder = ModelBuilder()
    graph = builder.graph()
    x, shape = graph.input([6, 48]), graph.input([2], np.int32)
    rows, y = graph.intermediate([1, 48]), graph.output([1, 48])
    graph.builtin(
        schema.BuiltinOperator.RESHAPE, [x, shape], [rows],
        schema.BuiltinOptions.ReshapeOptions, schema.ReshapeOptionsT(),
    )  # fmt: skip
    ternary_layer(graph, rows, codes, scales, y)
    interpreter = runtime.make_interpreter(builder.build(), 2)
    value = np.random.default_rng(33).standard_normal((6, 48)).astype(np.float32)
    for wanted in ((6, 48), (2, 144), (6, 48)):
        if wanted[1] != 48:
            with pytest.raises(RuntimeError, match="expected packed of shape"):
                oracle.run(interpreter, value, np.array(wanted, np.int32))
            continue
        got = oracle.run(interpreter, value, np.array(wanted, np.int32))
        np.testing.assert_array_equal(got, oracle.fully_connected(value, codes, scales))


@pytest.mark.parametrize("way", [("litert", "delegate"), ("tf", "delegate"), ("tf", "resolver")])
def test_interpreters_in_several_threads(way, layers):
    """Made, resized, run and dropped in four threads at once."""
    model = chain_model(layers)
    runtime.make_interpreter(model, 1, backend=way[0], registration=way[1])  # imports, once
    failures = []

    def work(seed: int) -> None:
        try:
            rng = np.random.default_rng(seed)
            for _ in range(3):
                interpreter = runtime.make_interpreter(
                    model, int(rng.integers(1, 4)), backend=way[0], registration=way[1]
                )
                for m in rng.integers(1, 30, 4):
                    x = rng.standard_normal((int(m), 48)).astype(np.float32)
                    got = oracle.run(interpreter, x)
                    np.testing.assert_array_equal(got, chain_expected(layers, x))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_one_delegate_for_several_interpreters(layers):
    delegate = litert.load_delegate(str(runtime.ops_library()), {"num_threads": 2})
    model = chain_model(layers)
    made = [
        litert.Interpreter(model_content=model, experimental_delegates=[delegate]) for _ in range(3)
    ]
    x = np.random.default_rng(34).standard_normal((4, 48)).astype(np.float32)
    for interpreter in (*made, *reversed(made)):
        np.testing.assert_array_equal(oracle.run(interpreter, x), chain_expected(layers, x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 2}, 'expected option num_threads, got "threads"'),
        ({"num_threads": "two"}, 'got "two"'),
        ({"num_threads": -1}, 'got "-1"'),
        ({"num_threads": ""}, 'got ""'),
        ({"num_threads": "3 "}, 'got "3 "'),
        ({"num_threads": 10**30}, "expected num_threads from 0"),
    ],
)
def test_bad_delegate_options(options, words):
    for module in interpreters().values():
        with pytest.raises(ValueError, match="tfmot_ternary delegate") as raised:
            module.load_delegate(str(runtime.ops_library()), options)
        assert words in str(raised.value)


@pytest.mark.parametrize("num_threads", [0, 1, 2, 16])
def test_num_threads_of_the_delegate(num_threads, layers):
    delegate = litert.load_delegate(str(runtime.ops_library()), {"num_threads": num_threads})
    interpreter = litert.Interpreter(
        model_content=chain_model(layers), experimental_delegates=[delegate]
    )
    x = np.random.default_rng(35).standard_normal((40, 48)).astype(np.float32)
    np.testing.assert_array_equal(oracle.run(interpreter, x), chain_expected(layers, x))


def thread_count() -> int:
    return len(list(pathlib.Path("/proc/self/task").iterdir()))


def test_threads_end_with_the_interpreter(layers):
    """One pool for all ops and subgraphs of an interpreter; nothing is left behind."""
    model = chain_model(layers)
    x = np.zeros((1, 48), np.float32)
    delegate = litert.load_delegate(str(runtime.ops_library()), {"num_threads": 5})
    before = thread_count()
    interpreter = litert.Interpreter(model_content=model, experimental_delegates=[delegate])
    oracle.run(interpreter, x)
    assert thread_count() == before + 4
    del interpreter
    assert thread_count() == before


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("backend", ["litert", "tf"])
def test_abi(backend, tmp_path):
    """Every field that the ops read, seen through our declarations in this wheel."""
    build = build_module()
    probe = build.build_program(
        [ROOT / "custom_ops" / "tflite" / "abi_probe.cc"], tmp_path / "libabi_probe.so",
        link_flags=["-shared"], with_library=False,
    )  # fmt: skip
    builder = ModelBuilder()
    graph = builder.graph()
    x = graph.input([-1, 3, 48], name="x")
    constant = graph.constant(np.zeros((5, 7), np.uint8), name="constant")
    ids = graph.input([2], np.int32, name="ids")
    y, z = graph.intermediate([1, 3, 48], name="y"), graph.output([4], name="z")
    add_constant(graph, x, 1.0, y)
    graph.custom("tfmot_ternary.fully_connected", [y, constant, -1], [z], b"12345")
    module = interpreters()[backend]
    delegate = module.load_delegate(str(probe))
    module.Interpreter(
        model_content=builder.build(), num_threads=3, experimental_delegates=[delegate]
    )
    text = ctypes.CDLL(str(probe)).abi_probe_text
    text.restype = ctypes.c_char_p
    lines = text().decode().splitlines()
    assert lines[0] == "threads 3"
    # name; type; allocation (1 mapped, 2 arena); bytes; variable; shape; signature
    expected_tensors = [
        "tensor x;1;2;576;0;1,3,48;-1,3,48;",
        "tensor constant;3;1;35;0;5,7;;",
        "tensor ids;2;2;8;0;2;;",
        "tensor y;1;2;576;0;1,3,48;;",
        "tensor z;1;2;16;0;4;;",
        "tensor tensor_5;1;1;4;0;;;",
    ]
    assert lines[1:7] == expected_tensors
    expected_nodes = [
        f"node {BUILTIN_ADD};;1;0;1;{x},5;{y};",
        f"node {BUILTIN_CUSTOM};tfmot_ternary.fully_connected;1;5;1;{y},{constant},-1;{z};",
    ]
    nodes = [line for line in lines if line.startswith("node")]
    assert nodes == expected_nodes, ids
