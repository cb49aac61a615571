"""Streaming: the same bytes as in memory, little memory, and a run that may stop anywhere."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import causal_lms
import h5py
import keras
import keras_hub
import numpy as np
import pytest

from tfmot_ternary import (
    BinaryScheme,
    TernaryScheme,
    freeze,
    model_source,
    quantize_apply,
    streaming,
)
from tfmot_ternary.partial_folder import PartialFolder
from tfmot_ternary.preset_weights import PresetWeights
from tfmot_ternary.skeleton import WithoutWeights

MATRICES = 14  # of the Gemma: 7 in each of 2 blocks


def gemma(dtype: str = "float32") -> keras_hub.models.GemmaCausalLM:
    """The tests' Gemma with weights of another type."""
    model = causal_lms.gemma()
    if dtype == "float32":
        return model
    config = model.backbone.get_config()
    backbone = keras_hub.models.GemmaBackbone.from_config({**config, "dtype": dtype})
    for to, value in zip(backbone.weights, model.backbone.weights, strict=True):
        to.assign(keras.ops.cast(value, dtype))
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor=model.preprocessor)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Folders of presets: two families, three types, one in several files."""
    folder = tmp_path_factory.mktemp("presets")
    causal_lms.pali_gemma().save_to_preset(str(folder / "pali_gemma"))
    for dtype in ("float32", "bfloat16", "float16"):
        gemma(dtype).save_to_preset(str(folder / dtype))
    gemma("bfloat16").save_to_preset(str(folder / "sharded"), max_shard_size=5e-5)
    assert len(list((folder / "sharded").glob("model_*.weights.h5"))) > 1
    return folder


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "model.tflite")


def pack(preset, output, scheme=None, weight_format=None, **storage):
    scheme = scheme or TernaryScheme()
    return streaming.pack_preset(
        str(preset), output, scheme, weight_format, progress=False, **storage
    )


FROZEN = {}  # what freezing in memory gives, for the tests that ask again


def assert_same_as_in_memory(packed, preset, scheme, weight_format=None, **storage):
    key = (str(preset), repr(scheme), weight_format, tuple(storage.items()))
    if key not in FROZEN:
        quantized = quantize_apply(model_source.load(str(preset)), scheme)
        frozen = freeze(quantized, weight_format, **storage)
        FROZEN[key] = [(variable.path, variable.numpy()) for variable in frozen.weights]
    arrays = {id(variable): array for variable, array in packed.weights}
    assert len(arrays) == len(FROZEN[key])
    for ours, (path, expected) in zip(packed.causal_lm.weights, FROZEN[key], strict=True):
        array = arrays[id(ours)]
        assert array.dtype == expected.dtype, path
        np.testing.assert_array_equal(array, expected, err_msg=path)
        assert ours._value is None, "the skeleton got weights"


@pytest.mark.parametrize(
    ("preset", "scheme", "weight_format", "storage"),
    [
        ("pali_gemma", TernaryScheme(), None, {"tables": "i8", "others": "i8"}),
        ("pali_gemma", TernaryScheme(group_size=64), "t5", {"tables": "t2"}),
        ("pali_gemma", BinaryScheme(group_size=32, initializer="absmean"), None, {"others": "i8"}),
        ("float32", TernaryScheme(skip=["block_0", "query$"]), "t5", {"tables": "i4"}),
        ("bfloat16", TernaryScheme(initializer="lloyd"), None, {"tables": "i8", "others": "i8"}),
        ("bfloat16", TernaryScheme(group_size="tensor"), None, {}),
        ("bfloat16", TernaryScheme(keep_ends=True), "t2", {"tables": "t5:32"}),
        ("float16", TernaryScheme(initializer="twn"), None, {"tables": "i8"}),
        ("float16", BinaryScheme(), None, {}),
        ("sharded", TernaryScheme(embeddings=True), None, {}),
    ],
)
def test_same_bytes_as_in_memory(presets, output, preset, scheme, weight_format, storage):
    packed = pack(presets / preset, output, scheme, weight_format, **storage)
    assert_same_as_in_memory(packed, presets / preset, scheme, weight_format, **storage)


def test_rows_in_chunks_give_the_same_bytes(presets, output, monkeypatch):
    """Small chunks, so that the small matrices have several."""
    from tfmot_ternary import weight_storage

    for scheme in (TernaryScheme(), TernaryScheme(initializer="twn"), BinaryScheme(group_size=32)):
        with monkeypatch.context() as patch:
            patch.setattr(weight_storage, "_CHUNK", 200)
            packed = pack(presets / "bfloat16", output, scheme, tables="i4", others="i8")
        assert_same_as_in_memory(packed, presets / "bfloat16", scheme, tables="i4", others="i8")


# Skeletons


def test_skeleton_has_no_values_and_gets_none(presets):
    weights = PresetWeights(str(presets / "bfloat16"))
    with keras.StatelessScope():  # initializes what Keras has on its list when it ends
        pass
    assert weights.causal_lm.weights
    assert all(variable._value is None for variable in weights.causal_lm.weights)
    assert weights.causal_lm.preprocessor.tokenizer("what").shape
    assert all("_convert_to_tensor" not in v.__dict__ for v in weights.causal_lm.weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_stream_has_every_variable_in_its_own_type(presets, dtype):
    weights = PresetWeights(str(presets / dtype))
    arrays = {}
    weights.stream(lambda variable, array: arrays.update({id(variable): array}))
    model = model_source.load(str(presets / dtype))
    for variable, expected in zip(weights.causal_lm.weights, model.weights, strict=True):
        array = arrays.pop(id(variable))
        assert array.dtype.name == dtype
        np.testing.assert_array_equal(array.astype(np.float32), expected.numpy())
    assert not arrays


def test_errors_of_the_consumer_are_not_the_presets(presets):
    weights = PresetWeights(str(presets / "float32"))
    calls = []

    def consume(variable, array):
        calls.append(variable)
        raise OSError("the disk")

    with pytest.raises(OSError, match="^the disk$"):
        weights.stream(consume)
    assert len(calls) == 1  # Keras goes on behind an ordinary exception


def test_digest_tells_presets_apart(presets, tmp_path):
    preset = shutil.copytree(presets / "float32", tmp_path / "preset")
    before = PresetWeights(str(preset)).digest
    assert PresetWeights(str(presets / "float32")).digest == before
    with h5py.File(preset / "model.weights.h5", "a") as file:
        name = "layers/gemma_decoder_block_1/attention/value_dense/vars/0"
        file[name][0, 3, 5] += 0.001
    assert PresetWeights(str(preset)).digest != before


def test_with_nothing_to_consume_values_are_dropped():
    with WithoutWeights():
        layer = keras.layers.Dense(3)
        layer.build((None, 2))
        layer.kernel.assign(np.ones((2, 3), np.float32))
    assert layer.kernel._value is None
    assert layer.kernel.shape == (2, 3)


# Interruptions


class Stopped(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def counted(monkeypatch):
    """Counts packed matrices; raises at number `limit[0]`."""
    original = streaming._Matrix.pack
    lock, names, limit = threading.Lock(), [], [None]

    def counting(self, array):
        with lock:
            names.append(self.name)
            if len(names) == limit[0]:
                raise Stopped
        return original(self, array)

    monkeypatch.setattr(streaming._Matrix, "pack", counting)
    return names, limit


@pytest.mark.parametrize("stop_at", [1, 2, 7, MATRICES])
def test_a_stopped_run_goes_on(presets, output, counted, capsys, stop_at):
    names, limit = counted
    limit[0] = stop_at
    with pytest.raises(Stopped):
        pack(presets / "bfloat16", output)
    done = len(json.loads(open(f"{output}.partial/journal.json").read())["done"]) // 2
    assert stop_at - 2 <= done < MATRICES  # another thread may be at work on one
    names.clear()
    limit[0] = None
    packed = pack(presets / "bfloat16", output)
    assert len(names) == MATRICES - done
    assert_same_as_in_memory(packed, presets / "bfloat16", TernaryScheme())
    said = capsys.readouterr().out
    assert (f"{done} of {MATRICES} matrices are packed" in said) == (done > 0)
    names.clear()
    packed = pack(presets / "bfloat16", output)
    assert not names, "all is done"
    packed.folder.remove()
    assert not os.path.exists(f"{output}.partial")


@pytest.mark.parametrize(
    ("preset", "scheme", "weight_format", "tables"),
    [
        ("float32", TernaryScheme(), None, None),  # bfloat16 rounded: other weights
        ("bfloat16", TernaryScheme(initializer="lloyd"), None, None),
        ("bfloat16", TernaryScheme(group_size=64), None, None),
        ("bfloat16", TernaryScheme(skip=["query"]), None, None),
        ("bfloat16", TernaryScheme(), "t5", None),
        ("bfloat16", TernaryScheme(), None, "i8"),
        ("bfloat16", BinaryScheme(), None, None),
    ],
)
def test_another_request_begins_anew(
    presets, output, counted, capsys, preset, scheme, weight_format, tables
):
    names, limit = counted
    limit[0] = 6
    with pytest.raises(Stopped):
        pack(presets / "bfloat16", output)
    names.clear()
    limit[0] = None
    packed = pack(presets / preset, output, scheme, weight_format, tables=tables)
    assert len(names) == packed.matrices
    assert "begin anew" in capsys.readouterr().out
    assert_same_as_in_memory(packed, presets / preset, scheme, weight_format, tables=tables)


@pytest.mark.parametrize("damage", ["other byte", "short", "gone", "journal"])
def test_damaged_work_is_done_again(presets, output, counted, damage):
    names, _ = counted
    pack(presets / "bfloat16", output)
    names.clear()
    path = f"{output}.partial/{'journal.json' if damage == 'journal' else '3.packed.npy'}"
    content = bytearray(open(path, "rb").read())
    if damage == "gone":
        os.unlink(path)
    else:
        content[-1] ^= 1
        with open(path, "wb") as file:
            file.write(content if damage == "other byte" else content[:-20])
    packed = pack(presets / "bfloat16", output)
    assert len(names) == (MATRICES if damage == "journal" else 1)
    assert_same_as_in_memory(packed, presets / "bfloat16", TernaryScheme())


def test_a_folder_of_something_else_is_left_alone(presets, output):
    os.mkdir(f"{output}.partial")
    with open(f"{output}.partial/letter.txt", "w") as file:
        file.write("dear")
    with pytest.raises(ValueError, match=r"model\.tflite\.partial.*something else"):
        pack(presets / "bfloat16", output)
    assert os.listdir(f"{output}.partial") == ["letter.txt"]


# The disk


def test_full_disk(presets, output, counted):
    names, _ = counted
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the journal, keys and values (512 bytes and a header), not for 64 rows of 16 bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1100, limits[1]))
    try:
        with pytest.raises(OSError, match="free some space and run the same command") as error:
            pack(presets / "bfloat16", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{output}.partial" in str(error.value)
    assert not os.path.exists(output)
    names.clear()
    packed = pack(presets / "bfloat16", output)
    assert 0 < len(names) < MATRICES
    assert_same_as_in_memory(packed, presets / "bfloat16", TernaryScheme())


def test_too_little_space_is_seen_before_the_work(presets, output, counted, monkeypatch):
    names, _ = counted
    free = shutil.disk_usage(os.path.dirname(output))._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match="free space"):
        pack(presets / "bfloat16", output)
    assert not names


def test_arrays_of_a_folder(tmp_path):
    output = str(tmp_path / "o")
    folder = PartialFolder(output, {"a": 1})
    arrays = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.float32([1.5])}
    for name, array in folder.save(arrays).items():
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, arrays[name])
    again = PartialFolder(output, {"a": 1})
    assert not again.begun_anew
    np.testing.assert_array_equal(again.load("y"), arrays["y"])
    assert again.load("z") is None
    other = PartialFolder(output, {"a": 2})
    assert other.begun_anew
    assert other.load("x") is None


# Bad input


def test_broken_presets(presets, tmp_path):
    preset = tmp_path / "preset"
    shutil.copytree(presets / "bfloat16", preset)
    weights = preset / "model.weights.h5"
    name = "layers/gemma_decoder_block/attention/key_dense/vars/0"

    def refused(message):
        with pytest.raises(ValueError, match=f"expected a KerasHub preset.*{message}"):
            PresetWeights(str(preset))
        shutil.copy(presets / "bfloat16" / "model.weights.h5", preset)

    weights.unlink()
    refused("")
    with h5py.File(weights, "a") as file:
        del file[name]
    refused("")
    with h5py.File(weights, "a") as file:
        del file[name]
        file[name] = np.zeros((2, 64, 15), np.float32)
    refused("")
    weights.write_bytes(weights.read_bytes()[:5000])
    refused("")
    config = json.loads((preset / "task.json").read_text())
    config["config"]["backbone"]["config"]["hidden_dim"] = 32  # the weights have 64
    (preset / "task.json").write_text(json.dumps(config))
    refused("hidden_dim 64 and 32")
    (preset / "config.json").unlink()
    refused("")


def test_weights_that_are_not_finite(presets, tmp_path, output):
    preset = shutil.copytree(presets / "float32", tmp_path / "preset")
    with h5py.File(preset / "model.weights.h5", "a") as file:
        file["layers/gemma_decoder_block_1/attention/value_dense/vars/0"][0, 3, 5] = np.nan
    with pytest.raises(ValueError, match="finite .*decoder_block_1/attention/value"):
        pack(preset, output)


# Memory

# 40 M weights: 160 MB in float32, 80 MB on the disk. Zeros are as large as any other weights.
MEDIUM = """
import sys, resource
import keras_hub, causal_lms
from tfmot_ternary.skeleton import WithoutWeights
from tfmot_ternary import TernaryScheme, streaming
folder = sys.argv[1]
with WithoutWeights():
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=16384, num_layers=12, num_query_heads=4, num_key_value_heads=4,
        hidden_dim=512, intermediate_dim=2048, head_dim=128, dtype="bfloat16")
for variable in backbone.weights:
    variable._initializer = lambda shape, dtype: __import__("keras").ops.zeros(shape, dtype)
small = causal_lms.gemma()
keras_hub.models.GemmaCausalLM(backbone, preprocessor=small.preprocessor).save_to_preset(folder)
print(backbone.count_params())
peak = lambda: int(next(l for l in open("/proc/self/status") if "VmHWM" in l).split()[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak so far counts no more
before = peak()
packed = streaming.pack_preset(folder, folder + ".tflite", TernaryScheme(), tables="i8",
                               others="i8", progress=False)
print(peak() - before)
"""


def test_memory_stays_far_below_the_model(tmp_path):
    script = tmp_path / "medium.py"
    script.write_text(MEDIUM)
    path = os.pathsep.join(p for p in sys.path if p)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path / "medium"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    parameters, kilobytes = (int(line) for line in result.stdout.split() if line.isdigit())
    assert parameters > 39e6
    # Less than the bfloat16 weights on the disk, half of the float model. The 8.4 M weights of the
    # table pass as a whole, beside two matrices and what Keras, h5py and the threads take.
    assert kilobytes * 1024 < 2 * parameters
