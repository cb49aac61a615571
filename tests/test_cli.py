"""The command line: help, errors, and each command on small models."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import causal_lms
import h5py
import numpy as np
import pytest
from PIL import Image

from tfmot_ternary import cli, evaluation, inspection, measurement, recovery, runtime
from tfmot_ternary.vlm import Generator, convert_causal_lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a preset, its float model, an image and examples."""
    folder = tmp_path_factory.mktemp("cli")
    model = causal_lms.pali_gemma()
    model.save_to_preset(str(folder / "preset"))
    convert_causal_lm(model, folder / "model.tflite", cache_length=64)
    generator = Generator(folder / "model.tflite")
    lines = []
    for i, prompt in enumerate(causal_lms.PROMPTS[:3]):
        image = causal_lms.scene(i)
        Image.fromarray(image).save(folder / f"scene{i}.png")
        # Two answers are what the model says, one is not.
        answer = generator.generate(prompt, image, 4) if i else "two two two"
        lines.append({"image": f"scene{i}.png", "prompt": prompt, "answer": answer, "kind": "k"})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder


def run(capsys, *arguments):
    code = cli.run_command([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_overview_lists_every_command(capsys):
    for arguments in ([], ["--help"], ["help"], ["-h"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert all(f"\n  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_of_a_command(capsys, name):
    for arguments in ([name, "--help"], ["help", name], [name, "--debug", "-h"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert f"usage: tfmot-ternary {name}" in out
        assert "example:" in out
        for flag in cli.COMMANDS[name].required:
            assert f"--{flag} TEXT  (required)" in out
    # The example in the help is a command line that parses.
    import shlex

    example = shlex.split(cli.COMMANDS[name].example)
    assert example[:2] == ["tfmot-ternary", name]
    assert cli._parse(example[1:]) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "expected a command of demo, ternarize"),
        (["--nonsense"], "expected a command"),
        (["generate", "--nonsense=1"], "nonsense"),
        (["generate"], "expected --model and --prompt"),
        (["generate", "--model=m.tflite", "--prompt="], "expected --prompt"),
        (["generate", "--model=m", "--prompt=p", "--num_threads=0"], "num_threads"),
        (["generate", "--model=m", "--prompt=p", "--backend=onnx"], "litert|tf"),
        (["generate", "--model=m", "--prompt=p", "--temperature=-1"], "temperature"),
        (["generate", "--model=m", "--prompt=p", "--top_k=0"], "top_k"),
        (["generate", "--model=m", "--prompt=p", "--seed=x"], "seed"),
        (["benchmark", "--model=m", "extra"], "expected only flags, got 'extra'"),
        (["inspect"], "expected one .tflite file to inspect, got 0"),
        (["inspect", "a.tflite", "b.tflite"], "got 2"),
        (["ternarize", "--preset=p"], "expected --output"),
        (["ternarize", "--preset=p", "--output=o", "--calibration_batches=-1"], "calibration_b"),
        (["ternarize", "--preset=p", "--output=o", "--steps=-1"], "steps"),
        (["demo", "--steps=-1"], "steps"),
    ],
)
def test_wrong_command_lines(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (cli.USAGE_CODE, "")
    assert err.startswith("tfmot-ternary: error: ")
    assert err.count("\n") == 1
    assert message in err and "--help" in err or "inspect" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--model=none.tflite", "--prompt=p"], "found none at 'none.tflite'"),
        (["generate", "--model=none.tflite", "--prompt=p", "--top_p=1.5"], "top_p above 0"),
        (
            ["generate", "--model=none.tflite", "--prompt=p", "--temperature=0", "--top_k=9"],
            "above 0",
        ),
        (
            ["generate", "--model=none.tflite", "--prompt=p", "--temperature=nan"],
            "temperature of 0",
        ),
        (["inspect", "none.tflite"], "found none at 'none.tflite'"),
        (["benchmark", "--model=none.tflite"], "found none at 'none.tflite'"),
        (["evaluate", "--model=none.tflite", "--data=none.jsonl"], "found no file at 'none.jsonl'"),
        (["evaluate", "--model=none.tflite", "--data=digits:exam"], "got 'exam'"),
        (["ternarize", "--preset=/none/there", "--output=o.tflite"], "found nothing at"),
        (["ternarize", "--preset=none.keras", "--output=o.tflite"], "found no file at"),
        (["ternarize", "--preset=p", "--output=o.bin"], "ends in .tflite"),
        (["ternarize", "--preset=p", "--output=o.tflite", "--format=b1"], "t2 or t5 for ternary"),
        (
            ["ternarize", "--preset=p", "--output=o.tflite", "--calibration_batches=8"],
            "expected data with calibration_batches 8, got none",
        ),
    ],
)
def test_user_errors_are_one_line(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert err.startswith("tfmot-ternary: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" in run(capsys, *arguments, "--debug")[2]


def test_the_program_itself():
    done = subprocess.run(
        [sys.executable, "-m", "tfmot_ternary.cli", "inspect", "none.tflite"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "tfmot-ternary: error: expected a .tflite file, found none at 'none.tflite'"
    )


def test_generate(capsys, folder):
    expected = Generator(folder / "model.tflite").generate("sum", causal_lms.scene(1), 5)
    arguments = ["generate", "--model", folder / "model.tflite", "--prompt", "sum"]
    image = ["--image", folder / "scene1.png"]
    code, out, _ = run(capsys, *arguments, *image, "--max_new_tokens=5")
    assert (code, out) == (0, f"{expected}\n")
    assert run(capsys, *arguments, *image, "--max_new_tokens=5", "--nostream")[1] == out
    stop = expected[2:4]
    _, out, _ = run(capsys, *arguments, *image, "--max_new_tokens=5", f"--stop={stop}", "--stop=@")
    assert out == f"{expected[: expected.index(stop)]}\n"
    code, out, err = run(capsys, *arguments, *image, "--stop=@@")
    assert code == 0
    assert ("context of 64 tokens is full" in err) == (len(out) > 0)
    sampled = [*arguments, *image, "--max_new_tokens=9", "--top_p=0.95", "--seed=3"]
    assert run(capsys, *sampled) == run(capsys, *sampled, "--temperature=1")
    assert run(capsys, *sampled)[1] != run(capsys, *sampled, "--temperature=5")[1]
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "vision-language model" in err
    code, _, err = run(capsys, *arguments, "--image", folder / "none.png")
    assert code == 1
    assert "expected an image file" in err


def test_evaluate(capsys, folder):
    arguments = ["evaluate", "--model", folder / "model.tflite", "--data", folder / "data.jsonl"]
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["examples"] == 3
    assert 0 <= result["task_accuracy"] <= 1
    # An oracle of its own: every answer scored alone.
    generator = Generator(folder / "model.tflite")
    examples = evaluation.load_examples(str(folder / "data.jsonl"))
    scores = [generator.score(e.prompt, e.image, e.answer) for e in examples]
    log_probs = np.concatenate([s.log_probs for s in scores])
    assert result["tokens"] == log_probs.size
    assert result["perplexity"] == pytest.approx(np.exp(-log_probs.mean()), rel=1e-9)
    right = [str(generator.generate(e.prompt, e.image)).strip() == e.answer for e in examples]
    whole = [bool(s.greedy.all()) for s in scores]
    assert result["task_accuracy"] >= np.mean(whole)
    assert result["task_accuracy"] <= np.mean([a or b for a, b in zip(right, whole, strict=True)])
    code, out, _ = run(capsys, *arguments, "--limit=1")
    assert code == 0
    assert "examples       1" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2: expected a JSON object"),
        ("[1]", "expected a JSON object, got list"),
        ('{"prompt": "a"}', 'expected the key "answer"'),
        ('{"prompt": "a", "answer": 3}', '"answer" as text, got int'),
        ('{"prompt": "a", "answer": "b", "image": "none.png"}', "expected an image file"),
    ],
)
def test_bad_examples(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluation.load_examples(str(path))
    path.write_text("\n")
    with pytest.raises(ValueError, match="at least one example"):
        evaluation.load_examples(str(path))


def test_built_in_examples():
    examples = evaluation.load_examples("digits:test", limit=7)
    assert len(examples) == 7
    assert examples[0].image.shape == (32, 32, 3)
    with pytest.raises(ValueError, match="at least 1"):
        evaluation.load_examples("digits:test", limit=0)


def test_benchmark(capsys, folder):
    code, out, _ = run(
        capsys, "benchmark", "--model", folder / "model.tflite", "--repeats=2", "--json"
    )
    assert code == 0
    result = measurement.Measurement(**json.loads(out))
    assert result.prefill_tokens == 16 + causal_lms.SEQUENCE_LENGTH
    assert result.prefill_tokens_per_s == result.prefill_tokens / result.prefill_seconds
    assert result.decode_tokens_per_s == 1 / result.decode_seconds
    assert 0 < result.baseline_rss_bytes < result.peak_rss_bytes
    # Keys and values of 2 layers with 1 head of 32, float32.
    assert result.cache_bytes == 2 * 2 * 64 * 32 * 4
    assert result.file_bytes == (folder / "model.tflite").stat().st_size
    # The measuring process must not carry TensorFlow: its import alone takes more than 300 MB.
    assert result.peak_rss_bytes < 300e6
    code, out, _ = run(capsys, "benchmark", "--model", folder / "model.tflite", "--repeats=1")
    assert code == 0
    assert "decode" in out
    assert "peak memory" in out


def test_inspect(capsys, folder):
    code, out, _ = run(capsys, "inspect", folder / "model.tflite")
    assert code == 0
    assert "float copies of packed weights: none" in out
    code, out, _ = run(capsys, "inspect", "--model", folder / "model.tflite", "--json")
    assert code == 0
    assert json.loads(out)["file_bytes"] == (folder / "model.tflite").stat().st_size


def test_ternarize_a_preset(capsys, folder, tmp_path):
    path = tmp_path / "ternary.tflite"
    code, out, err = run(
        capsys,
        *["ternarize", "--preset", folder / "preset", "--output", path, "--format=t5"],
        *["--group_size=32", "--data", folder / "data.jsonl", "--steps=2", "--batch_size=2"],
        "--calibration_batches=2",
    )
    assert code == 0, err
    assert f"{path}: {path.stat().st_size:,} bytes" in out
    found = inspection.inspect(path)
    packed = [w for w in found.weights if w.packed and w.format != "i8"]
    # 7 kernels in each of 2 decoder blocks; convolution, 6 kernels and the projection in the ViT.
    assert len(packed) == 2 * 7 + 1 + 6 + 1
    assert {(w.format, w.group_size) for w in packed} == {("t5", 32)}
    # Token table and positions.
    assert sum(w.format == "i8" for w in found.weights) == 2
    assert not found.float_copies()
    assert not found.misaligned()
    assert isinstance(Generator(path).generate("sum", causal_lms.scene(), 3), str)


def first_output(path, x):
    runner = runtime.make_interpreter(str(path)).get_signature_runner()
    (name,) = runner.get_input_details()
    (output,) = runner(**{name: x[:1]}).values()
    return output


def save_keras(kind, path):
    if kind == "keras3":
        import keras
    else:
        import tf_keras as keras
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((12,)), layers.Dense(40, activation="relu"), layers.Dense(10)]
    )
    model.save(path)
    return model


@pytest.mark.parametrize(
    ("kind", "name"),
    [("keras3", "m.keras"), ("keras2", "m.keras"), ("keras2", "m.h5"), ("keras2", "saved_model")],
)
def test_ternarize_a_saved_model(capsys, tmp_path, kind, name):
    model = save_keras(kind, str(tmp_path / name))
    x = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(64) % 10)
    path = tmp_path / "m.tflite"
    arguments = ["ternarize", "--preset", tmp_path / name, "--output", path, "--debug"]
    code, _, err = run(capsys, *arguments, "--data", tmp_path / "data.npz", "--steps=3")
    assert code == 0, err
    weights = [w for w in inspection.inspect(path).weights if w.packed]
    assert [w.shape for w in weights] == [[40, 12], [10, 40]]

    output = first_output(path, x)
    assert output.shape == tuple(model(x[:1]).shape)
    assert np.isfinite(output).all()


@pytest.mark.parametrize(("kind", "name"), [("keras3", "m.keras"), ("keras2", "m.h5")])
def test_ternarize_recognizes_what_is_ternary_already(capsys, tmp_path, kind, name):
    model = save_keras(kind, str(tmp_path / name))
    arguments = ["ternarize", "--recognize", "--preset", tmp_path / name]
    arguments += ["--output", tmp_path / "m.tflite", "--float_weights=float32"]
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "with neither; quantize it first" in err
    kernel = np.random.default_rng(0).integers(-1, 2, (12, 40)).astype(np.float32)
    model.layers[-2].kernel.assign(kernel)
    model.save(tmp_path / name)
    assert run(capsys, *arguments, "--data=d.npz")[0] == 1
    code, _, err = run(capsys, *arguments, "--format=t5")
    assert code == 0, err
    packed = [w for w in inspection.inspect(tmp_path / "m.tflite").weights if w.packed]
    assert [w.shape for w in packed] == [[40, 12]]
    x = np.random.default_rng(1).normal(size=(1, 12)).astype(np.float32)
    expected = np.asarray(model(x))
    # One layer rounds its input to 1/127 of its range.
    bound = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(first_output(tmp_path / "m.tflite", x), expected, atol=bound)


@pytest.mark.parametrize(("kind", "name"), [("keras3", "m.keras"), ("keras2", "m.h5")])
def test_interrupted_training_goes_on(capsys, tmp_path, monkeypatch, kind, name):
    """The weights equal those of a training that nobody interrupted: no tolerance."""
    save_keras(kind, str(tmp_path / name))
    x = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(64) % 10)
    arguments = ["ternarize", "--preset", tmp_path / name, "--data", tmp_path / "data.npz"]
    arguments += ["--steps=5", "--output"]
    assert run(capsys, *arguments, tmp_path / "whole.tflite")[0] == 0

    monkeypatch.setattr(recovery, "CHECKPOINT_STEPS", 2)
    array_batches = recovery.array_batches
    steps = []

    def batches(model, training, stop_at):
        make_batch = array_batches(model, training)

        def make(step):
            if step == stop_at:
                raise KeyboardInterrupt
            steps.append(step)
            return make_batch(step)

        return make

    path = tmp_path / "resumed.tflite"
    monkeypatch.setattr(recovery, "array_batches", functools.partial(batches, stop_at=3))
    assert run(capsys, *arguments, path)[0] != 0
    assert not path.exists()
    steps.clear()
    monkeypatch.setattr(recovery, "array_batches", functools.partial(batches, stop_at=None))
    assert run(capsys, *arguments, path)[0] == 0
    # The calibration's batches lie behind those of the steps; 0: a look whether there are labels.
    assert steps == [*range(5, 37), 0, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.glob("resumed*")) == ["resumed.tflite"]
    whole, resumed = (first_output(tmp_path / f"{stem}.tflite", x) for stem in ("whole", "resumed"))
    np.testing.assert_array_equal(resumed, whole)


def output_error(model, path, x):
    """Mean squared distance of a file's outputs from those of the float model."""
    outputs = np.concatenate([first_output(path, x[i : i + 1]) for i in range(len(x))])
    return float(np.mean((outputs - np.asarray(model(x))) ** 2))


@pytest.mark.parametrize(("kind", "name"), [("keras3", "m.keras"), ("keras2", "m.h5")])
@pytest.mark.parametrize("weights", ["ternary", "binary"])
def test_ternarize_calibrates(capsys, tmp_path, kind, name, weights):
    model = save_keras(kind, str(tmp_path / name))
    rng = np.random.default_rng(0)
    # Inputs that depend on each other: errors of one weight can be made good by others.
    x = (rng.normal(size=(320, 4)) @ rng.normal(size=(4, 12))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x[:256])

    def made(stem, *arguments):
        path = tmp_path / f"{stem}.tflite"
        command = ["ternarize", "--preset", tmp_path / name, "--output", path]
        code, _, err = run(capsys, *command, f"--weights={weights}", *arguments)
        assert code == 0, err
        assert list(tmp_path.glob(f"{stem}.tflite*")) == [path]
        return path

    data = ["--data", tmp_path / "data.npz"]
    kmeans = made("kmeans")
    # Without batches and steps, data changes nothing.
    plain = made("plain", *data, "--steps=0", "--calibration_batches=0")
    assert plain.read_bytes() == kmeans.read_bytes()
    calibrated = made("calibrated", *data, "--steps=0")
    assert calibrated.read_bytes() != kmeans.read_bytes()
    again = made("again", *data, "--steps=0", "--calibration_batches=32")
    assert again.read_bytes() == calibrated.read_bytes()
    # On examples that the calibration has not seen. Half: with inputs of rank 4 of 12 the errors
    # can go where no input is; 8-bit activations and the second layer's inputs leave the rest.
    held_out = x[256:]
    before = output_error(model, kmeans, held_out)
    after = output_error(model, calibrated, held_out)
    assert after < 0.5 * before
    # A learning rate of 0 keeps the weights: training starts from the calibrated ones. Its own
    # batches lie elsewhere then (behind step 1), hence no equality.
    trained = made("trained", *data, "--steps=1", "--learning_rate=0")
    assert output_error(model, trained, held_out) < 0.5 * before


def test_ternarize_calibrates_a_preset(capsys, folder, tmp_path):
    path = tmp_path / "calibrated.tflite"
    arguments = ["ternarize", "--preset", folder / "preset", "--data", folder / "data.jsonl"]
    arguments += ["--steps=0", "--calibration_batches=2", "--batch_size=2", "--skip=vit"]
    code, out, err = run(capsys, *arguments, "--output", path)
    assert code == 0, err
    assert "calibrate: 2 batches of 2 examples" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calibrated.spm", "calibrated.tflite"]
    assert sum(w.format == "t2" for w in inspection.inspect(path).weights) == 2 * 7
    assert isinstance(Generator(path).generate("sum", causal_lms.scene(), 3), str)


def test_calibration_does_not_see_padding(folder):
    """A context of any length gives the moments of the same rows: no tolerance."""
    found = []
    model = causal_lms.pali_gemma()
    for more in (0, 23):
        model.preprocessor.sequence_length = causal_lms.SEQUENCE_LENGTH + more
        training = recovery.Training(str(folder / "data.jsonl"), 0, 3, 0.0, 0, 2)
        make_batch = recovery.causal_lm_batches(model, training)
        padded = make_batch(0)[0]["token_ids"].shape
        assert padded == (3, causal_lms.SEQUENCE_LENGTH + more)
        found.append(recovery.calibrated(model, make_batch, training))
    assert set(found[0]) == set(found[1])
    for path, expected in found[0].items():
        np.testing.assert_array_equal(
            getattr(found[1][path], "matrix", found[1][path]), getattr(expected, "matrix", expected)
        )


def test_ternarize_refuses_bad_data(capsys, tmp_path):
    save_keras("keras3", str(tmp_path / "m.keras"))
    arguments = ["ternarize", "--preset", tmp_path / "m.keras", "--output", tmp_path / "o.tflite"]
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    np.savez(tmp_path / "shape.npz", x=np.zeros((3, 7)))
    (tmp_path / "text.npz").write_text("text")
    for name, message in [
        ("other.npz", "expected an array x"),
        ("shape.npz", "as the model takes it"),
        ("text.npz", "expected an .npz file"),
        ("none.npz", "expected an .npz file"),
        ("data.jsonl", "expected an .npz file with x"),
    ]:
        code, _, err = run(capsys, *arguments, "--data", tmp_path / name)
        assert code == 1, name
        assert message in err, name
    code, _, err = run(capsys, *arguments, "--prefill_lengths=4")
    assert code == 1
    assert "only with a language model" in err
    (tmp_path / "bad.keras").write_text("nothing")
    (tmp_path / "empty").mkdir()
    for name, message in [("bad.keras", "saved Keras model"), ("empty", "KerasHub preset")]:
        code, _, err = run(
            capsys, "ternarize", "--preset", tmp_path / name, "--output", tmp_path / "o.tflite"
        )
        assert code == 1, name
        assert message in err, name
    assert not (tmp_path / "o.tflite").exists()


def test_ternarize_refuses_broken_presets(capsys, folder, tmp_path):
    import shutil

    preset = tmp_path / "preset"
    shutil.copytree(folder / "preset", preset)
    arguments = ["ternarize", "--preset", preset, "--output", tmp_path / "o.tflite"]
    (preset / "model.weights.h5").unlink()
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "expected a KerasHub preset" in err
    shutil.copy(folder / "preset" / "model.weights.h5", preset)
    with h5py.File(preset / "model.weights.h5", "a") as file:
        del file["layers/pali_gemma_decoder_block/attention/key_dense/vars/0"]
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "expected a KerasHub preset" in err
    shutil.copy(folder / "preset" / "model.weights.h5", preset)
    config = json.loads((preset / "task.json").read_text())
    config["config"]["backbone"]["config"]["hidden_dim"] = 32  # the weights have 64
    (preset / "task.json").write_text(json.dumps(config))
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "expected a KerasHub preset" in err


def test_float_weights_stay_float_if_asked(capsys, folder, tmp_path):
    path = tmp_path / "b.tflite"
    code, _, err = run(
        capsys,
        *["ternarize", "--preset", folder / "preset", "--output", path, "--weights=binary"],
        *["--float_weights=float32", "--skip=image_encoder"],
    )
    assert code == 0, err
    formats = {w.format for w in inspection.inspect(path).weights}
    assert "b1" in formats
    assert "float32" in formats
    assert "int8" not in formats
    assert len([w for w in inspection.inspect(path).weights if w.packed]) == 2 * 7 + 1


def test_interrupt_and_unexpected_errors(capsys, monkeypatch):
    def interrupted(path, min_elements):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "inspect", interrupted)
    code, _, err = run(capsys, "inspect", "m.tflite")
    assert code == 130
    assert "interrupted" in err

    def defect(path, min_elements):
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr(inspection, "inspect", defect)
    with pytest.raises(ZeroDivisionError):  # shown with its traceback: not the user's fault
        run(capsys, "inspect", "m.tflite")
