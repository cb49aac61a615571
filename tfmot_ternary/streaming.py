"""Streaming: a KerasHub preset becomes a frozen skeleton and packed arrays, a matrix at a time.

What comes out equals, byte for byte, `freeze(quantize_apply(model, scheme))` of the loaded model,
but neither the model nor its packed weights are ever in memory as a whole.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from tfmot_ternary import initializers
from tfmot_ternary.freezing import pack_kernel
from tfmot_ternary.freezing_keras3 import FrozenModel
from tfmot_ternary.keras3 import chosen_layers
from tfmot_ternary.keras3_layers import layout_of
from tfmot_ternary.keras3_storage import (
    FloatStorage,
    float_kernel,
    head_layout,
    layer_config,
    storage_configs,
)
from tfmot_ternary.keras3_structure import Structure, float_config, nested_layers
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packing import FORMATS, PackedWeights, row_bytes, scale_shape
from tfmot_ternary.partial_folder import PartialFolder
from tfmot_ternary.preset_weights import PresetWeights
from tfmot_ternary.skeleton import WithoutWeights
from tfmot_ternary.weight_storage import WeightStorage, pack_rows

__all__ = ["PackedModel", "pack_preset"]

# Threads that pack (NumPy's sorts and sums run beside each other), and matrices that wait for one.
_WORKERS = 2
_WAITING = 1
# Arrays of more bytes lie on the disk.
_IN_MEMORY = 1 << 20


@dataclasses.dataclass(frozen=True)
class PackedModel:
    """A frozen model whose weights lie on the disk.

    Attributes:
      causal_lm: the frozen task, a skeleton.
      weights: (variable of `causal_lm`, its value), memory-mapped where large.
      folder: where the arrays lie; remove it when they are not needed any more.
      matrices: number of packed matrices.
      elements: their float weights.
      seconds, cpu_seconds: what packing them took, reading and writing included, by the clock and
        by the processors (less than twice the clock's where the machine does other work too).
    """

    causal_lm: Any
    weights: list[tuple[keras.Variable, np.ndarray]]
    folder: PartialFolder
    matrices: int
    elements: int
    seconds: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """One matrix to pack: its float variable, and how.

    `attributes` are the names of the packed layer's variables for codes and scales.
    """

    name: str
    index: int
    variable: keras.Variable
    layout: KernelLayout
    storage: WeightStorage
    initializer: Any
    attributes: tuple[str, str]

    @property
    def nbytes(self) -> int:
        n, k, storage = self.layout.n, self.layout.k, self.storage
        scales = math.prod(scale_shape(n, k, storage.group_size))
        return n * row_bytes(k, storage.weight_format) + 4 * scales

    def pack(self, array: np.ndarray) -> PackedWeights:
        # In the type of the disk; rows of a transposed view would be gathered again and again.
        matrix = np.ascontiguousarray(self.layout.to_matrix(array))
        weight_format, group_size = self.storage.weight_format, self.storage.group_size
        if group_size != "tensor":
            return pack_rows(matrix, self.storage, self.name, self.initializer)
        levels = FORMATS[weight_format].levels
        scales = initializers.initial_scales(
            matrix, levels, group_size, self.initializer, name=self.name
        )
        rows = KernelLayout.embedding(matrix.shape)
        return pack_kernel(matrix, scales, rows, levels, group_size, weight_format, self.name)


def pack_preset(
    source: str,
    output: str,
    scheme: Any,
    weight_format: str | None = None,
    *,
    tables: str | None = None,
    others: str | None = None,
    progress: bool = True,
) -> PackedModel:
    """Packs a preset's weights into the folder `<output>.partial`, or goes on with that.

    Args:
      source: a KerasHub preset of a CausalLM, see `model_source.load`.
      output: the file that is to be made of it; the folder lies beside it.
      scheme: `TernaryScheme` or `BinaryScheme`.
      weight_format, tables, others: as in `freezing.freeze`.
      progress: whether to show a bar.

    Returns:
      The frozen skeleton and its weights.

    Raises:
      ValueError: no such preset, weights that are missing or not finite, nothing to quantize.
      OSError: the disk is full; what is done stays in the folder.
    """
    print("read the preset")
    weights = PresetWeights(source)
    model = weights.causal_lm
    configs, matrices = _plan(model, scheme, weight_format, tables, others)
    folder = PartialFolder(output, _settings(weights, scheme, matrices))
    start, cpu_start = time.monotonic(), time.process_time()
    arrays = _pack(weights, matrices, folder, progress)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start
    structure = Structure(float_config(model), configs)
    with WithoutWeights():
        FrozenModel.restructure(model, configs)
    FrozenModel.adopt(model, structure)
    nested = list(nested_layers(model))
    pairs = [
        (variable, arrays[id(variable)]) for variable in model.weights if id(variable) in arrays
    ]
    for matrix in matrices:
        layer = nested[matrix.index][1]
        for attribute in matrix.attributes:
            pairs.append((getattr(layer, attribute), arrays[matrix.name, attribute]))
    elements = sum(math.prod(matrix.layout.kernel_shape) for matrix in matrices)
    return PackedModel(model, pairs, folder, len(matrices), elements, seconds, cpu_seconds)


def _plan(
    model: keras.Model, scheme: Any, weight_format: str | None, tables: Any, others: Any
) -> tuple[list[dict[str, Any]], list[_Matrix]]:
    """What `FrozenModel.restructure` needs to know, and the matrices in the model's order."""
    quantized = WeightStorage(
        "b1" if scheme.levels == 2 else weight_format or "t2", scheme.group_size
    )
    storage = FloatStorage(model, tables, others)
    nested = list(nested_layers(model))
    chosen = chosen_layers(model, scheme)
    configs = [
        layer_config(index, quantized, "int8", storage.head(nested[index][1])) for index in chosen
    ]
    configs += storage_configs(model, storage, chosen, "int8")
    configs.sort(key=lambda config: config["index"])
    matrices = []
    for config in configs:
        index = config["index"]
        path, layer = nested[index]
        matrices.append(
            _Matrix(
                path,
                index,
                float_kernel(layer),
                layout_of(layer),
                WeightStorage(config["weight_format"], config["group_size"]),
                scheme.initializer if index in chosen else None,
                ("packed", "scales"),
            )
        )
        if "head" in config:
            head = WeightStorage(config["head"]["weight_format"], config["head"]["group_size"])
            matrices.append(
                _Matrix(
                    f"the head of {path}",
                    index,
                    layer.reverse_embeddings,
                    head_layout(layer),
                    head,
                    None,
                    ("head_packed", "head_scales"),
                )
            )
    return configs, matrices


def _settings(weights: PresetWeights, scheme: Any, matrices: Sequence[_Matrix]) -> dict[str, Any]:
    return {
        "version": 1,
        "weights": weights.digest,
        "initializer": initializers.serialize(scheme.initializer),
        "matrices": [  # not by name: Keras numbers some of them anew in each process
            [m.index, m.attributes, dataclasses.astuple(m.storage), m.initializer is None]
            for m in matrices
        ],
    }


def _pack(
    weights: PresetWeights, matrices: Sequence[_Matrix], folder: PartialFolder, progress: bool
) -> dict[Any, np.ndarray]:
    """Arrays by the id of a float variable, or by (matrix' name, attribute)."""
    arrays: dict[Any, np.ndarray] = {}
    todo: dict[int, _Matrix] = {}
    for number, matrix in enumerate(matrices):
        stored = [folder.load(f"{number}.{attribute}") for attribute in matrix.attributes]
        if any(array is None for array in stored):
            todo[id(matrix.variable)] = matrix
        for attribute, array in zip(matrix.attributes, stored, strict=True):
            if array is not None:
                arrays[matrix.name, attribute] = array
    done = len(matrices) - len(todo)
    if folder.begun_anew:
        print(f"{folder.path} was of another request or preset: begin anew")
    elif done:
        print(f"go on in {folder.path}: {done} of {len(matrices)} matrices are packed")
    folder.require_room(sum(matrix.nbytes for matrix in todo.values()))
    numbers = {matrix.name: number for number, matrix in enumerate(matrices)}
    handled = {id(matrix.variable) for matrix in matrices}
    total = sum(math.prod(matrix.layout.kernel_shape) for matrix in todo.values())
    bar = tqdm(
        total=total,
        desc="pack",
        unit=" weights",
        unit_scale=True,
        disable=not progress,
        file=sys.stderr,
    )
    lock = threading.Lock()

    def pack(matrix: _Matrix, array: np.ndarray) -> None:
        packed = matrix.pack(array)
        number = numbers[matrix.name]
        names = [f"{number}.{attribute}" for attribute in matrix.attributes]
        saved = folder.save({names[0]: packed.packed, names[1]: packed.scales})
        with lock:
            for attribute, name in zip(matrix.attributes, names, strict=True):
                arrays[matrix.name, attribute] = saved[name]
            bar.set_postfix_str(matrix.name, refresh=False)
            bar.update(array.size)

    with bar, _Workers() as workers:

        def consume(variable: keras.Variable, array: np.ndarray) -> None:
            matrix = todo.get(id(variable))
            if matrix is not None:
                workers.submit(pack, matrix, array)
            elif id(variable) not in handled:
                array = array.astype(np.float32)
                if array.nbytes > _IN_MEMORY:
                    name = f"float.{len(arrays)}"
                    array = folder.save({name: array})[name]
                arrays[id(variable)] = array

        weights.stream(consume)
    return arrays


class _Workers:
    """A few threads; `submit` waits while all are busy, and raises what one of them has raised."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS)
        self._pending: set[Future[None]] = set()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._take(self._pending)

    def submit(self, function: Any, *arguments: Any) -> None:
        while len(self._pending) >= _WORKERS + _WAITING:
            self._take(wait(self._pending, return_when=FIRST_COMPLETED).done)
        self._take({future for future in self._pending if future.done()})
        self._pending.add(self._pool.submit(function, *arguments))

    def _take(self, done: set[Future[None]]) -> None:
        self._pending = self._pending - done
        for future in done:
            future.result()
