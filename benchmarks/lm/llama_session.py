"""A decoder in llama.cpp, through llama-cpp-python's C bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from benchmarks.subject import NotMeasured

_CACHE_TYPES = {"float32": 0, "float16": 1, "int8": 8}  # of enum ggml_type


def describe() -> dict[str, str]:
    return {"package": f"llama-cpp-python {metadata.version('llama-cpp-python')}"}


class LlamaSession:
    """A GGUF file loaded with llama.cpp's defaults: mapped, CPU only, its own choice of kernels.

    Args:
      path: the GGUF file.
      threads: for prefill and decode.
      context: positions of the KV cache.
      cache_type: "float32", "float16" (llama.cpp's default) or "int8" (its Q8_0).
    """

    def __init__(self, path: str, threads: int, context: int, cache_type: str) -> None:
        try:
            from llama_cpp import llama_cpp
        except ImportError as error:
            raise NotMeasured(f"llama-cpp-python: {error}") from error
        self._api: Any = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise NotMeasured(f"llama.cpp does not load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_batch = context
        settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = _CACHE_TYPES[cache_type]
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise NotMeasured(f"llama.cpp makes no context for {path}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Runs a prompt from position 0. Returns the logits behind it."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        return self._run(tokens)

    def decode(self, token: int) -> np.ndarray:
        """Runs one token behind the last. Returns the logits behind it."""
        return self._run([token])

    def _run(self, tokens: Sequence[int]) -> np.ndarray:
        array = (self._api.llama_token * len(tokens))(*tokens)
        code = self._api.llama_decode(
            self._context, self._api.llama_batch_get_one(array, len(tokens))
        )
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,))

    def close(self) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)
