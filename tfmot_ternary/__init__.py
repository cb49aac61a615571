"""Ternary and binary neural networks for the TensorFlow Model Optimization toolkit.

The public names are re-exported lazily (PEP 562), so that importing one submodule never drags in
what the others need: `tfmot_ternary.runtime` runs on a device that has NumPy, an interpreter and
our shared library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the submodule that defines it.
_EXPORTS = {
    "AbsMaxInitializer": "initializers",
    "AbsMeanInitializer": "initializers",
    "BinaryQuantizeConfig": "quantize_config",
    "BinaryQuantizer": "quantizers",
    "BinaryScheme": "scheme",
    "Calibration": "calibration",
    "Distiller": "distill",
    "GradualQuantization": "gradual_quantization",
    "KMeansInitializer": "initializers",
    "LayerHessian": "layer_hessian",
    "PackedWeights": "packing",
    "ScaleInitializer": "initializers",
    "TWNInitializer": "initializers",
    "TeacherOutputs": "teacher_outputs",
    "TernaryQuantizeConfig": "quantize_config",
    "TernaryQuantizer": "quantizers",
    "TernaryScheme": "scheme",
    "calibrate": "calibration",
    "convert": "conversion",
    "freeze": "freezing",
    "from_keras_ternary": "keras_ternary",
    "quantize_apply": "apply",
    "quantize_scope": "scheme",
}
# Submodules that are public under their own names (`tt.runtime.make_interpreter`).
_SUBMODULES = ("packing", "runtime", "vlm")

__all__ = ["__version__", *sorted(_EXPORTS), *_SUBMODULES]

if TYPE_CHECKING:  # what type checkers and editors see; nothing of this runs
    from tfmot_ternary import packing, runtime, vlm
    from tfmot_ternary.apply import quantize_apply
    from tfmot_ternary.calibration import Calibration, calibrate
    from tfmot_ternary.conversion import convert
    from tfmot_ternary.distill import Distiller
    from tfmot_ternary.freezing import freeze
    from tfmot_ternary.gradual_quantization import GradualQuantization
    from tfmot_ternary.initializers import (
        AbsMaxInitializer,
        AbsMeanInitializer,
        KMeansInitializer,
        ScaleInitializer,
        TWNInitializer,
    )
    from tfmot_ternary.keras_ternary import from_keras_ternary
    from tfmot_ternary.layer_hessian import LayerHessian
    from tfmot_ternary.packing import PackedWeights
    from tfmot_ternary.quantize_config import BinaryQuantizeConfig, TernaryQuantizeConfig
    from tfmot_ternary.quantizers import BinaryQuantizer, TernaryQuantizer
    from tfmot_ternary.scheme import BinaryScheme, TernaryScheme, quantize_scope
    from tfmot_ternary.teacher_outputs import TeacherOutputs


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
