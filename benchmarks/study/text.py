"""English text that comes with CPython, as tokens: pydoc's topics and the library's docstrings.

The text is that of the running Python; another version has other sentences, so that perplexities
of two Pythons do not compare. `Text.digest` tells them apart.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import json
import pathlib
import sysconfig
import zlib

import numpy as np

from tfmot_ternary.model_file import write_atomically

VOCABULARY_SIZE = 1024
# Documents fall into a split by a hash of their name: hundredths for each held-out split.
_HELD_OUT = {"validation": 5, "test": 5}
# Not the standard library, or made for machines.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids of the three splits; no document is in two.

    Attributes:
      splits: "train", "validation", "test" -> int32 [tokens], documents one after the other.
      digest: of all documents.
    """

    splits: dict[str, np.ndarray]
    digest: str

    def windows(self, split: str, length: int) -> np.ndarray:
        """int32 [n, length + 1]: the split cut into pieces, inputs and next tokens in one."""
        tokens = self.splits[split]
        count = (len(tokens) - 1) // length
        starts = np.arange(count)[:, None] * length
        return tokens[starts + np.arange(length + 1)]


def load(folder: pathlib.Path) -> Text:
    """Reads the text and its tokens from `folder`, or makes them there (about half a minute)."""
    path = folder / "text.npz"
    if path.is_file():
        with np.load(path) as file:
            return Text({name: file[name] for name in ("train", *_HELD_OUT)}, str(file["digest"]))
    folder.mkdir(parents=True, exist_ok=True)
    documents = _documents()
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:16]
    texts: dict[str, list[str]] = {name: [] for name in ("train", *_HELD_OUT)}
    for name, text in sorted(documents.items()):
        texts[_split_of(name)].append(text)
    pieces = _tokenizer(texts["train"])
    splits = {
        name: np.concatenate([np.asarray([*pieces.encode(t), pieces.eos_id()]) for t in members])
        for name, members in texts.items()
    }
    made = Text({name: tokens.astype(np.int32) for name, tokens in splits.items()}, digest)
    content = io.BytesIO()
    np.savez_compressed(content, digest=np.array(digest), **made.splits)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
    return made


def _split_of(name: str) -> str:
    place = zlib.crc32(name.encode()) % 100
    for split, share in _HELD_OUT.items():
        if place < share:
            return split
        place -= share
    return "train"


def _documents() -> dict[str, str]:
    """Name -> text: a topic of pydoc, or all docstrings of one module."""
    from pydoc_data import topics

    documents = {f"topic {name}": text for name, text in topics.topics.items()}
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT.intersection(parts) or parts[0].startswith("config-"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # templates and samples of bad encodings
        strings = [
            ast.get_docstring(node)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        if any(strings):
            documents["module " + "/".join(parts)] = "\n\n".join(s for s in strings if s)
    return documents


def _tokenizer(texts: list[str]) -> object:
    import sentencepiece

    model = io.BytesIO()
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.999,
        # Documents keep their line ends and indentation.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n"],
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
