"""Tokenizers of converted models: KerasHub's own ids and texts, without KerasHub."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types

import family_models
import keras_hub
import numpy as np
import pytest

from tfmot_ternary.vlm import tokenizer_export
from tfmot_ternary.vlm.tokenizer import Tokenizer

BYTE_PAIR = ["GPT2", "Llama3", "Qwen3", "SmolLM3"]
SENTENCE_PIECE = ["Gemma3", "Llama"]
# What byte-pair patterns treat differently: words, contractions, digits, spaces, marks, characters
# of two, three and four bytes, and special tokens.
SCRAPS = [
    *[
        "what",
        " digit",
        "Row",
        "'s",
        "'LL",
        "can't",
        "7",
        "2048",
        " 12",
        ".",
        "...",
        "!?",
        "_",
        "-",
    ],
    *[" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2009", "\u3000", "\x00"],
    *["\u00e9", "e\u0301", "\u00df", "\u0416", "\u4f60\u597d", "\u0967", "\U0001f600", "\u200d"],
    *["<|endoftext|>", "<|eot_id|>", "<think>", "<|im_end|>", "<end_of_turn>", "<s>", "<", "|>"],
]


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(7)
    return ["".join(rng.choice(SCRAPS, rng.integers(1, 12))) for _ in range(count)]


def exported(name, folder):
    """(KerasHub's tokenizer, ours)."""
    theirs = family_models._tokenizer(name)
    backbone = types.SimpleNamespace(vocabulary_size=400)
    model = types.SimpleNamespace(
        preprocessor=types.SimpleNamespace(tokenizer=theirs),
        backbone=backbone,
        generate=lambda inputs: keras_hub.models.CausalLM.generate(model, inputs),
    )
    spec, content = tokenizer_export.export(model, "model", None)
    (folder / spec.file).write_bytes(content)
    return theirs, Tokenizer(folder / spec.file, spec, 400)


@pytest.mark.parametrize("name", [*BYTE_PAIR, *SENTENCE_PIECE])
def test_equals_keras_hub(name, tmp_path):
    theirs, ours = exported(name, tmp_path)
    for text in texts(300):
        ids = [int(i) for i in theirs.tokenize(text)]
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == theirs.detokenize(ids), repr(text)


@pytest.mark.parametrize("name", [*BYTE_PAIR, *SENTENCE_PIECE])
def test_any_ids_decode_and_stream(name, tmp_path):
    """Also sequences that no text has: they end within characters, or hold special tokens."""
    theirs, ours = exported(name, tmp_path)
    rng = np.random.default_rng(1)
    for _ in range(100):
        ids = rng.integers(0, theirs.vocabulary_size(), rng.integers(1, 20)).tolist()
        text = theirs.detokenize(ids)
        assert ours.decode(ids) == text, ids
        assert "".join(ours.decode_stream(ids)) == text, ids
    # Ids that only pad the logits have no text.
    assert ours.decode([5, 399]) == ours.decode([5])


@pytest.mark.parametrize("name", ["GPT2", "Gemma3"])
def test_stream_never_shows_half_a_character(name, tmp_path):
    _, ours = exported(name, tmp_path)
    text = "row \U0001f600 \u4f60\u597d caf\u00e9 two"
    ids = ours.encode(text)
    assert len(ids) > len(text)  # the characters fell into bytes
    pieces = list(ours.decode_stream(ids))
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


def test_prefix_space(tmp_path):
    vocabulary, merges = family_models.byte_pair("<|endoftext|>")
    theirs = keras_hub.tokenizers.BytePairTokenizer(
        vocabulary, merges, add_prefix_space=True, unsplittable_tokens=["<|endoftext|>"]
    )
    kind, content, size, largest = tokenizer_export._content(theirs)
    assert (kind, size, largest) == ("byte_pair", 300, 299)
    spec = tokenizer_export.TokenizerSpec(kind, "t.tokenizer.json", size, None, [299], 0)
    (tmp_path / spec.file).write_bytes(content)
    ours = Tokenizer(tmp_path / spec.file, spec, size)
    for text in ("what digit", " what digit", "<|endoftext|>two"):
        assert ours.encode(text) == [int(i) for i in theirs.tokenize(text)]


def test_bad_files(tmp_path):
    _, ours = exported("GPT2", tmp_path)
    _, pieces = exported("Llama", tmp_path)
    spec, path = ours.spec, ours.path
    with pytest.raises(FileNotFoundError, match="beside the model, found none"):
        Tokenizer(tmp_path / "missing.json", spec, 400)
    with pytest.raises(ValueError, match=r"expected a tokenizer.json \(byte_pair\), got .* none"):
        Tokenizer(pieces.path, spec, 400)
    with pytest.raises(ValueError, match=r"expected a SentencePiece model"):
        Tokenizer(path, dataclasses.replace(spec, kind="sentencepiece"), 400)
    with pytest.raises(ValueError, match="kind 'sentencepiece' or 'byte_pair', got 'word_piece'"):
        Tokenizer(path, dataclasses.replace(spec, kind="word_piece"), 400)
    with pytest.raises(ValueError, match="300 pieces: the file belongs to another model"):
        Tokenizer(path, spec, 299)
    with pytest.raises(ValueError, match="of 301 pieces .* got 300"):
        Tokenizer(path, dataclasses.replace(spec, vocabulary_size=301), 400)
    with open(path, "a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="that the model was converted with"):
        Tokenizer(path, spec, 400)


def test_bad_exports():
    tokenizer = family_models._tokenizer("GPT2")
    model = types.SimpleNamespace(
        preprocessor=types.SimpleNamespace(tokenizer=tokenizer),
        backbone=types.SimpleNamespace(vocabulary_size=299),
    )
    with pytest.raises(ValueError, match="at most 299 pieces .* got 300: the preprocessor belongs"):
        tokenizer_export.export(model, "model", None)
    model.preprocessor.tokenizer = keras_hub.tokenizers.BytePairTokenizer()
    with pytest.raises(ValueError, match="with its vocabulary, got an empty one"):
        tokenizer_export.export(model, "model", None)
    model.preprocessor.tokenizer = keras_hub.tokenizers.ByteTokenizer()
    with pytest.raises(ValueError, match="SentencePiece or byte-pair tokenizer, got ByteTokenizer"):
        tokenizer_export.export(model, "model", None)


def test_needs_no_tensorflow(tmp_path):
    _, ours = exported("SmolLM3", tmp_path)
    code = (
        "import sys\n"
        "from tfmot_ternary.vlm.tokenizer import Tokenizer\n"
        "from tfmot_ternary.vlm.metadata import TokenizerSpec\n"
        f"t = Tokenizer({ours.path!r}, TokenizerSpec(**{dataclasses.asdict(ours.spec)!r}), 400)\n"
        "print(t.encode('how many threes'))\n"
        "print(sorted({'tensorflow', 'keras', 'keras_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ours.encode("how many threes")), "[]"]
