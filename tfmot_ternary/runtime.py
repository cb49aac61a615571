"""Interpreters: the stock TF Lite and LiteRT interpreters with the tfmot_ternary ops in them.

Stands alone: a device that only runs models needs NumPy, one of the two interpreters and the shared
library. Importing this module imports neither TensorFlow nor tfmot.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import mmap
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from tfmot_ternary import model_structure

__all__ = ["BACKENDS", "REGISTRATIONS", "make_interpreter", "ops_library"]

BACKENDS = ("litert", "tf")
REGISTRATIONS = ("delegate", "resolver")

LIBRARY_NAME = "libtfmot_ternary_ops.so"
LIBRARY_VARIABLE = "TFMOT_TERNARY_OPS_LIBRARY"
REGISTER_SYMBOL = "TfmotTernaryRegisterOps"

# Smaller files are read where they cannot be mapped without more work.
SMALLEST_MAPPED = 1 << 20

PACKAGES = {"litert": "ai_edge_litert", "tf": "tensorflow"}


def ops_library() -> pathlib.Path:
    """Path of the shared library with the custom ops.

    It has the OpResolver symbol `TfmotTernaryRegisterOps` and the entry points of an external
    delegate, `tflite_plugin_create_delegate` and `tflite_plugin_destroy_delegate`. The environment
    variable TFMOT_TERNARY_OPS_LIBRARY overrides the place next to this module.

    Raises:
      FileNotFoundError: there is no such file.
    """
    override = os.environ.get(LIBRARY_VARIABLE)
    path = pathlib.Path(override) if override else pathlib.Path(__file__).with_name(LIBRARY_NAME)
    if not path.is_file():
        where = f" (from {LIBRARY_VARIABLE})" if override else ""
        raise FileNotFoundError(
            f"expected the library of custom ops at {path}{where}, got no file; build it with "
            "`python custom_ops/build.py` in a source tree, or `pip install` the package"
        )
    return path.resolve()


def make_interpreter(
    model: str | os.PathLike[str] | bytes,
    num_threads: int | None = None,
    backend: str | None = None,
    registration: str | None = None,
) -> Any:
    """A stock interpreter that knows the tfmot_ternary ops.

    The default delegates of the runtime (XNNPACK) stay active for all other ops. As always with
    these interpreters, `allocate_tensors()` comes before the first `invoke()`; a model whose ops do
    not fit together is refused there, with a RuntimeError that names the op.

    Args:
      model: path of a .tflite file, or its bytes. A file is mapped, so that packed weights are used
        in place; with "tf" one whose constants do not lie behind its graph is read (files of this
        package are mapped).
      num_threads: threads for our ops and the builtin ones, at least 1; None leaves the choice to
        the interpreter (one thread in Python).
      backend: "litert" (the ai-edge-litert package, default where installed) or "tf" (tensorflow).
      registration: how the ops get in: "delegate" (the external delegate; default and only way for
        "litert") or "resolver" (the OpResolver symbol; default for "tf"). The numbers are the same.

    Returns:
      An `ai_edge_litert.interpreter.Interpreter` or a `tf.lite.Interpreter`.

    Raises:
      FileNotFoundError: no such model file, or no library of custom ops.
      OSError: the library of custom ops does not load.
      ImportError: the package of the backend is not installed.
      TypeError: `model` is neither a path nor bytes, or num_threads is no integer.
      ValueError: unknown backend or registration, num_threads below 1, or not a whole .tflite file.
    """
    source = _check_model(model)
    _check_num_threads(num_threads)
    backend = _choose_backend(backend)
    registration = _choose_registration(registration, backend)
    if backend == "tf" and "model_path" in source:
        source = _verified_by_tf(pathlib.Path(source["model_path"]))
    library = ops_library()
    _load_library(library, ctypes.RTLD_GLOBAL if registration == "resolver" else ctypes.RTLD_LOCAL)
    make = _make_litert if backend == "litert" else _make_tf
    try:
        return make(library, registration, num_threads, source)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"expected a model that {PACKAGES[backend]} can load, got {_describe(model)}: {error}"
        ) from error


def _load_library(library: pathlib.Path, mode: int) -> None:
    """Loads the library for good. The backends load it again, with less to say when that fails."""
    try:
        ctypes.CDLL(str(library), mode=mode)
    except OSError as error:
        raise OSError(
            f"expected a library of custom ops for this machine at {library}, got: {error}; build "
            "it with `python custom_ops/build.py`"
        ) from error


def _make_litert(
    library: pathlib.Path, registration: str, num_threads: int | None, source: dict[str, Any]
) -> Any:
    from ai_edge_litert import interpreter as litert

    delegate = litert.load_delegate(str(library))
    return litert.Interpreter(**source, num_threads=num_threads, experimental_delegates=[delegate])


def _make_tf(
    library: pathlib.Path, registration: str, num_threads: int | None, source: dict[str, Any]
) -> Any:
    from tensorflow.lite.python import interpreter as tf_lite

    with _quiet():
        if registration == "delegate":
            delegate = tf_lite.load_delegate(str(library))
            return tf_lite.Interpreter(
                **source, num_threads=num_threads, experimental_delegates=[delegate]
            )
        # The interpreter looks the symbol up by name in the whole process: hence RTLD_GLOBAL above.
        return tf_lite.InterpreterWithCustomOps(
            custom_op_registerers=[REGISTER_SYMBOL], **source, num_threads=num_threads
        )


def _verified_by_tf(path: pathlib.Path) -> dict[str, Any]:
    """The interpreter's argument for a file: its path, if TensorFlow has verified its graph.

    TensorFlow 2.21 maps files unverified: an edited one gives wrong numbers or a crash. It verifies
    bytes, so it gets those of the graph first; the places of the constants were checked before. A
    file whose constants do not lie behind its graph is read instead.
    """
    from tensorflow.lite.python import interpreter as tf_lite

    if path.stat().st_size >= SMALLEST_MAPPED:
        with _mapped(path) as content:
            graph = model_structure.graph_of(content)
        if graph is not None:
            with contextlib.suppress(ValueError, RuntimeError), _quiet():
                tf_lite.Interpreter(model_content=graph)
                return {"model_path": str(path)}
    return {"model_content": path.read_bytes()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow points to ai-edge-litert, which the caller has already decided upon."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated.*")
        yield


def _describe(model: Any) -> str:
    if isinstance(model, (bytes, bytearray, memoryview)):
        return f"a model of {len(model)} bytes in memory"
    return repr(os.fspath(model))


def _check_model(model: Any) -> dict[str, Any]:
    """The interpreter's argument for the model; raises unless it starts like a .tflite file."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        content = bytes(model)
        model_structure.check(content, _describe(model))
        return {"model_content": content}
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"expected the model as a path or as bytes, got {type(model).__name__}")
    path = pathlib.Path(model)
    if path.is_dir():
        raise ValueError(f"expected a .tflite file, got the directory {str(path)!r}")
    if not path.is_file():
        raise FileNotFoundError(f"expected a .tflite file at {str(path)!r}, got no file")
    with _mapped(path) as content:
        model_structure.check(content, _describe(model))
    return {"model_path": str(path)}


@contextlib.contextmanager
def _mapped(path: pathlib.Path) -> Iterator[Any]:
    """The bytes of a file, mapped."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # cannot be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _check_num_threads(num_threads: Any) -> None:
    if num_threads is None:
        return
    if isinstance(num_threads, bool) or not isinstance(num_threads, int):
        raise TypeError(f"expected num_threads as an int or None, got {num_threads!r}")
    if num_threads < 1:
        raise ValueError(f"expected num_threads of at least 1, got {num_threads}")


def _choose_backend(backend: str | None) -> str:
    installed = [name for name in BACKENDS if importlib.util.find_spec(PACKAGES[name]) is not None]
    if backend is None:
        if not installed:
            raise ImportError(
                "expected an interpreter package, got none; install ai-edge-litert or tensorflow"
            )
        return installed[0]
    if backend not in BACKENDS:
        raise ValueError(f"expected backend to be one of {BACKENDS}, got {backend!r}")
    if backend not in installed:
        package = PACKAGES[backend].replace("_", "-")
        raise ImportError(
            f"expected the package {package} for backend {backend!r}, got none; install it"
        )
    return backend


def _choose_registration(registration: str | None, backend: str) -> str:
    if registration is None:
        return "delegate" if backend == "litert" else "resolver"
    if registration not in REGISTRATIONS:
        raise ValueError(
            f"expected registration to be one of {REGISTRATIONS}, got {registration!r}"
        )
    if registration == "resolver" and backend == "litert":
        raise ValueError(
            "expected registration 'delegate' with backend 'litert', got 'resolver'; the LiteRT "
            "package takes no custom ops through its OpResolver"
        )
    return registration
