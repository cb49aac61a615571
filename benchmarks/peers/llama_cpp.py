"""llama.cpp's matrix products: ggml graphs of MUL_MAT on the CPU, weights where llama.cpp puts
them (its AMX or interleaved buffers where they take the format, else as stored).

Some builds crash in a product on their AMX buffers (llama.cpp's issue 20824); each type of buffer
is therefore tried in a process of its own first, and left out where that dies.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from importlib import metadata

import numpy as np

from benchmarks import weights
from benchmarks.cases import Case, Kind
from benchmarks.peers import ggml
from benchmarks.subject import NotMeasured, Subject

# Of one graph of a walk.
_GRAPH_BYTES = 512 << 20
# Products of a graph that decodes: in llama.cpp the cost of a graph is shared by a model's layers.
_DECODE_PRODUCTS = 8


@functools.cache
def _library() -> ggml.Ggml:
    return ggml.Ggml()


# The product that a type of buffer is tried with.
_TRIAL = Case(Kind.PRODUCT, 16, 256, 256)


@functools.cache
def _working_buffers() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The types of buffers that survive the trial, and the names of the others."""
    works, fails = [], []
    for index, buffer_type in enumerate(_library().extra):
        command = [sys.executable, "-m", "benchmarks.peers.llama_cpp", str(index)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            works.append(buffer_type)
        else:
            fails.append(_library().backend_buft_name(buffer_type).decode())
    return tuple(works), tuple(fails)


def describe() -> dict[str, str]:
    try:
        library = _library()
    except NotMeasured as reason:
        return {"not measured": str(reason)}
    working, crashing = _working_buffers()
    return {
        "package": f"llama-cpp-python {metadata.version('llama-cpp-python')}",
        "ggml": library.version().decode(),
        "buffers": ", ".join(library.backend_buft_name(b).decode() for b in working) or "plain",
        "buffers left out, because a product on them crashes": ", ".join(crashing) or "none",
    }


def prepare(case: Case, variant: str, threads: int) -> Subject:
    library = _library()
    kind = ggml.TYPES[variant]
    block = library.blck_size(kind)
    if case.k % block:
        raise NotMeasured(f"k is not a multiple of {block}")
    return _Graphs(library, case, kind, threads, _working_buffers()[0])


class _Graphs(Subject):
    """Graphs of products with one x; a run computes one of them.

    Each product has its own output and, in a walk, its own weights.
    """

    def __init__(
        self, library: ggml.Ggml, case: Case, kind: int, threads: int, buffers: tuple[int, ...]
    ) -> None:
        self._library = library
        self._buffers: list[int] = []
        self._contexts: list[int] = []
        self._backend = library.backend(threads)
        dense = weights.matrix(case).dense()
        packed = library.quantize(kind, dense)
        held = self._held(case, kind, packed)
        self.weight_bytes = packed.nbytes
        x = weights.activations(case)
        self.products, graphs = (_DECODE_PRODUCTS if case.m == 1 else 1), 1
        if case.kind is Kind.WALK:
            graphs = max(2, -(-case.walk_bytes // _GRAPH_BYTES))
            self.products = -(-case.walk_bytes // (graphs * packed.nbytes))
        buffer_type = self._buffer_type(case, kind, buffers)
        built = [self._graph(case, kind, buffer_type, packed, x) for _ in range(graphs)]
        self._graphs = [graph for graph, _ in built]
        self._turn = 0
        for graph, last in built:
            library.backend_graph_compute(self._backend, graph)
            y = library.get(last, (case.m, case.n))
            self.error = weights.relative_error(case, held, x, y)

    def _context(self, tensors: int, graph_size: int = 0) -> int:
        self._contexts.append(self._library.context(tensors, graph_size))
        return self._contexts[-1]

    def _allocate(self, context: int, buffer_type: int) -> None:
        buffer = self._library.backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise NotMeasured("not enough memory")
        self._buffers.append(buffer)

    def _buffer_type(self, case: Case, kind: int, candidates: tuple[int, ...]) -> int:
        """The first type of buffer that takes this product, as llama.cpp's loader chooses."""
        library = self._library
        for buffer_type in candidates:
            context = self._context(3)
            matrix = library.new_tensor_2d(context, kind, case.k, case.n)
            self._allocate(context, buffer_type)
            x = library.new_tensor_2d(context, ggml.F32, case.k, case.m)
            product = library.mul_mat(context, matrix, x)
            if library.backend_dev_supports_op(library.device, product):
                return buffer_type
        return library.plain

    def _graph(
        self, case: Case, kind: int, buffer_type: int, packed: np.ndarray, x: np.ndarray
    ) -> tuple[int, int]:
        """A graph and its last product."""
        library, count = self._library, self.products
        own_weights = case.kind is Kind.WALK
        holder = self._context(count if own_weights else 1)
        matrices = [
            library.new_tensor_2d(holder, kind, case.k, case.n)
            for _ in range(count if own_weights else 1)
        ]
        self._allocate(holder, buffer_type)
        for matrix in matrices:
            library.set(matrix, packed)
        size = 2 * count + 16  # products and leaves
        context = self._context(count + 1, size)
        rows = library.new_tensor_2d(context, ggml.F32, case.k, case.m)
        products = [
            library.mul_mat(context, matrices[i % len(matrices)], rows) for i in range(count)
        ]
        graph = library.new_graph_custom(context, size, False)
        for product in products:
            library.build_forward_expand(graph, product)
        self._allocate(context, library.plain)
        library.set(rows, x)
        return graph, products[-1]

    def _held(self, case: Case, kind: int, packed: np.ndarray) -> np.ndarray:
        """The weights that the format really holds: ggml's own look-up of all rows."""
        library = self._library
        context = self._context(3, 16)
        matrix = library.new_tensor_2d(context, kind, case.k, case.n)
        ids = library.new_tensor_1d(context, ggml.I32, case.n)
        rows = library.get_rows(context, matrix, ids)
        graph = library.new_graph_custom(context, 16, False)
        library.build_forward_expand(graph, rows)
        self._allocate(context, library.plain)
        library.set(matrix, packed)
        library.set(ids, np.arange(case.n, dtype=np.int32))
        library.backend_graph_compute(self._backend, graph)
        return library.get(rows, (case.n, case.k))

    def run(self) -> None:
        self._library.backend_graph_compute(self._backend, self._graphs[self._turn])
        self._turn = (self._turn + 1) % len(self._graphs)

    def close(self) -> None:
        for buffer in self._buffers:
            self._library.backend_buffer_free(buffer)
        for context in self._contexts:
            self._library.free(context)
        self._library.backend_free(self._backend)


if __name__ == "__main__":
    _Graphs(_library(), _TRIAL, ggml.TYPES["Q4_0"], 1, (_library().extra[int(sys.argv[1])],))
