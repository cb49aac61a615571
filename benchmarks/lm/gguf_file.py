"""GGUF files with random weights in the shape of a decoder, for llama.cpp."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from benchmarks.lm.shapes import POSITIONS, LMShape

# llama.cpp's blocks: 256 ternary weights with one float16 scale, or 32 integers with one. Every
# byte is a valid code, scales excepted, which stand at the end (ternary) or the start of a block.
_SCALE_AT_END = ("TQ1_0", "TQ2_0")
_SCALE = 0.02
# Blocks made at once: bounds the memory beside the file's own.
_ROWS = 4096


def write(shape: LMShape, weight_type: str, table_type: str, path: str | os.PathLike[str]) -> None:
    """Writes a GGUF file with random weights.

    Args:
      shape: the decoder.
      weight_type: of the matrices of the blocks: "TQ1_0", "TQ2_0", "Q4_0" or "Q8_0".
      table_type: of the token table, which is the head too.
      path: the file; it appears when it is whole.
    """
    import gguf

    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".gguf", dir=folder)
    os.close(handle)
    try:
        writer = gguf.GGUFWriter(temporary, shape.family, use_temp_file=False)
        writer.add_context_length(POSITIONS)
        writer.add_embedding_length(shape.width)
        writer.add_block_count(shape.blocks)
        writer.add_feed_forward_length(shape.ffn)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_vocab_size(shape.vocabulary)
        writer.add_tokenizer_model("no_vocab")
        if shape.family == "gpt2":
            writer.add_layer_norm_eps(1e-5)
        else:
            writer.add_key_length(shape.head_size)
            writer.add_value_length(shape.head_size)
            writer.add_layer_norm_rms_eps(1e-6)
        rng = np.random.default_rng(0)
        for name, dims, kind in _tensors(shape, weight_type, table_type):
            _add(writer, gguf, rng, name, dims, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _tensors(
    shape: LMShape, weight_type: str, table_type: str
) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, dims, type) of every tensor; norms and biases in float32."""
    biases = shape.family == "gpt2"

    def norm(name: str) -> list[tuple[str, tuple[int, ...], str]]:
        parts = ("weight", "bias") if biases else ("weight",)
        return [(f"{name}.{part}", (shape.width,), "F32") for part in parts]

    tensors = [("token_embd.weight", (shape.vocabulary, shape.width), table_type)]
    sizes = {name: (n, k) for name, n, k in shape.block_matrices}
    for i in range(shape.blocks):
        block = f"blk.{i}."
        tensors += norm(block + "attn_norm") + norm(block + "ffn_norm")
        if biases:
            matrices = {
                "attn_qkv": (3 * shape.width, shape.width),
                "attn_output": sizes["attention output"],
                "ffn_up": sizes["up"],
                "ffn_down": sizes["down"],
            }
        else:
            matrices = {
                "attn_q": sizes["query"],
                "attn_k": sizes["key"],
                "attn_v": sizes["value"],
                "attn_output": sizes["attention output"],
                "ffn_gate": sizes["gate"],
                "ffn_up": sizes["up"],
                "ffn_down": sizes["down"],
            }
        for name, dims in matrices.items():
            tensors.append((f"{block}{name}.weight", dims, weight_type))
            if biases:
                tensors.append((f"{block}{name}.bias", (dims[0],), "F32"))
    tensors += norm("output_norm")
    if shape.family == "gpt2":
        tensors.append(("position_embd.weight", (POSITIONS, shape.width), "F32"))
    return tensors


def _add(
    writer: Any, gguf: Any, rng: np.random.Generator, name: str, dims: tuple[int, ...], kind: str
) -> None:
    if kind == "F32":
        near = 1.0 if name.endswith("weight") else 0.0
        writer.add_tensor(name, rng.normal(near, 0.02, dims).astype(np.float32))
        return
    dtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    rows, columns = dims
    data = np.empty((rows, columns // block * size), np.uint8)
    scale = np.frombuffer(np.float16(_SCALE).tobytes(), np.uint8)
    for start in range(0, rows, _ROWS):
        part = data[start : start + _ROWS].reshape(-1, size)
        part[...] = _codes(rng, kind, part.shape)
        if kind in _SCALE_AT_END:
            part[:, -2:] = scale
        else:
            part[:, :2] = scale
    writer.add_tensor(name, data, raw_dtype=dtype)


def _codes(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    if kind == "TQ2_0":  # four codes 0, 1, 2 in a byte
        fields = rng.integers(0, 3**4, shape, np.uint8)
        return _TQ2_BYTES[fields]
    return rng.integers(0, 256, shape, np.uint8)


_TQ2_BYTES = np.array(
    [sum(((i // 3**f) % 3) << (2 * f) for f in range(4)) for i in range(3**4)], np.uint8
)
