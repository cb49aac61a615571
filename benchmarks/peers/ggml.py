"""The part of ggml's C API that the benchmark calls, from llama-cpp-python's shared libraries.

Tensors, graphs and buffers are opaque pointers here; no struct but ggml_init_params is mirrored.
"""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np

from benchmarks.subject import NotMeasured

F32, I32 = 0, 26  # of enum ggml_type, as TYPES
TYPES = {"Q4_0": 2, "Q8_0": 8, "TQ1_0": 34, "TQ2_0": 35}
_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)
_CPU_DEVICE = 0  # of enum ggml_backend_dev_type
_LIBRARIES = ("ggml-base", "ggml-cpu", "ggml")


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_PROTOTYPES = {
    "ggml_version": (c_char_p, []),
    "ggml_log_set": (None, [c_void_p, c_void_p]),
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_blck_size": (c_int64, [c_int]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_new_tensor_1d": (c_void_p, [c_void_p, c_int, c_int64]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_get_rows": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, POINTER(c_float)],
    ),
    "ggml_backend_dev_by_type": (c_void_p, [c_int]),
    "ggml_backend_dev_init": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_dev_buffer_type": (c_void_p, [c_void_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
}


class Ggml:
    """The loaded libraries: each function of the table above as an attribute without "ggml_".

    Attributes:
      device: the CPU.
      plain: its ordinary type of buffers.
      extra: types whose tensors are rearranged when they are filled (AMX, interleaved rows).
    """

    def __init__(self) -> None:
        libraries = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in _paths()]
        for name, (result, arguments) in _PROTOTYPES.items():
            function = next((getattr(lib, name) for lib in libraries if hasattr(lib, name)), None)
            if function is None:
                raise NotMeasured(f"llama-cpp-python's libraries have no {name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        self.log_set(_LOG, None)  # a line for each weight tensor otherwise
        self.device = self.backend_dev_by_type(_CPU_DEVICE)
        if not self.device:
            raise NotMeasured("llama-cpp-python's libraries have no CPU device")
        self.plain = self.backend_dev_buffer_type(self.device)
        self._registry = self.backend_dev_backend_reg(self.device)
        self.extra = self._extra_buffer_types()

    def __getattr__(self, name: str):  # for type checkers: what __init__ sets
        raise AttributeError(name)

    def _extra_buffer_types(self) -> list[int]:
        address = self.backend_reg_get_proc_address(
            self._registry, b"ggml_backend_dev_get_extra_bufts"
        )
        if not address:
            return []
        listed = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
        types: list[int] = []
        while listed and (pointer := listed[len(types)]) is not None:
            types.append(pointer)
        return types

    def backend(self, threads: int) -> int:
        """A backend whose computations use `threads` threads."""
        backend = self.backend_dev_init(self.device, None)
        address = self.backend_reg_get_proc_address(self._registry, b"ggml_backend_set_n_threads")
        ctypes.CFUNCTYPE(None, c_void_p, c_int)(address)(backend, threads)
        return backend

    def context(self, tensors: int, graph_size: int = 0) -> int:
        """Room for the descriptions of tensors and a graph; their data is allocated later."""
        size = (tensors + 1) * self.tensor_overhead()
        if graph_size:
            size += self.graph_overhead_custom(graph_size, False)
        return self.init(_InitParams(size, None, True))

    def set(self, tensor: int, values: np.ndarray) -> None:
        self.backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)

    def get(self, tensor: int, shape: tuple[int, ...]) -> np.ndarray:
        values = np.empty(shape, np.float32)
        self.backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
        return values

    def quantize(self, kind: int, dense: np.ndarray) -> np.ndarray:
        """The bytes of `dense` [n, k] in the format `kind`."""
        n, k = dense.shape
        packed = np.empty(n * self.row_size(kind, k), np.uint8)
        source = dense.ctypes.data_as(POINTER(c_float))
        self.quantize_chunk(kind, source, packed.ctypes.data, 0, n, k, None)
        return packed


def _paths() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise NotMeasured("the package llama-cpp-python is not installed")
    folder = pathlib.Path(next(iter(spec.submodule_search_locations))) / "lib"
    paths = []
    for name in _LIBRARIES:
        found = [folder / f"lib{name}{suffix}" for suffix in (".so", ".dylib")]
        paths += [path for path in found if path.is_file()][:1]
    if len(paths) < len(_LIBRARIES):
        raise NotMeasured(f"llama-cpp-python has no libggml*.so in {folder}")
    return paths
