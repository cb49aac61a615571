"""The demo command, from a preset to table, plots and answers, on a very small model."""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import pytest

from tfmot_ternary import cli
from tfmot_ternary.demo import command, model, picture, report
from tfmot_ternary.demo.command import Variant
from tfmot_ternary.evaluation import Evaluation, load_examples
from tfmot_ternary.measurement import Measurement

VARIANTS = ["float32", "int8", "ternary_t2", "ternary_t5", "binary_b1"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The demo's model with one layer of each kind, not trained."""
    folder = tmp_path_factory.mktemp("preset")
    small = model.build(
        0, num_layers=1, vit_num_layers=1, hidden_dim=64, vit_hidden_dim=64, intermediate_dim=128
    )
    small.save_to_preset(str(folder))
    return folder


def test_demo_writes_everything(capsys, monkeypatch, preset, tmp_path):
    monkeypatch.setattr(command, "MEASURING_ROUNDS", 1)
    folder = tmp_path / "out"
    code = cli.run_command(
        [
            *["demo", f"--preset={preset}", f"--output_dir={folder}"],
            *["--steps=0", "--samples=6", "--debug"],
        ]
    )
    captured = capsys.readouterr()
    assert code == 0, captured.err
    record = json.loads((folder / "results.json").read_text())
    assert [v["name"] for v in record["variants"]] == VARIANTS
    assert {"command", "versions", "machine", "seed"} <= set(record)
    for variant in record["variants"]:
        path = folder / f"{variant['name']}.tflite"
        assert variant["file_bytes"] == path.stat().st_size
        for key in ("peak_rss_bytes", "prefill_tokens_per_s", "decode_tokens_per_s", "perplexity"):
            assert variant[key] > 0, key
        assert 0 <= variant["task_accuracy"] <= 1
    sizes = {v["name"]: v["file_bytes"] for v in record["variants"]}
    assert sizes["float32"] > sizes["int8"] > sizes["ternary_t2"] > sizes["binary_b1"]
    # Without training the result is the calibrated start, whatever the ternary format.
    quality = {v["name"]: v["perplexity"] for v in record["variants"] + record["not_trained"]}
    assert quality["ternary_t2"] == quality["ternary_t5"] == quality["ternary_calibrated_start"]
    assert quality["binary_b1"] == quality["binary_calibrated_start"]
    assert quality["binary_calibrated_start"] != quality["binary_kmeans_start"]
    for name in ("quality.png", "speed.png", "size.png", "answers.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    markdown = (folder / "results.md").read_text()
    for name in VARIANTS:
        assert f"\n{name} " in captured.out
        assert f"| {name} " in markdown
    for question in ("how many digits?", "what is the sum of the top row?", "describe the image"):
        assert question in captured.out


def variant(name, perplexity, accuracy):
    return Variant(
        name,
        pathlib.Path("none"),
        Evaluation(perplexity, accuracy, {}, 10, 20),
        Measurement(
            0.01, 0.02, 0.01, 32, 3200, 0.001, 1000, 70_000_000, 40_000_000, 900, 5000, 1, None, 3
        ),
    )


@pytest.mark.parametrize(
    ("name", "perplexity", "accuracy", "word"),
    [
        ("ternary_t2", 1.99, 0.905, "reached"),
        ("ternary_t2", 2.01, 0.93, "MISSED"),
        ("ternary_t5", 1.8, 0.89, "MISSED"),
        ("binary_b1", 9.0, 0.87, "reached"),
        ("binary_b1", 1.9, 0.85, "MISSED"),
    ],
)
def test_verdicts_against_the_bars(name, perplexity, accuracy, word):
    variants = [variant("float32", 1.9, 0.91), variant("int8", 9.0, 0.1)]
    variants.append(variant(name, perplexity, accuracy))
    (line,) = report.verdicts(variants)
    assert line.startswith(f"{name}: ")
    assert line.endswith(word)


def test_table_is_aligned():
    variants = [variant("float32", 1.5, 0.91), variant("ternary_t2", 1123.25, 1.0)]
    started = [variant("ternary_kmeans_start", 2.5, 0.25)]
    lines = report.table(variants, started).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "1123.2500" in lines[2]
    assert "100.00" in lines[2]
    markdown = report.table(variants, started, markdown=True).splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    assert markdown[1].startswith("| -")


def test_blocks():
    image = np.zeros((4, 3, 3), np.uint8)
    image[0:2, 1] = 255
    assert picture.in_blocks(image, colour=False) == " \u2588 \n   "
    coloured = picture.in_blocks(image, colour=True).splitlines()
    assert len(coloured) == 2
    assert coloured[0].count("\u2580") == 3
    assert "\x1b[38;2;255;255;255m" in coloured[0]


def test_answers_are_streamed(preset, tmp_path):
    from tfmot_ternary.vlm import Generator, convert_causal_lm

    path = tmp_path / "model.tflite"
    convert_causal_lm(model.load_preset(preset), path)
    examples = load_examples("digits:test", 2)
    out = io.StringIO()
    answers = picture.show_answers(path, examples, ["how many digits?"], tmp_path, out)
    expected = Generator(path).generate("how many digits?", examples[0].image)
    assert answers == [expected]
    assert f"how many digits?  {expected}" in out.getvalue()
