"""The documents: their Python runs, their links lead somewhere, their make targets exist."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "g3doc").glob("*.md")])


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """The folder that a user stands in: it has the image that the documents name."""
    from tfmot_ternary.demo import questions

    sample = questions.split("test", count=1)[0]
    Image.fromarray(sample.image).save(tmp_path / "scene.png")
    (tmp_path / "build").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_tf_keras(scene):
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = tf_keras.Sequential([tf_keras.Input((64,)), tf_keras.layers.Dense(10)])
    names = {
        "model": model,
        "x_train": rng.standard_normal((64, 64)).astype(np.float32),
        "y_train": rng.integers(0, 10, 64),
    }
    exec(python_blocks("README.md")[0], names)
    names["interpreter"].allocate_tensors()
    assert b"tfmot_ternary.fully_connected" in names["tflite"]


def test_readme_vlm(scene, capsys):
    from tfmot_ternary.demo.model import load_preset

    exec(
        python_blocks("README.md")[1],
        {"tt": __import__("tfmot_ternary"), "causal_lm": load_preset()},
    )
    assert capsys.readouterr().out.strip()


def test_tour(scene, capsys):
    names: dict = {}
    for block in python_blocks("g3doc/index.md"):
        exec(block, names)
    assert capsys.readouterr().out.strip()


@pytest.fixture
def surroundings(scene):
    """What the examples of models.md and training.md take for granted: models, data, imports."""
    import h5py
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    import tfmot_ternary as tt

    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    rng = np.random.default_rng(0)

    def network():
        encoder = [layers.Input((16,)), layers.Dense(16, "relu", name="block_2")]
        return tf_keras.Sequential(
            [
                layers.Input((8,)),
                layers.Dense(16, "relu", name="block_1"),
                tf_keras.Sequential(encoder, name="encoder"),
                layers.Dense(4, name="head"),
            ]
        )

    teacher = network()
    image_model = [layers.Input((8, 8, 3)), layers.Conv2D(8, 3, name="conv"), layers.ReLU()]
    image_model += [layers.Flatten(), layers.Dense(4, "softmax", name="out")]
    units, inputs = 3, 7
    with h5py.File("model.weights.h5", "w") as file:
        stored = file.create_group("layers/ternary_dense/vars")
        # Keras 3.16 pads the last byte of a column with trits of zero: two bytes for 7 inputs.
        stored["0"] = np.full((2, units), 121, np.uint8)
        stored["1"] = np.zeros(units, np.float32)
        stored["2"] = np.float32(0.5)
    return {
        "images": rng.random((32, 8, 8, 3), np.float32),
        "inputs": inputs,
        "labels": rng.integers(0, 4, 32),
        "layers": layers,
        "model": tf_keras.Sequential(image_model),
        "np": np,
        "optimizer": tf_keras.optimizers.Adam(),
        "student": tt.quantize_apply(teacher, tt.TernaryScheme()),
        "task_loss": tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "teacher": teacher,
        "tf": tf,
        "tf_keras": tf_keras,
        "tfmot": tfmot,
        "tt": tt,
        "units": units,
        "x": rng.standard_normal((64, 8)).astype(np.float32),
        "y": rng.integers(0, 4, 64),
    }


@pytest.mark.parametrize("number", range(7))
def test_models_page(surroundings, number):
    blocks = python_blocks("g3doc/models.md")
    assert len(blocks) == 7
    exec(blocks[number], surroundings)
    if "packed" in surroundings:
        np.testing.assert_array_equal(surroundings["weights"].dequantize(), np.zeros((3, 7)))
    else:
        made = surroundings.get("content") or tt_convert(surroundings["quantized"])
        assert b"tfmot_ternary." in made


def tt_convert(model):
    import tfmot_ternary as tt

    return tt.convert(model)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_training_page(surroundings, number):
    blocks = python_blocks("g3doc/training.md")
    assert len(blocks) == 6
    exec(blocks[number], surroundings)
    if number == 3:
        exec(blocks[4], surroundings)  # an initializer of one's own, on the same model
        np.testing.assert_array_equal(
            surroundings["again"](np.ones((1, 64))), surroundings["quantized"](np.ones((1, 64)))
        )
        exec(blocks[5], surroundings)
        model, tt, data = (surroundings[name] for name in ("model", "tt", "data"))
        plain = tt.quantize_apply(model, tt.TernaryScheme())
        errors = [
            np.mean((quantized(data) - model(data)) ** 2)
            for quantized in (surroundings["compensated"], plain)
        ]
        assert errors[0] < errors[1]


# Not on a device: see your_model.md.
NO_DEVICE = ["tensorflow", "keras", "tf_keras", "keras_hub", "tensorflow_model_optimization"]
NO_DEVICE += ["absl", "tqdm", "sklearn", "matplotlib"]


def test_your_model(scene, capsys, monkeypatch):
    """Every command and block of the page, in order, where the files that it names are."""
    import causal_lms

    from tfmot_ternary import cli

    causal_lms.pali_gemma().save_to_preset("my_preset")
    line = {"prompt": "how many threes", "answer": "two", "image": "scene.png"}
    pathlib.Path("examples.jsonl").write_text(f"{json.dumps(line)}\n" * 2)
    text = (ROOT / "g3doc/your_model.md").read_text()
    parts = re.findall(r"```python\n(.*?)```|^ {4}(\S[^\n]*)", text, flags=re.DOTALL | re.M)
    assert len(parts) == 14
    names: dict = {}
    for block, command in parts:
        # Without these packages; `None` makes an import of them fail.
        if "device/model.tflite" in block:
            missing = f"import sys; sys.modules.update(dict.fromkeys({NO_DEVICE}))\n"
            done = subprocess.run(
                [sys.executable, "-c", missing + block], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert "bytes of KV cache" in done.stdout
        elif block:
            exec(block, names)
        elif command.startswith("tfmot-ternary "):
            few = "--steps 2 --batch_size 2 --calibration_batches 2"
            arguments = shlex.split(command.replace("--steps 500", few))
            code = cli.run_command(arguments[1:])
            captured = capsys.readouterr()
            assert code == 0, (command, captured.err)
            assert captured.out.strip()
        else:
            subprocess.run(shlex.split(command), check=True)
    assert names["generator"].finish_reason in ("end", "stop", "length", "context")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_targets(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http"):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert target in targets, f"{path.name} names `make {target}`"
