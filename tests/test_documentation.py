"""The documents: their Python runs, their links lead somewhere, their make targets exist."""

from __future__ import annotations

import pathlib
import re

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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_targets(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http"):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert target in targets, f"{path.name} names `make {target}`"
