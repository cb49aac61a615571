"""Inspection: what weights a `.tflite` file holds, read from the file alone.

Needs NumPy, flatbuffers and the schema classes of the installed interpreter; nothing is run.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterator
from typing import Any

from flatbuffers import flexbuffers

from tfmot_ternary import model_file, packing

PREFIX = "tfmot_ternary."
# Operators with packed weights -> which input holds them.
_PACKED_INPUTS = {"fully_connected": 1, "conv2d": 1, "embedding_lookup": 1, "unpack": 0}
ALIGNMENT = 64  # bytes; LiteRT's newer API refuses packed weights that are aligned to less
# Constants below this many elements (norms, biases, shapes) are only summed up. It is also what
# TF Lite's dynamic-range quantization leaves in float.
MIN_ELEMENTS = 1024

_FLOATS = ("FLOAT64", "FLOAT32", "FLOAT16", "BFLOAT16")


@dataclasses.dataclass(frozen=True)
class Weight:
    """One constant that operators read.

    Attributes:
      op: the operator that reads it first, custom operators by their full name.
      tensor: name of the tensor.
      shape: of the weight: [n, k] for packed weights, else the tensor's own.
      format: "t2", "t5", "b1", or the element type ("float32", "int8").
      group_size: for packed weights "channel", "tensor" or the inputs per scale; for integers of a
        builtin operator "channel" or "tensor"; None for floats.
      elements: number of weights.
      bytes: of the weights in the file, scales not counted.
      scale_bytes: of their scales.
      offset: where the bytes begin in the file.
      uses: how many operators read it (prefill and decode share weights).
    """

    op: str
    tensor: str
    shape: list[int]
    format: str
    group_size: str | int | None
    elements: int
    bytes: int
    scale_bytes: int
    offset: int
    uses: int

    @property
    def packed(self) -> bool:
        """Whether these are ternary or binary weights."""
        return self.format in packing.FORMATS

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file per weight, scales not counted."""
        return self.bytes * 8 / self.elements

    @property
    def bits_per_weight_with_scales(self) -> float:
        return (self.bytes + self.scale_bytes) * 8 / self.elements

    @property
    def aligned(self) -> bool:
        """Whether the bytes begin at a multiple of 64 in the file."""
        return self.offset % ALIGNMENT == 0


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All weights of a file.

    Attributes:
      path: the file.
      file_bytes: its size.
      signatures: names of its signatures.
      weights: constants of at least `min_elements` elements, in file order of first use.
      small_count, small_bytes: the constants below that (norms, biases, shapes).
      min_elements: the limit.
    """

    path: str
    file_bytes: int
    signatures: list[str]
    weights: list[Weight]
    small_count: int
    small_bytes: int
    min_elements: int

    def float_copies(self) -> list[Weight]:
        """Float constants that could be a float copy of a packed weight: as many elements as one,
        and its n or k as the first or last axis. Empty in a well converted file."""
        sizes = {(w.elements, d) for w in self.weights if w.packed for d in w.shape}
        return [
            w
            for w in self.weights
            if w.format.upper() in _FLOATS
            and any((w.elements, d) in sizes for d in (w.shape[:1] + w.shape[-1:]))
        ]

    def misaligned(self) -> list[Weight]:
        """Packed weights that do not begin at a multiple of 64 bytes."""
        return [w for w in self.weights if w.packed and not w.aligned]

    def totals(self) -> dict[str, dict[str, Any]]:
        """Returns format -> count, elements, bytes, bits per weight (with scales), file share."""
        sums: dict[str, dict[str, Any]] = {}
        for weight in self.weights:
            row = sums.setdefault(weight.format, {"count": 0, "elements": 0, "bytes": 0})
            row["count"] += 1
            row["elements"] += weight.elements
            row["bytes"] += weight.bytes + weight.scale_bytes
        for row in sums.values():
            row["bits_per_weight_with_scales"] = row["bytes"] * 8 / row["elements"]
            row["share_of_file"] = row["bytes"] / self.file_bytes
        return sums

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole inspection as JSON values (`inspect --json`)."""
        record = dataclasses.asdict(self)
        for entry, weight in zip(record["weights"], self.weights, strict=True):
            entry["bits_per_weight"] = weight.bits_per_weight
            entry["bits_per_weight_with_scales"] = weight.bits_per_weight_with_scales
            entry["aligned"] = weight.aligned
        record["totals"] = self.totals()
        record["float_copies"] = [w.tensor for w in self.float_copies()]
        record["misaligned"] = [w.tensor for w in self.misaligned()]
        return record


@dataclasses.dataclass(frozen=True)
class _Use:
    """One operator that reads one constant."""

    op: str
    buffer: int
    tensor: Any
    shape: list[int]
    format: str
    group_size: str | int | None
    scale_buffer: int | None


def inspect(path: str | os.PathLike[str], min_elements: int = MIN_ELEMENTS) -> Inspection:
    """Lists the weights of the `.tflite` file at `path`.

    Args:
      path: the file.
      min_elements: constants with fewer elements are only summed up (packed weights never).

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a TF Lite file, a damaged one, or options of our operators that are unknown.
    """
    file = model_file.ModelFile(path)
    return file.guard(lambda: _inspect(file, min_elements))


def _inspect(file: model_file.ModelFile, min_elements: int) -> Inspection:
    uses: dict[int, list[_Use]] = {}
    scale_buffers: set[int] = set()
    for use in _uses(file):
        uses.setdefault(use.buffer, []).append(use)
        if use.scale_buffer is not None:
            scale_buffers.add(use.scale_buffer)
    weights, small_count, small_bytes = [], 0, 0
    for buffer, readers in uses.items():
        # The reader that knows most about the bytes counts: one of our operators for packed ones,
        # one that has their scales for integers.
        use = max(readers, key=lambda u: (u.format in packing.FORMATS, u.group_size is not None))
        start, end = file.buffer_range(buffer)
        elements = math.prod(use.shape)
        if use.format not in packing.FORMATS and (
            buffer in scale_buffers or elements < min_elements
        ):
            if buffer not in scale_buffers:
                small_count += 1
                small_bytes += end - start
            continue
        if use.scale_buffer is not None:
            scale_start, scale_end = file.buffer_range(use.scale_buffer)
            scale_bytes = scale_end - scale_start
        else:
            quantization = use.tensor.Quantization()
            scale_bytes = 4 * quantization.ScaleLength() if quantization is not None else 0
        weights.append(
            Weight(
                op=use.op,
                tensor=(use.tensor.Name() or b"").decode("utf-8", "replace"),
                shape=use.shape,
                format=use.format,
                group_size=use.group_size,
                elements=elements,
                bytes=end - start,
                scale_bytes=scale_bytes,
                offset=start,
                uses=len(readers),
            )
        )
    model = file.model
    signatures = [
        (model.SignatureDefs(i).SignatureKey() or b"").decode("utf-8", "replace")
        for i in range(model.SignatureDefsLength())
    ]
    return Inspection(
        file.path, file.size, signatures, weights, small_count, small_bytes, min_elements
    )


def _uses(file: model_file.ModelFile) -> Iterator[_Use]:
    """Yields every reading of a constant by an operator, in the file's order."""
    builtin = {v: k for k, v in vars(file.schema.BuiltinOperator).items() if isinstance(v, int)}
    for s in range(file.model.SubgraphsLength()):
        subgraph = file.model.Subgraphs(s)
        for o in range(subgraph.OperatorsLength()):
            operator = subgraph.Operators(o)
            code = file.model.OperatorCodes(operator.OpcodeIndex())
            custom = code.CustomCode()
            if custom is not None:
                name = custom.decode("utf-8", "replace")
            else:
                # Older files keep small codes in a field of their own: the larger one is valid.
                number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
                name = builtin.get(number, f"BUILTIN_{number}")
            inputs = [
                subgraph.Tensors(operator.Inputs(i)) if operator.Inputs(i) >= 0 else None
                for i in range(operator.InputsLength())
            ]
            yield from _operator_uses(file, name, operator, inputs)


def _operator_uses(
    file: model_file.ModelFile, name: str, operator: Any, inputs: list[Any]
) -> Iterator[_Use]:
    types = {v: k for k, v in vars(file.schema.TensorType).items() if isinstance(v, int)}
    first = _first_packed_input(name)
    for i, tensor in enumerate(inputs):
        if tensor is None or file.buffer_range(tensor.Buffer()) == (0, 0):
            continue
        shape = [tensor.Shape(d) for d in range(tensor.ShapeLength())]
        kind = types.get(tensor.Type(), f"TYPE_{tensor.Type()}")
        if i == first:
            options = _options(file, name, operator)
            scales = inputs[i + 1] if i + 1 < len(inputs) else None
            if scales is None or inputs[0] is None or not shape:
                raise model_file.ModelFileError(
                    f"{file.path!r}: expected operator {name!r} with weights and their scales, got "
                    f"{len(inputs)} inputs, of which {sum(t is None for t in inputs)} are left out"
                )
            scale_count = math.prod(scales.Shape(d) for d in range(scales.ShapeLength()))
            group_size: str | int = options["group_size"] or (
                "tensor" if scale_count == 1 else "channel"
            )
            k = _inputs_per_output(name, options, inputs)
            yield _Use(
                name,
                tensor.Buffer(),
                tensor,
                [shape[0], k],
                options["weight_format"],
                group_size,
                scales.Buffer(),
            )
            continue
        quantization = tensor.Quantization()
        scale_count = quantization.ScaleLength() if quantization is not None else 0
        integer_group = None
        if kind in ("INT8", "INT4", "INT2", "UINT8", "INT16") and scale_count:
            integer_group = "tensor" if scale_count == 1 else "channel"
        yield _Use(name, tensor.Buffer(), tensor, shape, kind.lower(), integer_group, None)


def _first_packed_input(name: str) -> int | None:
    """Returns which input of operator `name` holds packed weights; the scales follow it."""
    return _PACKED_INPUTS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None


def _options(file: model_file.ModelFile, name: str, operator: Any) -> dict[str, Any]:
    content = bytes(operator.CustomOptionsAsNumpy().tobytes())
    try:
        options = flexbuffers.Loads(content) if content else {}
    except (AssertionError, IndexError, ValueError, struct.error) as error:  # damaged bytes
        options = f"{type(error).__name__} while reading them"
    if (
        not isinstance(options, dict)
        or options.get("weight_format") not in packing.FORMATS
        or "group_size" not in options
    ):
        raise model_file.ModelFileError(
            f"{file.path!r}: expected operator {name!r} with the options weight_format (one of "
            f"{sorted(packing.FORMATS)}) and group_size, got {options}: convert the model again"
        )
    return options


def _inputs_per_output(name: str, options: dict[str, Any], inputs: list[Any]) -> int:
    """Returns k of W[n, k]."""
    if "k" in options:
        return int(options["k"])
    x = inputs[0]
    depth = int(x.Shape(x.ShapeLength() - 1))
    if name == PREFIX + "conv2d":
        return int(options["kernel_h"]) * int(options["kernel_w"]) * depth
    return depth
