"""Causal LMs as `.tflite`: equal to KerasHub's own generate(), and clear about bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import causal_lms
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary import inspection, model_file
from tfmot_ternary.conversion import align_packed_buffers
from tfmot_ternary.freezing import freeze
from tfmot_ternary.keras3 import quantize
from tfmot_ternary.scheme import BinaryScheme, TernaryScheme
from tfmot_ternary.vlm import Generator, convert_causal_lm
from tfmot_ternary.vlm import metadata as metadata_lib

BACKENDS = ("litert", "tf")


@pytest.fixture(scope="module")
def model():
    return causal_lms.pali_gemma()


@pytest.fixture(scope="module")
def float_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "model.tflite"
    convert_causal_lm(model, path)
    return path


@pytest.fixture(scope="module")
def float_generator(float_path):
    return Generator(float_path)


def full_logits(model, prompt_ids, answer_ids, image):
    """The functional model's logits (no cache) behind prompt + answer [vocabulary]."""
    ids = [*prompt_ids, *answer_ids]
    inputs = {
        "images": model.preprocessor.image_converter(image[np.newaxis]),
        "token_ids": tf.constant([ids]),
        "padding_mask": tf.ones([1, len(ids)], tf.int32),
        "response_mask": tf.constant([[0] * len(prompt_ids) + [1] * len(answer_ids)]),
    }
    return keras.ops.convert_to_numpy(model(inputs))[0, -1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_float_equals_keras_generate(model, float_path, backend):
    generator = Generator(float_path, backend=backend, num_threads=2)
    for seed, prompt in enumerate(causal_lms.PROMPTS):
        image = causal_lms.scene(seed)
        room = causal_lms.SEQUENCE_LENGTH - len(generator.tokenizer.encode_prompt(prompt))
        expected = causal_lms.keras_answer(model, prompt, image)
        assert generator.generate(prompt, image, room) == expected, (backend, prompt)


def test_float_logits_equal_the_functional_model(model, float_generator):
    # Both compute in float32 in other orders of summation: 1e-4 of the largest logit is some
    # hundred roundings.
    for seed, prompt in enumerate(causal_lms.PROMPTS[:2]):
        image = causal_lms.scene(seed)
        prompt_ids = float_generator.tokenizer.encode_prompt(prompt)
        logits = float_generator.prefill(prompt_ids, image)
        expected = full_logits(model, prompt_ids, [], image)
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
        answer = [7, 60, 12]
        position = float_generator.metadata.image_sequence_length + len(prompt_ids)
        for i, token in enumerate(answer):
            logits = float_generator.decode(token, position + i)
            expected = full_logits(model, prompt_ids, answer[: i + 1], image)
            assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max(), i


def test_padding_does_not_leak(float_generator, monkeypatch):
    """Neither does what an earlier prompt has left in the context."""
    image = causal_lms.scene()
    prompt_ids = float_generator.tokenizer.encode_prompt("sum")
    position = float_generator.metadata.image_sequence_length + len(prompt_ids)
    clean = [float_generator.prefill(prompt_ids, image), float_generator.decode(9, position)]
    longer = float_generator.tokenizer.encode_prompt(causal_lms.PROMPTS[-1])
    float_generator.prefill(longer, causal_lms.scene(1))
    session = float_generator._session
    padded = session._padded

    def dirty(ids, length):
        tokens = padded(ids, length)
        tokens[0, len(ids) :] = 33
        return tokens

    monkeypatch.setattr(session, "_padded", dirty)
    # What is masked has a weight of exactly zero: not one bit may differ.
    assert np.array_equal(float_generator.prefill(prompt_ids, image), clean[0])
    assert np.array_equal(float_generator.decode(9, position), clean[1])


@pytest.mark.parametrize(
    ("scheme", "weight_format"),
    [(TernaryScheme(), "t2"), (TernaryScheme(group_size=32), "t5"), (BinaryScheme(), "b1")],
)
def test_packed_equals_frozen_keras(model, tmp_path, scheme, weight_format):
    quantized = quantize(model, scheme)
    frozen = freeze(quantized, weight_format)
    frozen.compile(sampler="greedy", run_eagerly=True)
    path = tmp_path / "packed.tflite"
    # The quantized model is frozen on the way: the file is that of the frozen one.
    convert_causal_lm(quantized, path, weight_format=weight_format)
    generators = [Generator(path, backend=backend) for backend in BACKENDS]
    for seed, prompt in enumerate(causal_lms.PROMPTS[:3]):
        image = causal_lms.scene(seed)
        room = causal_lms.SEQUENCE_LENGTH - len(generators[0].tokenizer.encode_prompt(prompt))
        expected = causal_lms.keras_answer(frozen, prompt, image)
        for generator in generators:
            assert generator.generate(prompt, image, room) == expected, prompt


def test_int8_variant_is_smaller_and_close(model, float_path, float_generator, tmp_path):
    path = tmp_path / "int8.tflite"
    convert_causal_lm(model, path, optimizations=[tf.lite.Optimize.DEFAULT])
    assert os.path.getsize(path) < 0.6 * os.path.getsize(float_path)
    image = causal_lms.scene()
    ids = float_generator.tokenizer.encode_prompt("how many threes")
    exact = float_generator.prefill(ids, image)
    close = Generator(path).prefill(ids, image)
    # 8 bits keep about 1 % per product; a few of them follow each other.
    assert np.abs(exact - close).max() <= 0.1 * np.abs(exact).max()
    assert not np.array_equal(exact, close)
    # Look-up and head of both signatures share one table: our codes are the converter's.
    weights = inspection.inspect(path).weights
    tables = [w for w in weights if w.format == "int8" and w.uses == 4]
    assert [(w.op, w.shape, w.group_size) for w in tables] == [
        ("FULLY_CONNECTED", [64, 64], "channel")
    ]
    assert type(model.backbone.token_embedding) is keras.layers.ReversibleEmbedding


def test_text_model(tmp_path):
    model = causal_lms.gemma()
    path = tmp_path / "gemma.tflite"
    metadata = convert_causal_lm(model, path)
    assert (metadata.family, metadata.image) == ("text", None)
    generator = Generator(path)
    for prompt in causal_lms.PROMPTS[:2]:
        room = causal_lms.SEQUENCE_LENGTH - len(generator.tokenizer.encode_prompt(prompt))
        assert generator.generate(prompt, None, room) == causal_lms.keras_answer(
            model, prompt, None
        )
    with pytest.raises(ValueError, match="expected no image"):
        generator.generate("sum", causal_lms.scene())


def test_defaults_for_text(tmp_path):
    """Two lengths of chunks, and a context as long as the preprocessor's sequences."""
    model = causal_lms.gemma()
    model.preprocessor.sequence_length = 200
    metadata = convert_causal_lm(model, tmp_path / "long.tflite")
    assert (metadata.prefill_lengths, metadata.chunked) == ([16, 128], True)
    # 2 layers, keys and values, 208 positions (blocks of 16), 2 heads of 16 values of 4 bytes.
    assert (metadata.cache_length, metadata.cache_bytes) == (200, 2 * 2 * 208 * 2 * 16 * 4)
    smaller = convert_causal_lm(model, tmp_path / "int8.tflite", cache_length=64, cache_type="int8")
    assert smaller.prefill_lengths == [16, 64]
    # One byte a value, and a scale for each row of a head.
    assert smaller.cache_bytes == 2 * 2 * 64 * 2 * (16 + 4)
    prompt = causal_lms.PROMPTS[3]
    exact, close = (Generator(tmp_path / f"{name}.tflite") for name in ("long", "int8"))
    ids = exact.tokenizer.encode_prompt(prompt)
    wanted = exact.prefill(ids)
    # 8 bits keep about 1 % of a key or value; few of them count.
    assert np.abs(close.prefill(ids) - wanted).max() <= 0.05 * np.abs(wanted).max()
    assert not np.array_equal(close.prefill(ids), wanted)


def test_longer_context_gives_the_same_text(model, float_generator, tmp_path):
    path = tmp_path / "long.tflite"
    metadata = convert_causal_lm(model, path, prefill_lengths=(12, 6), cache_length=60)
    assert (metadata.prefill_lengths, metadata.cache_length) == ([6, 12], 60)
    assert not metadata.chunked
    prompt, image = "how many threes", causal_lms.scene(3)
    count = float_generator.room(prompt)
    longer = Generator(path)
    expected = list(
        float_generator.generate_ids(float_generator.tokenizer.encode_prompt(prompt), image)
    )
    ids = longer.tokenizer.encode_prompt(prompt)
    assert list(longer.generate_ids(ids, image, count)) == expected
    assert len(list(longer.generate_ids(ids, image))) <= longer.room(prompt)


def test_decode_stream_holds_back_half_characters(float_generator):
    class Bytes:  # a tokenizer whose second and third ids are the halves of one character
        text = ("a", "a\ufffd", "a\u00e9", "a\u00e9b")

        def decode(self, ids):
            return self.text[len(ids) - 1]

    from tfmot_ternary.vlm.tokenizer import Tokenizer

    assert list(Tokenizer.decode_stream(Bytes(), [1, 2, 3, 4])) == ["a", "\u00e9", "b"]


def test_score_is_the_probability_of_the_answer(model, float_generator):
    image = causal_lms.scene(2)
    score = float_generator.score("how many threes", image, "two")
    prompt_ids = float_generator.tokenizer.encode_prompt("how many threes")
    assert score.token_ids[-1] == 1
    assert len(score.token_ids) > 1
    for i, token in enumerate(score.token_ids):
        logits = full_logits(model, prompt_ids, score.token_ids[:i].tolist(), image)
        expected = tf.nn.log_softmax(tf.cast(logits, tf.float64))[token]
        # As the logits above: 1e-4 of the largest one.
        assert abs(score.log_probs[i] - float(expected)) <= 1e-4 * np.abs(logits).max()
        assert score.greedy[i] == (int(logits.argmax()) == token)


def test_generator_needs_no_tensorflow(float_path):
    code = (
        "import sys, numpy as np\n"
        "from tfmot_ternary.vlm import Generator\n"
        f"g = Generator({str(float_path)!r})\n"
        "print(g.generate('sum', np.zeros((32, 32, 3), np.uint8), 3))\n"
        "bad = {'tensorflow', 'keras', 'tf_keras', 'keras_hub', 'tensorflow_model_optimization'}\n"
        "print(sorted(bad & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def copy_model(float_path, folder):
    shutil.copy(float_path, folder / "model.tflite")
    shutil.copy(float_path.with_suffix(".spm"), folder / "model.spm")
    return folder / "model.tflite"


def test_bad_files(float_path, tmp_path):
    with pytest.raises(FileNotFoundError, match="found none"):
        Generator(tmp_path / "missing.tflite")
    path = copy_model(float_path, tmp_path)
    tokenizer = tmp_path / "model.spm"
    tokenizer.unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer file .* beside the model"):
        Generator(path)
    tokenizer.write_bytes(b"no tokenizer")
    with pytest.raises(ValueError, match="expected a SentencePiece model"):
        Generator(path)
    tokenizer.write_bytes(causal_lms.tokenizer_proto(60))
    with pytest.raises(ValueError, match="tokenizer of 64 pieces .* got 60"):
        Generator(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        Generator(path)
    path.write_bytes(b"not a model at all" * 10)
    with pytest.raises(ValueError, match="TF Lite flatbuffer"):
        Generator(path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(float_path, tmp_path, share):
    path = copy_model(float_path, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="expected"):
        Generator(path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_invalid_packed_weights(model, tmp_path, backend):
    """A byte that is no ternary code is refused by the operator when it is prepared."""
    path = tmp_path / "packed.tflite"
    convert_causal_lm(quantize(model, TernaryScheme()), path)
    weights = [w for w in inspection.inspect(path).weights if w.packed]
    content = path.read_bytes()
    image = causal_lms.scene()
    for weight in (weights[0], weights[-1]):  # one that decode uses too, one of prefill alone
        damaged = bytearray(content)
        damaged[weight.offset + weight.bytes // 2] = 0xFF
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match="expected") as caught:
            Generator(path, backend=backend).generate("sum", image)
        assert str(path) in str(caught.value)


def test_missing_ops_library(float_path, monkeypatch, tmp_path):
    monkeypatch.setenv("TFMOT_TERNARY_OPS_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(FileNotFoundError, match="library of custom ops"):
        Generator(float_path)


def test_model_without_our_metadata(tmp_path):
    layers = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    content = tf.lite.TFLiteConverter.from_keras_model(layers).convert()
    path = tmp_path / "other.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="written by tfmot_ternary.vlm.convert_causal_lm"):
        Generator(path)


def edited(float_path, tmp_path, change):
    """Writes the model with other metadata."""
    record = json.loads(metadata_lib.read(float_path).to_json())
    change(record)
    path = copy_model(float_path, tmp_path)
    schema = model_file.schema()
    content = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    entry = next(m for m in content.metadata if m.name.decode() == metadata_lib.NAME)
    content.buffers[entry.buffer].data = np.frombuffer(json.dumps(record).encode(), np.uint8)
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(content.Pack(builder), b"TFL3")
    path.write_bytes(align_packed_buffers(bytes(builder.Output())))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=99), "format_version 2, got 99"),
        (lambda r: r.pop("format_version"), "JSON record with format_version"),
        (lambda r: r.pop("image"), "metadata fields"),
        (lambda r: r.update(colour="red"), "metadata fields"),
        (lambda r: r.update(format_version=1), "format_version 2, got 1: convert the model again"),
        (lambda r: r.update(prefill_lengths=[8]), "prefill_8"),
        (lambda r: r["image"].update(height=48), "do not belong together"),
    ],
)
def test_edited_metadata(float_path, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Generator(edited(float_path, tmp_path, change))


def test_bad_conversions(model, tmp_path):
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"cache_length > 16 \(the image's positions\), got 16"):
        convert_causal_lm(model, path, cache_length=16)
    for lengths in ((0,), (), (6, 25)):
        with pytest.raises(ValueError, match="prefill_lengths >= 1 and cache_length >="):
            convert_causal_lm(model, path, prefill_lengths=lengths, cache_length=40)
    with pytest.raises(ValueError, match="cache_type out of .* got 'int4'"):
        convert_causal_lm(model, path, cache_type="int4")
    for options in ({"weight_format": "t2"}, {"tables": "i8"}, {"others": "i8"}):
        with pytest.raises(ValueError, match="not yet frozen"):
            convert_causal_lm(model, path, **options)
    with pytest.raises(ValueError, match="KerasHub CausalLM"):
        convert_causal_lm(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), path)
    preprocessor, model.preprocessor = model.preprocessor, None
    try:
        with pytest.raises(ValueError, match="with a preprocessor"):
            convert_causal_lm(model, path)
    finally:
        model.preprocessor = preprocessor
    with pytest.raises(ValueError, match="'lanczos3'"):
        convert_causal_lm(
            causal_lms.pali_gemma(image_converter={"interpolation": "lanczos3"}), path
        )
    with pytest.raises(ValueError, match="32 x 32 pixels .* one for"):
        convert_causal_lm(causal_lms.pali_gemma(image_converter={"image_size": (48, 48)}), path)
    with pytest.raises(ValueError, match="computes in float32, got bfloat16"):
        convert_causal_lm(causal_lms.pali_gemma(dtype="bfloat16"), path)
    assert not list(tmp_path.iterdir())  # nothing half-written is left


def test_write_atomically_leaves_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"before")

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file.os, "replace", full_disk)
    with pytest.raises(OSError, match="expected room"):
        model_file.write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
