"""NumPy oracle of the custom ops: the specification in plain arithmetic, and models of one op."""

from __future__ import annotations

import numpy as np
from model_builder import ModelBuilder

from tfmot_ternary import packing

CODES = {
    "t2": (-1, 0, 1),
    "t5": (-1, 0, 1),
    "b1": (-1, 1),
    "i8": range(-128, 128),
    "i4": range(-8, 8),
}


def random_codes(rng: np.random.Generator, n: int, k: int, weight_format: str) -> np.ndarray:
    return rng.choice(np.array(CODES[weight_format], np.int8), (n, k))


def scales_shape(n: int, k: int, group_size: int | str) -> tuple[int, ...]:
    """group_size "tensor", 0 (per channel) or the inputs of a group."""
    if group_size == "tensor":
        return (1,)
    return (n, -(-k // group_size)) if group_size else (n,)


def random_scales(rng: np.random.Generator, n: int, k: int, group_size) -> np.ndarray:
    return rng.uniform(0.01, 2, scales_shape(n, k, group_size)).astype(np.float32)


def expand_scales(scales: np.ndarray, n: int, k: int) -> np.ndarray:
    """float32 [n, k]."""
    if scales.ndim == 2:
        group_size = next(g for g in (32, 64, 128, 256) if -(-k // g) == scales.shape[1])
        return np.repeat(scales, group_size, axis=1)[:, :k]
    return np.broadcast_to(scales[:, None], (n, k))


def quantize(x: np.ndarray, axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 values, float32 scale and finiteness, one for all of `axes`."""
    finite = np.isfinite(x).all(axis=axes, keepdims=True)
    x = np.where(finite, x, np.float32(0))
    amax = np.abs(x).max(axis=axes, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(amax >= np.float32(1e-30), np.float32(127) / amax, np.float32(0))
    q = np.clip(np.rint(x * inverse), -127, 127).astype(np.int64)  # np.rint: half to even
    return q, (amax / np.float32(127)).astype(np.float32), finite


def activate(y: np.ndarray, activation: str) -> np.ndarray:
    if activation == "none":
        return y
    with np.errstate(invalid="ignore"):
        y = np.where(y < 0, np.float32(0), y)
        return np.where(y > 6, np.float32(6), y) if activation == "relu6" else y


def scale_product(q, codes, scales, scale_x, group_size) -> np.ndarray:
    """float32 [m, n] from int64 [m, k] and [n, k], in the specified order of operations."""
    codes = codes.astype(np.int64)
    if not group_size or group_size == "tensor":
        return (q @ codes.T).astype(np.float32) * (scale_x * scales[None, :])
    total = np.zeros((q.shape[0], codes.shape[0]), np.float32)
    for group in range(scales.shape[1]):
        part = slice(group * group_size, (group + 1) * group_size)
        sums = (q[:, part] @ codes[:, part].T).astype(np.float32)
        total = total + sums * scales[None, :, group]
    return total * scale_x


def fully_connected(x, codes, scales, bias=None, group_size=0, activation="none") -> np.ndarray:
    """The op with activations="int8", bit for bit."""
    rows = x.reshape(-1, x.shape[-1])
    n = codes.shape[0]
    if rows.shape[0] == 0:
        return np.zeros((*x.shape[:-1], n), np.float32)
    q, scale_x, finite = quantize(rows, 1)
    y = scale_product(q, codes, scales, scale_x, group_size)
    if bias is not None:
        y = y + bias
    y = np.where(finite, activate(y, activation), np.float32(np.nan))
    return y.reshape(*x.shape[:-1], n)


def padding_of(size: int, kernel: int, stride: int, dilation: int, padding: str) -> tuple[int, int]:
    """Output size and padding in front, by TensorFlow's rules."""
    reach = (kernel - 1) * dilation + 1
    if padding == "VALID":
        return -(-(size - reach + 1) // stride), 0
    out = -(-size // stride)
    return out, max((out - 1) * stride + reach - size, 0) // 2


def patches(x: np.ndarray, kernel, stride, dilation, padding) -> np.ndarray:
    """[b, oh, ow, kh * kw * c], zeros outside of the image."""
    b, h, w, c = x.shape
    (oh, top), (ow, left) = (
        padding_of(size, *rest, padding)
        for size, rest in zip((h, w), zip(kernel, stride, dilation, strict=True), strict=True)
    )
    out = np.zeros((b, oh, ow, *kernel, c), x.dtype)
    for i in range(oh):
        for j in range(ow):
            for ki in range(kernel[0]):
                for kj in range(kernel[1]):
                    row = i * stride[0] + ki * dilation[0] - top
                    column = j * stride[1] + kj * dilation[1] - left
                    if 0 <= row < h and 0 <= column < w:
                        out[:, i, j, ki, kj] = x[:, row, column]
    return out.reshape(b, oh, ow, -1)


def conv2d(x, codes, scales, bias=None, group_size=0, activation="none", **geometry) -> np.ndarray:
    """The op with activations="int8", bit for bit."""
    n = codes.shape[0]
    q, scale_x, finite = quantize(x, (1, 2, 3))
    columns = patches(q, **geometry)
    b, oh, ow, k = columns.shape
    row_scales = np.repeat(scale_x.reshape(b, 1), oh * ow, axis=1).reshape(-1, 1)
    y = scale_product(columns.reshape(-1, k), codes, scales, row_scales, group_size)
    if bias is not None:
        y = y + bias
    y = activate(y, activation).reshape(b, oh, ow, n)
    return np.where(finite, y, np.float32(np.nan))


def op_model(name: str, inputs, output_shape, options) -> bytes:
    """One custom op. Each input is ("input", shape, dtype), an array (constant) or None."""
    builder = ModelBuilder()
    graph = builder.graph()
    tensors = []
    for value in inputs:
        if value is None:
            tensors.append(-1)
        elif isinstance(value, tuple):
            tensors.append(graph.input(value[1], value[2]))
        else:
            tensors.append(graph.constant(value))
    y = graph.output(output_shape)
    graph.custom(f"tfmot_ternary.{name}", tensors, [y], options)
    return builder.build()


def packed_fully_connected(
    x_shape, codes, scales, bias=None, *, weight_format, group_size=0, **options
) -> bytes:
    """A model of one fully_connected with constant weights."""
    inputs = [("input", x_shape, np.float32), packing.pack(codes, weight_format), scales]
    if bias is not None:
        inputs.append(bias)
    return op_model(
        "fully_connected",
        inputs,
        [1, codes.shape[0]],
        {"weight_format": weight_format, "group_size": option_group_size(group_size), **options},
    )


def option_group_size(group_size: int | str) -> int:
    return 0 if group_size == "tensor" else int(group_size)


def run(interpreter, *inputs: np.ndarray) -> np.ndarray:
    """Resizes the inputs, runs, and returns the only output."""
    details = interpreter.get_input_details()
    assert len(details) == len(inputs)
    for detail, value in zip(details, inputs, strict=True):
        if tuple(detail["shape"]) != value.shape:
            interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(details, inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
