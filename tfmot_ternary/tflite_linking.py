"""Linking: changes to the graph of a `.tflite` model, as the schema's object `ModelT`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmot_ternary import model_file

__all__ = ["add_metadata", "inputs_to_constants", "shorten_tensor_names"]


def inputs_to_constants(model: Any, names: Mapping[str, str]) -> dict[str, int]:
    """Makes inputs of signatures constants, with one buffer for each name in all signatures.

    Args:
      model: the schema's `ModelT`; it is changed.
      names: name of a signature's input -> name of the tensor that it becomes. Signatures that
        lack an input are left alone.

    Returns:
      Name of the input -> number of its buffer, still empty. An input that no signature has has
      none.
    """
    buffers: dict[str, int] = {}
    for signature in model.signatureDefs:
        subgraph = model.subgraphs[signature.subgraphIndex]
        linked = {i.name.decode(): i for i in signature.inputs if i.name.decode() in names}
        for name, entry in linked.items():
            if name not in buffers:
                buffers[name] = len(model.buffers)
                model.buffers.append(model_file.schema().BufferT())
            tensor = subgraph.tensors[entry.tensorIndex]
            tensor.buffer = buffers[name]
            tensor.name = names[name].encode()
        signature.inputs = [i for i in signature.inputs if i.name.decode() not in names]
        constants = {entry.tensorIndex for entry in linked.values()}
        subgraph.inputs = np.array([i for i in subgraph.inputs if i not in constants], np.int32)
    return buffers


def shorten_tensor_names(model: Any) -> None:
    """Leaves constants the last part of their names, and results of operators none.

    The converter names a tensor after all operators that were merged into it, which takes more
    room than packed weights in a small model. Signatures refer to tensors by number; inputs and
    outputs of subgraphs keep their names.
    """
    for subgraph in model.subgraphs:
        kept = {*subgraph.inputs, *subgraph.outputs}
        results = {i for operator in subgraph.operators for i in operator.outputs}
        for index, tensor in enumerate(subgraph.tensors):
            if index in kept or tensor.name is None:
                continue
            tensor.name = None if index in results else tensor.name.split(b";")[-1]


def add_metadata(model: Any, metadata: Mapping[str, bytes]) -> None:
    """Adds entries to the table of metadata of the schema's `ModelT`."""
    schema = model_file.schema()
    for name, content in metadata.items():
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        model.buffers.append(buffer)
        entry = schema.MetadataT()
        entry.name = name.encode()
        entry.buffer = len(model.buffers) - 1
        model.metadata = [*(model.metadata or []), entry]
