"""Kernel layout: how the kernel of a layer becomes the weight matrix W[n, k], and back.

Rows of W are outputs, columns are the inputs that one output sums over. Everything that quantizes,
packs or multiplies works on W; only this module knows the axis order of a layer's kernel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["KernelLayout"]


def _transpose(x: Any, permutation: tuple[int, ...]) -> Any:
    if permutation == tuple(range(len(permutation))):
        return x
    if isinstance(x, np.ndarray):
        return np.transpose(x, permutation)
    import tensorflow as tf

    return tf.transpose(x, permutation)


def _reshape(x: Any, shape: list[Any]) -> Any:
    if isinstance(x, np.ndarray):
        return np.reshape(x, shape)
    import tensorflow as tf

    return tf.reshape(x, shape)


def _dims(x: Any) -> list[Any]:
    """The shape of an array or tensor; an int where it is known, else a scalar tensor."""
    if isinstance(x, np.ndarray):
        return list(x.shape)
    import tensorflow as tf

    static = x.shape.as_list()
    if all(dim is not None for dim in static):
        return static
    dynamic = tf.shape(x)
    return [dynamic[i] if dim is None else dim for i, dim in enumerate(static)]


def _as_array(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, (list, tuple, int, float, np.generic)) else x


@dataclasses.dataclass(frozen=True)
class KernelLayout:
    """Maps a kernel of `kernel_shape` to W[n, k] and the layer's product to `x @ W.T`.

    Attributes:
      kernel_shape: shape of the kernel, all dimensions known.
      n_axes: axes of the kernel that make up n, most significant first.
      k_axes: axes of the kernel that make up k, most significant first.
      input_permutation: for `einsum`, the order of the input's axes (free axes, then those of k);
        None where the input's last axis already is k (dense) or where rows are not made by a
        permutation at all (conv, embedding).
      output_permutation: for `einsum`, the order in which the axes (free axes, then those of n) are
        taken to give the output; None as above.
    """

    kernel_shape: tuple[int, ...]
    n_axes: tuple[int, ...]
    k_axes: tuple[int, ...]
    input_permutation: tuple[int, ...] | None = None
    output_permutation: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, tuple(int(v) for v in value))
        if any(dim < 1 for dim in self.kernel_shape):
            raise ValueError(
                f"expected a kernel whose dimensions are all at least 1, got {self.kernel_shape}"
            )
        if sorted(self.n_axes + self.k_axes) != list(range(len(self.kernel_shape))):
            raise ValueError(
                f"expected n_axes and k_axes to name each axis of the kernel {self.kernel_shape} "
                f"once, got {self.n_axes} and {self.k_axes}"
            )

    # Layouts of the layers that have a kernel.

    @classmethod
    def dense(cls, shape: Any) -> KernelLayout:
        """Dense: kernel [k, n]."""
        shape = _checked_shape(shape, "a Dense kernel [inputs, outputs]", (2,))
        return cls(shape, n_axes=(1,), k_axes=(0,))

    @classmethod
    def conv(cls, shape: Any) -> KernelLayout:
        """Conv1D, Conv2D, Conv3D: kernel [window..., c_in, n]; k runs over (kh, kw, c_in)."""
        shape = _checked_shape(shape, "a convolution kernel [window..., c_in, c_out]", (3, 4, 5))
        last = len(shape) - 1
        return cls(shape, n_axes=(last,), k_axes=tuple(range(last)))

    @classmethod
    def conv_transpose(cls, shape: Any) -> KernelLayout:
        """Conv1DTranspose, Conv2DTranspose, ...: kernel [window..., n, c_in]."""
        shape = _checked_shape(
            shape, "a transposed convolution kernel [window..., c_out, c_in]", (3, 4, 5)
        )
        rank = len(shape)
        return cls(shape, n_axes=(rank - 2,), k_axes=(*range(rank - 2), rank - 1))

    @classmethod
    def depthwise(cls, shape: Any) -> KernelLayout:
        """DepthwiseConv1D, DepthwiseConv2D: kernel [window..., c_in, m]; n runs over (c_in, m)."""
        shape = _checked_shape(
            shape, "a depthwise kernel [window..., c_in, depth_multiplier]", (3, 4)
        )
        window = tuple(range(len(shape) - 2))
        return cls(shape, n_axes=(len(window), len(window) + 1), k_axes=window)

    @classmethod
    def embedding(cls, shape: Any) -> KernelLayout:
        """Embedding table [vocabulary, dim]: n = vocabulary rows, k = dim."""
        shape = _checked_shape(shape, "an embedding table [vocabulary, dim]", (2,))
        return cls(shape, n_axes=(0,), k_axes=(1,))

    @classmethod
    def einsum(cls, equation: str, kernel_shape: Any, input_rank: int) -> KernelLayout:
        """EinsumDense: `equation` is "input,kernel->output", "..." allowed in input and output.

        Args:
          equation: for instance "abc,cd->abd" or "...x,xy->...y".
          kernel_shape: shape of the kernel.
          input_rank: rank of the input, batch axis included.

        Raises:
          ValueError: if the product is not a plain matrix product on some grouping of the axes,
            above all when the kernel shares a batch axis with the input and the output.
        """
        text = equation.replace(" ", "")
        try:
            operands, output = text.split("->")
            inputs, kernel = operands.split(",")
        except ValueError as error:
            raise ValueError(
                f'expected an einsum equation "input,kernel->output", got {equation!r}'
            ) from error
        shape = tuple(int(dim) for dim in kernel_shape)
        inputs, output = _without_ellipsis(inputs, output, input_rank, equation)
        for name, letters, rank in (
            ("kernel", kernel, len(shape)),
            ("input", inputs, input_rank),
            ("output", output, None),
        ):
            if len(set(letters)) != len(letters) or (rank is not None and len(letters) != rank):
                raise ValueError(
                    f"expected einsum equation {equation!r} to give the {name} one distinct letter "
                    f"an axis{'' if rank is None else f' (rank {rank})'}, got {letters!r}"
                )
        shared = [c for c in kernel if c in inputs and c in output]
        if shared:
            raise ValueError(
                f"expected a kernel without a batch axis in einsum equation {equation!r}, got axis "
                f"{shared[0]!r} in input, kernel and output; such a layer is many products, not "
                "one: leave it in float (skip)"
            )
        lonely = [c for c in kernel if c not in inputs and c not in output]
        lonely += [c for c in inputs if c not in kernel and c not in output]
        lonely += [c for c in output if c not in kernel and c not in inputs]
        if lonely:
            raise ValueError(
                f"expected every axis of einsum equation {equation!r} in two of input, kernel and "
                f"output, got {lonely[0]!r} in one only"
            )
        # k in the input's order and n in the output's: then activations are rarely transposed;
        # the kernel is, once, when it is frozen.
        k_letters = [c for c in inputs if c in kernel]
        n_letters = [c for c in output if c in kernel]
        free = [c for c in output if c in inputs]
        if not k_letters:
            raise ValueError(
                f"expected einsum equation {equation!r} to sum over an axis, got none shared by "
                "input and kernel"
            )
        produced = free + n_letters
        return cls(
            shape,
            n_axes=tuple(kernel.index(c) for c in n_letters),
            k_axes=tuple(kernel.index(c) for c in k_letters),
            input_permutation=tuple(inputs.index(c) for c in free + k_letters),
            output_permutation=tuple(produced.index(c) for c in output),
        )

    # Sizes.

    @property
    def n(self) -> int:
        """Rows of W: outputs."""
        return math.prod(self.kernel_shape[a] for a in self.n_axes)

    @property
    def k(self) -> int:
        """Columns of W: inputs of one output."""
        return math.prod(self.kernel_shape[a] for a in self.k_axes)

    # Kernel <-> W.

    def to_matrix(self, x: Any) -> Any:
        """Kernel (array or tensor of `kernel_shape`) -> W[n, k], same dtype."""
        x = _as_array(x)
        if tuple(x.shape) != self.kernel_shape:
            raise ValueError(
                f"expected a kernel of shape {self.kernel_shape}, got {tuple(x.shape)}"
            )
        return _reshape(_transpose(x, self.n_axes + self.k_axes), [self.n, self.k])

    def from_matrix(self, x: Any) -> Any:
        """W[n, k] (array or tensor) -> kernel of `kernel_shape`, same dtype."""
        x = _as_array(x)
        if tuple(x.shape) != (self.n, self.k):
            raise ValueError(f"expected a matrix of shape {(self.n, self.k)}, got {tuple(x.shape)}")
        order = self.n_axes + self.k_axes
        inverse = tuple(int(a) for a in np.argsort(order))
        return _transpose(_reshape(x, [self.kernel_shape[a] for a in order]), inverse)

    # Input and output of the product.

    def input_to_rows(self, x: Any) -> Any:
        """Layer input -> [..., k], so that the layer is `rows @ W.T` (dense and einsum layouts)."""
        if self.input_permutation is None:
            return x
        x = _transpose(x, self.input_permutation)
        dims = _dims(x)
        if len(self.k_axes) > 1:
            x = _reshape(x, [*dims[: len(dims) - len(self.k_axes)], self.k])
        return x

    def rows_to_output(self, y: Any) -> Any:
        """[..., n] -> layer output (dense and einsum layouts)."""
        if self.output_permutation is None:
            return y
        if len(self.n_axes) != 1:
            y = _reshape(y, [*_dims(y)[:-1], *(self.kernel_shape[a] for a in self.n_axes)])
        return _transpose(y, self.output_permutation)

    def bias_to_vector(self, bias: Any) -> np.ndarray:
        """A bias that the layer adds to its output (broadcast from the right) -> [n].

        Raises:
          ValueError: if the bias varies along an axis that is not part of n.
        """
        bias = np.asarray(bias)
        n_dims = [self.kernel_shape[a] for a in self.n_axes]
        if self.output_permutation is None:
            permutation: tuple[int, ...] = (0,)
            free = 0
        else:
            permutation = self.output_permutation
            free = len(permutation) - len(n_dims)
        rank = len(permutation)
        full = bias.reshape((1,) * (rank - bias.ndim) + bias.shape)
        full = np.transpose(full, np.argsort(permutation))
        if full.ndim != rank or any(dim != 1 for dim in full.shape[:free]):
            raise ValueError(
                f"expected a bias that varies only along the {n_dims} outputs of the kernel, got "
                f"shape {bias.shape}; leave such a layer in float (skip)"
            )
        return np.ascontiguousarray(np.broadcast_to(full, [1] * free + n_dims).reshape(self.n))

    # Serialization.

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON-ready lists."""
        return {
            field.name: None if value is None else list(value)
            for field in dataclasses.fields(self)
            for value in (getattr(self, field.name),)
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KernelLayout:
        """The inverse of `get_config`."""
        return cls(**config)


def _checked_shape(shape: Any, what: str, ranks: tuple[int, ...]) -> tuple[int, ...]:
    dims = tuple(shape)
    if len(dims) not in ranks or any(dim is None for dim in dims):
        raise ValueError(f"expected {what} with known dimensions, got shape {dims}")
    return tuple(int(dim) for dim in dims)


def _without_ellipsis(inputs: str, output: str, rank: int, equation: str) -> tuple[str, str]:
    """Replaces "..." by letters, as many as the input's rank asks for."""
    if ("..." in inputs) != ("..." in output):
        raise ValueError(
            f'expected "..." in both input and output of einsum equation {equation!r} or in neither'
        )
    if "..." not in inputs:
        return inputs, output
    count = rank - (len(inputs) - 3)
    if count < 0:
        raise ValueError(
            f"expected an input of rank {len(inputs) - 3} or more for einsum equation "
            f"{equation!r}, got rank {rank}"
        )
    # Digits cannot clash with the letters of the equation; einsum itself is never called on them.
    if count > 10:
        raise ValueError(f"expected at most 10 axes in the ellipsis of {equation!r}, got {count}")
    fill = "0123456789"[:count]
    return inputs.replace("...", fill), output.replace("...", fill)
